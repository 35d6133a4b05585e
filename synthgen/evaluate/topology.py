"""Shape of one label map: pieces, holes, neighbours.

The brain is where the background's partial volume lies below one half. Pixels that touch at a
corner count as one piece (8-connectivity), so a hole is closed if no path of pixels that share a
side leads out of it (4-connectivity).
"""

from __future__ import annotations

from itertools import combinations
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import numpy.typing as npt
from scipy import ndimage

if TYPE_CHECKING:
    from collections.abc import Sequence

Mask = npt.NDArray[np.bool_]
EDGE = 0.5
SPECK = 20
"""Pieces and holes of fewer pixels are not counted; the shares of area do see them."""
_CORNERS = np.ones((3, 3), dtype=np.int64)


class Shape(NamedTuple):
    """Pieces and holes of one mask.

    Attributes:
        pieces: connected components of at least `SPECK` pixels.
        outside: share of the mask's area that is not in its largest component, specks included.
        holes: enclosed gaps of at least `SPECK` pixels.
        hole_share: share of the filled mask's area that is gap, small gaps included.
    """

    pieces: int
    outside: float
    holes: int
    hole_share: float


class Patches(NamedTuple):
    """Connected components of one mask.

    Attributes:
        area: `(K,)` in pixels.
        center: `(K, 2)` mean pixel indices x, y.
    """

    area: npt.NDArray[np.float64]
    center: npt.NDArray[np.float64]


def brain_mask(pv: npt.NDArray[Any]) -> Mask:
    """Return the brain `(X, Y)` of a PV map `(C, X, Y)`."""
    brain: Mask = pv[0] < EDGE
    return brain


def shape_of(mask: Mask) -> Shape:
    """Count the pieces and holes of a mask `(X, Y)`; an empty mask has neither."""
    pieces = patches(mask).area
    filled = ndimage.binary_fill_holes(mask)
    gaps = filled & ~mask
    holes = np.bincount(ndimage.label(gaps)[0].ravel())[1:]
    area = float(pieces.sum())
    return Shape(
        pieces=int((pieces >= SPECK).sum()),
        outside=float(1 - pieces.max() / area) if area else 0.0,
        holes=int((holes >= SPECK).sum()),
        hole_share=float(gaps.sum() / (area + gaps.sum())) if area else 0.0,
    )


def patches(mask: Mask) -> Patches:
    """Return the connected components of a mask `(X, Y)`."""
    if not mask.any():
        return Patches(np.zeros(0), np.zeros((0, 2)))
    labels, count = ndimage.label(mask, _CORNERS)
    places = np.nonzero(labels)
    number = labels[places] - 1
    area = np.bincount(number, minlength=count).astype(np.float64)
    sums = [np.bincount(number, weights=axis, minlength=count) for axis in places]
    return Patches(area, np.stack(sums, axis=1) / area[:, None])


def bounding_box(mask: Mask) -> tuple[slice, slice]:
    """Return the smallest rectangle around a mask `(X, Y)`, or one of no pixels."""
    ends = []
    for axis in (1, 0):
        inside = np.flatnonzero(mask.any(axis=axis))
        ends.append(slice(int(inside[0]), int(inside[-1]) + 1) if inside.size else slice(0, 0))
    return ends[0], ends[1]


def neighbour_counts(channels: npt.NDArray[Any], count: int) -> npt.NDArray[np.float64]:
    """Count the pixel sides that lie between two tissues.

    Args:
        channels: `(X, Y)` channel of each pixel, in 0 .. count - 1.
        count: number of channels C.

    Returns:
        `(C (C - 1) / 2,)` lengths of the boundaries in pixel sides, in the order of
        `neighbour_pairs`. A boundary of a tissue with itself is none.
    """
    table = np.zeros(count * count, dtype=np.int64)
    for first, second in (
        (channels[:-1], channels[1:]),
        (channels[:, :-1], channels[:, 1:]),
    ):
        pair = first.astype(np.int64) * count + second
        table += np.bincount(pair.ravel(), minlength=count * count)
    square = table.reshape(count, count)
    upper = np.triu_indices(count, 1)
    lengths: npt.NDArray[np.float64] = (square + square.T)[upper].astype(np.float64)
    return lengths


def neighbour_pairs(names: Sequence[str]) -> list[tuple[str, str]]:
    """Return the pairs of tissues whose boundaries `neighbour_counts` counts, in its order.

    Examples:
        >>> neighbour_pairs(["background", "gm", "wm"])
        [('background', 'gm'), ('background', 'wm'), ('gm', 'wm')]
    """
    return [*combinations(names, 2)]
