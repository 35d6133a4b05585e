"""Classifier two-sample test (Lopez-Paz and Oquab 2017, arXiv:1610.06545) on crops of masks.

A small network learns to tell crops of two sets of masks apart. On crops of masks that it did not
learn from it is right half of the time if both sets look alike, and always if they never do.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple, Self

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn
from torch.nn import functional

from synthgen.core.errors import GeometryError, RequestError
from synthgen.core.rng import SampleKey, Stream
from synthgen.runtime import seeded_init

if TYPE_CHECKING:
    from collections.abc import Sequence

Mask = npt.NDArray[np.bool_]

CROP = 128
_WIDTHS = (8, 16, 32, 32)
_STEPS, _BATCH, _LR = 120, 16, 3e-3
_TESTED = 256


@dataclass(frozen=True)
class TwoSample:
    """How well crops of two sets can be told apart.

    Attributes:
        accuracy: share of held-out crops told right, mean over trainings; chance is 0.5.
        spread: standard deviation over trainings.
        trainings: the accuracy of each.
    """

    accuracy: float
    spread: float
    trainings: tuple[float, ...]


def two_sample_test(
    first: Sequence[Mask], second: Sequence[Mask], key: SampleKey, trainings: int = 3
) -> TwoSample:
    """Train classifiers on half of the masks of each set and test them on the others.

    Each training has its own split, weights and crops. Crops are 128 x 128 pixels around a vessel
    pixel, as many of either set, flipped and transposed at random in training.

    Args:
        first: masks `(X, Y)`, two at least; mask pixels must mean the same size in both sets.
        second: the others.
        key: decides everything that is random.
        trainings: repetitions.

    Raises:
        RequestError: fewer than two masks on a side, a mask without vessel, or no training.
        GeometryError: a mask is smaller than a crop.
    """
    if trainings < 1:
        raise RequestError(f"the two-sample test needs one training or more, got {trainings}")
    sides = [[_Drawn.of(mask) for mask in masks] for masks in (first, second)]
    if min(len(s) for s in sides) < 2:
        raise RequestError(
            "the two-sample test needs two masks on each side, one to learn from and one to test, "
            f"got {len(first)} and {len(second)}"
        )
    seed = key.seed32(Stream.EVALUATE)
    found = [_accuracy(sides, SampleKey(seed, i)) for i in range(trainings)]
    mean = math.fsum(found) / len(found)
    return TwoSample(mean, float(np.std(found)), tuple(found))


class _Drawn(NamedTuple):
    """A mask and the flat indices of its vessel pixels."""

    mask: Mask
    pixels: npt.NDArray[np.intp]

    @classmethod
    def of(cls, mask: Mask) -> Self:
        if mask.ndim != 2 or min(mask.shape) < CROP:
            raise GeometryError(
                f"expected masks of {CROP} x {CROP} pixels or more, got {mask.shape}"
            )
        if not mask.any():
            raise RequestError("the two-sample test needs vessels; one of the masks has none")
        return cls(mask, np.flatnonzero(mask))


class CropClassifier(nn.Sequential):
    """Four strided convolutions, a mean over the crop, one logit.

    Examples:
        >>> CropClassifier()(torch.zeros(2, 1, 128, 128)).shape
        torch.Size([2, 1])
    """

    def __init__(self) -> None:
        layers: list[nn.Module] = []
        width = 1
        for wider in _WIDTHS:
            layers += [
                nn.Conv2d(width, wider, 3, stride=2, padding=1, bias=False),
                nn.BatchNorm2d(wider),
                nn.ReLU(),
            ]
            width = wider
        super().__init__(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(width, 1))


def _accuracy(sides: Sequence[Sequence[_Drawn]], key: SampleKey) -> float:
    """Return the held-out accuracy of one training."""
    rng = key.numpy(Stream.SPLIT)
    halves = [rng.permutation(len(side)) for side in sides]
    learned = [[s[i] for i in h[: len(h) // 2]] for s, h in zip(sides, halves, strict=True)]
    held_out = [[s[i] for i in h[len(h) // 2 :]] for s, h in zip(sides, halves, strict=True)]
    with seeded_init(key.seed32(Stream.INIT), 0):
        net = CropClassifier()
    _fit(net, learned, key.numpy(Stream.TRAIN))
    draws = key.numpy(Stream.EVALUATE)
    net.eval()
    right = []
    with torch.inference_mode():
        for side, masks in enumerate(held_out):
            logit = net(_crops(masks, _TESTED, draws))[:, 0]
            right.append(float(((logit > 0) == bool(side)).float().mean()))
    return sum(right) / 2


def _fit(net: CropClassifier, sides: Sequence[Sequence[_Drawn]], rng: np.random.Generator) -> None:
    """Train the classifier in place; a positive logit means the second set."""
    target = torch.tensor([0.0, 1.0]).repeat_interleave(_BATCH)
    optimizer = torch.optim.AdamW(net.parameters(), lr=_LR, weight_decay=1e-2)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, max_lr=_LR, total_steps=_STEPS)
    net.train()
    for _ in range(_STEPS):
        crops = torch.cat([_crops(masks, _BATCH, rng) for masks in sides])
        loss = functional.binary_cross_entropy_with_logits(net(_turned(crops, rng))[:, 0], target)
        optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        schedule.step()


def _crops(masks: Sequence[_Drawn], count: int, rng: np.random.Generator) -> Tensor:
    """Return crops `(count, 1, 128, 128)`, each around a vessel pixel as far as the frame lets."""
    crops = np.empty((count, 1, CROP, CROP), dtype=np.float32)
    for row in range(count):
        mask, pixels = masks[int(rng.integers(len(masks)))]
        centre = np.unravel_index(int(pixels[rng.integers(len(pixels))]), mask.shape)
        shift = rng.integers(-CROP // 4, CROP // 4 + 1, size=2)
        x, y = (
            int(np.clip(c - CROP // 2 + s, 0, size - CROP))
            for c, s, size in zip(centre, shift, mask.shape, strict=True)
        )
        crops[row, 0] = mask[x : x + CROP, y : y + CROP]
    return torch.from_numpy(crops)


def _turned(crops: Tensor, rng: np.random.Generator) -> Tensor:
    """Return a batch flipped and transposed at random, all crops alike."""
    flips = [axis for axis in (2, 3) if rng.random() < 0.5]
    turned = crops.flip(flips)
    return turned.transpose(2, 3) if rng.random() < 0.5 else turned
