"""Arrays as the bytes of PNG and NIfTI files; equal input gives equal bytes, no time stamps."""

from __future__ import annotations

import gzip
import io
from typing import TYPE_CHECKING, Any

import nibabel as nib
import numpy as np
import numpy.typing as npt
from PIL import Image

if TYPE_CHECKING:
    from collections.abc import Sequence

    from synthgen.data.rows import Pixels

Grey = npt.NDArray[np.uint8] | npt.NDArray[np.uint16]

_GZIP_LEVEL = 6


def to_grey(image: Pixels, bits: int) -> Grey:
    """Return an image `(X, Y)` in [0, 1] as whole grey values of 8 or 16 bits.

    Zero stays zero and nothing else becomes zero: nnU-Net normalises inside the nonzero mask.
    """
    grey: Pixels = np.maximum(np.rint(image * (2**bits - 1)), image > 0)
    return grey.astype(np.uint8) if bits == 8 else grey.astype(np.uint16)


def png(array: Grey) -> bytes:
    """Return a grey PNG of `(X, Y)`: its rows are X, its columns Y."""
    buffer = io.BytesIO()
    Image.fromarray(array).save(buffer, format="PNG")
    return buffer.getvalue()


def nifti(
    array: npt.NDArray[Any],
    spacing_mm: Sequence[float],
    *,
    origin_mm: Sequence[float] = (0, 0, 0),
    slope: float = 1,
) -> bytes:
    """Return a gzipped NIfTI of `(X, Y, Z)`, axes in RAS.

    Args:
        array: stored as it is.
        spacing_mm: voxel size in X, Y and Z.
        origin_mm: where voxel (0, 0, 0) lies.
        slope: what a reader multiplies the stored values by.
    """
    affine = np.diag([*spacing_mm, 1.0])
    affine[:3, 3] = origin_mm
    picture = nib.Nifti1Image(array, affine)  # type: ignore[no-untyped-call]
    picture.header.set_xyzt_units("mm")  # type: ignore[no-untyped-call]
    picture.header.set_slope_inter(slope, 0)  # type: ignore[no-untyped-call]
    picture.set_sform(affine, 1)  # type: ignore[no-untyped-call]
    picture.set_qform(affine, 1)  # type: ignore[no-untyped-call]
    buffer = io.BytesIO()
    with gzip.GzipFile("", "wb", _GZIP_LEVEL, buffer, mtime=0) as stream:
        stream.write(picture.to_bytes())
    return buffer.getvalue()
