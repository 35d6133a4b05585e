"""The noise predictor of DARL.

Source: Kim et al. 2023, arXiv:2209.14566, table 4; a U-Net after Ho et al. 2020,
arXiv:2006.11239. `library_noise_predictor` is the nearest network of diffusers; both are called
as `network(x_t, t).sample`.
"""

from __future__ import annotations

from itertools import pairwise
from typing import TYPE_CHECKING

import torch
from diffusers.configuration_utils import ConfigMixin, register_to_config
from diffusers.models.embeddings import get_timestep_embedding
from diffusers.models.modeling_utils import ModelMixin
from diffusers.models.unets.unet_2d import UNet2DModel, UNet2DOutput
from torch import Tensor, nn
from torch.nn import functional

from synthgen.core.errors import RequestError
from synthgen.models.instance_norm import GroupNorm

if TYPE_CHECKING:
    from collections.abc import Sequence

_WIDEN = 4


class NoisePredictor(ModelMixin, ConfigMixin):  # type: ignore[misc]  # diffusers is untyped
    """Predict the noise in x_t: a U-Net of residual blocks, told the step t.

    Level i has n * multipliers[i] channels (n = `base_channels`) and half the size of the level
    above. Encoder levels have `num_blocks` blocks, decoder levels one more; every output of the
    encoder, halvings included, joins the decoder.

    Args:
        base_channels: n.
        multipliers: widths of the levels; (1, 1, 2, 2, 4, 4) in the paper.
        num_blocks: residual blocks a level (2 in the paper).
        attention_levels: levels with attention behind every block, counted from 0 at full size.
        middle_attention: attention between the two blocks in the middle.
        time_dim: length of the embedding of t.
        norm_groups: groups of every group norm; must divide all widths.

    Examples:
        >>> unet = NoisePredictor(4, (1, 2), num_blocks=1, attention_levels=(), norm_groups=2)
        >>> unet(torch.zeros(2, 1, 8, 8), torch.tensor([0, 199])).sample.shape
        torch.Size([2, 1, 8, 8])
    """

    @register_to_config  # type: ignore[untyped-decorator]
    def __init__(
        self,
        base_channels: int = 64,
        multipliers: Sequence[int] = (1, 1, 2, 2, 4, 4),
        num_blocks: int = 2,
        attention_levels: Sequence[int] = (4,),
        middle_attention: bool = True,
        time_dim: int = 64,
        norm_groups: int = 32,
    ) -> None:
        super().__init__()
        widths = [base_channels * factor for factor in multipliers]
        if any(width % norm_groups for width in widths):
            raise RequestError(
                f"NoisePredictor: norm_groups must divide every width {widths}, got {norm_groups}"
            )
        self.time_dim = time_dim
        self.skips_per_level = num_blocks + 1
        self.reduction = 2 ** (len(widths) - 1)
        self.time = nn.Sequential(
            nn.Linear(time_dim, _WIDEN * time_dim),
            nn.SiLU(),
            nn.Linear(_WIDEN * time_dim, time_dim),
        )
        self.stem = nn.Conv2d(1, base_channels, 3, padding=1)
        last = len(widths) - 1

        def stage(wide: int, narrow: int, *, attention: bool) -> _Stage:
            return _Stage(wide, narrow, time_dim, norm_groups, attention=attention)

        self.encoder, skips = nn.ModuleList(), [base_channels]
        for level, width in enumerate(widths):
            attention = level in attention_levels
            chain = [skips[-1], *[width] * num_blocks]
            stages = [stage(a, b, attention=attention) for a, b in pairwise(chain)]
            shrink = nn.Conv2d(width, width, 3, stride=2, padding=1) if level < last else None
            self.encoder.append(_DownLevel(stages, shrink))
            skips += [width] * (num_blocks + (level < last))
        self.middle = nn.ModuleList(
            stage(widths[-1], widths[-1], attention=attention)
            for attention in (middle_attention, False)
        )
        self.decoder, wide = nn.ModuleList(), widths[-1]
        for level, width in reversed(list(enumerate(widths))):
            attention, stages = level in attention_levels, []
            for _ in range(num_blocks + 1):
                stages.append(stage(wide + skips.pop(), width, attention=attention))
                wide = width
            enlarge = nn.Conv2d(width, width, 3, padding=1) if level else None
            self.decoder.append(_UpLevel(stages, enlarge))
        self.norm = GroupNorm(norm_groups, widths[0])
        self.head = nn.Conv2d(widths[0], 1, 3, padding=1)

    def forward(self, sample: Tensor, timestep: Tensor | int) -> UNet2DOutput:
        """Return the predicted noise as `.sample`, `(B, 1, X, Y)`.

        Args:
            sample: x_t, `(B, 1, X, Y)`; X and Y divisible by 2 per level below the first.
            timestep: t, `(B,)` whole numbers, or one for all.

        Raises:
            RequestError: a side is not divisible.
        """
        require_divisible("NoisePredictor", sample, self.reduction)
        steps = torch.as_tensor(timestep, device=sample.device).expand(sample.shape[0])
        dtype = self.stem.weight.dtype
        waves = get_timestep_embedding(steps, self.time_dim, downscale_freq_shift=0)
        embedding = self.time(waves.to(dtype))
        x = self.stem(sample.to(dtype))
        skips = [x]
        for level in self.encoder:
            skips += level(skips[-1], embedding)
        x = skips[-1]
        for stage in self.middle:
            x = stage(x, embedding)
        for level in self.decoder:
            x = level(x, embedding, [skips.pop() for _ in range(self.skips_per_level)])
        return UNet2DOutput(sample=self.head(functional.silu(self.norm(x))))


