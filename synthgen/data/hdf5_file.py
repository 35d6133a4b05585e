"""HDF5 files opened with suspicion: nothing in them may reach outside, or claim what is not there.

HDF5 can link to other files, map datasets onto them, and state sizes that no byte stands for. All
of this is looked at when a file is opened, before memory is set aside for any array.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import h5py

from synthgen.core.input_files import MOST_DEFLATED, open_regular

if TYPE_CHECKING:
    from pathlib import Path

MAX_CHUNK_BYTES = 2**28
"""Largest chunk; it is unpacked whole. A row of twenty channels of 1024 x 1024 has a tenth."""
MAX_ATTRIBUTE_BYTES = 2**20
"""Largest attribute; a label schema has about a thousand bytes."""
_MAX_MEMBERS = 64
_MAX_NESTING = 2
_FILTERS = (h5py.h5z.FILTER_DEFLATE, h5py.h5z.FILTER_SHUFFLE, h5py.h5z.FILTER_FLETCHER32)
_NUMBERS_AND_BYTES = "biufS"


def open_hdf5(path: Path) -> h5py.File:
    """Open an HDF5 file for reading, if it is as plain as those that synthgen writes.

    Raises:
        OSError: absent, not HDF5, or it claims or reaches for what it does not hold.
        KeyError, RuntimeError, ValueError: its structure is damaged.
    """
    with open_regular(path) as stream:
        size = stream.seek(0, 2)
    file = h5py.File(path, "r", locking=False)
    try:
        _require_plain_group(file, size)
    except BaseException:
        file.close()
        raise
    return file


def _require_plain_group(group: h5py.Group, file_bytes: int, nesting: int = 0) -> None:
    if len(group) > _MAX_MEMBERS or nesting > _MAX_NESTING:
        raise OSError(f"more arrays than expected in '{group.name}', or deeper ones")
    _require_plain_attributes(group)
    for name in group:
        where = f"'{group.name.rstrip('/')}/{name}'"
        if not isinstance(group.get(name, getlink=True), h5py.HardLink):
            raise OSError(f"{where} is a link to somewhere else")
        member = group[name]
        if isinstance(member, h5py.Group):
            _require_plain_group(member, file_bytes, nesting + 1)
        elif not isinstance(member, h5py.Dataset):
            raise OSError(f"{where} is no array")
        elif problem := _problem(member, file_bytes):
            raise OSError(f"{where} {problem}")


def _problem(data: h5py.Dataset, file_bytes: int) -> str:
    """Return what is wrong with an array's description, or ""."""
    if data.is_virtual or data.external:
        return "lies in another file"
    text = h5py.check_string_dtype(data.dtype)
    if data.dtype.kind not in _NUMBERS_AND_BYTES and text is None:
        return f"has values of type {data.dtype}"
    filters = data.id.get_create_plist()
    if any(filters.get_filter(k)[0] not in _FILTERS for k in range(filters.get_nfilters())):
        return "is packed by another method than gzip"
    # The size of a chunk is a claim, too: all of them lie in the file.
    held = min(int(data.id.get_storage_size()), file_bytes)
    if math.prod(data.shape) * data.dtype.itemsize > MOST_DEFLATED * held:
        return f"claims the shape {data.shape} but holds {held} bytes"
    if data.chunks and math.prod(data.chunks) * data.dtype.itemsize > MAX_CHUNK_BYTES:
        return f"claims chunks of {data.chunks}"
    _require_plain_attributes(data)
    return ""


def _require_plain_attributes(owner: h5py.Group | h5py.Dataset) -> None:
    if len(owner.attrs) > _MAX_MEMBERS:
        raise OSError(f"more attributes than expected at '{owner.name}'")
    for name in owner.attrs:
        attribute = owner.attrs.get_id(name)
        plain = attribute.dtype.kind in _NUMBERS_AND_BYTES or h5py.check_string_dtype(
            attribute.dtype
        )
        if not plain or attribute.get_storage_size() > MAX_ATTRIBUTE_BYTES:
            raise OSError(f"the attribute '{name}' of '{owner.name}' is too large, or no value")
