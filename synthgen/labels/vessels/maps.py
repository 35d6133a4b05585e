"""Further maps of labelled vessels: centreline, path length, radius, branches, bifurcations."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from synthgen.core.errors import RequestError
from synthgen.core.vessels import COVERED
from synthgen.labels.vessels import raster

if TYPE_CHECKING:
    from collections.abc import Sequence

    import numpy.typing as npt

    from synthgen.labels.vessels.tree import VesselTree

EXTRAS = {
    "centreline": np.dtype(np.uint8),
    "path_length": np.dtype(np.float16),
    "radius": np.dtype(np.float16),
    "branches": np.dtype(np.int16),
    "bifurcations": np.dtype(np.uint8),
}
"""Names and types of the maps."""


def draw_extras(
    trees: Sequence[VesselTree], names: Sequence[str], shape: tuple[int, int]
) -> dict[str, npt.NDArray[Any]]:
    """Draw maps `(B, X, Y)` by name, zero off the labelled vessels.

    Raises:
        RequestError: an unknown name.
    """
    unknown = [name for name in names if name not in EXTRAS]
    if unknown:
        raise RequestError(
            f"extra vessel maps: expected some of {', '.join(EXTRAS)}, got '{unknown[0]}'"
        )
    out = {name: np.zeros((len(trees), *shape), EXTRAS[name]) for name in names}
    for b, tree in enumerate(trees):
        edges = raster.Edges.of(tree)
        pairs = raster.Pairs.of(edges, shape)
        for name in names:
            match name:
                case "centreline":
                    out[name][b] = _points(tree, _axis(tree))
                case "bifurcations":
                    out[name][b] = _points(tree, tree.nodes[tree.forks, :2])
                case "path_length":
                    out[name][b] = raster.path_length(edges, pairs, shape)
                case "radius":
                    out[name][b] = _owners(edges, pairs, shape, pairs.radius)
                case "branches":
                    out[name][b] = _owners(edges, pairs, shape, edges.branch[pairs.edge] + 1)
    return out


def _axis(tree: VesselTree) -> npt.NDArray[np.float32]:
    """Points `(k, 2)` along the labelled edges, at most half a pixel apart."""
    child = np.flatnonzero(tree.visible & (tree.parent >= 0))
    start, end = tree.nodes[tree.parent[child], :2], tree.nodes[child, :2]
    longest = np.sqrt(((end - start) ** 2).sum(axis=1)).max(initial=0)
    places = np.linspace(0, 1, int(2 * longest) + 2, dtype=np.float32)[:, None, None]
    points: npt.NDArray[np.float32] = (start + places * (end - start)).reshape(-1, 2)
    return points


def _points(tree: VesselTree, points: npt.NDArray[np.float32]) -> npt.NDArray[np.uint8]:
    """Mark the pixels that hold points `(k, 2)`, in the picture and its field of view."""
    at = np.rint(points).astype(int)
    at = at[((at >= 0) & (at < tree.shape)).all(axis=1)]
    if tree.field[2]:
        at = at[((at - tree.field[:2]) ** 2).sum(axis=1) <= tree.field[2] ** 2]
    marked = np.zeros(tree.shape, np.uint8)
    marked[at[:, 0], at[:, 1]] = 1
    return marked


def _owners(
    edges: raster.Edges, pairs: raster.Pairs, shape: tuple[int, int], values: npt.NDArray[Any]
) -> npt.NDArray[Any]:
    """Return for each pixel of the mask the value of the edge that covers it most."""
    share = 0.5 + pairs.radius - np.sqrt(pairs.squared)
    labelled = (edges.layer[pairs.edge] != raster.HIDDEN) & (np.rint(share * 255) >= COVERED)
    order = np.flatnonzero(labelled)
    order = order[np.argsort(share[order], kind="stable")]  # who covers most is written last
    out = np.zeros(shape, values.dtype)
    out.reshape(-1)[pairs.pixel[order]] = values[order]
    return out
