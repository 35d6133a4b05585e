"""What a NIfTI header claims, checked before anything is set aside for it.

nibabel allocates by what the header says, and reads extensions of any stated length.
"""

from __future__ import annotations

import gzip
import math
from typing import TYPE_CHECKING, Any

import numpy as np
from nibabel.nifti1 import Nifti1Header
from nibabel.nifti2 import Nifti2Header
from nibabel.spatialimages import HeaderDataError

from synthgen.core.errors import GeometryError, StoreError
from synthgen.core.input_files import MOST_DEFLATED, open_regular

if TYPE_CHECKING:
    from pathlib import Path

ENDINGS = (".nii", ".nii.gz")
MAX_VOXELS = 2**28
"""Most voxels of a file: a CT of 512 x 512 x 1024, or seven tissues of a brain at 0.8 mm."""
SUSPECT_BYTES, SUSPECT_RATIO = 2**28, 200
"""A file above both, by its voxels in 4 bytes or more (512 x 512 x 256) and by how far gzip packed
it, is taken for a decompression bomb: anatomy packs twenty times or less, a label map some hundred
times."""
MAX_OFFSET = 2**24
"""Largest distance of the voxels from the file's start; extensions stand between."""


def require_sane_header(path: Path) -> None:
    """Refuse a file whose header is none of NIfTI's, or claims what the file cannot hold.

    Raises:
        StoreError: not NIfTI, truncated, or a decompression bomb.
        GeometryError: a shape that no scan has.
        OSError, EOFError, zlib.error: it cannot be read.
    """
    name = path.name.lower()
    if not name.endswith(ENDINGS):
        raise StoreError(f"{path}: expected NIfTI ({' or '.join(ENDINGS)}); convert it")
    packed = name.endswith(".gz")
    with open_regular(path) as stream:
        size = stream.seek(0, 2)
        stream.seek(0)
        block = (gzip.GzipFile(fileobj=stream) if packed else stream).read(540)
    header = _parse(path, block)
    shape = _shape(path, header)
    offset, voxels = float(header["vox_offset"]), math.prod(shape)
    if not 0 <= offset <= MAX_OFFSET:  # NaN fails as well
        raise StoreError(f"{path}: damaged, its header says that voxels begin at byte {offset:g}")
    if voxels > MAX_VOXELS:
        raise GeometryError(
            f"{path}: its header says shape {shape}, {voxels} voxels; at most {MAX_VOXELS} allowed"
        )
    itemsize = _dtype(header).itemsize
    claimed = offset + voxels * itemsize
    if claimed > size * (MOST_DEFLATED if packed else 1):
        raise StoreError(
            f"{path}: not a readable NIfTI file, truncated ({size} bytes cannot hold the shape "
            f"{shape} that its header says); fetch it again"
        )
    unpacked = voxels * max(4, itemsize)
    if packed and unpacked > SUSPECT_BYTES and claimed > SUSPECT_RATIO * size:
        raise StoreError(
            f"{path}: {claimed:.0f} bytes packed into {size}, a decompression bomb or an empty "
            "volume; if it is what you mean, save it without gzip, as .nii"
        )


def _dtype(header: Nifti1Header) -> np.dtype[Any]:
    return np.dtype(header.get_data_dtype())  # type: ignore[no-untyped-call]


def _parse(path: Path, block: bytes) -> Nifti1Header:
    stated = {int.from_bytes(block[:4], order) for order in ("little", "big")}
    for length, kind in ((348, Nifti1Header), (540, Nifti2Header)):
        if length in stated and len(block) >= length:
            try:
                header: Nifti1Header = kind(block[:length], check=False)  # type: ignore[no-untyped-call]
                dtype = _dtype(header)
            except (HeaderDataError, KeyError, ValueError) as error:
                raise StoreError(f"{path}: a damaged NIfTI header ({error})") from error
            if dtype.kind not in "iuf":
                raise StoreError(f"{path}: expected one real number a voxel, got {dtype}")
            return header
    raise StoreError(f"{path}: not a readable NIfTI file, perhaps truncated; fetch it again")


def _shape(path: Path, header: Nifti1Header) -> tuple[int, ...]:
    rank, *sizes = (int(n) for n in header["dim"])
    if not 1 <= rank <= 7 or min(sizes[:rank]) < 1:
        raise GeometryError(
            f"{path}: expected a 3-D volume, its header says {rank} axes of {sizes}"
        )
    return tuple(sizes[:rank])
