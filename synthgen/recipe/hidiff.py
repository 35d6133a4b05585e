"""The `hidiff` section of a recipe: a segmentor, and the Bernoulli diffusion that refines it.

Chen et al. 2024, arXiv:2407.03548 (IEEE TMI).
No defaults for scientific numbers: every value stands in the recipe document, with its source.
"""

from __future__ import annotations

from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from synthgen.recipe.base import Count, Probability, Steps, Strict, Weight
from synthgen.recipe.segmentation import (
    LevelsRecipe,
    SegmentationLossRecipe,
    SegmenterRecipe,
    SegmenterTrainRecipe,
)

_SWIN = (1, 1, 2, 4, 8, 16)


class PlainSegmentorRecipe(LevelsRecipe):
    """MONAI's U-Net, or DynUNet (nnU-Net's), which has at least 3 levels."""

    kind: Literal["unet", "dynunet"]

    @model_validator(mode="after")
    def _deep_enough(self) -> Self:
        if self.kind == "dynunet" and len(self.channels) < 3:
            raise ValueError(f"dynunet needs at least 3 channels, got {len(self.channels)}")
        return self


class SwinSegmentorRecipe(LevelsRecipe):
    """SwinUNETR; its widths are a feature size, a multiple of 12, times 1, 1, 2, 4, 8 and 16."""

    kind: Literal["swinunetr"]

    @model_validator(mode="after")
    def _swin_fits(self) -> Self:
        size = self.channels[0]
        halved = all(stride == 2 for level in self.strides for stride in level)
        if self.channels != tuple(size * factor for factor in _SWIN) or size % 12 or not halved:
            raise ValueError(
                "swinunetr has channels [f, f, 2f, 4f, 8f, 16f] with f a multiple of 12, and five "
                f"transitions that halve every axis; got {list(self.channels)}"
            )
        return self


class ImgxSegmentorRecipe(LevelsRecipe):
    """The U-Net of ImgX without mask and time: what `recipe.imgx` calls the twin."""

    kind: Literal["imgx"]
    num_blocks: Count
    num_heads: Count
    head_dim: Count


SegmentorRecipe = Annotated[
    PlainSegmentorRecipe | SwinSegmentorRecipe | ImgxSegmentorRecipe, Field(discriminator="kind")
]


class RefinerRecipe(LevelsRecipe):
    """The network that finds where a mask is wrong.

    At each of `feature_levels` it sees the segmentor's map of the same size; at the coarsest level
    through the cross-transformer (X-Former) of `num_heads` heads, or as at the others where that
    is 0. `binary`: weights and activations of one bit.
    """

    feature_levels: tuple[Steps, ...]
    num_heads: Steps
    binary: bool


class BernoulliRecipe(Strict):
    """The chain between masks and the segmentor's masks; see `synthgen.diffusion.bernoulli`.

    `prediction` is what the refiner finds: the mask, a correction of the segmentor's, or the pixels
    that flipped, as published.
    `prior_floor`: the segmentor's probabilities keep so far from 0 and 1, so that the chain can
    leave a mask that is sure and wrong.
    """

    num_train_timesteps: Count
    num_inference_steps: Count
    schedule: Literal["cosine2", "cosine"]
    kernel: Literal["bernoulli", "categorical"]
    posterior: Literal["plugin", "mixture"]
    prediction: Literal["mask", "correction", "flips"]
    sampler: Literal["ancestral", "ddim", "mode"]
    prior_floor: Annotated[float, Field(gt=0, le=0.05)]

    @model_validator(mode="after")
    def _flips_are_of_coins(self) -> Self:
        if self.kernel == "categorical" and self.prediction == "flips":
            raise ValueError("the categorical kernel has no flips: prediction must be mask")
        return self

    @model_validator(mode="after")
    def _steps_exist(self) -> Self:
        if self.num_inference_steps > self.num_train_timesteps:
            raise ValueError(
                f"num_inference_steps must be at most num_train_timesteps "
                f"{self.num_train_timesteps}, got {self.num_inference_steps}"
            )
        return self


class RefinerLossRecipe(Strict):
    """Weights of the diffusion's bound (KL divergence, in bits), of the focal loss, and of Dice.

    The focal loss is that of what the network predicts, Dice that of the mask.
    """

    bound: Weight
    focal: Weight
    dice: Weight
    gamma: Weight

    @model_validator(mode="after")
    def _something_to_learn(self) -> Self:
        if not (self.bound or self.focal or self.dice):
            raise ValueError("one of bound, focal and dice must be above 0")
        return self


class CorruptionRecipe(Strict):
    """How masks are spoiled before the refiner sees them; see `synthgen.segment.corruption`."""

    share: Probability
    area: Probability
    blob: Count
    reach: Count
    temperature: Weight


class CollaborationRecipe(Strict):
    """Who is trained when.

    The refiner at every step; the segmentor, after `warmup` steps, at every `every`-th one, by its
    own loss and `diffusion` times the refiner's, a weight that grows from 0 over `ramp` steps.
    """

    warmup: Steps
    every: Count
    diffusion: Weight
    ramp: Count


class HidiffRecipe(SegmenterRecipe):
    """Everything `train hidiff` needs.

    `pretrain` trains the segmentor alone, `train` both. `recycle` is the share of masks that drift,
    in training, from the refiner's own first guess in place of the truth.
    """

    segmentor: SegmentorRecipe
    refiner: RefinerRecipe
    schedule: BernoulliRecipe
    segmentor_losses: SegmentationLossRecipe
    refiner_losses: RefinerLossRecipe
    corruption: CorruptionRecipe
    recycle: Probability
    collaboration: CollaborationRecipe
    pretrain: SegmenterTrainRecipe

    @property
    def strides(self) -> dict[str, tuple[tuple[int, ...], ...]]:
        """See `SegmenterRecipe.strides`."""
        return {
            "segmentor.strides": self.segmentor.strides,
            "refiner.strides": self.refiner.strides,
        }

    @model_validator(mode="after")
    def _sizes_fit(self) -> Self:
        factors = self.segmentor.reductions[-1]
        for name, size in (("data.patch", self.data.patch), ("window.size", self.window_size)):
            if any(side % factor for side, factor in zip(size, factors, strict=True)):
                raise ValueError(
                    f"{name} must be divisible by {list(factors)}, by which the segmentor shrinks "
                    f"it, got {list(size)}"
                )
        return self

    @model_validator(mode="after")
    def _features_fit(self) -> Self:
        levels = self.refiner.feature_levels
        if list(levels) != sorted({*levels}) or max(levels, default=0) >= len(
            self.refiner.channels
        ):
            raise ValueError(
                "refiner.feature_levels must rise and lie below "
                f"{len(self.refiner.channels)}, got {list(levels)}"
            )
        missing = [n for n in levels if self.refiner.reductions[n] not in self.segmentor.reductions]
        if missing:
            raise ValueError(
                f"refiner.feature_levels: the segmentor has no map of the size of level "
                f"{missing[0]}, 1/{list(self.refiner.reductions[missing[0]])} of the image"
            )
        return self

    @property
    def features(self) -> tuple[int, ...]:
        """The segmentor's level whose map enters each of the refiner's `feature_levels`.

        The deepest one of that size.
        """
        sizes = self.segmentor.reductions
        wanted = [self.refiner.reductions[level] for level in self.refiner.feature_levels]
        return tuple(max(i for i, size in enumerate(sizes) if size == one) for one in wanted)
