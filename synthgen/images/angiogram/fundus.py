"""A made-up fundus of the eye in green light, without vessels.

Shading, choroid, optic disc with its cup, macula, nerve fibres and their reflexes. Ranges were
chosen here by eye beside CHASE_DB1 (Fraz et al. 2012, doi:10.1109/TBME.2012.2205687).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from scipy import ndimage

from synthgen.images.angiogram.fields import (
    Circle,
    Range,
    between,
    cloud,
    enlarge,
    sign,
    slow,
    smoothstep,
)

if TYPE_CHECKING:
    from synthgen.core.vessels import Floats

_COARSE = 2  # pixels per point of the scene's grid


@dataclass(frozen=True)
class FundusRanges:
    """What a fundus may look like; contrasts are logarithms of a ratio of levels.

    Attributes:
        level: displayed level of the plain fundus, in [0, 1].
        shading: contrast between the middle and the rim of the field.
        choroid: standard deviation of the large structures.
        grain: standard deviation of the fine ones.
        disc: contrast of the optic disc.
        cup: contrast of the cup within the disc.
        macula: contrast of the macula.
        fibres: standard deviation of the nerve fibre layer's streaks.
        reflex_chance: chance of the sheen of a young retina.
        reflex: contrast of the sheen.
    """

    level: Range = (0.16, 0.42)
    shading: Range = (0.0, 0.7)
    choroid: Range = (0.02, 0.11)
    grain: Range = (0.01, 0.04)
    disc: Range = (0.35, 1.0)
    cup: Range = (0.0, 0.7)
    macula: Range = (0.1, 0.5)
    fibres: Range = (0.01, 0.06)
    reflex_chance: float = 0.5
    reflex: Range = (0.1, 0.6)


def fundus(
    rng: np.random.Generator,
    shape: tuple[int, int],
    field: Circle,
    disc: Circle,
    ranges: FundusRanges,
) -> Floats:
    """Draw a fundus without vessels.

    Args:
        rng: its draws.
        shape: (X, Y) in pixels.
        field: circle of view in pixels; what lies outside is drawn too, cut it away later.
        disc: the optic disc in pixels; radius 0 if it is out of sight.
        ranges: what it may look like.

    Returns:
        float32 `(X, Y)` in [0, 1], without noise.
    """
    coarse = (-(-shape[0] // _COARSE), -(-shape[1] // _COARSE))
    u, v = _around(coarse, field)
    log = np.full(coarse, np.log(between(rng, ranges.level)), np.float32)
    off, angle = between(rng, (0.0, 0.4)), between(rng, (0.0, 2 * np.pi))
    distance = (u - off * np.cos(angle)) ** 2 + (v - off * np.sin(angle)) ** 2
    log -= between(rng, ranges.shading) * distance * (0.5 + 0.5 * distance)
    log += between(rng, ranges.choroid) * cloud(rng, coarse, 2.4, 0.5)
    stripes = np.abs(cloud(rng, coarse, 3.2, 0.08))
    log += between(rng, ranges.choroid) * 0.7 * np.minimum(stripes, 0.8)
    log += between(rng, ranges.grain) * cloud(rng, coarse, 1.0, 0.03)
    if disc[2] > 0:
        log += _around_the_disc(rng, coarse, field, disc, ranges)
    log -= between(rng, ranges.macula) * _macula(rng, (u, v), field, disc)
    return enlarge(np.minimum(np.exp(log), 1, dtype=np.float32), shape)


def _around(shape: tuple[int, int], circle: Circle) -> tuple[Floats, Floats]:
    """Coordinates of the coarse grid in radii from the circle's centre."""
    x = (np.arange(shape[0], dtype=np.float32)[:, None] + 0.5) * _COARSE - 0.5
    y = (np.arange(shape[1], dtype=np.float32)[None] + 0.5) * _COARSE - 0.5
    scale = np.float32(1 / circle[2])
    return (x - np.float32(circle[0])) * scale, (y - np.float32(circle[1])) * scale


