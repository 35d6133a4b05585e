"""Networks of the label generator from recipe sections, with seeded initial weights."""

from __future__ import annotations

from typing import TYPE_CHECKING, assert_never

import torch
from diffusers import AutoencoderKL, ModelMixin, UNet2DModel

from synthgen.labels.condition import CSF, POSITION
from synthgen.models.autoencoder import (
    BrainSpadeAutoencoder,
    PatchAutoencoder,
    build_autoencoder_kl,
)
from synthgen.models.condition import ConditionEmbedding, num_coordinate_planes

if TYPE_CHECKING:
    from collections.abc import Sequence

    from synthgen.core.schema import LabelSchema
    from synthgen.recipe.labels import AutoencoderRecipe, DiffusionRecipe
from synthgen.runtime import seeded_init


def build_autoencoder(
    recipe: AutoencoderRecipe, channels: int, seed: int
) -> AutoencoderKL | PatchAutoencoder | BrainSpadeAutoencoder:
    """Build the autoencoder of `channels` PV channels; weights depend on `seed` alone."""
    widths = tuple(recipe.block_out_channels)
    with seeded_init(seed, 0):
        match recipe.kind:
            case "diffusers":
                return build_autoencoder_kl(
                    channels,
                    widths,
                    recipe.layers_per_block,
                    recipe.latent_channels,
                    recipe.norm_groups,
                    attention=recipe.attention,
                )
            case "patch":
                return PatchAutoencoder(
                    channels,
                    channels,
                    widths,
                    recipe.layers_per_block,
                    recipe.latent_channels,
                    recipe.norm_groups,
                    recipe.patch_size,
                    recipe.attention,
                )
            case "brainspade":
                return BrainSpadeAutoencoder(
                    channels,
                    channels,
                    widths,
                    recipe.layers_per_block,
                    recipe.latent_channels,
                    recipe.norm_groups,
                )
            case _:
                assert_never(recipe.kind)


def condition_names(recipe: DiffusionRecipe, schema: LabelSchema) -> tuple[str, ...]:
    """Return the names of the condition values, in order: lesions, CSF rank, position."""
    condition = recipe.condition
    names = ((CSF, condition.csf), (POSITION, condition.position))
    return (*schema.lesions, *(name for name, wanted in names if wanted))


def build_condition(
    recipe: DiffusionRecipe, schema: LabelSchema, latent_shape: Sequence[int], seed: int
) -> ConditionEmbedding:
    """Build what feeds the condition to the U-Net; a table of templates is filled later."""
    templates = recipe.condition.templates
    with seeded_init(seed, 1):
        condition: ConditionEmbedding = ConditionEmbedding(
            len(condition_names(recipe, schema)),
            4 * recipe.block_out_channels[0],
            recipe.condition.mode,
            recipe.condition.num_frequencies,
            recipe.condition.coordinates,
            (templates, *latent_shape) if templates else None,
        )
    return condition


def build_unet(
    recipe: DiffusionRecipe, latent_channels: int, num_values: int, seed: int
) -> UNet2DModel:
    """Build the U-Net of the latent.

    Args:
        recipe: widths, attention, conditioning.
        latent_channels: channels of the latent.
        num_values: condition values; planes are appended for `mode: concat`.
        seed: seed of the initial weights.

    Returns:
        With the paper's numbers 256 410 115 parameters (no condition) or 387 243 523 (three
        planes).
    """
    plain = ("ResnetDownsampleBlock2D", "ResnetUpsampleBlock2D")
    if recipe.resample == "conv":
        plain = ("DownBlock2D", "UpBlock2D")
    down = ["AttnDownBlock2D" if attend else plain[0] for attend in recipe.attention]
    up = ["AttnUpBlock2D" if attend else plain[1] for attend in reversed(recipe.attention)]
    extra = num_values if recipe.condition.mode == "concat" else 0
    extra += num_coordinate_planes(recipe.condition.coordinates)
    extra += latent_channels if recipe.condition.templates else 0
    with seeded_init(seed, 2):
        unet = UNet2DModel(
            in_channels=latent_channels + extra,
            out_channels=latent_channels,
            block_out_channels=tuple(recipe.block_out_channels),
            layers_per_block=recipe.layers_per_block,
            down_block_types=tuple(down),
            up_block_types=tuple(up),
            downsample_type=recipe.resample,
            upsample_type=recipe.resample,
            attention_head_dim=recipe.head_dim or None,
            norm_num_groups=recipe.norm_groups,
            norm_eps=recipe.norm_eps,
            class_embed_type="identity" if recipe.condition.mode == "class" else None,
            add_attention=any(recipe.attention),
        )
    return _zero_output(unet)


def num_parameters(model: ModelMixin) -> int:
    """Return how many parameters a model has."""
    return sum(p.numel() for p in model.parameters())


def _zero_output(unet: UNet2DModel) -> UNet2DModel:
    """Start from a zero prediction, as the paper's U-Net does and diffusers' does not."""
    torch.nn.init.zeros_(unet.conv_out.weight)
    torch.nn.init.zeros_(unet.conv_out.bias)
    return unet
