"""What lies in the picture beside the labelled vessels: drawn, and never labelled.

X-rays: catheters, guide wires, pacing leads, sternal wires, clips and cables. Fundus: bright
deposits and bleedings. A segmenter that sees them learns that they are no vessels (Kim et al.,
DARL, ICLR 2023: backgrounds and angiograms both hold the catheter, labels do not).
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt
from scipy import ndimage

from synthgen.images.angiogram.fields import FRAME, Circle, Range, between, cloud, sign

if TYPE_CHECKING:
    from synthgen.core.vessels import Floats

Points = npt.NDArray[np.float64]


@dataclass(frozen=True)
class InstrumentRanges:
    """Chances of instruments, and their attenuations.

    Attributes:
        catheter: chance of a catheter from the frame's edge to the tree.
        filling: share of the vessels' attenuation inside the catheter's bore.
        wall: attenuation per pixel of the catheter's wall, for a frame of 512 pixels.
        wire: chance of a guide wire or pacing lead that crosses the frame.
        sternum: chance of sternal wires.
        clips: chance of surgical clips.
        cables: chance of a bundle of cables beside the heart.
        metal: attenuation of a wire or clip across its middle.
    """

    catheter: float = 0.85
    filling: Range = (0.0, 1.2)
    wall: Range = (0.03, 0.12)
    wire: float = 0.2
    sternum: float = 0.12
    clips: float = 0.08
    cables: float = 0.1
    metal: Range = (0.3, 1.2)


@dataclass(frozen=True)
class LesionRanges:
    """Chances and looks of lesions of the fundus.

    Attributes:
        deposits: chance of bright exudates or drusen.
        bleedings: chance of dark haemorrhages and microaneurysms.
        contrast: their log contrast to the tissue around.
    """

    deposits: float = 0.2
    bleedings: float = 0.2
    contrast: Range = (0.1, 0.45)


def tube(points: Points, radius: float, shape: tuple[int, int]) -> Floats:
    """Length of the ray inside a bent tube.

    Args:
        points: its axis `(n, 2)` in pixels, (x, y).
        radius: in pixels.
        shape: (X, Y) of the picture.

    Returns:
        float32 `(X, Y)` in pixels, from 0 to twice the radius; where the tube meets itself, the
        longer of the two.
    """
    chord = np.zeros(shape, np.float32)
    reach = radius + 1
    for start, end in pairwise(points):
        low = np.floor(np.minimum(start, end) - reach).astype(int).clip(0)
        high = np.ceil(np.maximum(start, end) + reach).astype(int) + 1
        part = chord[low[0] : high[0], low[1] : high[1]] if (high > 0).all() else chord[:0, :0]
        if not part.size:
            continue
        x = np.arange(low[0], low[0] + part.shape[0])[:, None] - start[0]
        y = np.arange(low[1], low[1] + part.shape[1])[None] - start[1]
        along = end - start
        t = np.clip((x * along[0] + y * along[1]) / max(along @ along, 1e-9), 0, 1)
        square = radius**2 - (x - t * along[0]) ** 2 - (y - t * along[1]) ** 2
        np.maximum(part, 2 * np.sqrt(np.maximum(square, 0)), out=part)
    return chord


def tip(path_length: Floats) -> Points | None:
    """Guess where the tree begins: the outermost place as wide as its widest.

    Args:
        path_length: `(X, Y)` in pixels.

    Returns:
        (x, y) in pixels, then the outward direction, `(2, 2)`; None without any vessel.
    """
    step = 4
    coarse = ndimage.uniform_filter(path_length, step)[::step, ::step]
    if coarse.max() <= 0:
        return None
    places = np.argwhere(coarse > 0)
    middle = places.mean(axis=0)
    wide = np.argwhere(coarse >= 0.8 * coarse.max())
    first = wide[np.argmax(((wide - middle) ** 2).sum(axis=1))]
    outward = (first - middle) / max(float(np.hypot(*(first - middle))), 1e-6)
    return np.stack([first * step, outward])


def instruments(
    rng: np.random.Generator, path_length: Floats, attenuation: float, ranges: InstrumentRanges
) -> Floats:
    """Draw instruments into an X-ray picture.

    Args:
        rng: its draws.
        path_length: of the labelled vessels, `(X, Y)` in pixels: the catheter leads to them.
        attenuation: of the vessels per pixel: the contrast agent flows through the catheter.
        ranges: which instruments there may be.

    Returns:
        Attenuation, float32 `(X, Y)` of 0 or more.
    """
    shape = path_length.shape
    side = max(shape)
    dense = np.zeros(shape, np.float32)
    start = tip(path_length)
    if rng.random() < ranges.catheter and start is not None:
        dense += _catheter(rng, start, shape, attenuation, ranges)
    if rng.random() < ranges.wire:
        axis = _crossing(rng, side)
        radius = between(rng, (0.7, 2.5)) * side / FRAME
        dense += between(rng, ranges.metal) / (2 * radius) * tube(axis, radius, shape)
    if rng.random() < ranges.sternum:
        dense += _sternum(rng, shape, between(rng, ranges.metal))
    if rng.random() < ranges.clips:
        dense += _clips(rng, shape, between(rng, ranges.metal))
    if rng.random() < ranges.cables:
        dense += _cables(rng, shape)
    return dense


def _catheter(
    rng: np.random.Generator,
    start: Points,
    shape: tuple[int, int],
    attenuation: float,
    ranges: InstrumentRanges,
) -> Floats:
    """A tube of constant width from the frame's edge to the tree, its bore more or less filled."""
    side = max(shape)
    mouth, outward = start
    heading, arrival = (_turned(outward, between(rng, (-0.9, 0.9))) for _ in range(2))
    entry = mouth + arrival * _to_edge(mouth, arrival, shape)
    length = float(np.hypot(*(entry - mouth)))
    first = mouth + between(rng, (0.1, 0.6)) * length * heading
    last = entry - between(rng, (0.2, 0.6)) * length * _turned(arrival, between(rng, (-0.8, 0.8)))
    axis = _bezier(mouth, first, last, entry)
    radius = between(rng, (2.8, 4.8)) * side / FRAME
    outer, bore = tube(axis, radius, shape), tube(axis, 0.72 * radius, shape)
    wall = between(rng, ranges.wall) * FRAME / side
    filled = between(rng, ranges.filling) * attenuation
    catheter: Floats = wall * (outer - bore) + filled * bore
    return catheter


