"""Segment NIfTI volumes: by windows in 3-D, or slice by slice and restacked, on the file's grid.

A volume is turned to RAS, scaled as a whole to [0, 1] and brought to the voxel size that the model
was trained on; its probabilities are brought back to the file's own grid before they become labels.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt
import torch

from synthgen.core.errors import RequestError
from synthgen.core.rng import SampleKey
from synthgen.data.nifti import normalise, read_image
from synthgen.data.tissue import interpolate, resample_image, target_grid
from synthgen.segment.masks import THRESHOLD, harden

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from synthgen.core.geometry import Grid
    from synthgen.segment import TrainedSegmenter
    from synthgen.segment.masks import Labels
    from synthgen.segment.use import SegmenterUse

Floats = npt.NDArray[np.float32]

AXIAL = 2
_TOGETHER = 4


def segment_volume(
    segmenter: TrainedSegmenter,
    files: Sequence[Path],
    *,
    seed: int = 0,
    threshold: float = THRESHOLD,
) -> Labels:
    """Return the label map `(X, Y, Z)` of a volume in RAS, on the grid of its file.

    A 2-D model sees axial slices, or the one slice of a file that holds one, each drawing from its
    own key; slices of one grey value show nothing and are background.

    Args:
        segmenter: what finds the tissues.
        files: NIfTI, one for each of its channels.
        seed: of segmenters that draw.
        threshold: see `synthgen.segment.masks.harden`.

    Raises:
        RequestError: a segmenter of photographs, or of another number of channels.
        GeometryError: not 3-D, or channels on different grids.
        StoreError: unreadable or empty.
    """
    use = segmenter.use
    require_volumes(use, files[0])
    volumes = [read_image(path) for path in files]
    grid = volumes[0].grid
    for volume in volumes[1:]:
        grid.require_same(volume.grid, str(volume.path))
    images = np.stack([normalise(volume.data) for volume in volumes])
    flat = [axis for axis, size in enumerate(grid.shape) if size == 1]
    axis = flat[0] if len(flat) == 1 else AXIAL
    spacing = _model_spacing(use, grid, axis)
    step, _, _ = target_grid(grid.shape, grid.matrix(), spacing)
    resampled = np.stack([resample_image(one, grid.matrix(), spacing)[0] for one in images])
    found = (
        _whole(segmenter, resampled, seed)
        if use.spatial_dims == 3
        else _slices(segmenter, resampled, axis, seed)
    )
    if step is not None:
        found = np.stack([interpolate(one, 1 / step, grid.shape, order=1) for one in found])
    return harden(found, use, threshold)


def require_volumes(use: SegmenterUse, file: Path) -> None:
    """Refuse a model of photographs.

    Raises:
        RequestError: it is one.
    """
    if not use.spacing_mm:
        raise RequestError(
            f"{file}: the model was trained on photographs, without a voxel size; it segments "
            "pictures (PNG, JPEG, TIFF), got a volume"
        )


def _model_spacing(use: SegmenterUse, grid: Grid, axis: int) -> list[float]:
    """Return the voxel size that the model wants; across slices the volume's own."""
    if use.spatial_dims == 3:
        return [*use.spacing_mm]
    spacing = [*use.spacing_mm]
    spacing.insert(axis, grid.spacing_mm[axis])
    return spacing


def _whole(segmenter: TrainedSegmenter, images: Floats, seed: int) -> Floats:
    """Return the probabilities `(C, X, Y, Z)` of a volume `(Ci, X, Y, Z)`."""
    found = segmenter.predict(torch.from_numpy(images[None]), [SampleKey(seed, 0)])
    volume: Floats = found[0].numpy()
    return volume


def _slices(segmenter: TrainedSegmenter, images: Floats, axis: int, seed: int) -> Floats:
    """Return the probabilities `(C, X, Y, Z)` of a volume `(Ci, X, Y, Z)`, slice by slice."""
    use = segmenter.use
    stack = np.moveaxis(images, axis + 1, 0)  # (Z, Ci, X, Y)
    found = np.zeros((len(stack), len(use.tissues), *stack.shape[2:]), dtype=np.float32)
    if not use.overlapping:
        found[:, 0] = 1
    shown = [z for z, one in enumerate(stack) if one.min() < one.max()]
    for first in range(0, len(shown), _TOGETHER):
        chosen = shown[first : first + _TOGETHER]
        batch = torch.from_numpy(np.ascontiguousarray(stack[chosen]))
        found[chosen] = segmenter.predict(batch, [SampleKey(seed, z) for z in chosen]).numpy()
    restacked: Floats = np.moveaxis(found, 0, axis + 1)
    return restacked
