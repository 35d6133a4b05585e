"""A made-up chest seen by X-rays, without contrast agent: what coronary trees are painted on.

Everything is a sum of attenuations (Beer-Lambert): ellipsoids for the heart and the domes of the
diaphragm, whose chords fall off as sqrt(1 - r^2) and so give the sharp edges of a real picture,
ribs, spine, lung and tissue texture; then a display window and a collimator. Ranges were chosen
here by eye beside the sample of XCAD (Ma et al., ICCV 2021).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from synthgen.images.angiogram.fields import (
    Range,
    between,
    cloud,
    enlarge,
    grid,
    sign,
    slow,
    smoothstep,
)

if TYPE_CHECKING:
    from synthgen.core.vessels import Floats

_COARSE = 2  # pixels per point of the scene's grid: no edge of the chest is sharper


@dataclass(frozen=True)
class ChestRanges:
    """What a chest may look like. Lengths are shares of the longer side, angles radians.

    Attributes:
        heart: attenuation through the middle of the heart.
        diaphragm: attenuation through the middle of the diaphragm's dome.
        air: how much less the lung beside the heart attenuates.
        domes: chance of a diaphragm in view.
        ribs: attenuation of a rib.
        rib_chance: chance of ribs in view.
        spine: attenuation of the spine.
        spine_chance: chance of the spine in view.
        tissue: standard deviation of the attenuation of soft tissue.
        lung: standard deviation of the attenuation of lung markings.
        folds: attenuation of faint lines, bronchi and vessels of the lung among them.
        darkest: displayed level of the darkest hundredth of the picture, in [0, 1].
        brightest: displayed level of the brightest hundredth, in [0, 1].
        collimator_chance: chance that each side of the frame shows the collimator.
        collimator: width of its border.
        wedge_chance: chance of the straight, faint edge of a wedge filter.
    """

    heart: Range = (0.15, 0.8)
    diaphragm: Range = (0.35, 0.9)
    air: Range = (0.0, 0.45)
    domes: float = 0.75
    ribs: Range = (0.08, 0.28)
    rib_chance: float = 0.75
    spine: Range = (0.1, 0.35)
    spine_chance: float = 0.35
    tissue: Range = (0.015, 0.055)
    lung: Range = (0.02, 0.07)
    folds: Range = (0.0, 0.16)
    darkest: Range = (0.1, 0.24)
    brightest: Range = (0.5, 0.9)
    collimator_chance: float = 0.2
    collimator: Range = (0.01, 0.03)
    wedge_chance: float = 0.3


def chest(rng: np.random.Generator, shape: tuple[int, int], ranges: ChestRanges) -> Floats:
    """Draw a chest before contrast agent.

    Args:
        rng: its draws.
        shape: (X, Y) in pixels; X runs from head to foot.
        ranges: what it may look like.

    Returns:
        float32 `(X, Y)` in [0, 1], without noise; 1 is bright.
    """
    coarse = (-(-shape[0] // _COARSE), -(-shape[1] // _COARSE))
    heart = _heart(rng, coarse)
    dense = between(rng, ranges.heart) * heart
    air = 1 - smoothstep(heart * 3)  # no heart in front of the lung
    if rng.random() < ranges.domes:
        dome = _dome(rng, coarse)
        dense += between(rng, ranges.diaphragm) * dome
        air *= 1 - smoothstep(dome * 2)
    dense -= between(rng, ranges.air) * air
    dense += between(rng, ranges.tissue) * cloud(rng, coarse, 2.0, 0.1)
    dense += between(rng, ranges.tissue) * cloud(rng, coarse, 2.8, 0.6)
    dense += between(rng, ranges.lung) * air * cloud(rng, coarse, 2.6, 0.05)
    folds = np.abs(cloud(rng, coarse, 3.5, 0.12))
    dense -= between(rng, ranges.folds) * (0.4 + 0.6 * air) * np.minimum(folds, 0.5)
    if rng.random() < ranges.rib_chance:
        dense += between(rng, ranges.ribs) * (0.35 + 0.65 * air) * _ribs(rng, coarse)
    if rng.random() < ranges.spine_chance:
        dense += between(rng, ranges.spine) * _spine(rng, coarse)
    dense += _borders(rng, coarse, ranges)
    return enlarge(_window(rng, np.exp(-dense, dtype=np.float32), ranges), shape)


def _ellipsoid(
    shape: tuple[int, int], centre: Range, axes: Range, angle: float, bent: Floats
) -> Floats:
    """Chord of an ellipsoid in [0, 1]; `bent` moves its surface."""
    x, y = grid(shape, 1 / max(shape))
    x, y = x - centre[0], y - centre[1]
    along, across = x * np.cos(angle) + y * np.sin(angle), y * np.cos(angle) - x * np.sin(angle)
    chord: Floats = np.sqrt(
        np.clip(1 - (along / axes[0]) ** 2 - (across / axes[1]) ** 2 + bent, 0, 1)
    )
    return chord


def _heart(rng: np.random.Generator, shape: tuple[int, int]) -> Floats:
    """The heart's shadow: its border crosses the frame on one side."""
    side = sign(rng)
    reach = between(rng, (0.0, 0.7))  # of its border beyond the middle
    axes = (between(rng, (0.7, 1.4)), between(rng, (0.6, 1.2)))
    centre = (between(rng, (0.5, 1.0)), 0.5 + side * (reach - axes[1]))
    bent = 0.08 * slow(rng, shape, 6)
    return _ellipsoid(shape, centre, axes, side * between(rng, (-0.1, 0.7)), bent)


