"""The `imgx` section of a recipe: diffusion over masks, its network, strategy and twin.

Fu et al. 2023, arXiv:2303.06040 (DGM4MICCAI) and arXiv:2308.16355 (MELBA 2023:016).
No defaults for scientific numbers: every value stands in the recipe document, with its source.
"""

from __future__ import annotations

from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from synthgen.recipe.base import Count, Positive, Probability, Strict
from synthgen.recipe.segmentation import (
    LevelsRecipe,
    SegmentationLossRecipe,
    SegmenterRecipe,
)


class ImgxNetworkRecipe(LevelsRecipe):
    """The U-Net.

    `time_conditioning`: `film` tells the network the log-SNR, `none` is the published network,
    whose instance norms cancel the time step.
    """

    num_blocks: Count
    num_heads: Count
    head_dim: Count
    dropout: Probability
    time_conditioning: Literal["film", "none"]


class ImgxScheduleRecipe(Strict):
    """The chain of noisy masks: linear betas over `base_steps`, resampled.

    Training draws one of `num_train_timesteps` steps, inference takes `num_inference_steps`; both
    less 1 divide `base_steps` less 1. `variance` is that of the sampler `ddpm`. `clip`: the
    network sees noisy masks cut off at [-1, 1], as in the MELBA paper's code.
    """

    base_steps: Annotated[int, Field(ge=2)]
    beta_start: Positive
    beta_end: Annotated[float, Field(gt=0, lt=1)]
    num_train_timesteps: Annotated[int, Field(ge=2)]
    num_inference_steps: Annotated[int, Field(ge=2)]
    sampler: Literal["ddpm", "ddim"]
    variance: Literal["fixed_small", "fixed_large"]
    clip: bool

    @model_validator(mode="after")
    def _steps_are_kept(self) -> Self:
        for name in ("num_train_timesteps", "num_inference_steps"):
            if (self.base_steps - 1) % (getattr(self, name) - 1):
                raise ValueError(
                    f"{name} - 1 must divide base_steps - 1 = {self.base_steps - 1}, "
                    f"got {getattr(self, name)}"
                )
        return self


class ImgxRecipe(SegmenterRecipe):
    """Everything `train imgx` needs.

    `strategy` is what noisy masks are made from in training, see `synthgen.segment.strategies`.
    `twin`: also train the same network without mask and time, for as many steps (`equal_steps`),
    or for as much computation (`equal_compute`), or not at all (`none`).
    """

    network: ImgxNetworkRecipe
    schedule: ImgxScheduleRecipe
    strategy: Literal["standard", "recycle_next", "recycle_start", "self_condition"]
    losses: SegmentationLossRecipe
    twin: Literal["none", "equal_steps", "equal_compute"]

    @property
    def strides(self) -> dict[str, tuple[tuple[int, ...], ...]]:
        """See `SegmenterRecipe.strides`."""
        return {"network.strides": self.network.strides}
