"""Partial-volume (PV) maps and images on their way into a store: making, trimming, scaling.

Everything here works on RAS arrays, `(X, Y, Z)` or `(C, X, Y, Z)`, with NumPy and SciPy.
Maps made from hard labels are the labels' indicator functions, low-pass filtered: the fraction
of each tissue in a voxel-sized neighbourhood, not a step.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import numpy.typing as npt
from scipy import ndimage

from synthgen.core.errors import GeometryError, SchemaError
from synthgen.core.schema import SUM_TOLERANCE

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

ROBUST_PERCENTILE = 99.5
"""Percentile of the brain's intensities that becomes 1.0."""

_OPENING_MM = 2.0  # thinner tissue does not shape the hull
_SMALL_BLOCK = 1 << 15  # voxels whose float copies fit a cache
_BLOCK = 1 << 20  # voxels handled at a time where several float copies are needed


def quantize_pv(pv: npt.NDArray[np.floating[Any]]) -> npt.NDArray[np.uint8]:
    """Round PV maps to 255ths so that they sum to exactly 255 (largest remainder).

    Args:
        pv: `(C, *S)` in [0, 1], summing to 1 over C within `SUM_TOLERANCE`.

    Returns:
        uint8 `(C, *S)`; `result / 255` differs from `pv` by at most 1/255 in every channel
        (for maps that sum to 1 exactly).

    Raises:
        SchemaError: values outside [0, 1], NaN, or a wrong sum, with the voxel.

    Examples:
        >>> quantize_pv(np.full((3, 1), 1 / 3)).ravel().tolist()
        [85, 85, 85]
    """
    channels = pv.shape[0]
    flat = pv.reshape(channels, -1)
    out = np.empty(flat.shape, dtype=np.uint8)
    for start in range(0, flat.shape[1], _SMALL_BLOCK):
        part = flat[:, start : start + _SMALL_BLOCK].astype(np.float64)
        total = part.sum(axis=0)
        good = (np.abs(total - 1) <= SUM_TOLERANCE) & (part.min(axis=0) >= -SUM_TOLERANCE)
        if not good.all():  # NaN is not good either
            _refuse_pv(pv, start + int(np.argmin(good)))
        np.maximum(part, 0, out=part)
        part *= 255 / part.sum(axis=0)
        whole = np.floor(part)
        missing = 255 - whole.sum(axis=0)
        # The `missing` channels with the largest remainders get one more.
        out[:, start : start + _SMALL_BLOCK] = whole + (_rank(part - whole) < missing)
    return out.reshape(pv.shape)


def quantize_batch(pv: npt.NDArray[np.floating[Any]]) -> npt.NDArray[np.uint8]:
    """Return `quantize_pv` of a batch `(B, C, *S)`, as a dataset stores it.

    Raises:
        SchemaError: as `quantize_pv` does.
    """
    return np.ascontiguousarray(quantize_pv(pv.swapaxes(0, 1)).swapaxes(0, 1))


def _rank(values: npt.NDArray[np.float64]) -> npt.NDArray[np.uint8]:
    """Return each row's place along axis 0, largest first; of equals the first comes first."""
    # Comparing all pairs is six times faster than sorting so few rows.
    rank = np.zeros(values.shape, dtype=np.uint8)
    for i in range(len(values)):
        for j in range(i + 1, len(values)):
            later_wins = values[j] > values[i]
            rank[i] += later_wins
            rank[j] += ~later_wins
    return rank


def _refuse_pv(pv: npt.NDArray[np.floating[Any]], flat_index: int) -> None:
    voxel = tuple(int(i) for i in np.unravel_index(flat_index, pv.shape[1:]))
    values = ", ".join(f"{float(channel[voxel]):.6g}" for channel in pv)
    raise SchemaError(
        f"pv at voxel {voxel} is ({values}); partial volumes must lie in [0, 1] and sum to 1"
    )


