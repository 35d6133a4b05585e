"""Autoencoders of partial-volume maps with diffusers' interface: `(B, C, X, Y)` to a small latent.

Three kinds share `encode(x).latent_dist`, `decode(z).sample` and `config.scaling_factor`:
diffusers' own `AutoencoderKL`; `PatchAutoencoder`, the same network behind a pixel-unshuffle; and
`BrainSpadeAutoencoder`, the layers of Fernandez et al. 2022 (arXiv:2209.08256; MONAI's
`AutoencoderKL` equals them: 12 299 246 parameters at 7 channels). `encode` takes PV maps, `decode`
returns what `apply_head` turns into PV maps.
"""

from __future__ import annotations

from typing import Literal, Protocol, assert_never

import torch
from diffusers import AutoencoderKL, ConfigMixin, ModelMixin
from diffusers.configuration_utils import register_to_config
from diffusers.models.autoencoders.vae import DecoderOutput, DiagonalGaussianDistribution
from diffusers.models.modeling_outputs import AutoencoderKLOutput
from torch.nn import functional

Head = Literal["softmax", "linear"]


class Autoencoder(Protocol):
    """What the label generator needs of an autoencoder."""

    def encode(self, x: torch.Tensor) -> AutoencoderKLOutput:
        """Encode PV maps `(B, C, X, Y)`; `.latent_dist` has `mean`, `logvar`, `kl()`."""
        ...

    def decode(self, z: torch.Tensor) -> DecoderOutput:
        """Decode latents `(B, Z, X/f, Y/f)`; `.sample` is `(B, C, X, Y)` before the head."""
        ...


class PatchAutoencoder(ModelMixin, ConfigMixin):  # type: ignore[misc]
    """diffusers' AutoencoderKL behind a pixel-unshuffle of `patch_size`.

    At 192 x 256 the full-resolution layers cost most of an autoencoder; folding 2 x 2 pixels into
    channels removes them.

    Args:
        in_channels: PV channels.
        out_channels: PV channels out.
        block_out_channels: widths of the levels; the latent is smaller by
            `patch_size * 2 ** (len - 1)`.
        layers_per_block: residual blocks a level.
        latent_channels: channels of the latent.
        norm_num_groups: groups of the GroupNorms.
        patch_size: side of the folded patch.
        attention: one attention layer at the bottleneck.
        scaling_factor: latents times this have unit variance.

    Examples:
        >>> ae = PatchAutoencoder(3, 3, (8,), 1, 2, 4, patch_size=4, attention=False)
        >>> ae.encode(torch.zeros(1, 3, 16, 32)).latent_dist.mean.shape
        torch.Size([1, 2, 4, 8])
    """

    @register_to_config  # type: ignore[untyped-decorator]
    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        block_out_channels: tuple[int, ...],
        layers_per_block: int,
        latent_channels: int,
        norm_num_groups: int,
        patch_size: int = 2,
        attention: bool = True,
        scaling_factor: float = 1.0,
    ) -> None:
        super().__init__()
        self.net = build_autoencoder_kl(
            in_channels * patch_size**2,
            tuple(block_out_channels),
            layers_per_block,
            latent_channels,
            norm_num_groups,
            out_channels=out_channels * patch_size**2,
            attention=attention,
        )
        self.patch_size = patch_size

    def encode(self, x: torch.Tensor) -> AutoencoderKLOutput:
        """Encode PV maps `(B, C, X, Y)`."""
        return self.net.encode(functional.pixel_unshuffle(x, self.patch_size))

    def decode(self, z: torch.Tensor) -> DecoderOutput:
        """Decode latents to `(B, C, X, Y)`, before the head."""
        folded = self.net.decode(z).sample
        return DecoderOutput(sample=functional.pixel_shuffle(folded, self.patch_size))


