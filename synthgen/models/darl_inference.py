"""Segment images of any size with a trained DARL model: path A at t = 0, without noise.

Kim et al. 2023, arXiv:2209.14566: one forward pass, no reverse diffusion. `polyphase` is the
authors' way with 512^2 images: four images of every other pixel, put together again, which leaves
combs at edges. `tiles` sees squares of the size of the training; instance norms then see as much
of the image as they did there.
"""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING

import torch
from torch import Tensor
from torch.nn import functional

from synthgen.core.errors import RequestError
from synthgen.models.contrast import even
from synthgen.models.darl_networks import reduction

if TYPE_CHECKING:
    from synthgen.models.darl_networks import Contrast, DarlNetworks, View

logger = logging.getLogger(__name__)

_TILES_AT_ONCE = 8


class PathA:
    """Finds vessels in images of any size.

    Args:
        networks: in eval mode.
        view: the image as a `whole`, in overlapping `tiles`, or as its four pixel phases
            (`polyphase`).
        tile: side of the tiles.
        contrast: whether each input of the networks is given even contrast.

    Raises:
        RequestError: tiles whose side the networks cannot take.
    """

    def __init__(
        self, networks: DarlNetworks, view: View, tile: int, *, contrast: Contrast = "as_is"
    ) -> None:
        self._networks, self._view, self._tile = networks, view, tile
        self._contrast = contrast
        self._factor = reduction(networks.noise_predictor)
        self._told = False
        if view == "tiles" and (tile < 1 or tile % self._factor):
            raise RequestError(f"tiles: expected a side divisible by {self._factor}, got {tile}")

    @torch.no_grad()
    def __call__(self, images: Tensor) -> Tensor:
        """Return the probability of vessel, float32 `(B, 1, X, Y)` in [0, 1] on the CPU.

        Args:
            images: `(B, 1, X, Y)` in [0, 1]; other sides than the networks take are mirrored at
                the edge, and the log says so once.

        Raises:
            RequestError: not single-channel, not in [0, 1], or too small.
        """
        check_images(images)
        x, y = images.shape[-2:]
        padded = self._padded(images.float() * 2 - 1)
        match self._view:
            case "whole":
                masks = self._masks(padded)
            case "tiles":
                masks = torch.cat([self._tiled(image[None]) for image in padded])
            case "polyphase":
                phases = functional.pixel_unshuffle(padded, 2)  # (B, 4, X / 2, Y / 2)
                found = self._masks(phases.flatten(0, 1)[:, None])
                masks = functional.pixel_shuffle(found.reshape(phases.shape), 2)
        return ((masks[..., :x, :y] + 1) / 2).clamp(0, 1)

    def _masks(self, images: Tensor) -> Tensor:
        """Run path A on images of sizes that the networks take.

        Where even contrast is asked for, nothing is found outside the field of view.
        """
        if self._contrast == "even":
            evened = even(images)
            return self._found(evened.images).where(evened.seen, torch.tensor(-1.0))
        return self._found(images)

    def _found(self, images: Tensor) -> Tensor:
        weight = next(self._networks.generator.parameters())
        found = []
        for first in range(0, len(images), _TILES_AT_ONCE):
            part = images[first : first + _TILES_AT_ONCE].to(weight.device)
            t = torch.zeros(len(part), dtype=torch.long, device=weight.device)
            found.append(self._networks.segment(part, t).float())
        return torch.cat(found).cpu()

    def _padded(self, images: Tensor) -> Tensor:
        """Mirror the lower and right edges up to the next size that fits."""
        sides = (images.shape[-2], images.shape[-1])
        match self._view:
            case "whole":
                new = [next_multiple(side, self._factor) for side in sides]
            case "tiles":
                new = [max(side, self._tile) for side in sides]
            case "polyphase":
                new = [next_multiple(side, 2 * self._factor) for side in sides]
        if tuple(new) != sides and not self._told:
            self._told = True
            logger.info(
                "images of %d x %d are padded to %d x %d for the networks, and the masks cut back",
                *sides,
                *new,
            )
        return pad_to(images, (new[0], new[1]))

    def _tiled(self, image: Tensor) -> Tensor:
        """Average the masks of overlapping tiles, their middles counting most."""
        side, shape = self._tile, image.shape[-2:]
        starts = [_starts(length, side) for length in shape]
        corners = [(x, y) for x in starts[0] for y in starts[1]]
        tiles = torch.cat([image[..., x : x + side, y : y + side] for x, y in corners])
        ramp = torch.minimum(torch.arange(1, side + 1), torch.arange(side, 0, -1)).float()
        window = ramp[:, None] * ramp[None]
        total, weight = torch.zeros(1, 1, *shape), torch.zeros(shape)
        for (x, y), mask in zip(corners, self._masks(tiles), strict=True):
            total[..., x : x + side, y : y + side] += mask * window
            weight[x : x + side, y : y + side] += window
        return total / weight


def check_images(images: Tensor) -> None:
    """Refuse what is no batch of single-channel images in [0, 1].

    Raises:
        RequestError: naming the shape or the values.
    """
    if images.ndim != 4 or images.shape[1] != 1:
        raise RequestError(
            f"expected single-channel images (B, 1, X, Y), got {tuple(images.shape)}; "
            "take one channel, the green one of colour photographs"
        )
    # NaN fails both comparisons.
    if not bool(((images >= 0) & (images <= 1)).all()):
        raise RequestError(
            f"expected images in [0, 1], got {float(images.min()):g} .. {float(images.max()):g}; "
            "divide by the largest value of their type"
        )


def next_multiple(side: int, factor: int) -> int:
    """Return the smallest multiple of `factor` that is not below `side`."""
    return -(-side // factor) * factor


def pad_to(images: Tensor, shape: tuple[int, int]) -> Tensor:
    """Mirror the lower and right edges of `(B, 1, X, Y)` up to `shape`.

    Raises:
        RequestError: more would have to be mirrored than there is.
    """
    sides = (images.shape[-2], images.shape[-1])
    low, right = shape[0] - sides[0], shape[1] - sides[1]
    if low >= sides[0] or right >= sides[1]:
        raise RequestError(
            f"images of {sides[0]} x {sides[1]} are too small for this model, which works on "
            f"{shape[0]} x {shape[1]}; enlarge them first"
        )
    return functional.pad(images, (0, right, 0, low), mode="reflect")


def _starts(length: int, side: int) -> list[int]:
    """Return where tiles begin: the first at 0, the last at the end, overlapping by half."""
    count = 1 + -(-2 * (length - side) // side)
    if count == 1:
        return [0]
    return [round(i * (length - side) / (count - 1)) for i in range(count)]
