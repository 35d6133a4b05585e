"""Grids in RAS space, cropping and padding, and the choice of axial slices."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from synthgen.core.errors import GeometryError

if TYPE_CHECKING:
    from collections.abc import Sequence

SLICE_SHAPE = (192, 256)
"""In-plane size (X, Y) of an axial slice at 1 mm (Fernandez et al. 2022: 48 x 64 latents, x4)."""


@dataclass(frozen=True)
class Grid:
    """Geometry of one array: shape `(X, Y[, Z])`, spacing in mm, 4 x 4 affine (voxel to RAS mm)."""

    shape: tuple[int, ...]
    spacing_mm: tuple[float, ...]
    affine: tuple[tuple[float, ...], ...]

    @classmethod
    def from_affine(cls, shape: Sequence[int], affine: npt.NDArray[np.float64]) -> Grid:
        """Build a grid from an array shape and a 4 x 4 affine; spacing is the column norms."""
        spacing = np.linalg.norm(affine[:3, :3], axis=0)[: len(shape)]
        return cls(
            tuple(int(s) for s in shape),
            tuple(float(s) for s in spacing),
            tuple(tuple(float(v) for v in row) for row in affine),
        )

    def matrix(self) -> npt.NDArray[np.float64]:
        """Return the affine as a `(4, 4)` array."""
        return np.asarray(self.affine, dtype=np.float64)

    def require_same(self, other: Grid, where: str, tolerance_mm: float = 1e-2) -> None:
        """Refuse an array on another grid.

        Raises:
            GeometryError: shapes differ, or affines differ by more than `tolerance_mm` anywhere.
        """
        if self.shape != other.shape:
            raise GeometryError(f"{where}: expected shape {self.shape}, got {other.shape}")
        gap = float(np.abs(self.matrix() - other.matrix()).max())
        if gap > tolerance_mm:
            raise GeometryError(
                f"{where}: its affine differs from the subject's other files by {gap:.4g} "
                f"(at most {tolerance_mm:g} allowed); resample it to the same grid first"
            )


def crop_or_pad(
    array: npt.NDArray[Any],
    shape: Sequence[int],
    *,
    fill: float = 0,
    center: Sequence[int] | None = None,
) -> npt.NDArray[Any]:
    """Crop or pad the last `len(shape)` axes to `shape`.

    Args:
        array: `(..., *S)`.
        shape: wanted size of the last axes.
        fill: value of padded voxels.
        center: voxel of `array` that moves to index `shape // 2`; the array's centre by default.

    Returns:
        A new array `(..., *shape)` of the same dtype.
    """
    spatial = array.shape[array.ndim - len(shape) :]
    middle = [s // 2 for s in spatial] if center is None else list(center)
    out = np.full((*array.shape[: array.ndim - len(shape)], *shape), fill, dtype=array.dtype)
    every = [slice(None)] * (array.ndim - len(shape))
    source, target = every.copy(), every.copy()
    for size, wanted, mid in zip(spatial, shape, middle, strict=True):
        shift = wanted // 2 - mid  # target index = source index + shift
        first, last = max(0, -shift), min(size, wanted - shift)
        source.append(slice(first, max(first, last)))
        target.append(slice(first + shift, max(first, last) + shift))
    out[tuple(target)] = array[tuple(source)]
    return out


def slice_position(z: int, first: int, last: int) -> float:
    """Return the position of axial slice `z` in the brain: 0 at `first` (foot), 1 at `last`."""
    return (z - first) / max(1, last - first)


def choose_slices(
    brain: npt.NDArray[np.bool_], *, step: int = 1, min_area: int = 2000
) -> tuple[list[int], tuple[int, int]]:
    """Choose the axial slices that show enough brain.

    Args:
        brain: brain mask `(X, Y, Z)`.
        step: take every `step`-th slice.
        min_area: fewest brain voxels in a chosen slice.

    Returns:
        The chosen z indices, and the first and last z with any brain (for `slice_position`).

    Raises:
        GeometryError: no slice has any brain.
    """
    area = brain.sum(axis=(0, 1))
    present = np.flatnonzero(area > 0)
    if present.size == 0:
        raise GeometryError("the brain mask is empty; expected brain voxels in some axial slice")
    extent = int(present[0]), int(present[-1])
    wide = np.flatnonzero(area >= min_area)
    return [int(z) for z in wide[::step]], extent
