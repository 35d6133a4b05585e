"""The `labels` section of a recipe: autoencoder, latent diffusion, augmentation, sampling.

No defaults for scientific numbers: every value stands in the recipe document, with its source.
"""

from __future__ import annotations

from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from synthgen.recipe.base import Count, Positive, Probability, Steps, Strict, Weight
from synthgen.recipe.training import TrainingRecipe

Widths = Annotated[tuple[Count, ...], Field(min_length=1)]


class TrainRecipe(TrainingRecipe):
    """One training: its length and learning rate, beside what every training says.

    `lr_decay` is the factor a step of the "exponential" schedule, unused by the others.
    """

    steps: Count
    lr: Positive
    weight_decay: Weight
    lr_schedule: Literal["constant", "cosine", "exponential"]
    lr_warmup: Steps
    lr_decay: Annotated[float, Field(gt=0, le=1)]


class ReconstructionWeights(Strict):
    """Weight of each loss of the autoencoder; 0 leaves it out, its computation too.

    `lesion_weight` multiplies the loss of lesion channels, which cover few pixels.
    `multi_resolution` and `feature_matching` stand in for a perceptual loss without downloads:
    L1 of the maps and their gradients at several resolutions, and L1 of the discriminator's
    features.
    """

    l1: Weight
    cross_entropy: Weight
    kl: Weight
    multi_resolution: Weight
    feature_matching: Weight
    adversarial: Weight
    lesion_weight: Positive

    @property
    def need_discriminator(self) -> bool:
        """Whether any loss asks the discriminator."""
        return self.adversarial > 0 or self.feature_matching > 0


class DiscriminatorRecipe(Strict):
    """The patch discriminator of the autoencoder; built only when a loss asks for it."""

    channels: Count
    num_layers: Count
    lr: Positive


class AutoencoderRecipe(Strict):
    """The autoencoder of PV maps.

    `kind` is "diffusers" (its AutoencoderKL), "patch" (the same behind a pixel-unshuffle by
    `patch_size`, several times cheaper at full resolution) or "brainspade" (MONAI's, which
    equals the paper's layer by layer).
    """

    kind: Literal["diffusers", "patch", "brainspade"]
    patch_size: Count
    block_out_channels: Widths
    layers_per_block: Count
    latent_channels: Count
    norm_groups: Count
    attention: bool
    head: Literal["softmax", "linear"]
    losses: ReconstructionWeights
    discriminator: DiscriminatorRecipe
    train: TrainRecipe

    @model_validator(mode="after")
    def _patch_only(self) -> Self:
        if self.kind != "patch" and self.patch_size != 1:
            raise ValueError("patch_size other than 1 needs kind: patch")
        if any(width % self.norm_groups for width in self.block_out_channels):
            raise ValueError("each of block_out_channels must be a multiple of norm_groups")
        return self


class ConditionRecipe(Strict):
    """How lesion fractions and slice position reach the U-Net.

    `mode` "class" adds an embedding to the time embedding, "concat" appends constant planes to
    the latent. `dropout` is how often the condition is replaced by the null token, which makes
    classifier-free guidance possible. `position` adds the slice position to the condition.
    `csf` adds the rank of the CSF's share of the brain among slices at that position.
    `coordinates` appends the place of each pixel as planes, with this many sine and cosine pairs;
    `templates` the mean latent at the slice position, from a table of so many positions.
    """

    mode: Literal["class", "concat", "none"]
    position: bool
    csf: bool
    dropout: Probability
    num_frequencies: Steps
    coordinates: Steps
    templates: Steps

    @model_validator(mode="after")
    def _template_by_position(self) -> Self:
        if self.templates == 1 or (self.templates and not self.position):
            raise ValueError("templates needs position: true and at least 2 positions (0 for none)")
        return self


class DiffusionRecipe(Strict):
    """The U-Net in the latent, its noise schedule and target.

    `attention` says level by level whether the blocks attend; `head_dim` 0 means one head.
    `resample` "resnet" resamples inside residual blocks, as the paper's conditional U-Net.
    `latent_copies` is how many augmented copies of each slice are encoded and cached. `latents`
    says what is learnt: fresh draws from the cached posteriors, as in the paper, or their means;
    where the decoder ignores a latent, draws are pure noise that no network can predict.
    """

    block_out_channels: Widths
    layers_per_block: Count
    attention: tuple[bool, ...]
    head_dim: Steps
    norm_groups: Count
    norm_eps: Positive
    resample: Literal["conv", "resnet"]
    target: Literal["epsilon", "v", "flow"]
    loss: Literal["l1", "l2"]
    num_train_timesteps: Count
    beta_schedule: Literal["scaled_linear", "linear", "squaredcos_cap_v2"]
    beta_start: Positive
    beta_end: Positive
    condition: ConditionRecipe
    latent_copies: Count
    latents: Literal["posterior", "mean"]
    latent_scaling: bool
    train: TrainRecipe

    @model_validator(mode="after")
    def _levels(self) -> Self:
        if len(self.attention) != len(self.block_out_channels):
            raise ValueError("attention needs one value for each of block_out_channels")
        return self


class WarpRecipe(Strict):
    """Affine and elastic warps of label maps."""

    rotate_deg: Weight
    scale: Annotated[float, Field(ge=0, lt=1)]
    shear: Weight
    shift_px: Weight
    elastic_px: Weight
    elastic_grid: Annotated[int, Field(ge=2)]
    flip_probability: Probability


class LabelAugmentRecipe(WarpRecipe):
    """PV-safe augmentation of label maps."""

    lesion_paste_probability: Probability


class SamplingRecipe(Strict):
    """How the trained model samples unless the caller says otherwise.

    `temperature` divides the logits of the softmax head: the decoder's doubt blurs borders, and
    below 1 they are as sharp as those of the training maps. `warp` warps every map that is drawn,
    so that the people of a small training set become a population; null for none.
    """

    sampler: Literal["dpm", "ddim", "unipc", "ddpm", "euler"]
    steps: Count
    eta: Annotated[float, Field(ge=0, le=1)]
    guidance: Positive
    background_threshold: Probability
    temperature: Positive
    warp: WarpRecipe | None


class LabelRecipe(Strict):
    """Everything `train labels` needs.

    `lesion_share` is the share of each batch drawn from slices that show a lesion.
    """

    autoencoder: AutoencoderRecipe
    diffusion: DiffusionRecipe
    augment: LabelAugmentRecipe
    lesion_share: Probability
    sampling: SamplingRecipe

    @model_validator(mode="after")
    def _sampler_fits(self) -> Self:
        flow = self.diffusion.target == "flow"
        if flow != (self.sampling.sampler == "euler") and self.sampling.sampler != "dpm":
            raise ValueError(
                f"sampler {self.sampling.sampler} does not fit target {self.diffusion.target}"
            )
        return self
