"""The `images` section of a recipe: the SPADE VAE-GAN, its losses and its training.

No defaults for scientific numbers: every value stands in the recipe document, with its source.
"""

from __future__ import annotations

from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from synthgen.core.acquisition import Acquisition, PulseSequence
from synthgen.recipe.base import Count, Positive, Probability, Steps, Strict, Weight
from synthgen.recipe.training import TrainingRecipe


class GeneratorRecipe(Strict):
    """The SPADE generator: width n, latent size Z, hidden width of its norms.

    `style_in_norm` lets the style enter every SPADE norm, `pv_resize` is how labels shrink,
    `upsample` how features grow, `grain_bands` how many bands of noise it adds to the
    image.
    """

    base_channels: Count
    latent_dim: Count
    hidden: Count
    norm: Literal["instance", "batch", "group"]
    style_in_norm: bool
    pv_resize: Literal["area", "nearest"]
    upsample: Literal["nearest", "bilinear"]
    grain_bands: Annotated[int, Field(ge=0, le=3)]


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
    texture: Weight

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


Factor = Annotated[float, Field(ge=1)]


class AcquisitionRecipe(Strict):
    """The MR acquisition of one style, and where its numbers come from.

    `ti` may be left out: the inversion time then nulls CSF. See `Acquisition` for the others.
    """

    dataset: str = Field(pattern=r"^[a-z0-9][a-z0-9-]*$")
    modality: str = Field(pattern=r"^[a-z0-9]+$")
    sequence: PulseSequence
    tr: Positive
    te: Positive
    ti: Positive | None = None
    flip_deg: Positive | None = None
    field_t: Positive
    source: str = Field(min_length=1)

    @property
    def style(self) -> str:
        """Name of the style."""
        return f"{self.dataset}_{self.modality}"

    @property
    def acquisition(self) -> Acquisition:
        """The acquisition itself."""
        numbers = self.model_dump(exclude={"dataset", "modality", "source"})
        return Acquisition(**numbers)

    @model_validator(mode="after")
    def _can_be_scanned(self) -> Self:
        _ = self.acquisition
        return self


class AcquisitionAugmentRecipe(Strict):
    """How often a sample moves to another acquisition, and how far from a protocol it lies.

    `tr`, `te`, `ti`, `flip_deg` are the largest factors to either side, `field_flip` the chance of
    the other field strength.
    """

    probability: Probability
    tr: Factor
    te: Factor
    ti: Factor
    flip_deg: Factor
    field_flip: Probability


class ContrastAugmentRecipe(Strict):
    """Changes of contrast, the same for an image and its style images."""

    acquisition: AcquisitionAugmentRecipe

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
    """Everything `train images` needs.

    `acquisitions` are those of training styles, where known: only these can move.
    `protocol_styles` are styles without images of their own: training images of the modality are
    moved to their acquisition.
    """

    acquisitions: tuple[AcquisitionRecipe, ...]
    protocol_styles: tuple[AcquisitionRecipe, ...]

    generator: GeneratorRecipe
    style_encoder: StyleEncoderRecipe
    discriminator: DiscriminatorRecipe
    classifier: ClassifierRecipe
    losses: LossWeights
    pair_augment: PairAugmentRecipe
    contrast_augment: ContrastAugmentRecipe
    sampling: SamplingRecipe
    train: ImageTrainRecipe

    @model_validator(mode="after")
    def _texture_has_grain(self) -> Self:
        if self.losses.texture and not self.generator.grain_bands:
            raise ValueError("losses.texture trains the grain: generator.grain_bands must not be 0")
        return self

    @model_validator(mode="after")
    def _one_acquisition_a_style(self) -> Self:
        names = [entry.style for entry in (*self.acquisitions, *self.protocol_styles)]
        twice = sorted({name for name in names if names.count(name) > 1})
        if twice:
            raise ValueError(f"more than one acquisition is given for {', '.join(twice)}")
        return self
