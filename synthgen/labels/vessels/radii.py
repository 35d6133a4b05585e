"""From a grown skeleton to a tube: clean-up, radii, smoothing, jitter, lesions.

Murray's law (Murray 1926) with a drawn exponent x: at a fork r_parent^x is the sum of the
children's r^x, so radii follow from the leaves upwards.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np

from synthgen.labels.vessels.tree import Branches, path_length

if TYPE_CHECKING:
    from collections.abc import Sequence

    from synthgen.labels.vessels.tree import Floats, Integers

FUNNEL = 1.15
"""A side branch starts at no more than this multiple of its own radius."""


@dataclass(frozen=True)
class Skeleton:
    """A tree while it is made: nodes `(n, D)`, parents `(n,)`, radii `(n,)`."""

    nodes: Floats
    parent: Integers
    radius: Floats


def prune(
    nodes: Floats, parent: Integers, shortest: float, keep: float, rng: np.random.Generator
) -> tuple[Floats, Integers]:
    """Drop the shorter subtree of a fork where it is shorter than `shortest`.

    Args:
        nodes: `(n, D)`.
        parent: `(n,)`, children after parents, -1 at a root.
        shortest: height (length to the farthest leaf) that a subtree must have.
        keep: probability of keeping one all the same.
        rng: one uniform number is drawn for each branch.

    Returns:
        The nodes and parents that are left, renumbered.
    """
    branches = Branches.of(parent)
    along = path_length(nodes, parent)
    farthest = np.zeros(len(branches.head))
    np.maximum.at(farthest, branches.of_node, along)
    start = along[np.where(parent[branches.head] < 0, branches.head, parent[branches.head])]
    top = farthest.tolist()
    up = branches.parent.tolist()
    for b in range(len(up) - 1, -1, -1):
        if up[b] >= 0 and top[b] > top[up[b]]:
            top[up[b]] = top[b]
    height = np.asarray(top) - start
    best = np.full(len(up), -1)
    for b, p in enumerate(up):
        if p >= 0 and (best[p] < 0 or height[b] > height[best[p]]):
            best[p] = b
    drop = (height < shortest) & (rng.random(len(up)) >= keep) & (branches.parent >= 0)
    drop[best[best >= 0]] = False
    alive = (~drop).tolist()
    for b, p in enumerate(up):
        if p >= 0 and not alive[p]:
            alive[b] = False
    kept = np.asarray(alive)[branches.of_node]
    number = np.cumsum(kept) - 1
    above = parent[kept]
    return nodes[kept], np.where(above < 0, -1, number[above])


def murray(
    parent: Integers, exponent: float, leaf: tuple[float, float], rng: np.random.Generator
) -> Floats:
    """Return radii `(n,)`, in the unit of the leaves', that obey Murray's law at every fork.

    Args:
        parent: `(n,)`, children after parents, -1 at a root.
        exponent: Murray's x.
        leaf: range of the leaves' radii; most are thin (the square of a uniform draw).
        rng: draws the leaves' radii.
    """
    branches = Branches.of(parent)
    thin, thick = leaf
    flow = (thin + (thick - thin) * rng.random(len(branches.head)) ** 2) ** exponent
    inner = np.zeros(len(flow), bool)
    inner[branches.parent[branches.parent >= 0]] = True
    flow[inner] = 0
    total, up = flow.tolist(), branches.parent.tolist()
    for b in range(len(up) - 1, -1, -1):
        if up[b] >= 0:
            total[up[b]] += total[b]
    radii: Floats = (np.asarray(total) ** (1 / exponent))[branches.of_node]
    return radii


def continuation(parent: Integers, radius: Floats) -> Integers:
    """Return each node's widest child `(n,)`, the first of equals; the node itself at a tip."""
    order = np.lexsort((-np.arange(len(parent)), radius))  # the widest comes last and stays
    order = order[parent[order] >= 0]
    follows = np.arange(len(parent))
    follows[parent[order]] = order
    return follows


def smooth(tree: Skeleton, passes: int) -> Skeleton:
    """Smooth positions and radii along main chains with [1/4, 1/2, 1/4].

    Roots and tips stay; a side branch is drawn towards its fork, but takes over no more than
    `FUNNEL` times its own radius.
    """
    inner = tree.parent >= 0
    before = np.where(inner, tree.parent, np.arange(len(tree.parent)))
    after = continuation(tree.parent, tree.radius)
    moves = inner & (after != np.arange(len(after)))
    side = after[before] != np.arange(len(after))
    nodes, radius = tree.nodes, tree.radius
    for _ in range(passes):
        middle = nodes / 2 + (nodes[before] + nodes[after]) / 4
        nodes = np.where(moves[:, None], middle, nodes)
        above = np.where(side, np.minimum(radius[before], FUNNEL * radius), radius[before])
        radius = np.where(moves, radius / 2 + (above + radius[after]) / 4, radius)
    return Skeleton(nodes, tree.parent, radius)


def jitter(tree: Skeleton, spread: float, rng: np.random.Generator) -> Skeleton:
    """Multiply radii by lognormal noise of the given spread."""
    noise = np.exp(spread * rng.standard_normal(len(tree.radius)))
    return replace(tree, radius=tree.radius * noise)


def add_lesions(
    tree: Skeleton,
    along: Floats,
    chains: Integers,
    depths: Sequence[float],
    rng: np.random.Generator,
) -> Skeleton:
    """Narrow or widen the tree in some places by a Gaussian along the vessel.

    Args:
        tree: radii in the unit of `along`.
        along: `(n,)` length of the way to the root.
        chains: `(n,)` number of the main chain.
        depths: one lesion each: the share of the radius that is lost (stenosis), or, below zero,
            gained (ectasia).
        rng: draws place (wide vessels more often) and length (2 to 6 radii).
    """
    radius = tree.radius.copy()
    weight = tree.radius / tree.radius.sum()
    for depth in depths:
        at = rng.choice(len(weight), p=weight)
        sigma = rng.uniform(2, 6) * tree.radius[at] / 2
        off = (along - along[at]) / sigma
        radius *= 1 - depth * np.exp(-(off**2) / 2) * (chains == chains[at])
    return replace(tree, radius=radius)


def chains_of(parent: Integers, radius: Floats) -> Integers:
    """Return the main chain `(n,)` of each node, named by its first node."""
    after = continuation(parent, radius)
    n = np.arange(len(parent))
    before = np.where(parent < 0, n, parent)
    head = np.where((parent >= 0) & (after[before] == n), before, n)
    while True:
        further = head[head]
        if np.array_equal(further, head):
            return head
        head = further
