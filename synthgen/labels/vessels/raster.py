"""Tapered capsules on the pixel grid: coverage and path lengths, to the exact formula.

An edge runs from a to b with radius r(t), t the place of a pixel's centre along it, clipped to
[0, 1]. At distance d from that place the pixel is covered by clip(1/2 + r(t) - d, 0, 1), and the
ray through it runs 2 sqrt(r(t)^2 - d^2) inside, centred at the depth of that place. Of a branch
the longest chord counts; of several branches the union of the chords in depth, so a crossing adds
up and a fork does not. `accelerated.py` holds the same steps for numba.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from synthgen.labels.vessels.radii import FUNNEL

if TYPE_CHECKING:
    from collections.abc import Callable

    import numpy.typing as npt

    from synthgen.labels.vessels.tree import Floats, Integers, VesselTree

    Map = npt.NDArray[np.float32]
    Draw = Callable[["Edges", Map, Map, Map, Map], None]

ARTERY, VEIN, HIDDEN = 0, 1, 2
"""Layers of a drawing; their path lengths are kept apart."""


@dataclass(frozen=True)
class Edges:
    """The edges of a tree in drawing order: by layer, then branch, then node.

    Attributes:
        start: `(e, 4)` x, y, depth, radius at the parent's end.
        end: `(e, 4)` the same at the child's end.
        branch: `(e,)`.
        layer: `(e,)` ARTERY, VEIN or HIDDEN.
        box: `(e, 4)` first and last-plus-one row, first and last-plus-one column.
        field: (3,) centre and squared radius of the field of view; pixels outside stay empty.
    """

    start: Floats
    end: Floats
    branch: Integers
    layer: Integers
    box: Integers
    field: Floats

    @classmethod
    def of(cls, tree: VesselTree) -> Edges:
        """Collect the edges that touch the picture.

        Where an edge enters another branch its radius starts at no more than `FUNNEL` times its
        end's, so that a side branch does not open like a trumpet.
        """
        child = np.flatnonzero(tree.parent >= 0)
        parent = tree.parent[child]
        layer = np.where(tree.visible, np.where(tree.vein, VEIN, ARTERY), HIDDEN)[child]
        branch = tree.branch[child].astype(np.int64)
        points = np.column_stack([tree.nodes, tree.radius]).astype(np.float64)
        start, end = points[parent], points[child]
        enters = tree.branch[parent] != branch
        start[:, 3] = np.where(enters, np.minimum(start[:, 3], FUNNEL * end[:, 3]), start[:, 3])
        reach = np.maximum(start[:, 3], end[:, 3])[:, None] + 0.5
        low = np.floor(np.minimum(start, end)[:, :2] - reach).astype(np.int64) + 1
        high = np.ceil(np.maximum(start, end)[:, :2] + reach).astype(np.int64)
        low, high = np.maximum(low, 0), np.minimum(high, tree.shape)
        box = np.column_stack([low[:, 0], high[:, 0], low[:, 1], high[:, 1]])
        order = np.lexsort((child, branch, layer))
        order = order[np.all(low < high, axis=1)[order]]
        field = np.array([*tree.field[:2], float(tree.field[2]) ** 2 or np.inf], np.float64)
        return cls(start[order], end[order], branch[order], layer[order], box[order], field)


@dataclass(frozen=True)
class Pairs:
    """Edges and pixels that may meet, in drawing order.

    Attributes:
        edge: `(k,)`.
        pixel: `(k,)` flat index.
        place: `(k,)` t along the edge, in [0, 1].
        squared: `(k,)` squared distance from the pixel's centre to that place.
        radius: `(k,)` r(t).
    """

    edge: Integers
    pixel: Integers
    place: Floats
    squared: Floats
    radius: Floats

    @classmethod
    def of(cls, edges: Edges, shape: tuple[int, int]) -> Pairs:
        """Enumerate the pixels of every edge's box."""
        edge, row, first, count = _rows(edges)
        column = np.arange(count.sum()) - np.repeat(np.cumsum(count) - count - first, count)
        delta = edges.end - edges.start
        inverse = 1 / np.maximum(delta[:, 0] * delta[:, 0] + delta[:, 1] * delta[:, 1], 1e-12)
        rx = row - edges.start[edge, 0]
        dx, dy, dr = delta[edge][:, [0, 1, 3]].T
        ahead, rx, dx, dy, inverse, ay, ar, dr, pixel = (
            np.repeat(a, count)
            for a in (rx * dx, rx, dx, dy, inverse[edge], edges.start[edge, 1],
                      edges.start[edge, 3], dr, row * shape[1])
        )  # fmt: skip
        ry = column - ay
        place = (ahead + ry * dy) * inverse
        np.minimum(np.maximum(place, 0.0, out=place), 1.0, out=place)
        px, py = rx - place * dx, ry - place * dy
        squared = px * px + py * py
        radius = ar + place * dr
        reach = radius + 0.5
        near = squared < reach * reach
        if np.isfinite(edges.field[2]):
            x = np.repeat(row - edges.field[0], count)
            y = column - edges.field[1]
            near &= x * x + y * y <= edges.field[2]
        near = np.flatnonzero(near)
        edge = np.repeat(edge, count)[near]
        return cls(edge, (pixel + column)[near], place[near], squared[near], radius[near])

    def of_layers(self, edges: Edges, first: int, last: int) -> Pairs:
        """Return the pairs of the layers from `first` to `last`; drawing order sorts by layer."""
        bounds = np.searchsorted(edges.layer, [first, last + 1])
        low, high = np.searchsorted(self.edge, bounds)
        return Pairs(*(getattr(self, name)[low:high] for name in self.__dataclass_fields__))


