"""Optimiser, learning-rate schedule and moving average from a recipe's `train` section."""

from __future__ import annotations

from typing import TYPE_CHECKING, assert_never

import torch
from diffusers.optimization import get_scheduler
from diffusers.training_utils import EMAModel
from torch import nn
from torch.optim.lr_scheduler import LambdaLR, LRScheduler

if TYPE_CHECKING:
    from collections.abc import Iterable

    from synthgen.recipe.labels import TrainRecipe


def build_optimizer(
    recipe: TrainRecipe, parameters: Iterable[nn.Parameter], lr: float | None = None
) -> torch.optim.Optimizer:
    """Build Adam, or AdamW when there is weight decay."""
    kind = torch.optim.AdamW if recipe.weight_decay > 0 else torch.optim.Adam
    return kind(
        list(parameters),
        lr=recipe.lr if lr is None else lr,
        betas=recipe.betas,
        weight_decay=recipe.weight_decay,
    )


def build_schedule(recipe: TrainRecipe, optimizer: torch.optim.Optimizer) -> LRScheduler:
    """Build the learning-rate schedule, counted in optimiser steps."""
    schedule: LRScheduler
    match recipe.lr_schedule:
        case "constant":
            schedule = get_scheduler(
                "constant_with_warmup", optimizer, num_warmup_steps=recipe.lr_warmup
            )
        case "cosine":
            schedule = get_scheduler(
                "cosine",
                optimizer,
                num_warmup_steps=recipe.lr_warmup,
                num_training_steps=recipe.steps,
            )
        case "exponential":
            decay, warmup = recipe.lr_decay, max(1, recipe.lr_warmup)
            schedule = LambdaLR(optimizer, lambda s: min(1.0, (s + 1) / warmup) * decay**s)
        case _:
            assert_never(recipe.lr_schedule)
    return schedule


def build_ema(recipe: TrainRecipe, model: nn.Module) -> EMAModel:
    """Build the moving average of a model's weights, with warm-up (power 3/4)."""
    return EMAModel(
        model.parameters(),
        decay=recipe.ema_decay,
        use_ema_warmup=True,
        power=0.75,
        foreach=True,
    )
