"""Warped rectangles as SSVS drew them: a baseline to beat, without a tree.

Source: Ma et al. 2021, "Self-Supervised Vessel Segmentation via Adversarial Learning" (ICCV).
A trunk and perpendicular children, each smaller than its parent; then a piecewise affine warp and
half of the time a rotation, in one linear interpolation. The path length is that of a round bar.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from synthgen.labels.vessels.presets import Ssvs
    from synthgen.labels.vessels.tree import Floats

Bar = tuple[bool, float, float, float, float]
"""Horizontal or not, first row, first column, thickness, length; in pixels."""


def draw_ssvs(
    preset: Ssvs, shape: tuple[int, int], rng: np.random.Generator
) -> tuple[Floats, Floats]:
    """Draw one mask.

    Args:
        preset: the numbers.
        shape: (X, Y) of the picture.
        rng: the only source of randomness.

    Returns:
        Coverage in whole 255ths and path length in pixels, both `(X, Y)` float32.
    """
    scale = np.asarray(shape) / preset.reference
    bars = _bars(preset, rng)
    rows, columns = _warp(preset, shape, rng)
    solid, length = np.zeros(shape, np.float32), np.zeros(shape, np.float32)
    for horizontal, row, column, thickness, extent in bars:
        across, along = (0, 1) if horizontal else (1, 0)
        size = np.array([0.0, 0.0])
        size[across], size[along] = thickness, extent
        first = np.maximum(np.rint(np.array([row, column]) * scale).astype(int), 0)
        last = np.maximum(np.rint((np.array([row, column]) + size) * scale).astype(int), 0)
        box = np.s_[first[0] : last[0], first[1] : last[1]]
        half = thickness * scale[across] / 2
        axis = (row if horizontal else column) * scale[across] + half - 0.5
        off = np.arange(shape[across]) - axis
        chord = 2 * np.sqrt(np.maximum(half**2 - off**2, 0))
        chord = chord[first[across] : last[across]]
        solid[box] = 1
        length[box] = np.maximum(length[box], np.expand_dims(chord, along))
    sampled = _sample(np.stack([solid, length]), rows, columns)
    return np.rint(sampled[0] * 255) / np.float32(255), sampled[1]


def _bars(preset: Ssvs, rng: np.random.Generator) -> list[Bar]:
    """The trunk and its descendants, in reference pixels."""
    depth = int(rng.integers(*preset.depth, endpoint=True))
    trunk = [
        int(rng.integers(*bounds, endpoint=True))
        for bounds in (preset.row, preset.column, preset.thickness, preset.length)
    ]
    level: list[Bar] = [(True, *(float(v) for v in trunk))]  # type: ignore[list-item]
    bars = list(level)
    for _ in range(depth - 1):
        level = [child for bar in level for child in _children(preset, bar, rng)]
        bars += level
    return bars


def _children(preset: Ssvs, bar: Bar, rng: np.random.Generator) -> list[Bar]:
    """Two perpendicular bars, one on each side."""
    horizontal, row, column, thickness, length = bar
    made: list[Bar] = []
    for before in (True, False):
        thin, short = rng.uniform(*preset.child, 2) * (thickness, length)
        at = length / 3 if before and horizontal else rng.uniform(0, length * 5 / 6)
        off = -short if before else thickness
        if horizontal:
            made.append((False, row + off, column + at, thin, short))
        else:
            made.append((True, row + at, column + off, thin, short))
    return made


def _warp(preset: Ssvs, shape: tuple[int, int], rng: np.random.Generator) -> tuple[Floats, Floats]:
    """Where each pixel `(X, Y)` of the result comes from: rows and columns."""
    size = np.asarray(shape, float)
    spread = rng.uniform(*preset.warp)
    shifts = rng.normal(0, spread, (2, preset.grid, preset.grid)) * size[:, None, None]
    turns = rng.random() < preset.rotated
    angle = rng.uniform(-preset.rotation, preset.rotation) * turns
    x, y = np.meshgrid(*(np.arange(n) - (n - 1) / 2 for n in shape), indexing="ij", sparse=True)
    cells = preset.grid - 1
    x, y = (
        (np.cos(angle) * x - np.sin(angle) * y) / size[0] * cells + cells / 2,
        (np.sin(angle) * x + np.cos(angle) * y) / size[1] * cells + cells / 2,
    )
    i = np.clip(x.astype(int), 0, cells - 1)
    j = np.clip(y.astype(int), 0, cells - 1)
    u, v = x - i, y - j
    # Two triangles a cell: the corners (0, 0) and (1, 1), and (1, 0) or (0, 1).
    lower = u >= v
    corner = i * preset.grid + j
    third = corner + np.where(lower, preset.grid, 1)
    weights = (1 - np.maximum(u, v), np.abs(u - v), np.minimum(u, v))
    source = []
    for axis, place in enumerate((x, y)):
        flat = shifts[axis].reshape(-1)
        moved = sum(
            w * flat[c]
            for w, c in zip(weights, (corner, third, corner + preset.grid + 1), strict=True)
        )
        source.append(place * size[axis] / cells - 0.5 + moved)
    return source[0], source[1]


def _sample(maps: Floats, rows: Floats, columns: Floats) -> Floats:
    """Interpolate `(C, X, Y)` linearly; zero outside."""
    shape = maps.shape[1:]
    padded = np.pad(maps, ((0, 0), (1, 2), (1, 2)))
    x = np.clip(rows, -1, shape[0]) + 1
    y = np.clip(columns, -1, shape[1]) + 1
    i, j = x.astype(int), y.astype(int)
    u, v = (x - i).astype(np.float32), (y - j).astype(np.float32)
    at = i * padded.shape[2] + j
    flat = padded.reshape(len(maps), -1)
    top = flat[:, at] * (1 - v) + flat[:, at + 1] * v
    below = at + padded.shape[2]
    bottom = flat[:, below] * (1 - v) + flat[:, below + 1] * v
    sampled: Floats = top * (1 - u) + bottom * u
    return sampled
