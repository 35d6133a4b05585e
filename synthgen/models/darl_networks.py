"""DARL's networks together: both paths, and the model folder that holds them.

Source: Kim et al. 2023, arXiv:2209.14566. Path A segments: noise an angiogram to step
t, predict the noise, let the generator make a mask of the two. Path B paints: the same with a
background, and with a mask for the generator's switchable SPADE. A trained model segments at
t = 0, without noise.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any, Literal, get_args

import torch
from diffusers.models.unets.unet_2d import UNet2DModel
from diffusers.schedulers.scheduling_ddpm import DDPMScheduler
from torch import Tensor, nn

from synthgen.core.input_files import read_json, unusable
from synthgen.core.model_folder import REMEDY, ModelFolder, read_model_folder
from synthgen.core.model_settings import MAX_SETTING
from synthgen.models.darl import GENERATOR_REDUCTION, DarlGenerator
from synthgen.models.darl_unet import NoisePredictor
from synthgen.models.loading import load_network

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

KIND = "angiograms"
"""Kind of the model folder."""
View = Literal["whole", "tiles", "polyphase"]
DTypeName = Literal["float32", "bfloat16"]
Contrast = Literal["as_is", "even"]

_PREDICTORS = {kind.__name__: kind for kind in (NoisePredictor, UNet2DModel)}


@dataclass(frozen=True)
class DarlUse:
    """How a trained model is used; stands in `synthgen.json`.

    Attributes:
        render_t: it paints at a step below; 1 paints without noise.
        segment: how it segments an image; see `synthgen.models.darl_inference.PathA`.
        crop: side of the squares it was trained on.
        side: longer side of the pictures they were cut from; None for pictures as they came.
        field_diameter: diameter of their round field of view in pixels; None for any.
        decimate: whether every other row and column was left out then.
        contrast: whether the networks see pictures as they are, or of even contrast; see
            `synthgen.models.contrast`.
        keep_background: whether what is painted away from vessels gives way to the background.
        share: `synthgen.models.contrast.Evened.share` of real crops with many vessels; 1 where
            pictures are seen as they are.
    """

    render_t: int
    segment: View
    crop: int
    side: int | None = None
    field_diameter: float | None = None
    decimate: bool = False
    contrast: Contrast = "as_is"
    keep_background: bool = False
    share: float = 1.0

    def to_json(self) -> dict[str, Any]:
        """Return it as plain data."""
        return asdict(self)


@dataclass(frozen=True)
class DarlNetworks:
    """What both paths need.

    Attributes:
        generator: segments; paints too, unless there is a `painter`.
        scheduler: the noise schedule.
        noise_predictor: without one there is no noise: images stay clean, and the generator sees
            zeros in place of the predicted noise.
        painter: a generator of path B alone.
    """

    generator: nn.Module
    scheduler: DDPMScheduler
    noise_predictor: nn.Module | None = None
    painter: nn.Module | None = None

    def segment(self, images: Tensor, t: Tensor, noise: Tensor | None = None) -> Tensor:
        """Return masks `(B, 1, X, Y)` in (-1, 1): path A.

        Args:
            images: `(B, 1, X, Y)` in [-1, 1].
            t: `(B,)` steps.
            noise: standard normal, of the images' shape; None adds none.
        """
        x_t, eps = self._noised(images, t, noise)
        mask: Tensor = self.generator(x_t, eps)
        return mask

    def paint(
        self, backgrounds: Tensor, masks: Tensor, t: Tensor, noise: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        """Return angiograms `(B, 1, X, Y)` in (-1, 1) and the predicted noise: path B.

        Args:
            backgrounds: `(B, 1, X, Y)` in [-1, 1].
            masks: `(B, 1, X, Y)`, -1 background, 1 vessel.
            t: `(B,)` steps.
            noise: standard normal, of the images' shape; None adds none.
        """
        x_t, eps = self._noised(backgrounds, t, noise)
        painter = self.generator if self.painter is None else self.painter
        return painter(x_t, eps, masks), eps

    def _noised(self, x: Tensor, t: Tensor, noise: Tensor | None) -> tuple[Tensor, Tensor]:
        if self.noise_predictor is None:
            return x, torch.zeros_like(x)
        x_t = x if noise is None else self.scheduler.add_noise(x, noise, t)
        seen = x_t.to(next(self.noise_predictor.parameters()).dtype)
        return x_t, self.noise_predictor(seen, t).sample


def noise_schedule(num_train_timesteps: int, beta_start: float, beta_end: float) -> DDPMScheduler:
    """Return the schedule of linear betas.

    Examples:
        >>> abar = noise_schedule(2000, 1e-6, 1e-2).alphas_cumprod
        >>> [round(float(abar[t]), 6) for t in (0, 199)]
        [0.999999, 0.905043]
    """
    return DDPMScheduler(
        num_train_timesteps=num_train_timesteps,
        beta_start=beta_start,
        beta_end=beta_end,
        beta_schedule="linear",
        prediction_type="epsilon",
    )


def reduction(noise_predictor: nn.Module | None) -> int:
    """Return what the sides of an image must be divisible by."""
    if noise_predictor is None:
        return GENERATOR_REDUCTION
    if isinstance(noise_predictor, NoisePredictor):
        return max(GENERATOR_REDUCTION, int(noise_predictor.reduction))
    settings: Any = noise_predictor.config
    return max(GENERATOR_REDUCTION, 1 << len(settings["block_out_channels"]) - 1)


def load_networks(
    folder: Path, *, device: str = "cpu", dtype: DTypeName = "float32"
) -> tuple[DarlNetworks, ModelFolder]:
    """Load the networks of a model folder in eval mode, and check every file of it.

    Raises:
        StoreError: not such a folder, or a missing or damaged file, which is named.
    """
    model = read_model_folder(folder, KIND)
    with unusable(folder, REMEDY):
        parts: dict[str, Any] = {
            "generator": load_network(DarlGenerator, folder / "generator"),
            "scheduler": DDPMScheduler.from_pretrained(folder / "scheduler", local_files_only=True),
        }
        if (folder / "painter").is_dir():
            parts["painter"] = load_network(DarlGenerator, folder / "painter")
        if (folder / "noise_predictor").is_dir():
            settings = read_json(folder / "noise_predictor" / "config.json")
            parts["noise_predictor"] = load_network(
                _PREDICTORS[settings["_class_name"]], folder / "noise_predictor"
            )
        for part in parts.values():
            if isinstance(part, nn.Module):
                # Module.to, for diffusers' `to` objects on stderr to any dtype at all.
                nn.Module.to(part, device=device, dtype=getattr(torch, dtype))
                part.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
                part.eval()
    return DarlNetworks(**parts), model


def read_use(record: Mapping[str, Any]) -> DarlUse:
    """Return how a model is used, from its record.

    Raises:
        ValueError, TypeError, KeyError: the record does not say, or says what cannot be.
    """
    use = DarlUse(**record["use"])
    sides = (use.render_t, use.crop, 1 if use.side is None else use.side)
    if not all(type(value) is int and 1 <= value <= MAX_SETTING for value in sides):
        raise ValueError(f"steps and sides lie in 1 .. {MAX_SETTING}, got {sides}")
    if use.segment not in get_args(View) or use.contrast not in get_args(Contrast):
        raise ValueError(f"no view '{use.segment}' of contrast '{use.contrast}'")
    diameter = 1.0 if use.field_diameter is None else float(use.field_diameter)
    if not (0 < diameter <= MAX_SETTING and 0 <= float(use.share) <= 1):
        raise ValueError(f"no field of {diameter:g} px, or no share {use.share}")
    return use
