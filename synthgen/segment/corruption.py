"""Spoil a segmentor's masks as segmentors do, so that a refiner has errors to learn from.

On images that it was trained on a segmentor errs less than on others, and a Bernoulli diffusion
towards its mask (HiDiff, Chen et al. 2024, arXiv:2407.03548) then has hardly any noise. HiDiff
leaves it at that; here, inside random blobs, masks are thickened, thinned, shifted, emptied or
taken for another class, and their confidence is raised or lowered everywhere.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch.nn import functional

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from torch import Tensor

_POOL = {2: functional.max_pool2d, 3: functional.max_pool3d}
_ZOOM = {2: "bilinear", 3: "trilinear"}
_SURE = 1e-4
"""Probabilities keep so far from 0 and 1 before their logits are taken."""


@dataclass(frozen=True)
class Corruption:
    """How masks are spoiled; a `share` of 0 leaves all of them as they are.

    Attributes:
        share: probability that a sample's mask is spoiled.
        area: share of a spoiled mask's pixels that lie in blobs.
        blob: size of the blobs in pixels, about.
        reach: by how many pixels masks are thickened, thinned or shifted, at most.
        temperature: largest natural logarithm of the factor of all logits, up or down.
    """

    share: float
    area: float
    blob: int
    reach: int
    temperature: float


def corrupt(
    prior: Tensor, settings: Corruption, generators: Sequence[torch.Generator], *, exclusive: bool
) -> Tensor:
    """Spoil masks.

    Args:
        prior: `(B, K, *S)` probabilities in [0, 1], detached.
        settings: how.
        generators: one for each sample, on the CPU.
        exclusive: whether the channels are classes that sum to 1, background first.

    Returns:
        As many masks, float32; those of exclusive classes still sum to 1.
    """
    pairs = zip(prior.float(), generators, strict=True)
    return torch.stack([_one(mask, settings, draws, exclusive) for mask, draws in pairs])


def _one(mask: Tensor, settings: Corruption, draws: torch.Generator, exclusive: bool) -> Tensor:
    """Spoil one mask `(K, *S)`, or not."""
    chance, warmth = torch.rand(2, generator=draws).tolist()
    if chance >= settings.share:
        return mask
    kinds: tuple[Callable[[], Tensor], ...] = (
        lambda: _thicker(mask, _draw(settings.reach, draws)),
        lambda: -_thicker(-mask, _draw(settings.reach, draws)),
        lambda: _shifted(mask, settings.reach, draws),
        lambda: _emptied(mask, exclusive),
        lambda: _mistaken(mask, draws, exclusive),
    )
    spoiled = kinds[_draw(len(kinds), draws) - 1]()
    inside = blobs(mask.shape[1:], settings.blob, settings.area, draws).to(mask.device)
    spoiled = torch.where(inside, spoiled, mask)
    factor = math.exp(settings.temperature * (2 * warmth - 1))
    if exclusive:
        return torch.softmax(factor * spoiled.clamp_min(_SURE).log(), dim=0)
    return torch.sigmoid(factor * torch.logit(spoiled, _SURE))


def blobs(shape: Sequence[int], size: int, area: float, draws: torch.Generator) -> Tensor:
    """Draw blobs of about `size` pixels, boolean `(*S)`, that cover a share `area` of it."""
    coarse = [math.ceil(side / size) + 1 for side in shape]
    field = torch.randn((1, 1, *coarse), generator=draws)
    smooth = functional.interpolate(
        field, tuple(shape), mode=_ZOOM[len(coarse)], align_corners=True
    )[0, 0]
    return smooth > torch.quantile(smooth.flatten(), 1 - area)


def _draw(most: int, draws: torch.Generator) -> int:
    """Draw one of 1, ..., `most`."""
    return int(torch.randint(1, most + 1, (1,), generator=draws))


def _thicker(mask: Tensor, reach: int) -> Tensor:
    pool = _POOL[mask.ndim - 1]
    return pool(mask[None], 2 * reach + 1, stride=1, padding=reach)[0]


def _shifted(mask: Tensor, reach: int, draws: torch.Generator) -> Tensor:
    axes = tuple(range(1, mask.ndim))
    steps = torch.randint(-reach, reach + 1, (len(axes),), generator=draws).tolist()
    return torch.roll(mask, steps, axes)


def _emptied(mask: Tensor, exclusive: bool) -> Tensor:
    empty = torch.zeros_like(mask)
    if exclusive:
        empty[0] = 1
    return empty


def _mistaken(mask: Tensor, draws: torch.Generator, exclusive: bool) -> Tensor:
    """Swap two classes; a mask that may overlap gains a shifted copy of a channel instead."""
    count = len(mask)
    first, step = _draw(count, draws) - 1, _draw(max(1, count - 1), draws)
    second = (first + step) % count
    other = mask.clone()
    if exclusive:
        other[first], other[second] = mask[second], mask[first]
        return other
    half = [side // 2 for side in mask.shape[1:]]
    ghost = torch.roll(mask[second], half, tuple(range(mask.ndim - 1)))
    other[first] = torch.maximum(mask[first], ghost)
    return other