def labels_to_pv(
    labels: npt.NDArray[np.integer[Any]],
    classes: Mapping[int, int],
    channels: int,
    *,
    spacing_mm: Sequence[float],
    sigma_mm: float = 0.6,
) -> npt.NDArray[np.float32]:
    """Turn hard labels into anti-aliased PV maps.

    Each channel is its indicator function under one Gaussian filter, so the channels keep
    summing to 1.

    Args:
        labels: integer `(X, Y, Z)` (or any other number of axes).
        classes: label id -> PV channel; ids that occur must be listed.
        channels: number of PV channels; channel 0 is the background.
        spacing_mm: voxel size along each axis of `labels`.
        sigma_mm: standard deviation of the filter; 0 gives one-hot maps.

    Returns:
        float32 `(channels, *labels.shape)` in [0, 1].

    Raises:
        SchemaError: ids missing from `classes` (with voxel counts), or a channel out of range.
        GeometryError: `spacing_mm` does not fit the number of axes.
    """
    if len(spacing_mm) != labels.ndim or min(spacing_mm) <= 0:
        raise GeometryError(
            f"expected {labels.ndim} positive voxel sizes, got spacing_mm={tuple(spacing_mm)}"
        )
    channel_map = _channel_map(labels, classes, channels)
    sigma = [sigma_mm / s for s in spacing_mm]
    pv = np.zeros((channels, *labels.shape), dtype=np.float32)
    boxes = ndimage.find_objects(channel_map, max_label=channels - 1)
    for channel, box in enumerate(boxes, start=1):
        if box is None:
            continue
        # Beyond the filter's support the filtered indicator is exactly 0.
        wide = tuple(
            slice(max(0, axis.start - int(4 * s) - 1), axis.stop + int(4 * s) + 1)
            for axis, s in zip(box, sigma, strict=True)
        )
        indicator = (channel_map[wide] == channel).astype(np.float32)
        pv[channel][wide] = ndimage.gaussian_filter(indicator, sigma, mode="nearest")
    total = pv[1:].sum(axis=0)
    over = np.maximum(total, 1)  # rounding only
    pv[1:] /= over
    pv[0] = np.maximum(1 - total, 0)
    return pv


def _channel_map(
    labels: npt.NDArray[np.integer[Any]], classes: Mapping[int, int], channels: int
) -> npt.NDArray[np.uint8]:
    """Map label ids to channels."""
    ids, inverse, counts = np.unique(labels, return_inverse=True, return_counts=True)
    unknown = [(int(i), int(n)) for i, n in zip(ids, counts, strict=True) if int(i) not in classes]
    if unknown:
        listed = ", ".join(f"{i} ({n} voxels)" for i, n in unknown[:20])
        more = f" and {len(unknown) - 20} more" if len(unknown) > 20 else ""
        raise SchemaError(
            f"label ids that the label table does not list: {listed}{more}; "
            "add them to the table (0 for background)"
        )
    table = np.asarray([classes[int(i)] for i in ids])
    if table.size and (table.min() < 0 or table.max() >= channels):
        raise SchemaError(
            f"the label table names PV channel {int(table.max())} (lowest {int(table.min())}); "
            f"channels run from 0 to {channels - 1}"
        )
    return table.astype(np.uint8)[inverse].reshape(labels.shape)


def trim_csf(
    pv: npt.NDArray[np.float32],
    spacing_mm: Sequence[float],
    *,
    csf: int = 1,
    reach_mm: float = 2.5,
    closing_mm: float = 8.0,
) -> npt.NDArray[np.float32]:
    """Cut whole-head PV maps down to what a skull-stripped image shows.

    The hull of the brain is the opening and closing of its tissue (all but background and CSF)
    by balls, holes filled. What lies more than `reach_mm` outside becomes background: the spinal
    canal, stray voxels, islands and spicules of tissue. Small gaps of background inside an axial
    slice (vessels, dura) become CSF.

    Args:
        pv: `(C, X, Y, Z)`, background first, summing to 1.
        spacing_mm: voxel sizes along X, Y, Z.
        csf: channel of the cerebrospinal fluid.
        reach_mm: rim of CSF kept around the hull.
        closing_mm: radius of the closing ball; sulci narrower than twice this belong to the
            hull.

    Returns:
        A new map `(C, X, Y, Z)` that still sums to 1; the cut is anti-aliased.

    Raises:
        GeometryError: the map holds no brain tissue.
    """
    tissue = 1 - pv[0] - pv[csf] >= 0.5
    box = _margin_box(tissue, reach_mm + closing_mm + 3, spacing_mm)
    hull = _hull(tissue[box], spacing_mm, closing_mm)
    distance = ndimage.distance_transform_edt(~hull, sampling=spacing_mm)
    keep = np.zeros(pv.shape[1:], dtype=np.float32)
    keep[box] = np.clip(reach_mm + 0.5 - distance, 0, 1)
    out = pv * keep
    out[0] += 1 - keep
    gaps = np.zeros(tissue.shape, dtype=bool)
    gaps[box] = _gaps(out[0][box] > 0.05, 400 / (spacing_mm[0] * spacing_mm[1]))
    out[csf][gaps] += out[0][gaps]
    out[0][gaps] = 0
    return out