def _rows(edges: Edges) -> tuple[Integers, Integers, Integers, Integers]:
    """Return edge, row, first column and number of columns of each row of pixels to look at.

    A capsule lies in the disc round its middle that reaches its ends, so rows are cut to that.
    """
    rows = edges.box[:, 1] - edges.box[:, 0]
    edge = np.repeat(np.arange(len(rows)), rows)
    row = np.arange(len(edge)) - np.repeat(np.cumsum(rows) - rows - edges.box[:, 0], rows)
    half = (edges.end - edges.start)[:, :2] / 2
    middle = edges.start[:, :2] + half
    reach = np.sqrt((half * half).sum(axis=1)) + 1
    reach += np.maximum(edges.start[:, 3], edges.end[:, 3])
    off = row - middle[edge, 0]
    wide = np.sqrt(np.maximum((reach * reach)[edge] - off * off, 0.0))
    first = np.maximum(edges.box[edge, 2], np.ceil(middle[edge, 1] - wide).astype(np.int64))
    last = np.minimum(edges.box[edge, 3] - 1, np.floor(middle[edge, 1] + wide).astype(np.int64))
    return edge, row, first, np.maximum(last - first + 1, 0)


def draw(edges: Edges, coverage: Map, path: Map, hidden: Map, vein: Map) -> None:
    """Draw edges into maps `(X, Y)` of zeros.

    Args:
        edges: of one tree.
        coverage: receives the coverage by labelled vessels, in whole 255ths.
        path: receives the path length in labelled vessels, in pixels.
        hidden: receives the path length in the others.
        vein: receives the part of `path` that belongs to veins.
    """
    pairs = Pairs.of(edges, coverage.shape)
    seen = pairs.of_layers(edges, ARTERY, VEIN)
    share = np.minimum(0.5 + seen.radius - np.sqrt(seen.squared), 1.0)
    share = np.rint(share * 255) / 255
    np.maximum.at(coverage.reshape(-1), seen.pixel, share.astype(np.float32))
    for layer, array in ((ARTERY, path), (VEIN, vein), (HIDDEN, hidden)):
        cells, chords = _chords(edges, pairs.of_layers(edges, layer, layer))
        array.reshape(-1)[cells] = chords
        if layer == VEIN:
            path.reshape(-1)[cells] += chords


def path_length(edges: Edges, pairs: Pairs, shape: tuple[int, int]) -> Map:
    """Return the path length `(X, Y)` in labelled vessels, in pixels."""
    length = np.zeros(shape, np.float32)
    for layer in (ARTERY, VEIN):
        cells, chords = _chords(edges, pairs.of_layers(edges, layer, layer))
        length.reshape(-1)[cells] += chords
    return length


def _chords(edges: Edges, pairs: Pairs) -> tuple[Integers, Map]:
    """Return the pixels of one layer's pairs, ascending, and the path length in each."""
    widths = pairs.radius * pairs.radius
    inside = np.flatnonzero(pairs.squared < widths)
    if not len(inside):
        return inside, np.empty(0, np.float32)
    edge = pairs.edge[inside]
    half = np.sqrt(widths[inside] - pairs.squared[inside])
    # Of every (pixel, branch): the longest chord, the first of equals.
    branches = int(edges.branch.max()) + 1
    group = pairs.pixel[inside] * branches + edges.branch[edge]
    order = np.argsort(group)
    group, half_in = group[order], half[order]
    opens = np.flatnonzero(np.diff(group, prepend=-1))
    longest = np.repeat(np.maximum.reduceat(half_in, opens), np.diff(opens, append=len(group)))
    best = np.minimum.reduceat(np.where(half_in == longest, order, len(order)), opens)
    start, end = edges.start[edge[best], 2], edges.end[edge[best], 2]
    cell, half = group[opens] // branches, half[best]
    depth = start + pairs.place[inside[best]] * (end - start)
    low, high = depth - half, depth + half
    order = np.lexsort((low, cell))
    cell, low, high = cell[order], low[order], high[order]
    # Union of the chords of each pixel: the k-th chord of all pixels at once.
    opens = np.flatnonzero(np.diff(cell, prepend=-1))
    sizes = np.diff(opens, append=len(cell))
    total, top = np.zeros(len(opens)), np.full(len(opens), -np.inf)
    for k in range(int(sizes.max())):
        has = np.flatnonzero(sizes > k)
        at = opens[has] + k
        total[has] += np.maximum(high[at] - np.maximum(low[at], top[has]), 0.0)
        top[has] = np.maximum(top[has], high[at])
    return cell[opens], total.astype(np.float32)