def _turned(direction: Points, angle: float) -> Points:
    """A direction turned by an angle in radians."""
    x, y = direction
    return np.array([x * np.cos(angle) - y * np.sin(angle), x * np.sin(angle) + y * np.cos(angle)])


def _to_edge(place: Points, direction: Points, shape: tuple[int, int]) -> float:
    """How far it is, along `direction`, to a little beyond the frame."""
    limits = np.where(direction > 0, np.array(shape) * 1.03, -0.03 * np.array(shape))
    away = (limits - place) / np.where(np.abs(direction) < 1e-6, 1e-6, direction)
    return float(np.maximum(away, 0).min())


def _bezier(a: Points, b: Points, c: Points, d: Points, points: int = 40) -> Points:
    """Points on a cubic Bezier curve."""
    t = np.linspace(0, 1, points)[:, None]
    curve: Points = (1 - t) ** 3 * a + 3 * t * (1 - t) ** 2 * b + 3 * t * t * (1 - t) * c + t**3 * d
    return curve


def _crossing(rng: np.random.Generator, side: int) -> Points:
    """A smooth curve from one edge of the frame through it, or to somewhere inside."""
    a = np.array([-0.05, between(rng, (0.0, 1.0))])
    d = np.array([between(rng, (0.5, 1.1)), between(rng, (-0.1, 1.1))])
    b, c = (rng.random((2, 2)) * 1.2 - 0.1) * [[0.5, 1], [1, 1]]
    curve = _bezier(a, b, c, d) * side
    return curve if rng.random() < 0.7 else curve[:, ::-1]


