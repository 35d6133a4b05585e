"""One shard as one file: HDF5 behind a 512-byte text block that carries its checksum.

The block reads `synthgen-shard/1`, `sha256=<of all that follows the block>`, `bytes=<size of the
whole file>`, one a line, then zero bytes. HDF5 readers skip it. Equal arrays and attributes give
equal bytes: no time stamps, a fixed format version, and rows that are compressed here.
"""

from __future__ import annotations

import hashlib
import io
import zlib
from typing import TYPE_CHECKING, Any

import h5py
import numpy as np
import numpy.typing as npt

from synthgen.core.errors import StoreError
from synthgen.core.input_files import open_regular
from synthgen.core.manifest import write_atomic
from synthgen.data.hdf5_file import open_hdf5

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

FORMAT = "synthgen-shard/1"
BLOCK = 512
_LIBVER = ("v110", "v110")
_REMEDY = (
    "run the command that made it again with --repair, or delete the file and run it again; "
    "`synthgen verify` lists every damaged shard"
)


def write_shard(
    path: Path,
    arrays: Mapping[str, npt.NDArray[Any]],
    attrs: Mapping[str, str | int | float],
) -> None:
    """Write a shard whole or not at all; equal input gives equal bytes.

    Args:
        path: the file; a temporary neighbour is written, synced and renamed to it.
        arrays: by name, all with the same number of rows. Rows of two and more dimensions are
            one gzip-1 chunk each, so that a row reads alone.
        attrs: attributes of the file.

    Raises:
        StoreError: the disk is full or the folder cannot be written; nothing is left behind.
    """
    body = encode_shard(arrays, attrs)
    write_atomic(path, _block(hashlib.sha256(body).hexdigest(), len(body)) + body)


def check_shard(path: Path) -> None:
    """Check a shard's size and checksum.

    Raises:
        StoreError: missing, truncated, or not the bytes that were written; names the file.
    """
    with _open_bytes(path) as stream:
        block = stream.read(BLOCK)
        digest = hashlib.file_digest(stream, "sha256").hexdigest()
        size = stream.tell()
    _check_size(path, block, size)
    if block != _block(digest, size - BLOCK):
        raise StoreError(f"{path}: damaged (its checksum differs); {_REMEDY}")


def open_shard(path: Path) -> h5py.File:
    """Open a shard for reading. Its size is checked, its checksum is not (see `check_shard`).

    Raises:
        StoreError: missing, truncated, foreign or not readable.
    """
    with _open_bytes(path) as stream:
        block = stream.read(BLOCK)
        size = stream.seek(0, io.SEEK_END)
    _check_size(path, block, size)
    try:
        return open_hdf5(path)
    except (OSError, RuntimeError, KeyError, ValueError) as error:
        raise StoreError(f"{path}: not readable as HDF5 ({error}); {_REMEDY}") from error


def read_shard(path: Path) -> dict[str, npt.NDArray[Any]]:
    """Read all arrays of a shard, after checking its checksum.

    Raises:
        StoreError: missing or damaged.
    """
    check_shard(path)
    with open_shard(path) as file:
        return {name: np.asarray(dataset[()]) for name, dataset in file.items()}


def _open_bytes(path: Path) -> io.BufferedReader:
    try:
        return open_regular(path)
    except FileNotFoundError as error:
        raise StoreError(
            f"{path}: no such shard; run the command that makes this dataset again to complete it"
        ) from error
    except OSError as error:
        raise StoreError(f"{path}: cannot be read ({error.strerror or error})") from error


def _check_size(path: Path, block: bytes, size: int) -> None:
    lines = block.rstrip(b"\0").split(b"\n")
    if size >= BLOCK and lines[0] != FORMAT.encode():
        raise StoreError(f"{path}: damaged or foreign (expected '{FORMAT}' first); {_REMEDY}")
    wanted = lines[2].removeprefix(b"bytes=") if len(lines) > 2 else b""
    if not wanted.isdigit() or int(wanted) != size:
        shown = wanted.decode(errors="replace") if wanted.isdigit() else f"at least {BLOCK}"
        raise StoreError(f"{path}: truncated or damaged ({size} bytes of {shown}); {_REMEDY}")


def _block(digest: str, body_bytes: int) -> bytes:
    text = f"{FORMAT}\nsha256={digest}\nbytes={BLOCK + body_bytes}\n"
    return text.encode().ljust(BLOCK, b"\0")


def encode_shard(
    arrays: Mapping[str, npt.NDArray[Any]], attrs: Mapping[str, str | int | float]
) -> bytes:
    """Return the HDF5 bytes of a shard, without the text block before them."""
    # Built in memory: a full disk then fails in one plain write instead of inside HDF5, which
    # would keep the broken file open.
    buffer = io.BytesIO()
    with h5py.File(buffer, "w", userblock_size=BLOCK, libver=_LIBVER) as file:
        for name, value in sorted(attrs.items()):
            file.attrs[name] = value
        for name, array in sorted(arrays.items()):
            if array.ndim < 3:
                file.create_dataset(name, data=array, track_times=False)
            else:
                _add_rows(file, name, np.ascontiguousarray(array))
    return buffer.getvalue()[BLOCK:]


def _add_rows(file: h5py.File, name: str, array: npt.NDArray[Any]) -> None:
    dataset = file.create_dataset(
        name,
        shape=array.shape,
        dtype=array.dtype,
        chunks=(1, *array.shape[1:]),
        compression="gzip",
        compression_opts=1,
        shuffle=array.dtype.itemsize > 1,
        track_times=False,
    )
    origin = (0,) * (array.ndim - 1)
    # zlib.compress releases the interpreter lock and h5py's own filter does not: the writer
    # thread would hold up the computing thread.
    for index, row in enumerate(array):
        shuffled = row.reshape(-1).view(np.uint8).reshape(-1, row.itemsize).T
        data = zlib.compress(shuffled.tobytes(), 1)
        dataset.id.write_direct_chunk((index, *origin), data)
