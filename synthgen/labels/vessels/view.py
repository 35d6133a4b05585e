"""From a skeleton in space to a tree on the picture: rotation, projection, what is labelled."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    import numpy.typing as npt

    from synthgen.labels.vessels.tree import Floats, Integers


def rotation(tilt: float, swing: float, roll: float) -> Floats:
    """Return the matrix `(3, 3)` that tilts about x, swings about y, then rolls about the ray."""
    (a, b, c), (sa, sb, sc) = np.cos([tilt, swing, roll]), np.sin([tilt, swing, roll])
    about_x = np.array([[1, 0, 0], [0, a, -sa], [0, sa, a]])
    about_y = np.array([[b, 0, sb], [0, 1, 0], [-sb, 0, b]])
    about_z = np.array([[c, -sc, 0], [sc, c, 0], [0, 0, 1]])
    matrix: Floats = about_z @ about_y @ about_x
    return matrix


def place(nodes: Floats, shape: tuple[int, int], extent: float, rng: np.random.Generator) -> Floats:
    """Scale and shift an orthographic view to the picture.

    Args:
        nodes: `(n, 3)`; the third coordinate runs along the ray.
        shape: (X, Y).
        extent: longer side of the tree's box, in pixels.
        rng: draws the place of the box, inside the picture where it fits.

    Returns:
        `(n, 3)` in pixels.
    """
    low, high = nodes.min(axis=0), nodes.max(axis=0)
    scale = extent / (high - low)[:2].max()
    margin = (np.asarray(shape) - 1 - (high - low)[:2] * scale) / 2
    middle = (np.asarray(shape) - 1) / 2 + margin * rng.uniform(-0.9, 0.9, 2)
    placed: Floats = (nodes - (low + high) / 2) * scale
    placed[:, :2] += middle
    return placed


def visible(
    nodes: Floats, parent: Integers, radius: Floats, budget: float, thinnest: float
) -> npt.NDArray[np.bool_]:
    """Return which nodes an annotator labels: the thickest, until a length is spent.

    Args:
        nodes: `(n, 3)` in pixels.
        parent: `(n,)`.
        radius: `(n,)` pixels, nowhere wider than at the parent, so that the answer is closed
            under parents.
        budget: length in the picture that is labelled, in pixels.
        thinnest: radius below which nothing is labelled, in pixels.
    """
    order = np.lexsort((np.arange(len(radius)), -radius))
    above = np.where(parent < 0, np.arange(len(parent)), parent)
    length = np.sqrt(((nodes - nodes[above])[:, :2] ** 2).sum(axis=1))
    seen = np.zeros(len(radius), bool)
    seen[order] = np.cumsum(length[order]) <= budget
    return seen & (radius >= thinnest)
