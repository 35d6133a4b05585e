"""Nearest neighbours among descriptors: a coarse search, and a fine distance that allows for warps.

The coarse search compares every record with every other one, in four orientations. The fine
distance cuts the structure into blocks of 32 px, lets each block move by up to 8 px for itself,
and sums what the blocks agree on. A shifted copy is found wherever it lies, and so is one that
was rotated or warped a little, as training augments do; two people's brains gain much less from
that freedom.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt
from numpy.lib.stride_tricks import sliding_window_view

from synthgen.evaluate.descriptors import BLOCK, mirrored

if TYPE_CHECKING:
    from synthgen.evaluate.descriptors import Bank
    from synthgen.evaluate.sets import Floats, Indices

Distances = npt.NDArray[np.float64]

ORIENTATIONS: tuple[tuple[int, ...], ...] = ((), (0,), (1,), (0, 1))
"""Axes along which a record may be mirrored."""

OVERALL = 10
"""Records that the fine distance is measured to: the best of the coarse search, ..."""

PER_SUBJECT = 6
"""... and the best one of each of this many subjects, so that no subject hides the others."""

SHIFT = 4
"""Fine pixels by which a block may move."""

_SPAN = 2 * SHIFT + 1
_NEAR_FIRST = np.argsort(
    [(i - SHIFT) ** 2 + (j - SHIFT) ** 2 for i in range(_SPAN) for j in range(_SPAN)],
    kind="stable",
)
_CHUNK = 256
_TIE = 0.03  # coarse likeness; a symmetric slice is as like its mirror image
_TINY = 1e-9


@dataclass(frozen=True)
class Nearest:
    """The nearest target of each query.

    Attributes:
        index: `(n,)` its record; -1 if there was none.
        distance: `(n,)` in [0, 1], 0 for a copy; 1 if there was none.
        orientation: `(n,)` index into `ORIENTATIONS`: how the target was mirrored.
        other: `(n,)` distance to the nearest target of another subject than that of `index`; 1
            if there was none.
    """

    index: Indices
    distance: Distances
    orientation: Indices
    other: Distances


@dataclass(frozen=True)
class BySubject:
    """The nearest target of each query among those of each subject, by the coarse distance.

    Attributes:
        subjects: the G subjects, sorted.
        index: `(n, G)` record of the nearest target.
        distance: `(n, G)` its distance in [0, 1]; infinite for the query's own subject.
    """

    subjects: tuple[str, ...]
    index: Indices
    distance: Distances

    def of(self, subjects: list[str]) -> Distances:
        """Return the distance `(n,)` to the nearest target of some subjects."""
        columns = [self.subjects.index(s) for s in subjects]
        nearest_of: Distances = self.distance[:, columns].min(axis=1)
        return nearest_of


def nearest(queries: Bank, targets: Bank, *, apart: bool = False) -> Nearest:
    """Find the nearest target of each query, by the fine distance.

    Args:
        queries: n records.
        targets: m records.
        apart: leave out targets of the query's own subject.
    """
    index = np.full(len(queries), -1, dtype=np.int64)
    turned = np.zeros(len(queries), dtype=np.int64)
    distance, other = np.ones(len(queries)), np.ones(len(queries))
    groups, subject = _groups(targets.subject), np.asarray(targets.subject)
    for start in range(0, len(queries), _CHUNK):
        part = np.arange(start, min(start + _CHUNK, len(queries)))
        likeness = _likeness(queries, targets, part, apart=apart)
        for row, query in enumerate(part):
            chosen, ways = _candidates(likeness[:, row], groups)
            if not chosen.size:
                continue
            found = fine_distance(queries.fine[query], targets.fine[chosen], ways)
            best = int(np.argmin(found))
            index[query], distance[query] = chosen[best], found[best]
            turned[query] = ways[best]
            apart_from_it = found[subject[chosen] != subject[chosen[best]]]
            other[query] = apart_from_it.min(initial=1)
    return Nearest(index, distance, turned, other)


def by_subject(queries: Bank, targets: Bank, *, apart: bool = False) -> BySubject:
    """Find the nearest target of each query among those of each subject, by the coarse distance.

    Args:
        queries: n records.
        targets: m records; those of an unknown subject count as one.
        apart: leave out targets of the query's own subject.
    """
    names = tuple(sorted({*targets.subject}))
    groups = _groups(targets.subject)
    shape = (len(queries), len(names))
    index, distance = np.zeros(shape, dtype=np.int64), np.empty(shape)
    for start in range(0, len(queries), _CHUNK):
        part = np.arange(start, min(start + _CHUNK, len(queries)))
        likeness = _likeness(queries, targets, part, apart=apart).max(axis=0)
        for column, group in enumerate(groups):
            best = np.argmax(likeness[:, group], axis=1)
            index[part, column] = group[best]
            distance[part, column] = 1 - likeness[np.arange(len(part)), group[best]]
    return BySubject(names, index, distance)


def fine_distance(
    query: npt.NDArray[np.float16], targets: npt.NDArray[np.float16], ways: Indices
) -> Distances:
    """Return 1 - the likeness of one fine structure and k others.

    Each block of the query takes the shift that fits best. The sum of the products is divided by
    the lengths of the target and of the shifted query, so that it is at most 1.

    Args:
        query: `(2, H, W)`.
        targets: `(k, 2, H, W)`.
        ways: `(k,)` orientation of each target.

    Returns:
        `(k,)` in [0, 1]; 1 if either is empty.
    """
    pieces, used = _shifted_blocks(query.astype(np.float32))
    turned = np.stack(
        [mirrored(t, ORIENTATIONS[w]) for t, w in zip(targets, ways, strict=True)]
    ).astype(np.float32)
    others = _blocks(turned)[:, used].transpose(1, 2, 0)  # (B, d, k)
    products = (pieces @ others)[:, _NEAR_FIRST]  # (B, S, k)
    energy = np.einsum("bsd,bsd->bs", pieces, pieces)[:, _NEAR_FIRST, None]
    shift = np.argmax(2 * products - energy, axis=1, keepdims=True)  # least squares
    total, spent = (
        np.take_along_axis(values, shift, axis=1)[:, 0].sum(axis=0, dtype=np.float64)
        for values in (products, energy)
    )
    length = np.sqrt(spent * np.einsum("kcxy,kcxy->k", turned, turned, dtype=np.float64))
    likeness = np.where(length > _TINY, total / np.maximum(length, _TINY), 0)
    distance: Distances = np.clip(1 - likeness, 0, 1)
    return distance


def _likeness(queries: Bank, targets: Bank, part: Indices, *, apart: bool) -> Floats:
    """Return the coarse likeness `(4, q, m)` in each orientation; -inf if left out."""
    flat = targets.coarse.reshape(len(targets), -1)
    found = np.empty((len(ORIENTATIONS), len(part), len(targets)), dtype=np.float32)
    for number, axes in enumerate(ORIENTATIONS):
        turned = np.ascontiguousarray(mirrored(queries.coarse[part], axes))
        np.matmul(turned.reshape(len(part), -1), flat.T, out=found[number])
    if apart:
        own = np.asarray(queries.subject)[part][:, None] == np.asarray(targets.subject)[None]
        found[:, own] = -np.inf
    return found


def _candidates(likeness: Floats, groups: list[Indices]) -> tuple[Indices, Indices]:
    """Return the best targets overall and of the best subjects, and how to turn each.

    A target comes in several orientations if the coarse search cannot tell which one fits best.
    """
    best = likeness.max(axis=0)
    order = np.argpartition(-best, min(OVERALL, len(best)) - 1)[:OVERALL]
    firsts = np.asarray([group[np.argmax(best[group])] for group in groups])
    firsts = firsts[np.argsort(-best[firsts])[:PER_SUBJECT]]
    chosen: Indices = np.unique(np.concatenate([order, firsts]))
    chosen = chosen[np.isfinite(best[chosen])]
    ways, places = np.nonzero(likeness[:, chosen] >= best[chosen] - _TIE)
    return chosen[places], ways


def _groups(subjects: tuple[str, ...]) -> list[Indices]:
    column = np.asarray(subjects)
    return [np.flatnonzero(column == name) for name in sorted({*subjects})]


def _blocks(structures: Floats) -> Floats:
    """Cut `(k, 2, H, W)` into blocks `(k, B, d)`."""
    count, two, height, width = structures.shape
    cut = structures.reshape(count, two, height // BLOCK, BLOCK, width // BLOCK, BLOCK)
    return cut.transpose(0, 2, 4, 1, 3, 5).reshape(count, -1, two * BLOCK * BLOCK)


def _shifted_blocks(structure: Floats) -> tuple[Floats, npt.NDArray[np.bool_]]:
    """Return each block that is not empty under every shift `(b, S, d)`; and which they are."""
    margin = np.pad(structure, ((0, 0), (SHIFT, SHIFT), (SHIFT, SHIFT)))
    side = BLOCK + 2 * SHIFT
    windows = sliding_window_view(margin, (side, side), axis=(1, 2))[:, ::BLOCK, ::BLOCK]
    windows = windows.transpose(1, 2, 0, 3, 4).reshape(-1, len(structure), side, side)
    used: npt.NDArray[np.bool_] = np.any(windows != 0, axis=(1, 2, 3))
    moved = sliding_window_view(windows[used], (BLOCK, BLOCK), axis=(2, 3))  # (b, 2, s, s, ...)
    size = len(structure) * BLOCK**2  # not -1: there may be no block
    return moved.transpose(0, 2, 3, 1, 4, 5).reshape(int(used.sum()), _SPAN**2, size), used
