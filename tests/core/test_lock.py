"""Locks: one writer at a time, workers of one run together, nothing left of the dead."""

import errno
import fcntl
import json
import os
import signal
import subprocess
import sys
import threading
from contextlib import ExitStack

import pytest

from synthgen.core.errors import RequestError, StoreError
from synthgen.core.lock import LOCK, file_lock, folder_lock

HOLD = """
import sys, pathlib
from synthgen.core.lock import file_lock, folder_lock
place, kind, *part = sys.argv[1:]
if kind == "file":
    held = file_lock(pathlib.Path(place), "model")
else:
    worker, count = map(int, part)
    held = folder_lock(pathlib.Path(place), "labels", worker=worker, num_workers=count)
with held as lock:
    if kind == "claim":
        lock.claim("00007")
    print("held", flush=True)
    sys.stdin.read()
"""


class Other:
    """Another process that holds a lock until it is let go, or killed."""

    def __init__(self, *arguments):
        self.process = subprocess.Popen(  # noqa: S603 - our own code
            [sys.executable, "-c", HOLD, *map(str, arguments)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        assert self.process.stdout.readline() == "held\n"

    def end(self, number=None):
        if number is not None:
            self.process.send_signal(number)
        self.process.communicate()


@pytest.fixture
def other():
    with ExitStack() as ends:

        def start(*arguments):
            process = Other(*arguments)
            ends.callback(process.end, signal.SIGKILL)
            return process

        yield start


def names(folder):
    return sorted(path.name for path in folder.rglob("*"))


def test_a_lock_leaves_nothing(tmp_path):
    with folder_lock(tmp_path / "new" / "set", "labels"):
        assert names(tmp_path / "new") == [LOCK, "set"]
    assert names(tmp_path) == ["new", "set"]
    with file_lock(tmp_path / "models" / "labels", "model"):
        assert names(tmp_path / "models") == [f".labels{LOCK}"]
    assert names(tmp_path) == ["models", "new", "set"]
    with pytest.raises(KeyError), folder_lock(tmp_path, "labels"):
        raise KeyError
    assert names(tmp_path) == ["models", "new", "set"]


def test_a_second_run_is_refused_and_told_who_writes(tmp_path, other):
    there = other(tmp_path, "run", 0, 1)
    with pytest.raises(RequestError) as refusal, folder_lock(tmp_path, "labels"):
        pass
    text = str(refusal.value)
    assert text.startswith(f"{tmp_path}: `-c ")
    assert f"process {there.process.pid} on {os.uname().nodename} since 2" in text
    assert text.endswith("writes there (labels); wait until it ends, or choose another folder")
    assert "\n" not in text
    assert names(tmp_path) == [LOCK]
    there.end()
    with folder_lock(tmp_path, "labels"):
        pass


def test_a_file_is_kept_too(tmp_path, other):
    other(tmp_path / "model", "file")
    with (
        pytest.raises(RequestError, match=rf"{tmp_path}/model: .* writes there \(model\)"),
        file_lock(tmp_path / "model", "model"),
    ):
        pass


@pytest.mark.parametrize("kind", ["run", "claim"])
def test_the_lock_of_a_killed_process_is_free_and_swept(kind, tmp_path, other):
    there = other(tmp_path, kind, 1, 3)
    left = names(tmp_path)
    there.end(signal.SIGKILL)
    assert names(tmp_path) == left != []
    with folder_lock(tmp_path, "labels"):  # of another division, too
        pass
    assert names(tmp_path) == []


def test_workers_of_one_run_share_a_folder(tmp_path, other):
    other(tmp_path, "run", 0, 3)
    other(tmp_path, "run", 2, 3)
    with folder_lock(tmp_path, "labels", worker=1, num_workers=3) as lock:
        assert lock.enforced
    assert names(tmp_path) == [f"{LOCK}.1-of-3", f"{LOCK}.3-of-3"]


@pytest.mark.parametrize(
    ("part", "what", "said"),
    [
        ((1, 3), "labels", r"as worker 2 of 3; every worker of a run has another number"),
        ((0, 2), "labels", r"as one of 3 workers, this is worker 1 of 2; .* K of the same N"),
        ((0, 1), "labels", r"as one of 3 workers, this is one run alone; .* K of the same N"),
        ((0, 3), "images", r"\(labels\) as one of 3 workers, this is worker 1 of 3"),
    ],
)
def test_workers_that_do_not_belong_together_are_refused(part, what, said, tmp_path, other):
    other(tmp_path, "run", 1, 3)
    with (
        pytest.raises(RequestError, match=said),
        folder_lock(tmp_path, what, worker=part[0], num_workers=part[1]),
    ):
        pass
    assert names(tmp_path) == [f"{LOCK}.2-of-3"]


def test_a_worker_beside_a_run_alone_is_refused(tmp_path, other):
    other(tmp_path, "run", 0, 1)
    with (
        pytest.raises(RequestError, match=r"as a run alone, this is worker 1 of 2"),
        folder_lock(tmp_path, "labels", worker=0, num_workers=2),
    ):
        pass


def test_a_claim_has_one_holder_and_outlives_none(tmp_path, other):
    there = other(tmp_path, "claim", 0, 2)
    with folder_lock(tmp_path, "labels", worker=1, num_workers=2) as lock:
        assert lock.claim("00007") is None
        mine = lock.claim("00008")
        assert lock.claim("00008") is None  # nor does one process get it twice
        mine.release()
        mine.release()
        there.end(signal.SIGKILL)
        lock.claim("00007").release()


def test_one_of_many_that_start_at_once_gets_the_lock(tmp_path):
    """Each deletes the file it held while others open it: none may lock a file that is gone."""
    inside, most, rounds = [], [], []

    def work():
        for _ in range(30):
            try:
                with folder_lock(tmp_path, "labels"):
                    inside.append(1)
                    most.append(len(inside))
                    inside.pop()
                    rounds.append(1)
            except RequestError:
                pass

    threads = [threading.Thread(target=work) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert max(most) == 1
    assert rounds
    assert names(tmp_path) == []


def test_waiting_is_for_one_after_the_other(tmp_path):
    order = []

    def work(lock):
        with lock.alone("tables"):
            order.append("in")
            order.append("out")

    with folder_lock(tmp_path, "labels") as lock:
        threads = [threading.Thread(target=work, args=(lock,)) for _ in range(4)]
        with lock.alone("tables"):
            for thread in threads:
                thread.start()
            assert order == []
        for thread in threads:
            thread.join()
    assert order == ["in", "out"] * 4


@pytest.mark.parametrize("number", [errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP])
def test_a_file_system_without_locks_gives_a_warning(number, tmp_path, monkeypatch, caplog):
    def flock(*_):
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(fcntl, "flock", flock)
    with folder_lock(tmp_path, "labels") as lock, folder_lock(tmp_path, "labels"):
        assert not lock.enforced
        assert lock.claim("1") is not None
        assert names(tmp_path) == []
    with file_lock(tmp_path / "model", "model"):
        pass
    assert f"{tmp_path}: its file system has no locks ({os.strerror(number)})" in caplog.text


def test_a_folder_that_cannot_be_written_is_named(tmp_path, monkeypatch):
    (tmp_path / "file").touch()
    with (
        pytest.raises(StoreError, match=r"file/set: cannot be created \(Not a directory\)"),
        folder_lock(tmp_path / "file" / "set", "labels"),
    ):
        pass

    def refuse(path, *_):
        raise OSError(errno.EROFS, os.strerror(errno.EROFS), path)

    monkeypatch.setattr(os, "open", refuse)
    with (
        pytest.raises(StoreError, match=rf"{tmp_path}: cannot be written \(Read-only file system"),
        folder_lock(tmp_path, "labels"),
    ):
        pass


def test_a_lock_file_that_says_nothing_still_locks(tmp_path, other):
    other(tmp_path, "run", 0, 1)
    (tmp_path / LOCK).write_bytes(b"")
    with (
        pytest.raises(RequestError, match="another process, writes there; wait until it ends"),
        folder_lock(tmp_path, "labels"),
    ):
        pass
    (tmp_path / LOCK).write_text(json.dumps({"pid": 1, "more": 2}))
    with pytest.raises(RequestError, match="another process"), folder_lock(tmp_path, "labels"):
        pass
