"""Random fields and simple geometry on the pixel grid, shared by the procedural pictures."""

from __future__ import annotations

from functools import lru_cache
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
from scipy import fft

if TYPE_CHECKING:
    from synthgen.core.vessels import Floats

Range = tuple[float, float]
"""Lowest and highest value of a uniform draw."""
Circle = tuple[float, float, float]
"""Centre (x, y) and radius in pixels; zero where there is none."""

FRAME = 512
"""Side of the frame, in pixels, for which lengths and attenuations per pixel are stated."""


def circle(row: Floats) -> Circle:
    """Return a circle of an array of them as plain numbers."""
    x, y, radius = row.tolist()
    return x, y, radius


def between(rng: np.random.Generator, limits: Range) -> float:
    """Draw uniformly from `limits`; equal limits are that value."""
    return limits[0] + (limits[1] - limits[0]) * float(rng.random())


def sign(rng: np.random.Generator) -> float:
    """Draw -1 or 1."""
    return 1.0 if rng.random() < 0.5 else -1.0


def cloud(rng: np.random.Generator, shape: tuple[int, int], slope: float, largest: float) -> Floats:
    """Draw an isotropic Gaussian field of zero mean and unit standard deviation.

    Args:
        rng: its draws.
        shape: (X, Y) of the field.
        slope: amplitude falls as frequency ** -slope; about 1.5 looks like tissue.
        largest: the largest structures, as a share of the longer side.

    Returns:
        float32 `(X, Y)`.
    """
    grid, amplitude = _spectrum(shape, slope, largest)
    noise = rng.standard_normal((*amplitude.shape, 2), dtype=np.float32).view(np.complex64)[..., 0]
    field: Floats = fft.irfft2(noise * amplitude, s=grid)[: shape[0], : shape[1]]
    return field


@lru_cache(maxsize=64)
def _spectrum(
    shape: tuple[int, int], slope: float, largest: float
) -> tuple[tuple[int, int], Floats]:
    """Padded size (a fast length, so that opposite edges differ) and amplitudes."""
    grid = tuple(fft.next_fast_len(int(1.1 * n), real=True) for n in shape)
    fx, fy = np.fft.fftfreq(grid[0])[:, None], np.fft.rfftfreq(grid[1])[None]
    lowest = 1 / (largest * max(shape))
    amplitude = (np.hypot(fx, fy) ** 2 + lowest**2) ** (-slope / 2)
    amplitude[0, 0] = 0
    # Columns between the first and the last stand for two frequencies.
    power = 2 * np.sum(amplitude**2) - np.sum(amplitude[:, 0] ** 2)
    amplitude *= np.prod(grid) / np.sqrt(2 * power)  # real and imaginary part have variance 1
    rounded = amplitude.astype(np.float32)
    rounded.flags.writeable = False
    return (grid[0], grid[1]), rounded


def enlarge(grid: Floats, shape: tuple[int, int]) -> Floats:
    """Enlarge `grid` to `shape` by cubic B-splines: smooth, within the values' range."""
    rows, columns = _spline(grid.shape[0], shape[0]), _spline(grid.shape[1], shape[1])
    large: Floats = (rows @ grid @ columns.T).astype(np.float32, copy=False)
    return large


@lru_cache(maxsize=64)
def _spline(knots: int, size: int) -> Floats:
    """Weights `(size, knots)` of uniform cubic B-splines, the ends held constant."""
    centre = (np.arange(size) + 0.5) * knots / size - 0.5
    first = np.floor(centre).astype(int)
    t = centre - first
    parts = ((1 - t) ** 3, 3 * t**3 - 6 * t**2 + 4, -3 * t**3 + 3 * t**2 + 3 * t + 1, t**3)
    weights = np.zeros((size, knots), np.float32)
    for offset, part in enumerate(parts, start=-1):
        np.add.at(weights, (np.arange(size), np.clip(first + offset, 0, knots - 1)), part / 6)
    weights.flags.writeable = False
    return weights


def slow(rng: np.random.Generator, shape: tuple[int, int], knots: int) -> Floats:
    """Draw a slowly varying field: standard normal values on `knots` x `knots`, enlarged."""
    return enlarge(rng.standard_normal((knots, knots), dtype=np.float32), shape)


def grid(shape: tuple[int, int], scale: float = 1.0) -> tuple[Floats, Floats]:
    """Return pixel centres as a column and a row that broadcast to `shape`.

    Args:
        shape: (X, Y) of the grid.
        scale: size of one grid point in the unit wanted.
    """
    x = (np.arange(shape[0], dtype=np.float32)[:, None] + 0.5) * np.float32(scale)
    y = (np.arange(shape[1], dtype=np.float32)[None] + 0.5) * np.float32(scale)
    return x, y


def smoothstep(values: npt.NDArray[np.floating[Any]]) -> Floats:
    """Rise from 0 to 1 while `values` rise from 0 to 1, with flat ends."""
    t = np.clip(values, 0, 1, dtype=np.float32)
    smooth: Floats = t * t * (3 - 2 * t)
    return smooth


def inside(circle: Circle, shape: tuple[int, int]) -> Floats:
    """Share of each pixel inside `circle`, `(X, Y)` in [0, 1]; all 1 where its radius is 0."""
    x, y, radius = circle
    if radius <= 0:
        return np.ones(shape, np.float32)
    rows, columns = np.ogrid[: shape[0], : shape[1]]
    distance = np.sqrt((rows - np.float32(x)) ** 2 + (columns - np.float32(y)) ** 2)
    share: Floats = np.clip(np.float32(radius + 0.5) - distance, 0, 1)
    return share
