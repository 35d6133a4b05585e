"""Locks on folders and files: two runs never write one place, and a dead run holds nothing.

A lock is `flock` on a small hidden file: the kernel frees it however its process ends. The file
names its holder, so that a refusal can; the holder deletes it, or the next run does if the holder
was killed. A file system without locks gives a warning, and nothing is refused there.
"""

from __future__ import annotations

import errno
import json
import logging
import os
import platform
import re
import shlex
import sys
import time
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Self

from synthgen.core.errors import RequestError, StoreError

if sys.platform != "win32":
    import fcntl

if TYPE_CHECKING:
    from collections.abc import Iterator

logger = logging.getLogger(__name__)

LOCK = ".synthgen.lock"
"""How the names of lock files inside a folder begin."""
_WORKER = re.compile(rf"^{re.escape(LOCK)}(?:\.(\d+)-of-(\d+))?$")
_PATIENCE_S = 0.1
"""A lock that is looked at by another process, or is being deleted, seems held for a moment."""
_PAUSE_S = 0.01
_HELD = (errno.EAGAIN, errno.EACCES)
_LONGEST = 160


@dataclass(frozen=True)
class Holder:
    """Who holds a lock, as its file says; empty where the file does not say yet.

    Attributes:
        what: what it does.
        pid: its process.
        host: its machine.
        since: when it started, in UTC.
        command: its command line.
    """

    what: str = ""
    pid: int = 0
    host: str = ""
    since: str = ""
    command: str = ""

    @classmethod
    def here(cls, what: str) -> Self:
        """Return this process."""
        command = shlex.join([Path(sys.argv[0]).name, *sys.argv[1:]]).replace("\n", " ")
        if len(command) > _LONGEST:
            command = f"{command[:_LONGEST]}..."
        since = datetime.now(UTC).strftime("%Y-%m-%d %H:%M:%S UTC")
        return cls(what, os.getpid(), platform.node(), since, command)

    @classmethod
    def read(cls, path: Path) -> Self:
        """Return who wrote a lock file."""
        try:
            return cls(**json.loads(path.read_bytes()))
        except (OSError, ValueError, TypeError):
            return cls()

    def __str__(self) -> str:
        if not self.pid:
            return "another process"
        return f"`{self.command}`, process {self.pid} on {self.host} since {self.since}"


class Claim:
    """A lock that this process holds, until it gives it back.

    Attributes:
        enforced: whether it keeps others out; not on a file system without locks.
    """

    def __init__(self, path: Path, descriptor: int | None) -> None:
        self.enforced = descriptor is not None
        self._path = path
        self._descriptor = descriptor

    @classmethod
    def take(cls, path: Path, holder: Holder, patience_s: float = _PATIENCE_S) -> Self | None:
        """Take a lock; None while another holds it.

        Raises:
            StoreError: the lock file cannot be written.
        """
        deadline = time.monotonic() + patience_s
        while True:
            try:
                descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
            except OSError as error:
                raise StoreError(
                    f"{path.parent}: cannot be written ({error.strerror or error}); make it "
                    "writable or choose another folder"
                ) from error
            try:
                locked = _locked(path, descriptor)
            except OSError as error:
                os.close(descriptor)
                path.unlink(missing_ok=True)
                _warn(path.parent, error)
                return cls(path, None)
            if locked:
                claim = cls(path, descriptor)
                try:
                    os.ftruncate(descriptor, 0)
                    os.pwrite(descriptor, json.dumps(asdict(holder)).encode(), 0)
                except OSError as error:
                    claim.release()
                    raise StoreError(
                        f"{path}: could not be written ({error.strerror or error}); free space, "
                        "then run the command again"
                    ) from error
                return claim
            os.close(descriptor)
            if time.monotonic() >= deadline:
                return None
            time.sleep(_PAUSE_S)

    def release(self) -> None:
        """Delete the lock file and give the lock back; a second time does nothing."""
        if self._descriptor is None:
            return
        descriptor, self._descriptor = self._descriptor, None
        self._path.unlink(missing_ok=True)
        os.close(descriptor)


def _locked(path: Path, descriptor: int) -> bool:
    """Lock an open file, unless it is held or no longer the one of that name.

    Raises:
        OSError: there are no locks.
    """
    if sys.platform == "win32":
        raise OSError(errno.ENOSYS, "no flock on this system")
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        if error.errno in _HELD:
            return False
        raise
    try:
        there = path.stat()
    except FileNotFoundError:
        return False
    mine = os.fstat(descriptor)
    return (mine.st_dev, mine.st_ino) == (there.st_dev, there.st_ino)