def library_noise_predictor(
    base_channels: int = 64,
    multipliers: Sequence[int] = (1, 1, 2, 2, 4, 4),
    num_blocks: int = 2,
    attention_levels: Sequence[int] = (4,),
    norm_groups: int = 32,
) -> UNet2DModel:
    """Return the U-Net of diffusers that is nearest to `NoisePredictor`.

    It differs in the embedding of t (4 * base_channels wide) and in the biases of its attention,
    which also stands in the middle.

    Args:
        base_channels: width of the first level.
        multipliers: widths of the levels, relative to the first.
        num_blocks: residual blocks a level, one more in the decoder.
        attention_levels: levels with attention, counted from 0 at full size.
        norm_groups: groups of every group norm.
    """
    levels = range(len(multipliers))
    down = tuple("AttnDownBlock2D" if i in attention_levels else "DownBlock2D" for i in levels)
    up = tuple("AttnUpBlock2D" if i in attention_levels else "UpBlock2D" for i in levels)
    widths = tuple(base_channels * factor for factor in multipliers)
    return UNet2DModel(
        in_channels=1,
        out_channels=1,
        block_out_channels=widths,
        layers_per_block=num_blocks,
        down_block_types=down,
        up_block_types=up[::-1],
        attention_head_dim=widths[-1],
        norm_num_groups=norm_groups,
        flip_sin_to_cos=False,
        freq_shift=0,
    )


def require_divisible(network: str, image: Tensor, factor: int) -> None:
    """Refuse an image whose sides are not multiples of `factor`.

    Raises:
        RequestError: they are not.
    """
    shape = (image.shape[-2], image.shape[-1])
    if any(side % factor for side in shape):
        raise RequestError(
            f"{network}: each side of the image must be divisible by {factor}, got {shape}; "
            "pad or crop it first"
        )


class _DownLevel(nn.Module):
    """Stages of one size, then the convolution that halves it (none at the last level)."""

    def __init__(self, stages: Sequence[_Stage], shrink: nn.Conv2d | None) -> None:
        super().__init__()
        self.stages = nn.ModuleList(stages)
        self.shrink = shrink

    def forward(self, x: Tensor, embedding: Tensor) -> list[Tensor]:
        outputs: list[Tensor] = []
        for stage in self.stages:
            x = stage(x, embedding)
            outputs.append(x)
        if self.shrink is not None:
            outputs.append(self.shrink(x))
        return outputs


class _UpLevel(nn.Module):
    """Stages of one size, each with an encoder output, then doubling (none at the last level)."""

    def __init__(self, stages: Sequence[_Stage], enlarge: nn.Conv2d | None) -> None:
        super().__init__()
        self.stages = nn.ModuleList(stages)
        self.enlarge = enlarge

    def forward(self, x: Tensor, embedding: Tensor, skips: Sequence[Tensor]) -> Tensor:
        for stage, skip in zip(self.stages, skips, strict=True):
            x = stage(torch.cat([x, skip], dim=1), embedding)
        if self.enlarge is not None:
            x = self.enlarge(functional.interpolate(x, scale_factor=2, mode="nearest"))
        return x


class _Stage(nn.Module):
    """Residual block, t added between its convolutions, then attention where asked."""

    def __init__(
        self, in_channels: int, out_channels: int, time_dim: int, groups: int, *, attention: bool
    ) -> None:
        super().__init__()
        self.norm_0 = GroupNorm(groups, in_channels)
        self.conv_0 = nn.Conv2d(in_channels, out_channels, 3, padding=1)
        self.time = nn.Linear(time_dim, out_channels)
        self.norm_1 = GroupNorm(groups, out_channels)
        self.conv_1 = nn.Conv2d(out_channels, out_channels, 3, padding=1)
        self.shortcut: nn.Module = nn.Identity()
        if in_channels != out_channels:
            self.shortcut = nn.Conv2d(in_channels, out_channels, 1)
        self.attention = _Attention(out_channels, groups) if attention else None

    def forward(self, x: Tensor, embedding: Tensor) -> Tensor:
        h = self.conv_0(functional.silu(self.norm_0(x)))
        h = h + self.time(functional.silu(embedding))[:, :, None, None]
        h = self.conv_1(functional.silu(self.norm_1(h)))
        x = self.shortcut(x) + h
        return x if self.attention is None else self.attention(x)


class _Attention(nn.Module):
    """Self-attention over all pixels with one head, and a shortcut."""

    def __init__(self, channels: int, groups: int) -> None:
        super().__init__()
        self.norm = GroupNorm(groups, channels)
        self.qkv = nn.Conv2d(channels, 3 * channels, 1, bias=False)
        self.out = nn.Conv2d(channels, channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        pixels = self.qkv(self.norm(x)).flatten(2).transpose(1, 2)  # (B, X * Y, 3 C)
        q, k, v = pixels.chunk(3, dim=-1)
        h = functional.scaled_dot_product_attention(q, k, v)
        out: Tensor = x + self.out(h.transpose(1, 2).reshape(x.shape))
        return out
