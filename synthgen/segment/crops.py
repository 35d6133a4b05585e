"""Training crops of labelled photographs: one bilinear sampling crops, turns, mirrors and scales.

What follows changes the appearance only. Every batch is a pure function of (seed, number).
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch.nn import functional

from synthgen.core.errors import RequestError
from synthgen.core.rng import SampleKey, Stream

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True)
class Augmentation:
    """How far training crops are changed; 0 everywhere changes nothing.

    Attributes:
        mirror: probability of mirroring, for each axis by itself.
        rotate_deg: largest rotation.
        scale: largest natural logarithm of the change of size, up or down.
        gain: largest natural logarithm of the change of contrast about the crop's mean.
        shift: largest change of brightness, in units of the image range.
        gamma: largest natural logarithm of the exponent.
        blur_px: largest standard deviation of the Gaussian blur.
        noise: largest standard deviation of white noise, in units of the image range.
    """

    mirror: float = 0.0
    rotate_deg: float = 0.0
    scale: float = 0.0
    gain: float = 0.0
    shift: float = 0.0
    gamma: float = 0.0
    blur_px: float = 0.0
    noise: float = 0.0


class Crops:
    """Random crops of labelled images; see `synthgen.segment.unet.Batches`.

    Args:
        images: `(n, X, Y)` in [0, 1].
        coverage: `(n, X, Y)` in [0, 1], share of the pixel that the label covers.
        size: side of the crops in pixels.
        batch_size: crops in a batch.
        augmentation: how far they are changed.
        seed: of all draws.

    Raises:
        RequestError: no images, or images smaller than the crops.
    """

    def __init__(
        self,
        images: Tensor,
        coverage: Tensor,
        *,
        size: int,
        batch_size: int,
        augmentation: Augmentation,
        seed: int,
    ) -> None:
        if images.shape != coverage.shape or images.ndim != 3 or not len(images):
            raise RequestError(
                "expected images and coverage of one shape (n, X, Y) with n > 0, got "
                f"{tuple(images.shape)} and {tuple(coverage.shape)}"
            )
        if min(images.shape[1:]) < size:
            raise RequestError(
                f"crops of {size} px do not fit into images of {tuple(images.shape[1:])}; "
                "choose smaller crops"
            )
        self._images, self._coverage = images, coverage
        self._size, self._count = size, batch_size
        self._augmentation, self._seed = augmentation, seed

    def batch(self, number: int) -> tuple[Tensor, Tensor]:
        """Return crops `(B, 1, X, Y)` in [0, 1] and soft labels `(B, 2, X, Y)`."""
        key = SampleKey(self._seed, number)
        rng = key.numpy(Stream.TRAIN)
        numbers = rng.integers(0, len(self._images), self._count)
        draws = key.torch(Stream.AUGMENT)
        shape = (self._images.shape[1], self._images.shape[2])
        grids = sampling_grids(shape, self._size, self._count, self._augmentation, draws)
        pairs = torch.cat(
            [
                functional.grid_sample(
                    torch.stack([self._images[n], self._coverage[n]])[None].float(),
                    grid[None],
                    align_corners=False,
                )
                for n, grid in zip(numbers, grids, strict=True)
            ]
        )
        image = change_appearance(pairs[:, :1].clamp(0, 1), self._augmentation, draws)
        vessel = pairs[:, 1:].clamp(0, 1)
        return image, torch.cat([1 - vessel, vessel], 1)


def _uniform(count: int, limit: float, generator: torch.Generator) -> Tensor:
    return limit * (2 * torch.rand(count, generator=generator) - 1)


def sampling_grids(
    shape: tuple[int, int],
    size: int,
    count: int,
    augmentation: Augmentation,
    generator: torch.Generator,
) -> Tensor:
    """Draw where the pixels of crops come from.

    Args:
        shape: of the image (X, Y).
        size: side of the crops.
        count: B.
        augmentation: `mirror`, `rotate_deg` and `scale`.
        generator: of the draws.

    Returns:
        `(B, size, size, 2)` in the (y, x) order and [-1, 1] units of `grid_sample`. Without turning
        and scaling, crops lie on whole pixels inside the image.
    """
    places = [
        torch.floor((extent - size + 1) * torch.rand(count, generator=generator))
        for extent in shape
    ]
    angle = _uniform(count, math.radians(augmentation.rotate_deg), generator)
    zoom = torch.exp(_uniform(count, augmentation.scale, generator))
    flips = [
        1 - 2 * (torch.rand(count, generator=generator) < augmentation.mirror).float() for _ in "xy"
    ]
    offset = torch.arange(size) - (size - 1) / 2
    x, y = torch.meshgrid(offset, offset, indexing="ij")
    cos, sin = (f(angle)[:, None, None] / zoom[:, None, None] for f in (torch.cos, torch.sin))
    x, y = (a * f[:, None, None] for a, f in zip((x, y), flips, strict=True))
    turned = (cos * x - sin * y, sin * x + cos * y)
    pixels = [a + p[:, None, None] + (size - 1) / 2 for a, p in zip(turned, places, strict=True)]
    return torch.stack(
        [(2 * pixels[a] + 1) / shape[a] - 1 for a in (1, 0)], dim=-1
    )  # (B, size, size, 2)


def change_appearance(
    image: Tensor, augmentation: Augmentation, generator: torch.Generator
) -> Tensor:
    """Change contrast, brightness, gamma, sharpness and noise of images `(B, 1, X, Y)` in [0, 1].

    Returns:
        As many images, clipped to [0, 1].
    """
    count = len(image)

    def each(limit: float) -> Tensor:
        return _uniform(count, limit, generator).reshape(-1, 1, 1, 1)

    mean = image.mean((2, 3), keepdim=True)
    image = mean + torch.exp(each(augmentation.gain)) * (image - mean) + each(augmentation.shift)
    image = image.clamp(0, 1) ** torch.exp(each(augmentation.gamma))
    if augmentation.blur_px:
        image = _blur(image, augmentation.blur_px * torch.rand(count, generator=generator))
    level = augmentation.noise * torch.rand(count, generator=generator)
    noise = torch.randn(image.shape, generator=generator)
    return (image + level.reshape(-1, 1, 1, 1) * noise).clamp(0, 1)


def _blur(image: Tensor, sigma: Tensor) -> Tensor:
    """Blur each image with its own standard deviation, borders replicated."""
    reach = math.ceil(3 * float(sigma.max()))
    offset = torch.arange(-reach, reach + 1)
    weight = torch.exp(-0.5 * (offset / sigma.clamp_min(1e-3)[:, None]) ** 2)
    weight = (weight / weight.sum(1, keepdim=True))[:, None]  # (B, 1, K)
    image = functional.pad(image, (reach,) * 4, mode="replicate").movedim(1, 0)  # (1, B, X, Y)
    image = functional.conv2d(image, weight[..., None], groups=len(sigma))
    image = functional.conv2d(image, weight[:, :, None], groups=len(sigma))
    return image.movedim(0, 1)
