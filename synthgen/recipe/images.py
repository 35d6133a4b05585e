"""The `images` section of a recipe: the SPADE VAE-GAN, its losses and its training.

No defaults for scientific numbers: every value stands in the recipe document, with its source.
"""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from synthgen.recipe.base import Count, Positive, Probability, Steps, Strict, Weight
from synthgen.recipe.training import TrainingRecipe


class GeneratorRecipe(Strict):
    """The SPADE generator: width n, latent size Z, hidden width of its norms.

    `style_in_norm` lets the style enter every SPADE norm, `pv_resize` is how labels shrink,
    `upsample` how features grow.
    """

    base_channels: Count
    latent_dim: Count
    hidden: Count
    norm: Literal["instance", "batch", "group"]
    style_in_norm: bool
    pv_resize: Literal["area", "nearest"]
    upsample: Literal["nearest", "bilinear"]


class StyleEncoderRecipe(Strict):
    """The style encoder: width, and whether to build the paper's layers exactly."""

    base_channels: Count
    faithful: bool


class DiscriminatorRecipe(Strict):
    """The patch discriminators on an image pyramid."""

    base_channels: Count
    num_scales: Count
    num_layers: Count
    modality_planes: bool


class ClassifierRecipe(Strict):
    """The modality and dataset classifier, trained first on real slices, then frozen."""

    arch: Literal["densenet121", "small"]
    width: Count
    steps: Steps
    batch_size: Count
    lr: Positive
    lr_final: Positive


class LossWeights(Strict):
    """Weight of each generator loss; 0 leaves it out, its computation too."""

    adversarial: Weight
    feature_matching: Weight
    perceptual: Weight
    kl: Weight
    modality: Weight
    dataset: Weight
    contrastive: Weight
    second_style: Weight
    code_class: Weight
    slice_consistency: Weight
    slice_consistency_from: Steps
    paired_l1: Weight

    @property
    def need_discriminator(self) -> bool:
        """Whether any loss asks the discriminators."""
        return self.adversarial > 0 or self.feature_matching > 0

    @property
    def need_classifier(self) -> bool:
        """Whether any loss asks the classifier."""
        return self.perceptual > 0 or self.modality > 0 or self.dataset > 0


class PairAugmentRecipe(Strict):
    """Warps of a label and its image together."""

    rotate_deg: Weight
    scale: Annotated[float, Field(ge=0, lt=1)]
    shear: Weight
    shift_px: Weight
    elastic_px: Weight
    elastic_grid: Annotated[int, Field(ge=2)]
    flip_probability: Probability


class ContrastAugmentRecipe(Strict):
    """Changes of contrast, the same for an image and its style images."""

    bias: Probability
    gamma_low: Positive
    gamma_high: Positive
    noise: Weight


class SamplingRecipe(Strict):
    """Which slices a batch holds."""

    lesion_probability: Probability


class ImageTrainRecipe(TrainingRecipe):
    """The VAE-GAN training: lengths and learning rates, beside what every training says.

    `constant` and `decay` (the linear decay to 0 that follows) count in `unit`: optimiser steps,
    or epochs over the training images. `LossWeights.slice_consistency_from` uses the same unit.
    `init` is how convolutions start: Xavier-normal with gain 0.02 as in the papers, or torch's
    default with Kaiming-normal style encoder and classifier, which have few or no norms.
    """

    unit: Literal["step", "epoch"]
    constant: Count
    decay: Steps
    lr_generator: Positive
    lr_discriminator: Positive
    init: Literal["xavier", "kaiming"]


class ImageRecipe(Strict):
    """Everything `train images` needs."""

    generator: GeneratorRecipe
    style_encoder: StyleEncoderRecipe
    discriminator: DiscriminatorRecipe
    classifier: ClassifierRecipe
    losses: LossWeights
    pair_augment: PairAugmentRecipe
    contrast_augment: ContrastAugmentRecipe
    sampling: SamplingRecipe
    train: ImageTrainRecipe
