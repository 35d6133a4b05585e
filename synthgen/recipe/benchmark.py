"""The `benchmark` section of a recipe: how long and how large the compared trainings are."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from synthgen.recipe.base import Count, Positive, Probability, Strict, Weight


class BudgetRecipe(Strict):
    """One budget, the same for every arm.

    Attributes:
        epochs: epochs of nnU-Net, which are only a unit of learning rate and checkpoints.
        steps_per_epoch: optimiser steps in one.
        validation_steps: batches that nnU-Net looks at after each, on training cases.
        batch_size: slices a step; null takes the size that nnU-Net plans for the real slices.
        features: channels of nnU-Net's first stage.
        max_cases: most cases of one source; further ones are left out by a seeded draw.
        mirror: average predictions over mirrored copies of the test images.
        repeats: training seeds of each arm, unless the command says otherwise.
        needs_gpu: refuse nnU-Net without a GPU.
    """

    epochs: Count
    steps_per_epoch: Count
    validation_steps: Count
    batch_size: Count | None
    features: Count
    max_cases: Count | None
    mirror: bool
    repeats: Count
    needs_gpu: bool

    @property
    def steps(self) -> int:
        """Optimiser steps of one training."""
        return self.epochs * self.steps_per_epoch


class ProxyRecipe(Strict):
    """The proxy trainer: a small U-Net, AdamW, soft labels; steps are the budget's.

    Attributes:
        channels: channels of each level; each halves the resolution.
        batch_size: slices a step.
        lr: first learning rate; it falls to 0 as in nnU-Net, by (1 - t) ** 0.9.
        weight_decay: AdamW's.
        clip_norm: largest norm of the gradient.
        rotate_deg: largest rotation of a training slice.
        scale: largest change of size.
        shift_px: largest shift.
        flip_probability: of mirroring left and right.
        gain: largest change of contrast.
        noise: largest standard deviation of added noise, in units of the image's own.
    """

    channels: Annotated[tuple[Count, ...], Field(min_length=2)]
    batch_size: Count
    lr: Positive
    weight_decay: Weight
    clip_norm: Positive
    rotate_deg: Weight
    scale: Annotated[float, Field(ge=0, lt=1)]
    shift_px: Weight
    flip_probability: Probability
    gain: Annotated[float, Field(ge=0, lt=1)]
    noise: Weight


class BudgetsRecipe(Strict):
    """The budgets by name."""

    smoke: BudgetRecipe
    short: BudgetRecipe
    paper: BudgetRecipe


class BenchmarkRecipe(Strict):
    """Settings of `synthgen benchmark nnunet`.

    Attributes:
        margin: loss of Dice against `real` that still counts as "as good", fixed beforehand.
        nsd_tolerance_mm: distance at which surfaces count as equal.
        few: real slices of the arm `few`.
        budgets: by name.
        proxy: the proxy trainer.
    """

    margin: Positive
    nsd_tolerance_mm: Positive
    few: Count
    budgets: BudgetsRecipe
    proxy: ProxyRecipe
