"""NIfTI files as RAS arrays and back; what no brain volume looks like is refused."""

from __future__ import annotations

import gzip
import logging
import math
import zlib
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import nibabel as nib
import numpy as np
import numpy.typing as npt
from nibabel.filebasedimages import ImageFileError
from nibabel.nifti1 import Nifti1Image
from nibabel.spatialimages import HeaderDataError

from synthgen.core.errors import GeometryError, SchemaError, StoreError
from synthgen.core.geometry import Grid
from synthgen.core.manifest import write_atomic
from synthgen.data.nifti_header import require_sane_header

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

MAX_SPACING_MM = 20.0
_ROBUST = (0.5, 99.5)
_GZIP_LEVEL = 6
_PIECE = 2**20
_MOST_BEHIND = 2**16
"""Most bytes behind the voxels of a file."""

_LOG = logging.getLogger(__name__)


@dataclass(frozen=True)
class Volume:
    """One volume in RAS: data `(X, Y, Z)` or, for several maps, `(K, X, Y, Z)`; its grid."""

    data: npt.NDArray[Any]
    grid: Grid
    path: Path


def read_image(path: Path) -> Volume:
    """Read an intensity volume `(X, Y, Z)` as float32, the header's slope honoured.

    Raises:
        StoreError: unreadable, truncated, not NIfTI, NaN or infinite values, or no content.
        GeometryError: not 3-D, or an absurd header.
    """
    volume = _read(path)
    _require_3d(volume)
    if volume.data.min() == volume.data.max():
        raise StoreError(
            f"{path}: the volume is empty (every voxel is {float(volume.data.flat[0]):g}); "
            "remove the file or the subject"
        )
    return volume


def read_maps(path: Path) -> Volume:
    """Read one or several probability maps as float32 `(K, X, Y, Z)`; 3-D files give K = 1.

    Raises:
        StoreError: unreadable, truncated, not NIfTI, NaN or infinite values.
        GeometryError: neither 3-D nor 4-D, or an absurd header.
    """
    volume = _read(path)
    data = volume.data[..., None] if volume.data.ndim == 3 else volume.data
    return Volume(np.ascontiguousarray(np.moveaxis(data, -1, 0)), volume.grid, path)


def normalise(image: npt.NDArray[np.floating | np.integer]) -> npt.NDArray[np.float32]:
    """Scale a whole volume to [0, 1] by what is not 0: its percentile 99.5 becomes 1.

    0 stays 0, as in training stores; where a volume has negative values, percentile 0.5 becomes 0.
    Robust to hot voxels and to how much air surrounds a head. One scale for all of a volume, never
    one for each patch or slice.

    Args:
        image: one channel `(*S)`, any units.

    Returns:
        float32 `(*S)` in [0, 1]; all 0 where all voxels are equal.
    """
    values = image[image != 0]
    low, high = np.percentile(values, _ROBUST) if values.size else (0.0, 0.0)
    low = low if image.min(initial=0) < 0 else 0.0
    if high <= low or image.min() == image.max():
        low, high = float(image.min()), float(image.max())
    scaled = (image.astype(np.float32) - np.float32(low)) / np.float32(max(high - low, 1e-12))
    clipped: npt.NDArray[np.float32] = scaled.clip(0, 1)
    return clipped


def read_labels(path: Path, *, may_be_empty: bool = False) -> Volume:
    """Read an integer label map `(X, Y, Z)` as int32.

    Args:
        path: the file.
        may_be_empty: whether one value everywhere is a label map as well.

    Raises:
        StoreError: unreadable, truncated, not NIfTI, or no label but one.
        GeometryError: not 3-D, or an absurd header.
        SchemaError: values that are not integers.
    """
    if may_be_empty:
        volume = _read(path)
        _require_3d(volume)
    else:
        volume = read_image(path)
    low, high = float(volume.data.min()), float(volume.data.max())
    if low < -(2**31) or high >= 2**31:
        raise SchemaError(f"{path}: label ids have 32 bits, got {low:g} .. {high:g}")
    labels = np.rint(volume.data).astype(np.int32)
    rest = np.subtract(volume.data, labels, out=volume.data, casting="unsafe")  # spares memory
    off = (rest < -1e-3) | (rest > 1e-3)
    if off.any():
        place = np.unravel_index(int(off.argmax()), off.shape)
        value = float(labels[place]) + float(rest[place])
        raise SchemaError(f"{path}: label ids must be integers, got {value:g}")
    return Volume(labels, volume.grid, path)


def read_mask(path: Path) -> Volume:
    """Read a mask `(X, Y, Z)` as bool: true above 0.5. An empty mask is allowed.

    Raises:
        StoreError: unreadable, truncated, not NIfTI, NaN or infinite values.
        GeometryError: not 3-D, or an absurd header.
    """
    volume = _read(path)
    _require_3d(volume)
    return Volume(volume.data > 0.5, volume.grid, path)


def write_labels_like(path: Path, labels: npt.NDArray[np.uint8], source: Path) -> None:
    """Write a label map on the grid, in the orientation and with the affine of another file.

    Args:
        path: NAME.nii.gz; equal input gives equal bytes.
        labels: `(X, Y, Z)` in RAS, made from `source`.
        source: the NIfTI file.

    Raises:
        StoreError: it cannot be written.
    """
    image = _load(source)
    own = nib.io_orientation(image.affine)  # type: ignore[no-untyped-call]
    ras = nib.orientations.axcodes2ornt("RAS")  # type: ignore[no-untyped-call]
    back = nib.orientations.ornt_transform(ras, own)  # type: ignore[no-untyped-call]
    turned = nib.apply_orientation(labels, back)  # type: ignore[no-untyped-call]
    header = image.header.copy()  # type: ignore[no-untyped-call]
    header.extensions.clear()
    header.set_data_dtype(np.uint8)
    header.set_slope_inter(1, 0)
    header["cal_min"] = header["cal_max"] = 0
    header.set_intent("none")
    written = type(image)(turned.reshape(image.shape), image.affine, header)
    try:
        write_atomic(path, gzip.compress(written.to_bytes(), _GZIP_LEVEL, mtime=0))
    except OSError as error:
        raise StoreError(f"{path}: could not be written ({error}); free space") from error