class FolderLock:
    """The lock on a folder, held; a worker of several claims the parts of its work with it.

    Attributes:
        folder: the folder.
        enforced: whether the file system has locks.
    """

    def __init__(self, folder: Path, holder: Holder, *, enforced: bool) -> None:
        self.folder = folder
        self.enforced = enforced
        self._holder = holder

    def claim(self, name: str) -> Claim | None:
        """Claim a part of the work by its name; None while another worker has it.

        Raises:
            StoreError: the folder cannot be written.
        """
        path = self.folder / f"{LOCK}.{name}"
        return Claim.take(path, self._holder) if self.enforced else Claim(path, None)

    @contextmanager
    def alone(self, name: str) -> Iterator[None]:
        """Wait until no other worker is inside a block of this name.

        Raises:
            StoreError: the folder cannot be written.
        """
        claim = self.claim(name)
        while claim is None:
            claim = self.claim(name)
        try:
            yield
        finally:
            claim.release()


@contextmanager
def folder_lock(
    folder: Path, what: str, *, worker: int = 0, num_workers: int = 1
) -> Iterator[FolderLock]:
    """Keep a folder for this process, or for the workers of one run.

    Workers share it if they do the same, are as many, and each is another one.

    Args:
        folder: the folder; created when absent.
        what: what is done there, in words; workers of one run say the same.
        worker: number of this worker, from 0.
        num_workers: how many share the folder; 1 for a run that is alone.

    Raises:
        RequestError: another process writes there; it is named.
        StoreError: the folder cannot be created or written.
    """
    _create(folder)
    part = f".{worker + 1}-of-{num_workers}" if num_workers > 1 else ""
    path = folder / f"{LOCK}{part}"
    holder = Holder.here(what)
    claim = Claim.take(path, holder)
    if claim is None:
        raise _refusal(folder, Holder.read(path), worker, num_workers)
    try:
        _refuse_others(folder, path, holder, worker, num_workers)
        yield FolderLock(folder, holder, enforced=claim.enforced)
    finally:
        _sweep(folder, path)
        claim.release()


@contextmanager
def file_lock(path: Path, what: str) -> Iterator[bool]:
    """Keep a file, or a folder that is replaced as a whole, for this process.

    The lock file stands beside it. The block gets whether the file system has locks.

    Raises:
        RequestError: another process writes it; it is named.
        StoreError: the folder around it cannot be created or written.
    """
    _create(path.parent)
    beside = path.with_name(f".{path.name}{LOCK}")
    claim = Claim.take(beside, Holder.here(what))
    if claim is None:
        raise _refusal(path, Holder.read(beside), 0, 1)
    try:
        yield claim.enforced
    finally:
        claim.release()


def _create(folder: Path) -> None:
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise StoreError(f"{folder}: cannot be created ({error.strerror or error})") from error


def _refuse_others(folder: Path, own: Path, holder: Holder, worker: int, num_workers: int) -> None:
    """Refuse to work beside another run, or beside workers of another division."""
    for path in sorted(folder.glob(f"{LOCK}*")):
        match = _WORKER.match(path.name)
        if path == own or match is None:
            continue
        there = Holder.read(path)
        if int(match[2] or 1) == num_workers and there.what in ("", holder.what):
            continue
        # Only what a live process holds counts.
        stale = Claim.take(path, holder)
        if stale is None:
            raise _refusal(folder, there, worker, num_workers, int(match[2] or 1))
        stale.release()


def _sweep(folder: Path, own: Path) -> None:
    """Delete the lock files that killed processes left."""
    for path in folder.glob(f"{LOCK}*"):
        if path == own:
            continue
        try:
            stale = Claim.take(path, Holder(), patience_s=0.0)
        except StoreError:
            continue
        if stale is not None:
            stale.release()


def _refusal(
    place: Path, there: Holder, worker: int, num_workers: int, others: int = 0
) -> RequestError:
    doing = f" ({there.what})" if there.what else ""
    text = f"{place}: {there}, writes there{doing}"
    if num_workers == 1 and others <= 1:
        return RequestError(f"{text}; wait until it ends, or choose another folder")
    who = f"worker {worker + 1} of {num_workers}" if num_workers > 1 else "one run alone"
    if others == 0:
        return RequestError(f"{text} as {who}; every worker of a run has another number")
    beside = f"one of {others} workers" if others > 1 else "a run alone"
    return RequestError(
        f"{text} as {beside}, this is {who}; workers that share a folder are parts of one "
        "command, K of the same N"
    )


def _warn(place: Path, error: OSError) -> None:
    logger.warning(
        "%s: its file system has no locks (%s), so nothing stops a second run there; "
        "start only one",
        place,
        error.strerror or error,
    )