def _macula(
    rng: np.random.Generator, around: tuple[Floats, Floats], field: Circle, disc: Circle
) -> Floats:
    """The dark spot: some five disc radii from the disc, towards the middle of the field."""
    towards = (field[1] - disc[1]) / field[2]
    side = np.sign(towards) if abs(towards) > 0.15 else sign(rng)
    away = side * 5 * disc[2] / field[2] if disc[2] > 0 else 0.0
    origin = disc if disc[2] > 0 else field
    x = (origin[0] - field[0]) / field[2] + between(rng, (-0.05, 0.15))
    y = (origin[1] - field[1]) / field[2] + away
    size = between(rng, (0.12, 0.25))
    square = ((around[0] - x) ** 2 + (around[1] - y) ** 2) * np.float32(1 / (2 * size**2))
    spot: Floats = np.exp(-square)
    return spot


def _around_the_disc(
    rng: np.random.Generator,
    shape: tuple[int, int],
    field: Circle,
    disc: Circle,
    ranges: FundusRanges,
) -> Floats:
    """Log contrast of the disc, its cup and halo, and of the fibres that leave it."""
    u, v = _around(shape, disc)
    stretch, bent = between(rng, (0.85, 1.0)), 0.05 * slow(rng, shape, 24)
    radius = np.sqrt(u * u + (v / np.float32(stretch)) ** 2) + bent
    soft = between(rng, (4.0, 12.0))
    log = between(rng, ranges.disc) * smoothstep((1 - radius) * soft + 0.5)
    cup = np.sqrt((u - between(rng, (-0.2, 0.2))) ** 2 + (v - between(rng, (-0.3, 0.3))) ** 2)
    size = between(rng, (0.3, 0.65))
    log += between(rng, ranges.cup) * smoothstep((size - cup - bent) * 5 + 0.5)
    log += between(rng, (-0.1, 0.25)) * np.exp(-(np.maximum(radius - 1, 0) ** 2) * 8)
    if rng.random() < 0.3:  # a dark or bright crescent beside the disc
        lean = between(rng, (0.0, 2 * np.pi))
        crescent = np.maximum((u * np.cos(lean) + v * np.sin(lean)) / np.maximum(radius, 0.5), 0)
        log += between(rng, (-0.25, 0.3)) * crescent * np.exp(-(((radius - 1.1) * 6) ** 2))
    return log + _fibres(rng, (u, v), field[2] / disc[2], ranges)


def _fibres(
    rng: np.random.Generator, around: tuple[Floats, Floats], reach: float, ranges: FundusRanges
) -> Floats:
    """Fine streaks that leave the disc, and the patchy sheen that follows them."""
    u, v = around
    radius, angle = np.hypot(u, v), np.arctan2(v, u)
    angle += between(rng, (-0.4, 0.4)) * np.sin(2 * angle) * np.minimum(radius / reach, 1.5)
    rows = radius * (5 / reach)
    columns = (angle + np.pi) * (300 / (2 * np.pi))
    streaks = rng.standard_normal((16, 301), dtype=np.float32)
    streaks[:, -1] = streaks[:, 0]
    places = np.stack([rows, columns])
    fine = ndimage.map_coordinates(streaks, places, order=1, mode="nearest")
    fade = np.exp(-(((radius - 2) / (0.5 * reach)) ** 2))
    log = between(rng, ranges.fibres) * fine * fade
    if rng.random() < ranges.reflex_chance:
        places[1] *= 60 / 300
        patches = rng.standard_normal((16, 61), dtype=np.float32)
        patches[:, -1] = patches[:, 0]
        places[0] *= 2
        patchy = ndimage.map_coordinates(patches, places, order=1, mode="nearest")
        patchy = patchy + cloud(rng, radius.shape, 1.6, 0.2) + 0.5 * fine
        log += between(rng, ranges.reflex) * np.clip(0.7 * patchy - 0.9, 0, 1.2) * fade
    result: Floats = log.astype(np.float32)
    return result
