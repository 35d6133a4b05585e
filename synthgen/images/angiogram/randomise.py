"""Appearance randomisation: random looks of a finished picture, so that a segmenter generalises.

After the domain randomisation of vesselFM (Wittmann et al., CVPR 2025, arXiv:2411.17386) and of
SynthSeg (doi:10.1016/j.media.2023.102789), written from the published description: monotone
tone curve, bias field, blur or sharpening, noise, blocks of lossy compression. Contrast is never
inverted: vessels stay darker than what surrounds them. Geometry is untouched, so labels hold.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from scipy import fft, ndimage

from synthgen.images.angiogram.fields import FRAME, Range, between, slow

if TYPE_CHECKING:
    from synthgen.core.vessels import Floats

_BLOCK = 8


@dataclass(frozen=True)
class Looks:
    """Chance of each change, and how far it goes.

    Attributes:
        tone: chance of a tone curve.
        knots: log-normal spread of the curve's slopes.
        gamma: exponent of the levels.
        levels: what the darkest and the brightest level become, each drawn from its range.
        bias: chance of a bias field.
        bias_spread: its standard deviation, as a logarithm.
        blur: chance of blur.
        blur_px: its standard deviation in pixels, for a frame of 512 pixels.
        sharpen: chance of an unsharp mask.
        sharpen_share: of the detail that is added.
        noise: chance of Gaussian noise.
        noise_share: its standard deviation, as a share of the picture's range of levels.
        blocks: chance of compression blocks.
        block_step: quantisation step of their cosine coefficients, in [0, 1] levels.
    """

    tone: float = 0.8
    knots: float = 0.5
    gamma: Range = (0.5, 1.5)
    levels: tuple[Range, Range] = ((0.0, 0.15), (0.6, 1.0))
    bias: float = 0.5
    bias_spread: Range = (0.05, 0.3)
    blur: float = 0.4
    blur_px: Range = (0.3, 1.5)
    sharpen: float = 0.25
    sharpen_share: Range = (0.3, 1.5)
    noise: float = 0.5
    noise_share: Range = (0.01, 0.12)
    blocks: float = 0.3
    block_step: Range = (0.01, 0.08)


def randomise(rng: np.random.Generator, image: Floats, looks: Looks) -> Floats:
    """Change the look of a picture.

    Args:
        rng: its draws.
        image: `(X, Y)` in [0, 1].
        looks: what may change.

    Returns:
        float32 `(X, Y)` in [0, 1].
    """
    scale = max(image.shape) / FRAME
    if rng.random() < looks.bias:
        image = image * np.exp(between(rng, looks.bias_spread) * slow(rng, image.shape, 4))
    if rng.random() < looks.blur:
        image = ndimage.gaussian_filter(image, between(rng, looks.blur_px) * scale, truncate=3)
    if rng.random() < looks.sharpen:
        detail = image - ndimage.gaussian_filter(image, 1.5 * scale, truncate=3)
        image = image + between(rng, looks.sharpen_share) * detail
    if rng.random() < looks.tone:
        image = _tone(rng, image, looks)
    if rng.random() < looks.noise:
        level = np.float32(between(rng, looks.noise_share) * np.subtract(*_levels(image)[::-1]))
        image = image + level * rng.standard_normal(image.shape, dtype=np.float32)
    if rng.random() < looks.blocks:
        image = compress(image, between(rng, looks.block_step))
    clipped: Floats = np.clip(image, 0, 1, dtype=np.float32)
    return clipped


def _tone(rng: np.random.Generator, image: Floats, looks: Looks) -> Floats:
    """Map levels by a random increasing curve between two drawn levels."""
    slopes = np.exp(looks.knots * rng.standard_normal(6))
    curve = np.concatenate([[0], np.cumsum(slopes)]) / np.sum(slopes)
    low, high = between(rng, looks.levels[0]), between(rng, looks.levels[1])
    gamma = between(rng, looks.gamma)
    levels = np.linspace(0, 1, 1025)
    table = low + (high - low) * np.interp(levels, np.linspace(0, 1, 7), curve) ** gamma
    smooth = ndimage.gaussian_filter1d(table, 60, mode="nearest").astype(np.float32)
    darkest, brightest = _levels(image)
    scale = np.float32(1024 / max(brightest - darkest, 1e-3))
    place = np.clip((image - np.float32(darkest)) * scale, 0, 1024)
    below = np.minimum(place.astype(np.intp), 1023)
    share = place - below.astype(np.float32)
    result: Floats = smooth[below] * (1 - share) + smooth[below + 1] * share
    return result


def _levels(image: Floats) -> tuple[float, float]:
    """Nearly the darkest and the brightest level."""
    low, high = np.quantile(image[::4, ::4], (0.002, 0.998))
    return float(low), float(high)


def compress(image: Floats, step: float) -> Floats:
    """Quantise the cosine coefficients of 8 x 8 blocks, high frequencies more coarsely.

    Args:
        image: `(X, Y)`.
        step: of the mean's neighbours; four times as much at the highest frequency.

    Returns:
        float32 `(X, Y)`.
    """
    rows, columns = image.shape
    padded = np.pad(image, ((0, -rows % _BLOCK), (0, -columns % _BLOCK)), mode="edge")
    blocks = padded.reshape(padded.shape[0] // _BLOCK, _BLOCK, -1, _BLOCK).swapaxes(1, 2)
    basis = fft.dct(np.eye(_BLOCK, dtype=np.float32), axis=0, norm="ortho")
    order = np.add.outer(np.arange(_BLOCK), np.arange(_BLOCK))
    steps = (step * (1 + 3 * order / order.max())).astype(np.float32)
    coefficients = np.rint(basis @ blocks @ basis.T / steps) * steps
    restored: Floats = (basis.T @ coefficients @ basis).swapaxes(1, 2).reshape(padded.shape)
    return restored[:rows, :columns]
