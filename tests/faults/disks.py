"""Small disks: a tmpfs that is filled to the last bytes, or made read-only."""

import os
import subprocess
from contextlib import contextmanager

_FILLER = "filler"


class Disk:
    """A mounted tmpfs.

    Attributes:
        folder: where it is mounted.
    """

    def __init__(self, folder):
        self.folder = folder

    @property
    def free(self):
        """Free bytes."""
        room = os.statvfs(self.folder)
        return room.f_bavail * room.f_bsize

    def leave(self, count):
        """Fill the disk until so many bytes are free, to the next page."""
        with (self.folder / _FILLER).open("wb") as stream:
            os.posix_fallocate(stream.fileno(), 0, max(1, self.free - int(count)))

    def empty(self):
        """Take the filling away."""
        (self.folder / _FILLER).unlink()

    @contextmanager
    def read_only(self):
        """Let nothing be written, not by root either."""
        _mount("-o", "remount,ro", self.folder)
        try:
            yield
        finally:
            _mount("-o", "remount,rw", self.folder)


def _mount(*words):
    command = ["mount", *map(str, words)]
    subprocess.run(command, check=True, capture_output=True)  # noqa: S603 - the tests' own words


@contextmanager
def small_disk(folder, size):
    """Mount a tmpfs of `size` bytes at `folder`.

    Raises:
        PermissionError: this process may not mount anything.
    """
    folder.mkdir()
    try:
        _mount("-t", "tmpfs", "-o", f"size={size}", "tmpfs", folder)
    except (OSError, subprocess.CalledProcessError) as error:
        raise PermissionError("mounting a tmpfs needs root") from error
    try:
        yield Disk(folder)
    finally:
        command = ["umount", "-l", str(folder)]
        subprocess.run(command, check=True, capture_output=True)  # noqa: S603 - the tests' own words