def _sternum(rng: np.random.Generator, shape: tuple[int, int], metal: float) -> Floats:
    """A column of wire loops with twisted ends."""
    side = max(shape)
    dense = np.zeros(shape, np.float32)
    centre = between(rng, (0.1, 0.9)) * side
    spacing, radius = between(rng, (0.14, 0.24)) * side, between(rng, (0.7, 1.2)) * side / FRAME
    angles = np.linspace(0, 2 * np.pi, 20)
    for x in np.arange(between(rng, (0, 1)) * spacing, shape[0], spacing):
        size = np.array([between(rng, (0.01, 0.03)), between(rng, (0.02, 0.05))]) * side
        wobble = 1 + 0.07 * rng.standard_normal((20, 1))
        loop = np.stack([np.cos(angles), np.sin(angles)], axis=1) * size * wobble
        place = np.array([x, centre + 0.02 * side * rng.standard_normal()])
        dense = np.maximum(dense, tube(place + loop, radius, shape))
        knot = place + 0.012 * side * rng.standard_normal((5, 2)).cumsum(axis=0) * 0.5
        dense = np.maximum(dense, tube(knot, 1.3 * radius, shape))
    return metal / (2 * radius) * dense


def _clips(rng: np.random.Generator, shape: tuple[int, int], metal: float) -> Floats:
    """Short, straight, dark dashes."""
    side = max(shape)
    radius = between(rng, (0.8, 1.5)) * side / FRAME
    dense = np.zeros(shape, np.float32)
    for _ in range(rng.integers(1, 8)):
        place, angle = rng.random(2) * shape, between(rng, (0, np.pi))
        half = between(rng, (0.004, 0.012)) * side * np.array([np.cos(angle), np.sin(angle)])
        dense = np.maximum(dense, tube(np.stack([place - half, place + half]), radius, shape))
    return metal / (2 * radius) * dense


def _cables(rng: np.random.Generator, shape: tuple[int, int]) -> Floats:
    """Several nearly parallel cables along one side."""
    side = max(shape)
    dense = np.zeros(shape, np.float32)
    where = 0.5 + sign(rng) * between(rng, (0.2, 0.45))
    ends = np.array([[-0.02, where], [0.3, where], [0.7, where], [1.02, where]])
    ends[:, 1] += 0.06 * rng.standard_normal(4)
    for _ in range(rng.integers(1, 5)):
        points = ends.copy()
        points[:, 1] += 0.03 * rng.standard_normal(4)
        radius = between(rng, (1.5, 5.0)) * side / FRAME
        outer = tube(_bezier(*(points * side)), radius, shape)
        dense += between(rng, (0.1, 0.4)) / (2 * radius) * outer
    return dense


def lesions(
    rng: np.random.Generator, shape: tuple[int, int], field: Circle, ranges: LesionRanges
) -> Floats:
    """Draw lesions of the fundus.

    Args:
        rng: its draws.
        shape: (X, Y) of the picture.
        field: of view; lesions cluster inside it.
        ranges: which lesions there may be.

    Returns:
        Log contrast, float32 `(X, Y)`; above 0 is brighter.
    """
    change = np.zeros(shape, np.float32)
    for chance, direction in ((ranges.deposits, 1.0), (ranges.bleedings, -1.0)):
        if rng.random() < chance:
            contrast = direction * between(rng, ranges.contrast)
            for _ in range(rng.integers(1, 5)):
                place = np.array(field[:2]) + field[2] * 0.4 * rng.standard_normal(2)
                change += contrast * _blobs(rng, shape, place, field[2])
    return change


def _blobs(rng: np.random.Generator, shape: tuple[int, int], place: Points, scale: float) -> Floats:
    """A cluster of irregular spots with soft rims, in [0, 1]."""
    extent = max(8, int(between(rng, (0.08, 0.3)) * scale))
    patch = cloud(rng, (extent, extent), 2.2, between(rng, (0.15, 0.6)))
    x = (np.arange(extent)[:, None] + 0.5) * (2 / extent) - 1
    patch -= 0.6 + 2.5 * (x * x + x.T * x.T)
    low = np.rint(place - extent / 2).astype(int)
    spots = np.zeros(shape, np.float32)
    first = np.maximum(low, 0)
    last = np.minimum(low + extent, shape)
    if (last > first).all():
        inner = tuple(slice(a - b, c - b) for a, b, c in zip(first, low, last, strict=True))
        outer = tuple(slice(a, c) for a, c in zip(first, last, strict=True))
        spots[outer] = np.clip(patch[inner] * 3, 0, 1)
    return spots