class BrainSpadeAutoencoder(ModelMixin, ConfigMixin):  # type: ignore[misc]
    """The spatial VAE of Fernandez et al. 2022: two halvings, attention at the bottleneck.

    Args:
        in_channels: PV channels.
        out_channels: PV channels out.
        block_out_channels: widths of the levels, (64, 128, 256) in the paper's code.
        layers_per_block: residual blocks a level, 2.
        latent_channels: channels of the latent, 3.
        norm_num_groups: groups of the GroupNorms, 32.
        scaling_factor: the paper uses 1.
    """

    @register_to_config  # type: ignore[untyped-decorator]
    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        block_out_channels: tuple[int, ...] = (64, 128, 256),
        layers_per_block: int = 2,
        latent_channels: int = 3,
        norm_num_groups: int = 32,
        scaling_factor: float = 1.0,
    ) -> None:
        super().__init__()
        # MONAI takes seconds to import, and only this autoencoder needs it.
        from monai.networks.nets import AutoencoderKL as MonaiAutoencoderKL  # noqa: PLC0415

        levels = len(block_out_channels)
        self.net = MonaiAutoencoderKL(
            spatial_dims=2,
            in_channels=in_channels,
            out_channels=out_channels,
            channels=tuple(block_out_channels),
            num_res_blocks=(layers_per_block,) * levels,
            attention_levels=(False,) * levels,
            latent_channels=latent_channels,
            norm_num_groups=norm_num_groups,
        )

    def encode(self, x: torch.Tensor) -> AutoencoderKLOutput:
        """Encode PV maps `(B, C, X, Y)`."""
        h = self.net.encoder(x)
        moments = torch.cat([self.net.quant_conv_mu(h), self.net.quant_conv_log_sigma(h)], dim=1)
        return AutoencoderKLOutput(latent_dist=DiagonalGaussianDistribution(moments))

    def decode(self, z: torch.Tensor) -> DecoderOutput:
        """Decode latents to `(B, C, X, Y)`, before the head."""
        return DecoderOutput(sample=self.net.decode(z))


def build_autoencoder_kl(
    in_channels: int,
    block_out_channels: tuple[int, ...],
    layers_per_block: int,
    latent_channels: int,
    norm_num_groups: int,
    *,
    out_channels: int | None = None,
    attention: bool = True,
) -> AutoencoderKL:
    """Build diffusers' AutoencoderKL with plain levels, `2 ** (levels - 1)` times smaller inside.

    At 7 channels and (64, 128, 256), 2 blocks: 13 857 155 parameters.
    """
    levels = len(block_out_channels)
    return AutoencoderKL(
        in_channels=in_channels,
        out_channels=in_channels if out_channels is None else out_channels,
        down_block_types=("DownEncoderBlock2D",) * levels,
        up_block_types=("UpDecoderBlock2D",) * levels,
        block_out_channels=block_out_channels,
        layers_per_block=layers_per_block,
        latent_channels=latent_channels,
        norm_num_groups=norm_num_groups,
        mid_block_add_attention=attention,
        scaling_factor=1.0,
    )


def apply_head(
    raw: torch.Tensor, head: Head, *, background_threshold: float = 0.0, temperature: float = 1.0
) -> torch.Tensor:
    """Turn decoder output `(B, C, X, Y)` into PV maps: float32 in [0, 1] that sum to 1 over C.

    Args:
        raw: logits for the softmax head, PV estimates for the linear one.
        head: "softmax" lies on the simplex by construction. "linear" is the paper's: clamped to
            [0, 1], background set to 1 where no other channel reaches `background_threshold`.
            The paper stops there (and sums may differ from 1); here the channels are divided by
            their sum, a deliberate deviation.
        background_threshold: 0.075 in the paper's sampling script.
        temperature: the softmax head's; below 1 the maps are sharper than the decoder is sure.
    """
    raw = raw.float()
    match head:
        case "softmax":
            return torch.softmax(raw / temperature, dim=1)
        case "linear":
            pv = raw.clamp(0, 1)
            empty = pv[:, 1:].amax(dim=1, keepdim=True) < background_threshold
            empty |= pv.sum(dim=1, keepdim=True) <= 0
            background = torch.zeros_like(pv)
            background[:, :1] = 1
            pv = torch.where(empty, background, pv)
            return pv / pv.sum(dim=1, keepdim=True)
        case _:
            assert_never(head)
