"""Label maps in a few numbers each, and distances between two sets of them.

Every map is read once and reduced to its tissue shares, its shape, its boundaries and its
lesions. Distances compare slices at the same place in the brain: without that, a set with more
low slices would look like a set with another anatomy.

Wasserstein distances of tissue volumes are also how WASABI (arXiv:2504.21771) compares synthetic
brains; ours are of shares in a slice, at matched positions.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import numpy.typing as npt
from scipy import stats

from synthgen.core.errors import RequestError, SchemaError
from synthgen.evaluate import topology

if TYPE_CHECKING:
    from collections.abc import Callable

    from synthgen.core.schema import LabelSchema
    from synthgen.evaluate.sets import SliceSet

Column = npt.NDArray[np.float64]
Rows = npt.NDArray[np.float64]
Indices = npt.NDArray[np.int64]

PRESENT = 1e-4
"""Share of the brain from which a tissue counts as present."""
BINS = 8
NEAR = 0.05
"""Slices whose positions differ by less stand for one another (5 % of the brain's height)."""
_CHUNK = 32
_HALF = 0.5**0.5
_DIRECTIONS = np.asarray([[1.0, 0.0], [0.0, 1.0], [_HALF, _HALF], [_HALF, -_HALF]])


@dataclass(frozen=True)
class Lesions:
    """Every connected lesion of a set.

    Attributes:
        slices: `(K,)` slice that each lies in.
        channel: `(K,)` PV channel.
        area: `(K,)` in pixels.
        place: `(K, 2)` center inside the brain's bounding box, 0 to 1 along x and y.
    """

    slices: Indices
    channel: Indices
    area: Column
    place: Rows


@dataclass(frozen=True)
class LabelDescriptors:
    """What P label maps look like.

    Attributes:
        schema: label schema of the C channels.
        subject: `(P,)` subject of each slice.
        position: `(P,)` place in the brain, NaN where unknown.
        requested: `(P, L)` lesion shares that were asked for, NaN where nothing was asked.
        fractions: `(P, C)` shares of the brain; the first is the brain's share of the picture.
        pieces: `(P,)` components of the brain of at least `topology.SPECK` pixels.
        outside: `(P,)` share of the brain's area outside its largest component.
        holes: `(P,)` gaps in the brain of at least `topology.SPECK` pixels.
        hole_share: `(P,)` share of the filled brain that is gap.
        sharpness: `(P,)` mean over the brain of the largest PV; 1 for hard labels, 0 for a map
            without a brain.
        neighbours: `(P, C (C - 1) / 2)` lengths of the boundaries between tissues.
        lesions: all lesions.
    """

    schema: LabelSchema
    subject: tuple[str, ...]
    position: Column
    requested: Rows
    fractions: Rows
    pieces: Column
    outside: Column
    holes: Column
    hole_share: Column
    sharpness: Column
    neighbours: Rows
    lesions: Lesions

    @property
    def realised(self) -> Rows:
        """Lesion shares `(P, L)` that the maps have."""
        return self.fractions[:, list(self.schema.lesion_channels)]


class _Described(NamedTuple):
    """One row of the descriptors; lesions `(K, 4)`: channel, area, place."""

    fractions: Column
    shape: topology.Shape
    sharpness: float
    neighbours: Column
    lesions: Rows


def describe_labels(slices: SliceSet) -> LabelDescriptors:
    """Describe every label map of a set, in one pass.

    Raises:
        RequestError: an empty set.
        SchemaError: PV values that are not finite.
    """
    if not len(slices):
        raise RequestError(f"{slices.name}: no slices to describe")
    described = []
    for start in range(0, len(slices), _CHUNK):
        chunk = range(start, min(start + _CHUNK, len(slices)))
        for index, pv in zip(chunk, slices.pv(chunk), strict=True):
            row = _describe(pv, slices.schema)
            if not np.isfinite(row.fractions).all():
                raise SchemaError(f"{slices.name}: slice {index} has PV values that are not finite")
            described.append(row)
    shape = np.asarray([row.shape for row in described], dtype=np.float64)
    lesions = np.concatenate([row.lesions for row in described])
    return LabelDescriptors(
        slices.schema,
        slices.table.subject,
        slices.table.position,
        slices.table.requested,
        np.stack([row.fractions for row in described]),
        shape[:, 0],
        shape[:, 1],
        shape[:, 2],
        shape[:, 3],
        np.asarray([row.sharpness for row in described]),
        np.stack([row.neighbours for row in described]),
        Lesions(
            np.repeat(np.arange(len(described)), [len(row.lesions) for row in described]),
            lesions[:, 0].astype(np.int64),
            lesions[:, 1],
            lesions[:, 2:],
        ),
    )


def position_bins(first: Column, second: Column, count: int = BINS) -> Column:
    """Return the edges of `count` equal bins over the positions that two sets share.

    Positions that nobody stated give one bin of everything.

    Raises:
        RequestError: no common range.
    """
    if not (np.isfinite(first).all() and np.isfinite(second).all()):
        return np.asarray([-np.inf, np.inf])
    low, high = max(first.min(), second.min()), min(first.max(), second.max())
    if low > high:
        raise RequestError(
            f"no common slice positions: {first.min():.2f} to {first.max():.2f} against "
            f"{second.min():.2f} to {second.max():.2f}"
        )
    return np.linspace(low, high, (count if low < high else 1) + 1)


def binned(position: Column, values: Rows, edges: Column) -> tuple[Rows, npt.NDArray[np.bool_]]:
    """Put the bin of each row before its values.

    Args:
        position: `(P,)`.
        values: `(P, d)`.
        edges: of `position_bins`.

    Returns:
        `(n, 1 + d)` rows inside the edges, and the mask `(P,)` of those rows.
    """
    place = np.where(np.isnan(position), 0.0, position)
    inside = (place >= edges[0]) & (place <= edges[-1])
    bins = np.clip(np.searchsorted(edges, place, side="right") - 1, 0, len(edges) - 2)
    return np.column_stack([bins, values])[inside], inside


def in_bins(distance: Callable[[Rows, Rows], float]) -> Callable[[Rows, Rows], float]:
    """Return a distance of rows of `binned`: the mean over bins, weighted by the smaller count.

    Bins that one side lacks are left out.

    Raises:
        RequestError: (when called) no bin has rows of both sides.
    """

    def matched(first: Rows, second: Rows) -> float:
        total, weight = 0.0, 0
        for place in np.intersect1d(first[:, 0], second[:, 0]):
            a, b = (rows[rows[:, 0] == place, 1:] for rows in (first, second))
            smaller = min(len(a), len(b))
            total, weight = total + smaller * distance(a, b), weight + smaller
        if not weight:
            raise RequestError("no slice positions in common")
        return total / weight

    return matched


def mean_at(weights: Column) -> Callable[[Rows, Rows], float]:
    """Return the mean of the first sample alone, at given weights of the bins `(bins,)`.

    It has the form of a distance, so that `with_floor` gives what real halves have.
    """

    def mean(first: Rows, second: Rows) -> float:
        bins = first[:, 0].astype(np.int64)
        per_row = weights[bins] / np.bincount(bins, minlength=len(weights))[bins]
        return float((per_row * first[:, 1]).sum() / per_row.sum())

    return mean


def mean_wasserstein(first: Rows, second: Rows) -> float:
    """Return the Wasserstein-1 distance of two samples `(n, d)`, averaged over the columns."""
    pairs = zip(first.T, second.T, strict=True)
    return float(np.mean([stats.wasserstein_distance(a, b) for a, b in pairs]))


def sliced_wasserstein(first: Rows, second: Rows) -> float:
    """Return the mean Wasserstein-1 distance of points `(n, 2)` along x, y and both diagonals."""
    return mean_wasserstein(first @ _DIRECTIONS.T, second @ _DIRECTIONS.T)


def boundary_distance(first: Rows, second: Rows) -> float:
    """Return which share of all boundaries lies between other tissues than in the second set.

    Args:
        first: `(n, pairs)` lengths of `topology.neighbour_counts`.
        second: `(m, pairs)`.

    Returns:
        Half the sum of the absolute differences of the two normalised tables, in [0, 1]; the
        mean absolute difference times half the number of pairs.
    """
    a, b = (rows.sum(axis=0) / max(rows.sum(), 1.0) for rows in (first, second))
    return float(np.abs(a - b).sum() / 2)


def rank_agreement(requested: Column, realised: Column) -> float:
    """Return Spearman's rank correlation; 0 if all realised shares are the same."""
    if np.ptp(realised) == 0:
        return 0.0
    return float(stats.spearmanr(requested, realised).statistic)


def presence_right(requested: Column, realised: Column) -> float:
    """Return the share of slices that have a lesion if, and only if, one was requested."""
    return float(((requested > PRESENT) == (realised > PRESENT)).mean())


def fitting_slices(requested: Column, position: Column, share: Column, at: Column) -> Indices:
    """Return the real slice that meets each request best.

    This is the reference of requests: what choosing among real slices would give.

    Args:
        requested: `(M,)` requested shares.
        position: `(M,)` requested positions, NaN where unknown.
        share: `(K,)` shares that the real slices have.
        at: `(K,)` their positions.

    Returns:
        `(M,)` the slice of the nearest share among those no further than `NEAR`.
    """
    far = np.abs(position[:, None] - at[None]) > NEAR
    cost = np.abs(requested[:, None] - share[None]) + 2.0 * far
    chosen: Indices = np.argmin(cost, axis=1)
    return chosen


def _with_margin(box: tuple[slice, slice]) -> tuple[slice, slice]:
    x, y = (slice(max(side.start - 1, 0), side.stop + 1) for side in box)
    return x, y


def _describe(pv: npt.NDArray[Any], schema: LabelSchema) -> _Described:
    brain = topology.brain_mask(pv)
    # The margin keeps the boundary between brain and background.
    box = _with_margin(topology.bounding_box(brain))
    inside, brain = pv[:, *box], brain[box]
    return _Described(
        schema.fractions(pv),
        topology.shape_of(brain),
        float(inside.max(axis=0)[brain].mean()) if brain.any() else 0.0,
        topology.neighbour_counts(inside.argmax(axis=0), schema.channels),
        _lesions(inside, brain, schema),
    )


def _lesions(pv: npt.NDArray[Any], brain: topology.Mask, schema: LabelSchema) -> Rows:
    """Return channel, area and place of the lesions `(K, 4)` of one map."""
    x, y = topology.bounding_box(brain)
    size = np.asarray([x.stop - x.start, y.stop - y.start])
    rows = [np.zeros((0, 4))]
    for channel in schema.lesion_channels:
        area, center = topology.patches(pv[channel] > topology.EDGE)
        place = (center - (x.start, y.start) + 0.5) / np.maximum(size, 1)
        rows.append(np.column_stack([np.full(len(area), channel), area, place]))
    return np.concatenate(rows)