def _hull(
    tissue: npt.NDArray[np.bool_], spacing_mm: Sequence[float], closing_mm: float
) -> npt.NDArray[np.bool_]:
    """Open by 2 mm, drop islands, close, fill; by distances, so balls of any size cost the same."""
    core = _without_islands(
        ndimage.distance_transform_edt(tissue, sampling=spacing_mm) > _OPENING_MM
    )
    if not core.any():  # too thin to open
        core = tissue
    away = ndimage.distance_transform_edt(~core, sampling=spacing_mm)
    opened = tissue & (away <= 2 * _OPENING_MM)
    grown = ndimage.distance_transform_edt(~opened, sampling=spacing_mm) <= closing_mm
    closed = ndimage.distance_transform_edt(grown, sampling=spacing_mm) > closing_mm
    hull: npt.NDArray[np.bool_] = ndimage.binary_fill_holes(closed | opened)
    return hull


def _gaps(background: npt.NDArray[np.bool_], largest: float) -> npt.NDArray[np.bool_]:
    """Return patches of background within single axial slices, up to `largest` voxels."""
    in_plane = np.zeros((3, 3, 3), dtype=bool)
    in_plane[:, 1, 1] = in_plane[1, :, 1] = True
    patches, _ = ndimage.label(background, structure=in_plane)
    sizes = np.bincount(patches.ravel())
    small = sizes <= largest
    for side in (patches[0], patches[-1], patches[:, 0], patches[:, -1]):  # the open field
        small[np.unique(side)] = False
    small[0] = False
    gaps: npt.NDArray[np.bool_] = small[patches]
    return gaps


def _margin_box(
    mask: npt.NDArray[np.bool_], margin_mm: float, spacing_mm: Sequence[float]
) -> tuple[slice, ...]:
    """Return the bounding box of a mask, grown by a margin."""
    boxes = ndimage.find_objects(mask.astype(np.uint8))
    if not boxes:
        raise GeometryError("the tissue maps hold no brain tissue; expected some grey or white")
    return tuple(
        slice(max(0, axis.start - int(margin_mm / s) - 1), axis.stop + int(margin_mm / s) + 1)
        for axis, s in zip(boxes[0], spacing_mm, strict=True)
    )


def _without_islands(mask: npt.NDArray[np.bool_], fewest: float = 0.01) -> npt.NDArray[np.bool_]:
    """Drop components below `fewest` of the largest one."""
    components, _ = ndimage.label(mask)
    sizes = np.bincount(components.ravel())
    sizes[0] = 0
    kept: npt.NDArray[np.bool_] = (sizes >= fewest * sizes.max())[components] & mask
    return kept


