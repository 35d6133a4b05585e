"""A vessel tree on the pixel grid, and how its nodes hang together.

Nodes are numbered so that children follow their parents; a *branch* is the run of nodes from one
fork (or root) to the next fork (or tip), and branches are numbered in the same way.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float64]
Integers = npt.NDArray[np.int64]


@dataclass(frozen=True)
class VesselTree:
    """One tree, or a forest, in pixels.

    Attributes:
        nodes: `(n, 3)` float32: x (down the picture), y (to the right), depth along the ray.
        radius: `(n,)` float32.
        parent: `(n,)` int32, children after parents, -1 at a root.
        branch: `(n,)` int32, numbered from 0.
        vein: `(n,)` bool.
        visible: `(n,)` bool, closed under parents: what an annotator would label.
        shape: (X, Y) of the picture.
        disc: (3,) centre and radius of the optic disc, zero without one.
        field: (3,) centre and radius of the field of view, zero where the whole frame is seen.
    """

    nodes: npt.NDArray[np.float32]
    radius: npt.NDArray[np.float32]
    parent: npt.NDArray[np.int32]
    branch: npt.NDArray[np.int32]
    vein: npt.NDArray[np.bool_]
    visible: npt.NDArray[np.bool_]
    shape: tuple[int, int]
    disc: npt.NDArray[np.float32]
    field: npt.NDArray[np.float32]

    @property
    def forks(self) -> Integers:
        """Indices of the visible nodes that have two or more visible children."""
        children = self.parent[self.visible & (self.parent >= 0)]
        return np.flatnonzero(np.bincount(children, minlength=len(self.parent)) >= 2)


@dataclass(frozen=True)
class Branches:
    """The branches of a tree.

    Attributes:
        of_node: `(n,)` branch of each node.
        head: `(b,)` first node of each branch.
        count: `(b,)` number of nodes.
        parent: `(b,)` branch that it leaves, -1 at a root; always smaller than its own number.
    """

    of_node: Integers
    head: Integers
    count: Integers
    parent: Integers

    @classmethod
    def of(cls, parent: Integers) -> Branches:
        """Find the branches of a tree.

        Args:
            parent: `(n,)`, children after parents, -1 at a root.

        Examples:
            >>> Branches.of(np.array([-1, 0, 1, 1, 2])).of_node.tolist()
            [0, 0, 1, 2, 1]
        """
        n = len(parent)
        kids = np.bincount(parent[parent >= 0], minlength=n)
        starts = (parent < 0) | (kids[parent] != 1)
        head_of = np.where(starts, np.arange(n), parent)
        while not starts[head_of].all():  # doubles the distance jumped
            head_of = head_of[head_of]
        of_node = (np.cumsum(starts) - 1)[head_of]
        head = np.flatnonzero(starts)
        up = parent[head]
        return cls(
            of_node,
            head,
            np.bincount(of_node, minlength=len(head)),
            np.where(up < 0, -1, of_node[up]),
        )


def path_length(nodes: Floats, parent: Integers) -> Floats:
    """Return the length `(n,)` of the way from each node to its root.

    Args:
        nodes: `(n, D)`.
        parent: `(n,)`, -1 at a root.
    """
    jump = np.where(parent < 0, np.arange(len(parent)), parent)
    length: Floats = np.sqrt(((nodes - nodes[jump]) ** 2).sum(axis=1))
    while True:  # pointer doubling: after k rounds each node has summed 2**k edges
        further = jump[jump]
        if np.array_equal(further, jump):
            return length
        length = length + length[jump]
        jump = further


def graph(tree: VesselTree) -> dict[str, npt.NDArray[np.generic]]:
    """Return a tree as plain arrays: nodes, radius, parent, branch, vein, visible."""
    names = ("nodes", "radius", "parent", "branch", "vein", "visible")
    return {name: getattr(tree, name) for name in names}
