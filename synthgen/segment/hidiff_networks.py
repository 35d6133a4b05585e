"""HiDiff's networks together: the segmentor, the refiner, and the chain between their masks."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch

from synthgen.core.errors import SchemaError
from synthgen.diffusion.bernoulli import BernoulliScheduler, seeded_uniform
from synthgen.models.hidiff import HiDiffRefiner
from synthgen.models.segmentors import Segmentor
from synthgen.runtime import seeded_init

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from torch import Tensor

    from synthgen.recipe.hidiff import BernoulliRecipe, HidiffRecipe
    from synthgen.segment.hidiff_masks import MaskForm

_SEGMENTOR, _REFINER = 1, 2


@dataclass(frozen=True)
class HiDiffNetworks:
    """What a model folder holds.

    Attributes:
        segmentor: finds the mask that is refined.
        refiner: finds where it is wrong.
        scheduler: of the inference, its steps set.
        features: the segmentor's levels whose maps the refiner sees.

    Raises:
        SchemaError: a segmentor and a refiner that were not made for one another.
    """

    segmentor: Segmentor
    refiner: HiDiffRefiner
    scheduler: BernoulliScheduler
    features: tuple[int, ...]

    def __post_init__(self) -> None:
        ours: Any = self.segmentor.config
        theirs: Any = self.refiner.config
        for name in ("out_channels", "in_channels", "spatial_dims"):
            if ours[name] != theirs[name]:
                raise SchemaError(
                    f"the refiner expects a segmentor of {name} {theirs[name]}, got one of "
                    f"{ours[name]}; take two that were trained together"
                )
        wanted = list(theirs["feature_channels"])
        levels = list(ours["channels"])
        maps = [levels[i] if i < len(levels) else None for i in self.features]
        if maps != wanted:
            raise SchemaError(
                f"the refiner expects maps of {wanted} channels from the segmentor, got {maps}; "
                "take two that were trained together"
            )


def build_segmentor(recipe: HidiffRecipe, in_channels: int, form: MaskForm) -> Segmentor:
    """Build the segmentor with seeded weights."""
    with seeded_init(recipe.pretrain.seed, _SEGMENTOR):
        segmentor: Segmentor = Segmentor(
            spatial_dims=recipe.data.spatial_dims,
            in_channels=in_channels,
            out_channels=form.channels,
            **recipe.segmentor.model_dump(),
        )
    return segmentor


def build_refiner(recipe: HidiffRecipe, in_channels: int, form: MaskForm) -> HiDiffRefiner:
    """Build the refiner with seeded weights."""
    with seeded_init(recipe.train.seed, _REFINER):
        refiner: HiDiffRefiner = HiDiffRefiner(
            spatial_dims=recipe.data.spatial_dims,
            in_channels=in_channels,
            out_channels=form.channels,
            feature_channels=[recipe.segmentor.channels[i] for i in recipe.features],
            **recipe.refiner.model_dump(),
        )
    return refiner


def build_scheduler(recipe: BernoulliRecipe) -> BernoulliScheduler:
    """Build the chain, the steps of its inference set."""
    scheduler: BernoulliScheduler = BernoulliScheduler(
        **recipe.model_dump(exclude={"num_inference_steps"})
    )
    scheduler.set_timesteps(recipe.num_inference_steps)
    return scheduler


def refine(
    scheduler: BernoulliScheduler,
    predict: Callable[[Tensor, Tensor], Tensor],
    prior: Tensor,
    generators: Sequence[torch.Generator],
) -> Tensor:
    """Draw masks from the segmentor's and go back along the chain.

    Args:
        scheduler: its steps set.
        predict: `(masks (B, K, *S) of 0 and 1, steps (B,)) -> logits (B, K, *S)`, float32.
        prior: the segmentor's masks `(B, K, *S)`.
        generators: one for each sample, on the CPU.

    Returns:
        The masks' probabilities that each step finds, `(steps, B, K, *S)`.
    """

    def noise() -> Tensor:
        return seeded_uniform(generators, prior.shape[1:], prior.device)

    mask = scheduler.initial(prior, noise())
    found = []
    for t in scheduler.timesteps:
        steps = t.to(prior.device).expand(len(prior))
        back = scheduler.step(predict(mask, steps), t, mask, prior, noise())
        found.append(back.pred_original_sample)
        mask = back.prev_sample
    return torch.stack(found)