def _require_3d(volume: Volume) -> None:
    if volume.data.ndim != 3:
        raise GeometryError(
            f"{volume.path}: expected a 3-D volume, got shape {volume.data.shape}; "
            "split it into 3-D files first"
        )


def read_geometry(path: Path) -> tuple[tuple[int, ...], tuple[float, ...]]:
    """Return a volume's shape and voxel size in mm along the axes of RAS, from its header alone.

    Raises:
        StoreError: unreadable, or not NIfTI.
        GeometryError: not 3-D, or an absurd header.
    """
    with readable(path):
        image = _load(path)
        shape, affine = tuple(int(n) for n in image.shape), np.asarray(image.affine)
        axes = nib.io_orientation(affine)[:, 0].argsort()  # type: ignore[no-untyped-call]
    if len(shape) != 3:
        raise GeometryError(f"{path}: expected a 3-D volume, its header says shape {shape}")
    spacing = np.linalg.norm(affine[:3, :3], axis=0)
    return tuple(shape[a] for a in axes), tuple(float(spacing[a]) for a in axes)


def open_nifti(path: Path) -> Nifti1Image:
    """Open a NIfTI file of any rank without reading its voxels.

    Raises:
        StoreError, GeometryError: see `require_sane_header`.
        OSError, ValueError, EOFError, zlib.error, ImageFileError, HeaderDataError: unreadable; see
            `readable`.
    """
    require_sane_header(path)
    image = nib.load(path)
    if not isinstance(image, Nifti1Image):  # NIfTI-2 is a subclass
        raise StoreError(f"{path}: expected NIfTI, got {type(image).__name__}; convert it")
    return image


def _load(path: Path) -> Nifti1Image:
    image = open_nifti(path)
    _check_header(path, image)
    return image


@contextmanager
def readable(path: Path) -> Iterator[None]:
    """Turn what nibabel raises into one line.

    Raises:
        StoreError: instead.
    """
    try:
        yield
    except FileNotFoundError as error:
        raise StoreError(f"{path}: no such file") from error
    except (ImageFileError, HeaderDataError, OSError, EOFError, zlib.error, ValueError) as error:
        if isinstance(error, (StoreError, GeometryError)):
            raise
        raise StoreError(
            f"{path}: not a readable NIfTI file, perhaps truncated ({error}); fetch it again"
        ) from error


def _read(path: Path) -> Volume:
    """Read any NIfTI file to RAS float32, trailing axes of length 1 dropped."""
    with readable(path):
        loaded = _load(path)
        require_intact(path, loaded)
        image = nib.as_closest_canonical(loaded)  # type: ignore[no-untyped-call]
        data = np.asarray(image.dataobj, dtype=np.float32)
    while data.ndim > 3 and data.shape[-1] == 1:
        data = data[..., 0]
    finite = np.isfinite(data)
    if not finite.all():
        voxel = tuple(int(i) for i in np.unravel_index(int(finite.argmin()), data.shape))
        count = data.size - int(finite.sum())
        raise StoreError(
            f"{path}: {count} voxels are NaN or infinite, the first at {voxel}; "
            "every voxel must be finite"
        )
    return Volume(data, Grid.from_affine(data.shape[:3], image.affine), path)


def require_intact(path: Path, image: Nifti1Image) -> None:
    """Check a gzipped file to its end: the checksum stands where nibabel has stopped reading.

    Raises:
        StoreError: more bytes follow the voxels than any program writes.
        OSError, EOFError, zlib.error: it is damaged.
    """
    if path.suffix != ".gz":
        return
    voxels = math.prod(image.shape) * np.dtype(image.get_data_dtype()).itemsize  # type: ignore[no-untyped-call]
    left = int(image.header["vox_offset"]) + voxels + _MOST_BEHIND
    with gzip.open(path) as stream:
        while part := stream.read(_PIECE):
            left -= len(part)
            if left < 0:
                raise StoreError(f"{path}: damaged, it holds more than the voxels; fetch it again")


def _check_header(path: Path, image: Nifti1Image) -> None:
    """Refuse a header that no scan has, before any data is read."""
    shape = tuple(int(s) for s in image.shape)
    if len(shape) not in (3, 4) or min(shape) < 1:
        raise GeometryError(f"{path}: expected a 3-D volume, its header says shape {shape}")
    affine = np.asarray(image.affine, dtype=np.float64)
    spacing = np.linalg.norm(affine[:3, :3], axis=0)
    finite = bool(np.isfinite(affine).all())
    # The thickness of a lone slice says little: nnU-Net wants 999 mm there.
    widest = max((s for s, n in zip(spacing, shape, strict=False) if n > 1), default=0.0)
    if not finite or spacing.min() <= 1e-3 or widest > MAX_SPACING_MM:
        raise GeometryError(
            f"{path}: its header says a voxel of {[round(float(s), 4) for s in spacing]} mm; "
            f"expected more than 0 and at most {MAX_SPACING_MM:g} mm"
        )
    if abs(np.linalg.det(affine[:3, :3])) < 1e-3 * float(spacing.prod()):
        raise GeometryError(f"{path}: its affine is singular; the axes are not independent")
    if not (int(image.header["qform_code"]) or int(image.header["sform_code"])):
        _LOG.warning("%s: no orientation in the header; taken as it lies, RAS assumed", path)
