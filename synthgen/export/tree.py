"""A folder of exported files that is whole or can be completed: claim it, fill it, seal it.

`.synthgen-export.json` is written first, with what is being exported, and again at the end with
`complete: true`. Every other file is put in place by a rename, so what is there is whole.
"""

from __future__ import annotations

import json
from collections import deque
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TYPE_CHECKING, Any, Self

from synthgen.core.errors import RequestError, StoreError
from synthgen.core.input_files import read_json
from synthgen.core.lock import LOCK
from synthgen.core.manifest import canonical_json, write_atomic

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence
    from pathlib import Path
    from types import TracebackType

FORMAT = "synthgen-export/1"
MARKER = ".synthgen-export.json"
_WRITERS = 8


class Tree:
    """The folder of one export.

    Attributes:
        folder: the folder.
    """

    def __init__(self, folder: Path, identity: Mapping[str, Any]) -> None:
        self.folder = folder
        # Through JSON once, so that it compares equal to what is read back.
        self._identity: dict[str, Any] = json.loads(canonical_json(dict(identity)))

    def require_free(self) -> None:
        """Refuse a folder that holds anything but this export, finished or not.

        Raises:
            RequestError: it does.
            StoreError: its marker cannot be read.
        """
        if self.folder.exists() and not self.folder.is_dir():
            raise RequestError(f"{self.folder} is a file; choose another --out")
        # Another process may be about to claim it: its marker is still under another name.
        if not self.folder.is_dir() or all(
            path.name.startswith((f".{MARKER}.", LOCK)) for path in self.folder.iterdir()
        ):
            return
        marker = self.folder / MARKER
        try:
            found = read_json(marker)
        except FileNotFoundError as error:
            raise RequestError(
                f"{self.folder} holds something else; choose another --out, or empty it"
            ) from error
        except (OSError, ValueError) as error:
            raise StoreError(f"{marker}: not readable as JSON ({error})") from error
        there = found.get("identity", {}) if isinstance(found, dict) else {}
        if there == self._identity and found.get("format") == FORMAT:
            return
        differing = [
            f"{key}: there {there.get(key)!r}, asked {self._identity.get(key)!r}"
            for key in sorted({*there, *self._identity})
            if there.get(key) != self._identity.get(key)
        ]
        raise RequestError(
            f"{self.folder} holds another export ({'; '.join(differing) or 'another format'}); "
            "choose another --out, or delete it"
        )

    def claim(self, mine: Callable[[str], bool] = lambda _name: True) -> None:
        """Make the folder this export's own, and sweep what a killed process left half written.

        Args:
            mine: whether this process writes the file of a name, where several share the folder.

        Raises:
            RequestError: it holds something else.
            StoreError: it cannot be written.
        """
        self.require_free()
        self._mkdir(self.folder)
        for leftover in self.folder.rglob(".*.tmp"):
            # `.NAME.PID.tmp`, see `temporary_of`.
            if mine(leftover.name[1:].rsplit(".", 2)[0]):
                leftover.unlink(missing_ok=True)
        if not (self.folder / MARKER).exists():
            self._mark(complete=False)

    def put(self, name: str, data: bytes) -> None:
        """Write one file, whole or not at all.

        Raises:
            StoreError: the disk is full or the folder cannot be written.
        """
        path = self._place(name)
        self._mkdir(path.parent)
        write_atomic(path, data)

    def renew(self, name: str, data: bytes) -> bool:
        """Write a file unless these bytes are there; return whether it was written.

        Raises:
            StoreError: the disk is full or the folder cannot be written.
        """
        path = self._place(name)
        if path.is_file() and path.read_bytes() == data:
            return False
        self.put(name, data)
        return True

    def _place(self, name: str) -> Path:
        """Return where a file of this name lies, which names in the data decide.

        Raises:
            StoreError: not inside the folder.
        """
        parts = name.split("/")  # the first of an absolute name is empty
        if "" in parts or ".." in parts or "\0" in name or "\\" in name:
            raise StoreError(
                f"{self.folder}: refused to write '{name}', which would lie elsewhere; a style, "
                "subject or modality of the data has a name that is none"
            )
        return self.folder / name

    def reopen(self) -> None:
        """Declare the export unfinished, which may have been complete, as it grows."""
        self._mark(complete=False)

    def seal(self) -> None:
        """Declare the export complete."""
        self._mark(complete=True)

    def size(self) -> tuple[int, int]:
        """Return how many files there are, and their bytes."""
        sizes = [path.stat().st_size for path in self.folder.rglob("*") if path.is_file()]
        return len(sizes), sum(sizes)

    def _mark(self, *, complete: bool) -> None:
        body = {"format": FORMAT, "complete": complete, "identity": self._identity}
        text = json.dumps(body, indent=1, sort_keys=True) + "\n"
        write_atomic(self.folder / MARKER, text.encode())

    def _mkdir(self, folder: Path) -> None:
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise StoreError(
                f"{folder}: could not be made ({error.strerror or error}); "
                "free space or choose another --out, then run the same command again"
            ) from error


class TreeWriter:
    """Write the files of units in the background, several units at once.

    Every file is synced, and a sync waits for the disk, not for the processor: eight at once are
    five times as fast as one after another. At most eight units wait. An error is raised by a
    later `put`, or on leaving the `with` block.

    Attributes:
        written: files written so far.
    """

    def __init__(self, tree: Tree) -> None:
        self.written = 0
        self._tree = tree
        self._pool = ThreadPoolExecutor(_WRITERS, thread_name_prefix="synthgen-export")
        self._pending: deque[Future[int]] = deque()

    def put(self, files: Sequence[tuple[str, bytes]]) -> None:
        """Hand over the files of a unit; they are written in this order.

        Raises:
            StoreError: an earlier unit could not be written.
        """
        while len(self._pending) >= _WRITERS:
            self.written += self._pending.popleft().result()
        self._pending.append(self._pool.submit(self._write, files))

    def _write(self, files: Sequence[tuple[str, bytes]]) -> int:
        for name, data in files:
            self._tree.put(name, data)
        return len(files)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._pool.shutdown(wait=True, cancel_futures=error is not None)
        while error is None and self._pending:
            self.written += self._pending.popleft().result()


def json_bytes(value: object) -> bytes:
    """Return a JSON document for people to read, as the bytes of a file."""
    return json.dumps(value, indent=1).encode() + b"\n"
