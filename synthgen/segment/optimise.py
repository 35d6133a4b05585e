"""AdamW of a segmenter's recipe, and its rate."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch.optim.lr_scheduler import LambdaLR

if TYPE_CHECKING:
    from collections.abc import Iterable

    from torch import nn

    from synthgen.recipe.segmentation import SegmenterTrainRecipe


@dataclass(frozen=True)
class WarmCosine:
    """A learning rate: a line from `first` to `peak`, a cosine to `last`, then constant.

    Attributes:
        first: at step 0, if there is a warm-up.
        peak: at step `warmup`.
        last: from step `decay` on.
        warmup: steps.
        decay: step.

    Examples:
        >>> rate = WarmCosine(1.0, 3.0, 1.0, warmup=2, decay=6)
        >>> [round(rate(step), 3) for step in range(8)]
        [1.0, 2.0, 3.0, 2.707, 2.0, 1.293, 1.0, 1.0]
    """

    first: float
    peak: float
    last: float
    warmup: int
    decay: int

    def __call__(self, step: int) -> float:
        """Return the rate of a step."""
        if step < self.warmup:
            return self.first + (self.peak - self.first) * step / self.warmup
        share = min(1.0, (step - self.warmup) / max(1, self.decay - self.warmup))
        return self.last + (self.peak - self.last) * (1 + math.cos(math.pi * share)) / 2


def build_adamw(
    train: SegmenterTrainRecipe, parameters: Iterable[nn.Parameter], steps: int
) -> tuple[torch.optim.AdamW, LambdaLR]:
    """Return the optimiser and the schedule of its rate, for a training of so many steps."""
    adam = torch.optim.AdamW(
        parameters, lr=train.lr, betas=train.betas, weight_decay=train.weight_decay
    )
    decay = steps if train.decay is None else train.decay
    rate = WarmCosine(train.lr_first, train.lr, train.lr_last, train.warmup, decay)
    return adam, LambdaLR(adam, lambda step: rate(step) / train.lr)
