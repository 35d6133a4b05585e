"""Coronary arteries: a tree on the cap of an ellipsoid, projected, with an annotator's cut."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np

from synthgen.labels.vessels import view
from synthgen.labels.vessels.growth import CAP, Growth
from synthgen.labels.vessels.radii import Skeleton, murray, prune
from synthgen.labels.vessels.tube import lay_tube

if TYPE_CHECKING:
    from synthgen.labels.vessels.growth import Grow
    from synthgen.labels.vessels.presets import Coronary
    from synthgen.labels.vessels.tree import Floats, VesselTree


def coronary_tree(
    preset: Coronary, shape: tuple[int, int], rng: np.random.Generator, grow: Grow
) -> VesselTree:
    """Draw one coronary tree.

    Args:
        preset: the numbers.
        shape: (X, Y) of the picture.
        rng: the only source of randomness.
        grow: `growth.grow` or its numba twin.
    """
    axes = np.array([1.0, *(rng.uniform(*bounds) for bounds in preset.axes)])
    cap = rng.uniform(*preset.cap)
    trunk = _trunk(preset, cap, axes, rng)
    growth = Growth(
        preset.step,
        rng.uniform(*preset.influence),
        preset.kill,
        rng.uniform(*preset.memory),
        rng.uniform(*preset.side),
        rng.uniform(*preset.noise),
        axes=(axes[0], axes[1], axes[2]),
    )
    noise = rng.standard_normal((CAP, 3))
    great = _attractors(preset.attractors, cap, axes, rng)
    nodes, parent = grow(growth, great, trunk, np.arange(len(trunk)) - 1, noise)
    growth = replace(growth, influence=preset.twig_influence)
    nodes, parent = grow(growth, _attractors(preset.twigs, cap, axes, rng), nodes, parent, noise)
    nodes, parent = prune(
        nodes, parent, rng.uniform(*preset.shape.shortest), preset.shape.keep, rng
    )
    tilt, swing = rng.uniform(-1, 1, 2) * preset.tilt
    turn = view.rotation(tilt, swing, rng.uniform(0, 2 * np.pi))
    scale = min(shape) / preset.reference
    placed = view.place(nodes @ turn.T, shape, rng.uniform(*preset.extent) * min(shape), rng)
    mean, spread, low, high = preset.length
    budget = scale * np.clip(rng.normal(mean, spread), low, high)
    radius = murray(parent, rng.uniform(*preset.shape.exponent), preset.shape.leaf, rng)
    radius *= scale * rng.uniform(*preset.radius) / radius.max()
    tube = lay_tube(preset.shape, Skeleton(placed, parent, radius), scale, rng)
    none = np.zeros(3, np.float32)
    return tube.tree(np.zeros(len(parent), bool), budget, shape, none, none)


def _attractors(
    number: tuple[int, int], cap: float, axes: Floats, rng: np.random.Generator
) -> Floats:
    """Uniform points `(A, 3)` of the cap, before it is stretched to the ellipsoid."""
    count = int(rng.integers(*number, endpoint=True))
    polar = np.arccos(rng.uniform(np.cos(cap), 1, count))
    return _on_shell(polar, rng.uniform(0, 2 * np.pi, count), axes)


def _on_shell(polar: Floats, azimuth: Floats, axes: Floats) -> Floats:
    """Points `(n, 3)` of an ellipsoid; the pole lies on its third axis."""
    sine = np.sin(polar)
    points: Floats = axes * np.column_stack(
        [sine * np.cos(azimuth), sine * np.sin(azimuth), np.cos(polar)]
    )
    return points


def _trunk(preset: Coronary, cap: float, axes: Floats, rng: np.random.Generator) -> Floats:
    """Nodes `(m, 3)` of the vessel from the catheter to the edge of the cap.

    Walked backwards from the edge, where it heads for the pole; its curvature is an
    Ornstein-Uhlenbeck process.
    """
    end = _on_shell(
        np.array([cap * rng.uniform(*preset.root)]), rng.uniform(0, 2 * np.pi, 1), axes
    )[0]
    steps = int(rng.uniform(*preset.trunk) / preset.step) + 2
    pushes = rng.standard_normal(steps).tolist()
    bend, bends = preset.bend * pushes[0], []
    for push in pushes:
        bend += -0.1 * bend + np.sqrt(0.19) * preset.bend * push
        bends.append(bend)
    angle = np.cumsum(bends) * preset.step
    normal = end / axes**2
    normal /= np.sqrt(normal @ normal)
    back = end - np.array([0, 0, axes[2]])
    back -= (back @ normal) * normal
    back /= np.sqrt(back @ back)
    walk = np.outer(np.cumsum(np.cos(angle)), back)
    walk += np.outer(np.cumsum(np.sin(angle)), np.cross(normal, back))
    points = np.vstack([end, end + preset.step * walk])[::-1]
    trunk: Floats = points / np.sqrt(((points / axes) ** 2).sum(axis=1))[:, None]
    return trunk
