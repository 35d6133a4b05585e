"""Skeletons of binary vessel masks, and the branches between their junctions.

The skeleton is that of Zhang and Suen (1984, doi:10.1145/357994.358023), as scikit-image builds it.
A pixel's neighbours are the eight around it. Skeleton pixels with three neighbours or more are
junction pixels, and touching ones are one junction; what is left falls into paths of pixels.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
from scipy import ndimage, sparse
from scipy.sparse import csgraph

Mask = npt.NDArray[np.bool_]
Floats = npt.NDArray[np.float64]
Integers = npt.NDArray[np.int64]

_SPUR_PX = 6.0
_SPUR_RADII, _SPUR_MARGIN_PX = 1.2, 3.0
_AROUND = np.ones((3, 3), dtype=np.int64)
_STEPS = ((0, 1), (1, 0), (1, 1), (1, -1))
_AROUND_STEPS = (*_STEPS, *((-x, -y) for x, y in _STEPS))


class Graph(NamedTuple):
    """Paths and junctions of a skeleton; P paths, J junctions, K places where they meet.

    The pixels of a path lie next to one another in `pixels`, in their order along it. A closed
    ring is a path without places; the order of its pixels has no meaning.

    Attributes:
        pixels: `(N, 2)` indices x, y of all pixels of paths.
        first: `(P + 1,)` where the pixels of each path begin, then N.
        length: `(P,)` in pixels: 1 for a step along an axis, sqrt(2) for a diagonal one.
        ring: `(P,)` whether the path is closed.
        junctions: `(J, 2)` mean x, y of each junction.
        path: `(K,)` a path that ends in a junction.
        at_end: `(K,)` whether its last pixel is the one that does, else its first.
        junction: `(K,)` that junction.
    """

    pixels: Integers
    first: Integers
    length: Floats
    ring: Mask
    junctions: Floats
    path: Integers
    at_end: Mask
    junction: Integers


def skeleton_of(mask: Mask) -> Mask:
    """Return the skeleton of a mask, of 2 or 3 dimensions."""
    from skimage.morphology import skeletonize  # noqa: PLC0415 - slow to import

    skeleton: Mask = skeletonize(mask)  # type: ignore[no-untyped-call]
    return skeleton


def neighbours(skeleton: Mask) -> npt.NDArray[np.uint8]:
    """Return how many neighbours each skeleton pixel `(X, Y)` has; 0 off the skeleton."""
    padded = np.pad(skeleton, 1).astype(np.uint8)
    rows = padded[:-2] + padded[1:-1] + padded[2:]
    count: npt.NDArray[np.uint8] = rows[:, :-2] + rows[:, 1:-1] + rows[:, 2:] - 1
    return np.where(skeleton, count, np.uint8(0))


def skeleton_length(skeleton: Mask) -> float:
    """Return the length of a skeleton `(X, Y)` in pixels.

    Steps along the axes count 1, diagonal ones sqrt(2), unless a corner pixel joins their ends.
    """
    padded = np.pad(skeleton, 1)
    down, right = padded[1:, :-1] & padded[:-1, :-1], padded[:-1, 1:] & padded[:-1, :-1]
    falling = padded[1:, 1:] & padded[:-1, :-1] & ~padded[1:, :-1] & ~padded[:-1, 1:]
    rising = padded[1:, :-1] & padded[:-1, 1:] & ~padded[1:, 1:] & ~padded[:-1, :-1]
    straight = int(down.sum()) + int(right.sum())
    return float(straight + math.sqrt(2) * (int(falling.sum()) + int(rising.sum())))


def pruned_skeleton(mask: Mask, radius: Floats) -> Mask:
    """Return the skeleton of a mask `(X, Y)` without spurs.

    A spur leads from a junction to a free end and has fewer than max(6, 1.2 r + 3) pixels, r being
    the largest radius of the junction. Spurs go at once, the rest is thinned again, until none is
    left.

    Args:
        mask: the vessels.
        radius: `(X, Y)` distance to the background in pixels.
    """
    skeleton = skeleton_of(mask)
    while True:
        spurs = _spurs(skeleton, radius)
        if not spurs.any():
            return skeleton
        skeleton = skeleton_of(skeleton & ~spurs)


def _spurs(skeleton: Mask, radius: Floats) -> Mask:
    """Return the pixels of all spurs."""
    count = neighbours(skeleton)
    junction = count >= 3
    paths, number = ndimage.label(skeleton & ~junction, _AROUND)
    wide = ndimage.grey_dilation(np.where(junction, radius, 0.0), size=(3, 3))
    reach = np.zeros(number + 1)
    met = (paths > 0) & (wide > 0)
    np.maximum.at(reach, paths[met], wide[met])
    free = np.zeros(number + 1, dtype=np.bool_)
    free[paths[(count == 1)]] = True
    size = np.bincount(paths.ravel(), minlength=number + 1)
    spur = free & (reach > 0) & (size < np.maximum(_SPUR_PX, _SPUR_RADII * reach + _SPUR_MARGIN_PX))
    spur[0] = False
    found: Mask = spur[paths]
    return found


def trace(skeleton: Mask) -> Graph:
    """Return the paths and junctions of a skeleton `(X, Y)`."""
    is_junction = neighbours(skeleton) >= 3
    clusters, num_junctions = ndimage.label(is_junction, _AROUND)
    free = skeleton & ~is_junction
    labels, num_paths = ndimage.label(free, _AROUND)
    pixels = np.argwhere(free)
    path = labels[free].astype(np.int64) - 1
    depth, steps, inner = _depths(free, path, num_paths)
    steps_of = np.bincount(path[steps.row], weights=steps.data, minlength=num_paths)
    ring = np.bincount(path, weights=inner < 2, minlength=num_paths) == 0
    order = np.lexsort((depth, path))
    pixels, path = pixels[order], path[order]
    first = np.concatenate([[0], np.cumsum(np.bincount(path, minlength=num_paths))])
    place, junction = _places(pixels, clusters)
    of = clusters[is_junction] - 1
    sums = [np.bincount(of, weights=x, minlength=num_junctions) for x in np.nonzero(is_junction)]
    size = np.bincount(of, minlength=num_junctions)
    return Graph(
        pixels=pixels,
        first=first,
        length=steps_of.astype(np.float64),
        ring=ring,
        junctions=np.stack(sums, axis=1) / size[:, None],
        path=path[place],
        at_end=place == first[path[place] + 1] - 1,
        junction=junction,
    )


def _depths(
    free: Mask, path: Integers, num_paths: int
) -> tuple[Floats, sparse.coo_matrix, Integers]:
    """Return each pixel's way along its path, the steps, and neighbours on the same path."""
    size = len(path)
    number = np.full(np.add(free.shape, 2), -1, dtype=np.int64)
    number[1:-1, 1:-1][free] = np.arange(size)
    here = np.argwhere(free) + 1
    ends, lengths = [], []
    for step in _STEPS:
        there = number[tuple((here + step).T)]
        found = np.flatnonzero(there >= 0)
        ends.append(np.stack([found, there[found]]))
        lengths.append(np.full(len(found), np.hypot(*step)))
    row, column = np.concatenate(ends, axis=1)
    steps = sparse.coo_matrix((np.concatenate(lengths), (row, column)), shape=(size, size))
    inner = np.bincount(row, minlength=size) + np.bincount(column, minlength=size)
    # The first pixel of each path, or any of a ring.
    outer = np.lexsort((inner >= 2, path))
    starts = outer[np.searchsorted(path[outer], np.arange(num_paths))]
    if not size:
        return np.zeros(0), steps, inner
    depth = csgraph.dijkstra(steps.tocsr(), directed=False, indices=starts, min_only=True)
    return depth, steps, inner


def _places(pixels: Integers, clusters: npt.NDArray[np.integer]) -> tuple[Integers, Integers]:
    """Return where a path pixel touches a junction: rows of `pixels`, and junctions."""
    padded = np.pad(clusters, 1)
    pairs = []
    for step in _AROUND_STEPS:
        touched = padded[tuple((pixels + step + 1).T)]
        found = np.flatnonzero(touched)
        pairs.append(np.stack([found, touched[found] - 1], axis=1))
    rows = np.unique(np.concatenate(pairs), axis=0).astype(np.int64)
    return rows[:, 0], rows[:, 1]
