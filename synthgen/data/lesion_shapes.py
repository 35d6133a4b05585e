"""Lesions to lay into a healthy brain: the masks of patients, or blobs in deep white matter."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt
from scipy import ndimage

if TYPE_CHECKING:
    from synthgen.data.anatomies import LesionMask

_ROTATE_DEG = 6.0
_SCALE = 0.08
_SHIFT_MM = 4.0

_BLOB_ML = (0.3, 15.0)  # MS lesion loads, most of them
_BLOB_RADIUS_MM = 2.2  # median
_LARGEST_RADIUS_MM = 9.0
_ROUGHNESS = 0.25
_EDGE = 0.35  # width of a blob's soft edge, in radii
_STRIDE = 2  # voxels between places that a blob may take


@dataclass(frozen=True)
class PlacedLesions:
    """Lesions in the space of a brain.

    Attributes:
        tissue: lesion tissue.
        mask: soft float32 `(X, Y, Z)` in [0, 1].
        from_mm: `(4, 4)`, mm from the middle of the brain to voxels of `mask`.
        origin: the patient, or "blobs".
    """

    tissue: str
    mask: npt.NDArray[np.float32]
    from_mm: npt.NDArray[np.float64]
    origin: str


def place_mask(lesions: LesionMask, rng: np.random.Generator) -> PlacedLesions:
    """Move a patient's lesions a little, and mirror them half of the time."""
    angle = np.radians(_ROTATE_DEG * rng.uniform(-1, 1))
    move = np.eye(4)
    move[:2, :2] = [[math.cos(angle), -math.sin(angle)], [math.sin(angle), math.cos(angle)]]
    move[:3, :3] *= np.exp(_SCALE * rng.uniform(-1, 1))
    move[:3, 3] = _SHIFT_MM * rng.uniform(-1, 1, 3)
    if rng.random() < 0.5:
        move[0] *= -1
    from_mm = np.asarray(np.linalg.inv(move @ lesions.affine), dtype=np.float64)
    return PlacedLesions(lesions.tissue, lesions.mask, from_mm, lesions.subject)


def draw_blobs(
    white: npt.NDArray[np.uint8],
    brain: npt.NDArray[np.bool_],
    spacing_mm: float,
    rng: np.random.Generator,
    *,
    tissue: str,
) -> PlacedLesions:
    """Draw rough ellipsoids in white matter, the likelier the deeper in the brain.

    Args:
        white: white matter `(X, Y, Z)`, value / 255.
        brain: `(X, Y, Z)`.
        spacing_mm: voxel size.
        rng: what draws number, places and shapes.
        tissue: lesion tissue.

    Returns:
        Lesions on the grid of `white`, 0.3 to 15 ml in all, none where there is no white matter.
    """
    coarse = (slice(None, None, _STRIDE),) * 3
    depth = ndimage.distance_transform_edt(brain[coarse], sampling=_STRIDE * spacing_mm)
    weight = np.where(white[coarse] > 230, depth, 0).ravel() ** 2
    mask = np.zeros(white.shape, dtype=np.float32)
    wanted = 1000 * math.exp(rng.uniform(*np.log(_BLOB_ML)))  # mm3
    places = np.cumsum(weight)
    made = 0.0
    while made < wanted and places[-1] > 0:
        flat = int(np.searchsorted(places, rng.random() * places[-1], side="right"))
        center = _STRIDE * np.asarray(np.unravel_index(flat, depth.shape))
        radius = min(_BLOB_RADIUS_MM * math.exp(0.5 * rng.standard_normal()), _LARGEST_RADIUS_MM)
        radii = radius * np.exp(rng.uniform(-0.4, 0.4, 3))
        made += _add_blob(mask, center, radii / spacing_mm, rng) * spacing_mm**3
    from_mm = np.diag([1 / spacing_mm] * 3 + [1.0])
    from_mm[:3, 3] = (np.asarray(white.shape) - 1) / 2
    return PlacedLesions(tissue, mask, from_mm, "blobs")


def _add_blob(
    mask: npt.NDArray[np.float32],
    center: npt.NDArray[np.int64],
    radii: npt.NDArray[np.float64],
    rng: np.random.Generator,
) -> float:
    """Lay one blob over what is there; return the voxels that it holds."""
    reach = np.ceil(radii * (1 + _ROUGHNESS + _EDGE)).astype(int) + 1
    first = np.maximum(center - reach, 0)
    last = np.minimum(center + reach + 1, mask.shape)
    box = tuple(slice(int(a), int(b)) for a, b in zip(first, last, strict=True))
    axes = np.meshgrid(
        *(np.arange(a, b) for a, b in zip(first, last, strict=True)), indexing="ij", sparse=True
    )
    squares = [((axis - c) / r) ** 2 for axis, c, r in zip(axes, center, radii, strict=True)]
    distance = np.sqrt(squares[0] + squares[1] + squares[2])
    rough = ndimage.gaussian_filter(rng.standard_normal(distance.shape), float(radii.mean()) / 3)
    rough *= _ROUGHNESS / max(float(np.abs(rough).max()), 1e-12)
    blob = np.clip((1 + rough - distance) / _EDGE + 0.5, 0, 1).astype(np.float32)
    mask[box] = np.maximum(mask[box], blob)
    return float(blob.sum())
