"""Optimiser, learning-rate schedule and moving average from a recipe's `train` section."""

from __future__ import annotations

from typing import TYPE_CHECKING, assert_never

import torch
from diffusers.optimization import get_scheduler
from diffusers.training_utils import EMAModel
from torch import nn
from torch.optim.lr_scheduler import LambdaLR, LRScheduler

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from accelerate import Accelerator

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


def descend(
    accelerator: Accelerator,
    step: int,
    net: nn.Module,
    optimizer: torch.optim.Optimizer,
    clip_norm: float,
    loss_of: Callable[[int], torch.Tensor],
) -> tuple[torch.Tensor, torch.Tensor]:
    """Make one iteration of an optimiser over its micro-batches.

    Args:
        accelerator: knows how many micro-batches there are, and which this worker takes.
        step: number of the iteration.
        net: what is trained, prepared.
        optimizer: of `net`, prepared.
        clip_norm: largest norm of the gradient, 0 for no limit.
        loss_of: the loss of the micro-batch of a number.

    Returns:
        The mean loss and the norm of the gradient, detached.
    """
    micro_batches = accelerator.gradient_accumulation_steps
    total = torch.zeros((), device=accelerator.device)
    norm = torch.zeros((), device=accelerator.device)
    for micro in range(micro_batches):
        number = (step * micro_batches + micro) * accelerator.num_processes
        with accelerator.accumulate(net):
            loss = loss_of(number + accelerator.process_index)
            accelerator.backward(loss)
            if accelerator.sync_gradients:
                norm = accelerator.clip_grad_norm_(net.parameters(), clip_norm or float("inf"))
            optimizer.step()
            optimizer.zero_grad()
        total = total + loss.detach() / micro_batches
    return total, norm