def _dome(rng: np.random.Generator, shape: tuple[int, int]) -> Floats:
    """The diaphragm: the top of a large ellipsoid that rises from below."""
    axes = (between(rng, (0.5, 1.0)), between(rng, (0.35, 0.9)))
    top = between(rng, (0.35, 0.9))
    centre = (top + axes[0], between(rng, (0.0, 1.0)))
    bent = 0.03 * slow(rng, shape, 6)
    return _ellipsoid(shape, centre, axes, between(rng, (-0.3, 0.3)), bent)


def _ribs(rng: np.random.Generator, shape: tuple[int, int]) -> Floats:
    """Nearly parallel bent bands with denser rims, in about [0, 1.3]."""
    x, y = grid(shape, 1 / max(shape))
    middle, slope = between(rng, (-0.3, 1.3)), sign(rng) * between(rng, (0.2, 1.3))
    bend = sign(rng) * between(rng, (0.2, 0.9))
    spacing = between(rng, (0.11, 0.2)) * np.hypot(1, slope)
    share = between(rng, (0.3, 0.55))
    lean = y - middle
    level = (x + slope * lean + bend * lean * lean + 0.012 * slow(rng, shape, 5)) / spacing
    which = np.floor(level)
    from_axis = np.abs(level - which - 0.5) * (2 / share)
    chord = np.sqrt(np.clip(1 - from_axis * from_axis, 0, 1))
    rim = np.clip(1 - np.abs(from_axis - 0.9) * 9, 0, 1)
    weights = rng.random(64, dtype=np.float32) * (rng.random(64) < 0.75)
    ribs: Floats = weights[which.astype(np.intp) % 64] * (0.8 * chord + 0.5 * rim)
    return ribs


def _spine(rng: np.random.Generator, shape: tuple[int, int]) -> Floats:
    """A column of vertebrae, denser than the discs between them, in about [0, 1]."""
    x, y = grid(shape, 1 / max(shape))
    centre, width = between(rng, (0.0, 1.0)), between(rng, (0.08, 0.14))
    lean, bend = between(rng, (-0.25, 0.25)), between(rng, (-0.2, 0.2))
    axis = centre + lean * (x - 0.5) + bend * (x - 0.5) ** 2
    height = between(rng, (0.13, 0.2))
    level = (x + 0.1 * (y - centre)) / height + between(rng, (0.0, 1.0))
    from_disc = np.abs(level - np.round(level)) * height
    waist = 1 + 0.6 * from_disc / height  # vertebrae are narrower in their middle
    from_axis = np.abs(y - axis) / width * waist + 0.1 * slow(rng, shape, 12)
    body = smoothstep((1.15 - from_axis) * between(rng, (2.0, 6.0)))
    column: Floats = body * (0.65 + 0.35 * smoothstep((from_disc - 0.004) * 40))
    column += 0.15 * body * smoothstep((0.02 - np.abs(from_disc - 0.022)) * 60)
    return column


def _borders(rng: np.random.Generator, shape: tuple[int, int], ranges: ChestRanges) -> Floats:
    """Attenuation of the collimator's blurred border and of a wedge filter's edge."""
    x, y = grid(shape, 1 / max(shape))
    dense = np.zeros(shape, np.float32)
    for distance in (x, x[::-1], y, y[:, ::-1]):
        if rng.random() < ranges.collimator_chance:
            width = between(rng, ranges.collimator)
            dense += between(rng, (0.3, 1.2)) * smoothstep(1 - distance / width)
    if rng.random() < ranges.wedge_chance:
        angle = between(rng, (0, 2 * np.pi)) if rng.random() < 0.4 else 0.5 * np.pi * sign(rng)
        from_edge = (
            (x - 0.5) * np.cos(angle) + (y - 0.5) * np.sin(angle) - between(rng, (0.1, 0.45))
        )
        dense += between(rng, (0.05, 0.2)) * smoothstep(from_edge * 60)
    return dense


def _window(rng: np.random.Generator, light: Floats, ranges: ChestRanges) -> Floats:
    """Display the transmitted light: its hundredths at the levels drawn, the rest clipped."""
    low, high = np.quantile(light[::4, ::4], (0.01, 0.99)).astype(np.float32)
    dark, bright = between(rng, ranges.darkest), between(rng, ranges.brightest)
    shown: Floats = np.clip(dark + (light - low) * ((bright - dark) / (high - low)), 0.02, 1)
    return shown
