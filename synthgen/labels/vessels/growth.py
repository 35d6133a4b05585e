"""Space colonisation: a tree grows towards attractors until each was reached.

Source: Runions et al. 2005 and 2007 (the algorithm), with direction memory and noise. Every live
attractor within reach pulls its nearest node; a node that is pulled emits one child, at most two
in its life; attractors near a node die. The same steps stand in `accelerated.py` for numba, in
the same order of operations, so both grow the same tree to the last bit.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Callable

    from synthgen.labels.vessels.tree import Floats, Integers

    Grow = Callable[["Growth", Floats, Floats, Integers, Floats], tuple[Floats, Integers]]

CAP = 6000
"""Nodes at which growth stops; ordinary trees have some thousand."""


@dataclass(frozen=True)
class Arcade:
    """A heading field that bends growth round a centre, as the great vessels round the macula.

    Attributes:
        centre: (x, y).
        towards: unit vector from the centre to where the vessels come from; the field is
            strongest there and vanishes on the opposite side.
        radius: distance from the centre at which the field is strongest.
        width: distance from that ring at which it has fallen to half.
        strength: weight beside the mean pull, which is of order one.
    """

    centre: tuple[float, float]
    towards: tuple[float, float]
    radius: float
    width: float
    strength: float

    @property
    def numbers(self) -> Floats:
        """The field as seven numbers."""
        return np.array([*self.centre, *self.towards, self.radius, self.width, self.strength])


@dataclass(frozen=True)
class Growth:
    """How a tree grows, in the unit of its points.

    Attributes:
        step: distance from a node to its child.
        influence: distance within which an attractor pulls.
        kill: distance at which an attractor is reached and dies.
        memory: weight of a node's own heading, for its first child.
        side: the same for its second child, a side branch.
        noise: weight of a normal vector.
        axes: semi-axes of the ellipsoid that nodes stay on; None for free growth.
        arcade: heading field for first children, in the plane; None without.
    """

    step: float
    influence: float
    kill: float
    memory: float
    side: float
    noise: float
    axes: tuple[float, float, float] | None = None
    arcade: Arcade | None = None

    @property
    def numbers(self) -> Floats:
        """Step, squared influence, squared kill distance, memory, side, noise."""
        squares = (self.influence**2, self.kill**2)
        return np.array([self.step, *squares, self.memory, self.side, self.noise])

    @property
    def inverse_axes(self) -> Floats:
        """Reciprocal semi-axes `(3,)`, or an empty array."""
        return np.empty(0) if self.axes is None else 1 / np.asarray(self.axes, float)

    @property
    def field(self) -> Floats:
        """The heading field as seven numbers, or an empty array."""
        return np.empty(0) if self.arcade is None else self.arcade.numbers


def grow(
    growth: Growth, attractors: Floats, roots: Floats, parent: Integers, noise: Floats
) -> tuple[Floats, Integers]:
    """Grow from root polylines towards attractors.

    Args:
        growth: how.
        attractors: `(A, D)`, D of 2 or 3.
        roots: `(m, D)` nodes that stand already, children after parents.
        parent: `(m,)` of them, -1 at a root.
        noise: `(cap, D)` normal numbers; row i belongs to node i.

    Returns:
        Nodes `(n, D)`, n <= cap, and parents `(n,)`; the first m are the roots'.
    """
    numbers, axes, field = growth.numbers, growth.inverse_axes, growth.field
    n, cap = len(roots), len(noise)
    nodes, headings, parents, kids = _start(roots, parent, cap)
    at = np.ascontiguousarray(attractors.T)
    near, distance = np.zeros(at.shape[1], int), np.full(at.shape[1], np.inf)
    first, last = 0, n
    while True:
        near, distance = _nearest(at, near, distance, nodes[:, first:last], first)
        alive = distance > numbers[2]
        at, near, distance = at[:, alive], near[alive], distance[alive]
        if not len(near) or last == cap:
            break
        pulled = np.flatnonzero(distance <= numbers[1])
        if not len(pulled):
            pulled = np.argmin(distance, keepdims=True)
        by = near[pulled]
        away = (at[:, pulled] - nodes[:, by]) / np.sqrt(distance[pulled])
        count = np.bincount(by, minlength=last)
        tips = np.flatnonzero((count > 0) & (kids[:last] < 2))[: cap - last]
        if not len(tips):
            break
        pull = np.array([np.bincount(by, weights=a, minlength=last)[tips] for a in away])
        first, last = last, last + len(tips)
        is_first = kids[tips] == 0
        memory = np.where(is_first, numbers[3], numbers[4])
        heading = pull / count[tips] + memory * headings[:, tips]
        if len(field):
            heading += _arcade(nodes[:, tips], field) * is_first
        heading += numbers[5] * noise[first:last].T
        heading /= _norm(heading)
        fresh = nodes[:, tips] + numbers[0] * heading
        if len(axes):
            fresh /= _norm(fresh * axes[:, None])
        nodes[:, first:last], headings[:, first:last] = fresh, heading
        parents[first:last] = tips
        kids[tips] += 1
    return nodes[:, :last].T.copy(), parents[:last].copy()


def _start(roots: Floats, parent: Integers, cap: int) -> tuple[Floats, Floats, Integers, Integers]:
    """Nodes `(D, cap)`, headings `(D, cap)`, parents and numbers of children `(cap,)`."""
    m, dims = roots.shape
    nodes, headings = np.zeros((2, dims, cap))
    nodes[:, :m] = roots.T
    inner = np.flatnonzero(parent >= 0)
    along = (roots[inner] - roots[parent[inner]]).T
    headings[:, inner] = along / _norm(along)
    parents, kids = np.full(cap, -1), np.zeros(cap, int)
    parents[:m] = parent
    np.add.at(kids, parent[inner], 1)
    return nodes, headings, parents, kids


def _norm(vectors: Floats) -> Floats:
    """Return the length of column vectors; summed from the left, as a loop would."""
    total = vectors[0] * vectors[0]
    for row in vectors[1:]:
        total = total + row * row
    length: Floats = np.sqrt(total)
    return length


def _nearest(
    at: Floats, near: Integers, distance: Floats, fresh: Floats, first: int
) -> tuple[Integers, Floats]:
    """Update each attractor's nearest node and squared distance with new nodes."""
    apart = np.subtract.outer(fresh[0], at[0])
    squares = apart * apart
    for new, old in zip(fresh[1:], at[1:], strict=True):
        apart = np.subtract.outer(new, old)
        squares += apart * apart
    best = squares.argmin(axis=0)
    least = squares[best, np.arange(len(best))]
    closer = least < distance
    return np.where(closer, best + first, near), np.where(closer, least, distance)


def _arcade(nodes: Floats, field: Floats) -> Floats:
    """Return the heading field `(2, n)` at nodes `(2, n)`."""
    x, y = nodes[0] - field[0], nodes[1] - field[1]
    away = np.sqrt(x * x + y * y) + 1e-9
    x, y = x / away, y / away
    cosine = x * field[2] + y * field[3]
    side = np.where(x * field[3] - y * field[2] >= 0, -1.0, 1.0)
    off = (away - field[4]) / field[5]
    weight = side * (field[6] * (1 + cosine) / (1 + off * off))
    return np.stack([-y * weight, x * weight])
