"""Retina: an arterial and a venous forest on a disc, with arcades round the macula."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np

from synthgen.labels.vessels.growth import CAP, Arcade, Growth
from synthgen.labels.vessels.radii import Skeleton, murray, prune
from synthgen.labels.vessels.tube import lay_tube

if TYPE_CHECKING:
    from synthgen.labels.vessels.growth import Grow
    from synthgen.labels.vessels.presets import Eye, Retina
    from synthgen.labels.vessels.tree import Floats, Integers, VesselTree

ROOTS = ((35, 80), (-80, -35), (100, 155), (-155, -100))
"""Angles of the four roots of a forest against the way from disc to fovea, degrees: the two
temporal arcades, then the two nasal vessels."""


def retina_tree(
    preset: Retina, shape: tuple[int, int], rng: np.random.Generator, grow: Grow
) -> VesselTree:
    """Draw the vessels of one retina.

    Args:
        preset: the numbers.
        shape: (X, Y) of the picture.
        rng: the only source of randomness.
        grow: `growth.grow` or its numba twin.
    """
    eye = preset.nerve if rng.random() < preset.nerve_share else preset.macula
    disc, fovea, temporal = _landmarks(eye, preset.field, rng)
    exponent = rng.uniform(*eye.shape.exponent)
    width = rng.uniform(*eye.radius)
    forests: list[tuple[Floats, Integers]] = []
    for _ in range(2):
        taken = forests[0][0][::4] if forests else np.empty((0, 2))
        forests.append(_forest(preset, eye, (disc, fovea, temporal), taken, rng, grow))
    radius = []
    for (_, parent), factor in zip(forests, (preset.artery, preset.vein), strict=True):
        thick = murray(parent, exponent, eye.shape.leaf, rng)
        radius.append(thick * (width * factor / thick.max()))
    arteries = len(forests[0][0])
    parent = np.concatenate([forests[0][1], forests[1][1] + arteries])
    parent[arteries:][forests[1][1] < 0] = -1
    scale = min(shape) / preset.reference
    middle = (np.asarray(shape) - 1) / 2
    flat = np.vstack([nodes for nodes, _ in forests]) * scale + middle
    skeleton = Skeleton(
        np.column_stack([flat, np.zeros(len(flat))]), parent, scale * np.concatenate(radius)
    )
    tube = lay_tube(eye.shape, skeleton, scale, rng)
    inner = parent >= 0
    total = np.sqrt(((flat[inner] - flat[parent[inner]]) ** 2).sum(axis=1)).sum()
    return tube.tree(
        np.arange(len(parent)) >= arteries,
        total * rng.uniform(*eye.labelled),
        shape,
        np.array(
            [*(disc * scale + middle), rng.uniform(*eye.disc_radius) * preset.field * scale],
            np.float32,
        ),
        np.array([*middle, preset.field * scale], np.float32),
    )


def _landmarks(eye: Eye, field: float, rng: np.random.Generator) -> tuple[Floats, Floats, Floats]:
    """Disc, fovea and the unit vector from disc to fovea; the field's centre is the origin."""
    lean = rng.normal(0, 0.12)
    left_or_right = 1.0 if rng.random() < 0.5 else -1.0
    temporal = np.array([np.sin(lean), left_or_right * np.cos(lean)])
    distance = field * rng.uniform(*eye.disc)
    # A disc near the middle lies anywhere round it, one at the side on the nasal side.
    off = rng.uniform(-np.pi, np.pi) if eye.disc[0] == 0 else rng.normal(0, 0.12)
    turn = np.array([[np.cos(off), -np.sin(off)], [np.sin(off), np.cos(off)]])
    disc = -distance * (turn @ temporal)
    return disc, disc + field * rng.uniform(*eye.fovea) * temporal, temporal


def _forest(
    preset: Retina,
    eye: Eye,
    marks: tuple[Floats, Floats, Floats],
    taken: Floats,
    rng: np.random.Generator,
    grow: Grow,
) -> tuple[Floats, Integers]:
    """Grow and prune the arteries, or the veins: nodes `(n, 2)` round the field's centre."""
    disc, fovea, temporal = marks
    roots, parent = _roots(preset, disc, temporal, rng)
    reach = np.sqrt(((fovea - disc) ** 2).sum())
    arcade = Arcade(
        (fovea[0], fovea[1]),
        (-temporal[0], -temporal[1]),
        reach * rng.uniform(0.8, 1.0),
        reach * 0.35,
        rng.uniform(*eye.arcade),
    )
    growth = Growth(
        preset.step,
        rng.uniform(*eye.influence),
        eye.kill,
        rng.uniform(*eye.memory),
        rng.uniform(*eye.side),
        rng.uniform(*eye.noise),
        arcade=arcade,
    )
    noise = rng.standard_normal((CAP, 2))
    great = _attractors(preset, eye, eye.attractors, fovea, taken, rng)
    nodes, parent = grow(growth, great, roots, parent, noise)
    growth = replace(growth, influence=eye.twig_influence, arcade=None)
    small = _attractors(preset, eye, eye.twigs, fovea, taken, rng)
    nodes, parent = grow(growth, small, nodes, parent, noise)
    return prune(nodes, parent, rng.uniform(*eye.shape.shortest), eye.shape.keep, rng)


def _roots(
    preset: Retina, disc: Floats, temporal: Floats, rng: np.random.Generator
) -> tuple[Floats, Integers]:
    """Four short straight polylines from the disc's middle, `(m, 2)` and parents."""
    start = disc + rng.normal(0, 4, 2)
    nodes: list[Floats] = []
    parent: list[int] = []
    for bounds in ROOTS:
        angle = np.deg2rad(rng.uniform(*bounds))
        cosine, sine = np.cos(angle), np.sin(angle)
        along = np.array(
            [cosine * temporal[0] - sine * temporal[1], sine * temporal[0] + cosine * temporal[1]]
        )
        first = len(parent)
        for k in range(6):
            parent.append(first + k - 1 if k else -1)
            nodes.append(start + (1 + k) * preset.step * along)
    return np.array(nodes), np.array(parent)


def _attractors(
    preset: Retina,
    eye: Eye,
    number: tuple[int, int],
    fovea: Floats,
    taken: Floats,
    rng: np.random.Generator,
) -> Floats:
    """Uniform points of the domain `(A, 2)`, thinned towards the fovea and away from `taken`."""
    count = int(rng.integers(*number, endpoint=True))
    radius = eye.domain * preset.field * np.sqrt(rng.random(2 * count))
    angle = rng.uniform(0, 2 * np.pi, 2 * count)
    points = np.column_stack([radius * np.cos(angle), radius * np.sin(angle)])
    away = np.sqrt(((points - fovea) ** 2).sum(axis=1)) / preset.field
    half, soft = preset.hollow
    kept = rng.random(2 * count) < 1 / (1 + np.exp((half - away) / soft))
    if len(taken):
        squares = np.subtract.outer(points[:, 0], taken[:, 0]) ** 2
        squares += np.subtract.outer(points[:, 1], taken[:, 1]) ** 2
        kept &= squares.min(axis=1) > eye.apart**2
    chosen: Floats = points[kept][:count]
    return chosen
