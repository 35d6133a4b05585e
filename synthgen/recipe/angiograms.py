"""The `angiograms` section of a recipe: DARL, its schedule, networks, losses and training.

No defaults for scientific numbers: every value stands in the recipe document, with its source.
"""

from __future__ import annotations

from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from synthgen.recipe.base import Count, Positive, Steps, Strict, Weight
from synthgen.recipe.training import TrainingRecipe

GENERATOR_REDUCTION = 4
"""The generator works at a quarter of its input's size."""


_SMALLEST = 24
"""Side of the smallest input of which the discriminators make a logit."""


class DataRecipe(Strict):
    """Masks, backgrounds, and how pictures become network inputs.

    `masks` is the preset of the procedural vessel trees, or a `pool` of drawn masks.
    `background`: a `pool` of vessel-free
    pictures, the angiograms `self` (C-DARL), or the angiograms with their vessels `inpainted`.
    Pictures are shrunk so that their longer `side`, or the diameter of their round field of view,
    is so many pixels; null for neither. `decimate` then keeps every other row and column. A
    network input is a square of side `crop`. `shared_flips` mirrors the three pictures of a row
    alike. `contrast`: the networks see pictures as they are, or each one of even contrast.
    """

    masks: Literal["coronary", "retina", "ssvs", "pool"]
    background: Literal["pool", "self", "inpainted"]
    side: Count | None
    field_diameter: Positive | None
    crop: Annotated[int, Field(ge=_SMALLEST)]
    decimate: bool
    shared_flips: bool
    contrast: Literal["as_is", "even"]

    @model_validator(mode="after")
    def _one_scale(self) -> Self:
        if self.side is not None and self.field_diameter is not None:
            raise ValueError("give side or field_diameter, and null for the other")
        return self


class ScheduleRecipe(Strict):
    """The noise schedule (linear betas) and the steps t that each path draws.

    Path A (segmentation, cycle) draws t below `segment_t`, path B (painting) below `paint_t`.
    `shared_noise`: one noise for both paths and the cycle, else one each.
    """

    num_train_timesteps: Count
    beta_start: Positive
    beta_end: Annotated[float, Field(gt=0, lt=1)]
    segment_t: Count
    paint_t: Count
    shared_noise: bool

    @model_validator(mode="after")
    def _steps_exist(self) -> Self:
        most = max(self.segment_t, self.paint_t)
        if most > self.num_train_timesteps:
            raise ValueError(
                f"segment_t and paint_t must be at most num_train_timesteps "
                f"{self.num_train_timesteps}, got {most}"
            )
        return self


class NoisePredictorRecipe(Strict):
    """The U-Net that sees noise: the paper's own (`faithful`) or that of diffusers (`library`)."""

    kind: Literal["faithful", "library"]
    base_channels: Count
    multipliers: Annotated[tuple[Count, ...], Field(min_length=1)]
    num_blocks: Count
    attention_levels: tuple[Steps, ...]
    norm_groups: Count

    @property
    def reduction(self) -> int:
        """Sides of its input must be divisible by this."""
        return int(2 ** (len(self.multipliers) - 1))


class GeneratorRecipe(Strict):
    """The generator with switchable SPADE.

    `shared`: one generator segments and paints. Else path B has a generator of its own: the
    ablation "without S-SPADE" of the paper's table 3. `init` is how its convolutions start: normal
    with a standard deviation of 0.02, or orthogonal.
    """

    base_channels: Count
    spade_hidden: Count
    num_blocks: Count
    label_resize: Literal["nearest", "area"]
    shared: bool
    init: Literal["normal", "orthogonal"]


class DiscriminatorRecipe(Strict):
    """The two patch discriminators; `pool_size` is how many past fakes each remembers."""

    base_channels: Count
    pool_size: Count


class LossRecipe(Strict):
    """Weight of each loss; 0 leaves it out, its computation too.

    `cycle_kind` is how the cycle compares masks. `dice` and `cldice` (soft clDice with
    `cldice_iterations` erosions) act on the cycle too, and grow from 0 over `ramp` steps, beginning
    at step `ramp_from`. `background` keeps what is painted like its background further than
    `background_margin` pixels from the mask. `pairs`: path A must find the mask of angiograms
    that the training-free renderer painted (cross-entropy and soft Dice), `pair_pictures` of them.
    """

    diffusion: Weight
    adversarial_mask: Weight
    adversarial_angiogram: Weight
    cycle: Weight
    cycle_kind: Literal["l1", "ce"]
    dice: Weight
    cldice: Weight
    cldice_iterations: Count
    ramp_from: Steps
    ramp: Steps
    background: Weight
    background_margin: Steps
    pairs: Weight
    pair_pictures: Count


class UseRecipe(Strict):
    """How a trained model is used.

    It paints at a t below `render_t` (1: without noise) on one of `backgrounds` stored
    backgrounds, and segments an image `whole`, in overlapping `tiles` of the training's crop, or
    as its four pixel phases (`polyphase`). `keep_background`: away from vessels the background
    stands as it is, and on them its grain.
    """

    render_t: Count
    backgrounds: Count
    segment: Literal["whole", "tiles", "polyphase"]
    keep_background: bool


class AngiogramTrainRecipe(TrainingRecipe):
    """The joint training; rates rise over `warmup` steps and fall to 0 over the last `decay`."""

    steps: Count
    lr_generator: Positive
    lr_discriminator: Positive
    warmup: Steps
    decay: Steps


class AngiogramRecipe(Strict):
    """Everything `train angiograms` needs.

    Without `noise_predictor` (null) there is no noise either, and the generator sees clean images
    alone: the ablation "without diffusion" of the paper's table 3.
    """

    data: DataRecipe
    schedule: ScheduleRecipe
    noise_predictor: NoisePredictorRecipe | None
    generator: GeneratorRecipe
    discriminator: DiscriminatorRecipe
    losses: LossRecipe
    use: UseRecipe
    train: AngiogramTrainRecipe

    @model_validator(mode="after")
    def _crop_fits_the_networks(self) -> Self:
        factor = self.reduction
        if self.data.crop % factor:
            raise ValueError(
                f"data.crop must be divisible by {factor}, which the networks shrink it by, "
                f"got {self.data.crop}"
            )
        return self

    @model_validator(mode="after")
    def _steps_exist(self) -> Self:
        if self.use.render_t > self.schedule.num_train_timesteps:
            raise ValueError(
                f"use.render_t must be at most schedule.num_train_timesteps "
                f"{self.schedule.num_train_timesteps}, got {self.use.render_t}"
            )
        return self

    @model_validator(mode="after")
    def _pairs_have_trees(self) -> Self:
        if self.losses.pairs and self.data.masks == "pool":
            raise ValueError(
                "losses.pairs needs vessel trees to render: data.masks must name a preset, "
                "got 'pool'"
            )
        return self

    @property
    def reduction(self) -> int:
        """Sides of network inputs must be divisible by this."""
        predictor = self.noise_predictor
        return max(GENERATOR_REDUCTION, predictor.reduction if predictor else 1)