def robust_scale(
    image: npt.NDArray[np.number[Any]], brain: npt.NDArray[np.bool_], *, where: str = "image"
) -> tuple[npt.NDArray[np.float32], float]:
    """Scale a volume so that 1.0 is its robust maximum inside the brain.

    Args:
        image: `(X, Y, Z)`, any unit.
        brain: `(X, Y, Z)`.
        where: what an error calls the volume, usually a file.

    Returns:
        The volume in [0, 1], clipped, 0 outside the brain; and the divisor (the
        `ROBUST_PERCENTILE` of the brain's intensities).

    Raises:
        GeometryError: shapes differ, the brain is empty, or its intensities are not finite or
            not positive.
    """
    if image.shape != brain.shape:
        raise GeometryError(
            f"{where}: expected the brain mask's shape {brain.shape}, got {image.shape}"
        )
    inside = image[brain].astype(np.float32)
    if inside.size == 0:
        raise GeometryError(f"{where}: the brain mask is empty; expected some brain voxels")
    bad = int((~np.isfinite(inside)).sum())
    if bad:
        raise GeometryError(f"{where}: {bad} voxels inside the brain are NaN or infinite")
    scale = float(np.percentile(inside, ROBUST_PERCENTILE))
    if scale <= 0:
        raise GeometryError(
            f"{where}: the {ROBUST_PERCENTILE}th percentile inside the brain is {scale:g}; "
            "expected a positive intensity (is the volume empty?)"
        )
    scaled = np.zeros(image.shape, dtype=np.float32)
    scaled[brain] = np.clip(inside / scale, 0, 1)
    return scaled, scale


def resample_pv(
    pv: npt.NDArray[np.float32], affine: npt.NDArray[np.float64], spacing_mm: float = 1.0
) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.float64]]:
    """Resample PV maps to cubic voxels; they keep summing to 1.

    Args:
        pv: `(C, X, Y, Z)`.
        affine: `(4, 4)` voxel to mm.
        spacing_mm: wanted voxel size.

    Returns:
        The maps and their affine; the input itself where the grid has that spacing already.
    """
    step, shape, new_affine = target_grid(pv.shape[1:], affine, spacing_mm)
    if step is None:
        return pv, affine
    out = np.stack([interpolate(channel, step, shape, order=1) for channel in pv])
    np.clip(out, 0, 1, out=out)
    out /= out.sum(axis=0)
    return out, new_affine


def resample_image(
    image: npt.NDArray[np.float32],
    affine: npt.NDArray[np.float64],
    spacing_mm: float | Sequence[float] = 1.0,
) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.float64]]:
    """Resample a volume with cubic splines, within its own range of values.

    Args:
        image: `(X, Y, Z)`.
        affine: `(4, 4)` voxel to mm.
        spacing_mm: wanted voxel size, along all axes or each.

    Returns:
        The volume and its affine; the input itself where the grid has that spacing already.
    """
    step, shape, new_affine = target_grid(image.shape, affine, spacing_mm)
    if step is None:
        return image, affine
    out = interpolate(image, step, shape, order=3)
    return np.clip(out, float(image.min()), float(image.max())), new_affine


def target_grid(
    shape: Sequence[int], affine: npt.NDArray[np.float64], spacing_mm: float | Sequence[float]
) -> tuple[npt.NDArray[np.float64] | None, tuple[int, ...], npt.NDArray[np.float64]]:
    """Return the step in old voxels (None: nothing to do), the new shape and affine.

    The field of view keeps its centre.
    """
    spacing = np.linalg.norm(affine[:3, :3], axis=0)
    if not np.all(np.isfinite(affine)) or spacing.min() <= 0:
        raise GeometryError(f"unusable affine: {affine.tolist()}")
    step = np.asarray(spacing_mm) / spacing
    if np.abs(step - 1).max() < 1e-3:
        return None, tuple(shape), affine
    old = np.asarray(shape)
    new = np.maximum(np.round(old / step), 1).astype(int)
    move = np.eye(4)
    move[:3, :3] = np.diag(step)
    move[:3, 3] = (old - 1) / 2 - step * (new - 1) / 2
    return step, tuple(int(n) for n in new), affine @ move


def interpolate(
    array: npt.NDArray[np.float32],
    step: npt.NDArray[np.float64],
    shape: tuple[int, ...],
    *,
    order: Literal[1, 3],
) -> npt.NDArray[np.float32]:
    """Sample one channel at every `step` voxels about its centre, blurred where that thins it."""
    sigma = np.where(step > 1, 0.5 * np.sqrt(np.maximum(step**2 - 1, 0)), 0)
    if sigma.any():
        array = ndimage.gaussian_filter(array, sigma, mode="nearest")
    offset = (np.asarray(array.shape) - 1) / 2 - step * (np.asarray(shape) - 1) / 2
    out: npt.NDArray[np.float32] = ndimage.affine_transform(
        array, step, offset, output_shape=shape, output=np.float32, order=order, mode="nearest"
    )
    return out
