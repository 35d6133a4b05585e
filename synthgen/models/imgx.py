"""The network of ImgX: image and noisy mask to the logits of the clean mask, in 2D and 3D.

Source: Fu et al. 2023, "A recycling training strategy for medical image segmentation with
diffusion denoising models" (MELBA 2023:016, arXiv:2308.16355), written from the published
description: additive skips, instance norms, one transformer at the bottom without positions.

Deviations: the published network adds its time step as a constant of each channel in front of an
instance norm, which takes that constant away again, so it never sees the time
(`time_conditioning="none"`, here without the dead layers). "film" scales and shifts behind the
norm instead (Perez et al. 2018, arXiv:1709.07871), by an embedding of the log-SNR, which is one
code for every number of steps. Attention is exact; initial weights are torch's.
"""

from __future__ import annotations

import math
from itertools import pairwise
from typing import TYPE_CHECKING, Literal

import torch
from diffusers.configuration_utils import ConfigMixin, register_to_config
from diffusers.models.modeling_utils import ModelMixin
from torch import Tensor, nn
from torch.nn import functional

from synthgen.core.errors import RequestError
from synthgen.models.instance_norm import GroupNorm

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

TimeConditioning = Literal["film", "none"]

_CONV: dict[int, Callable[..., nn.Module]] = {2: nn.Conv2d, 3: nn.Conv3d}
_TRANSPOSED: dict[int, Callable[..., nn.Module]] = {2: nn.ConvTranspose2d, 3: nn.ConvTranspose3d}
_EPS = 1e-6
_WIDEN = 4
_WAVES = 16
_PERIODS = (1.0, 128.0)


class ImgXUNet(ModelMixin, ConfigMixin):  # type: ignore[misc]  # diffusers is untyped
    """Predict a clean mask from an image and a noisy mask; without the mask, segment.

    Level i has `channels[i]` channels and `num_blocks` residual blocks in the encoder, one more
    in the decoder; each encoder map is added to the decoder. Images may have any size.

    Args:
        spatial_dims: 2 or 3.
        in_channels: Ci, of the image.
        out_channels: C, of the logits.
        mask_channels: M, of the noisy mask and whatever else is joined to it; 0 makes the
            supervised twin, which has neither mask nor time.
        channels: of the levels, finest first.
        strides: one number an axis for each step down; None halves every axis each time.
        num_blocks: residual blocks of an encoder level.
        num_heads: heads of the attention at the bottom.
        head_dim: width of each.
        dropout: share of features dropped while training.
        time_conditioning: "film", or "none" as published; see the module.

    Raises:
        RequestError: settings that contradict one another.

    Examples:
        >>> net = ImgXUNet(2, 1, 3, 3, channels=(4, 8), num_heads=2, head_dim=4)
        >>> image, mask = torch.zeros(1, 1, 15, 10), torch.zeros(1, 3, 15, 10)
        >>> net(image, mask, torch.zeros(1)).shape
        torch.Size([1, 3, 15, 10])
    """

    @register_to_config  # type: ignore[untyped-decorator]
    def __init__(  # noqa: PLR0913 - diffusers keeps settings flat
        self,
        spatial_dims: int = 2,
        in_channels: int = 1,
        out_channels: int = 2,
        mask_channels: int = 2,
        channels: Sequence[int] = (32, 64, 128, 256),
        strides: Sequence[Sequence[int]] | None = None,
        num_blocks: int = 2,
        num_heads: int = 8,
        head_dim: int = 64,
        dropout: float = 0.1,
        time_conditioning: TimeConditioning = "film",
    ) -> None:
        super().__init__()
        n = spatial_dims
        steps = [[2] * n for _ in channels[1:]] if strides is None else [list(s) for s in strides]
        _require_settings(n, channels, steps, mask_channels, time_conditioning)
        self.spatial_dims, self.in_channels, self.mask_channels = n, in_channels, mask_channels
        time_dim = _WIDEN * channels[0] if time_conditioning == "film" else 0
        self.time = None
        if time_dim:
            self.time = nn.Sequential(
                nn.Linear(2 * _WAVES, time_dim), nn.SiLU(), nn.Linear(time_dim, time_dim), nn.SiLU()
            )

        def blocks(width: int, count: int) -> list[_Block]:
            return [_Block(n, width, dropout, time_dim) for _ in range(count)]

        entries: list[nn.Module] = [_Stem(n, in_channels + mask_channels, channels[0])]
        ups: list[nn.Module] = []
        for (fine, coarse), stride in zip(pairwise(channels), steps, strict=True):
            entries.append(_Down(n, fine, coarse, stride))
            ups.append(_Up(n, coarse, fine, stride))
        self.encoder = nn.ModuleList(
            _EncoderLevel(entry, blocks(width, num_blocks))
            for entry, width in zip(entries, channels, strict=True)
        )
        self.bottom = nn.ModuleList(
            [
                *blocks(channels[-1], 1),
                _Transformer(channels[-1], num_heads, head_dim, dropout),
                *blocks(channels[-1], 1),
            ]
        )
        self.decoder = nn.ModuleList(
            _DecoderLevel(enlarge, blocks(width, num_blocks + 1))
            for enlarge, width in zip([None, *reversed(ups)], reversed(channels), strict=True)
        )
        self.head = _CONV[n](channels[0], out_channels, 1)

    def forward(
        self, image: Tensor, mask: Tensor | None = None, log_snr: Tensor | None = None
    ) -> Tensor:
        """Return the logits of the clean mask, float32 `(B, C, *S)`.

        Args:
            image: `(B, Ci, *S)` in [0, 1].
            mask: `(B, M, *S)`, the noisy mask scaled to [0, 1]; None for the supervised twin.
            log_snr: `(B,)`, log(abar / (1 - abar)) of the mask's noise; not looked at where
                `time_conditioning` is "none".

        Raises:
            RequestError: inputs that do not fit the network.
        """
        return self.decode(self.encode(image, mask, log_snr), log_snr)

    def encode(
        self, image: Tensor, mask: Tensor | None = None, log_snr: Tensor | None = None
    ) -> list[list[Tensor]]:
        """Return all maps of the encoder: of each level, finest first, a list in their order.

        The last map of a level has seen all of it, and at the coarsest the transformer too; it is
        what other networks should take. Arguments and errors are those of `forward`.
        """
        x, embedding = self._joined(image, mask), self._embed(log_snr)
        levels: list[list[Tensor]] = []
        for level in self.encoder:
            levels.append(level(x, embedding))
            x = levels[-1][-1]
        if x[0, 0].numel() == 1:
            raise RequestError(
                f"ImgXUNet: an image of {tuple(image.shape[2:])} shrinks to one point, which an "
                "instance norm sets to zero; take larger images or fewer levels"
            )
        for part in self.bottom:
            x = part(x, embedding)
        levels[-1].append(x)
        return levels

    def decode(self, levels: Sequence[Sequence[Tensor]], log_snr: Tensor | None = None) -> Tensor:
        """Return the logits, float32 `(B, C, *S)`, from what `encode` returned."""
        embedding = self._embed(log_snr)
        *skips, x = levels[-1]
        for level, maps in zip(self.decoder, [skips, *levels[-2::-1]], strict=True):
            x = level(x, maps, embedding)
        logits: Tensor = self.head(x)
        return logits.float()

    def _joined(self, image: Tensor, mask: Tensor | None) -> Tensor:
        if image.ndim != self.spatial_dims + 2 or image.shape[1] != self.in_channels:
            axes = ", ".join("XYZ"[: self.spatial_dims])
            raise RequestError(
                f"ImgXUNet: expected images (B, {self.in_channels}, {axes}), got an array of "
                f"shape {tuple(image.shape)}"
            )
        got = None if mask is None else tuple(mask.shape)
        wanted = (image.shape[0], self.mask_channels, *image.shape[2:])
        if got != (wanted if self.mask_channels else None):
            raise RequestError(
                "ImgXUNet: expected "
                + (f"a mask of shape {wanted}" if self.mask_channels else "no mask")
                + f" with these images, got {got or 'none'}"
            )
        x = image if mask is None else torch.cat([image, mask], dim=1)
        return x.to(_dtype(self.head))

    def _embed(self, log_snr: Tensor | None) -> Tensor | None:
        if self.time is None:
            return None
        if log_snr is None:
            raise RequestError("ImgXUNet: expected the log-SNR of the mask, (B,), got none")
        embedding: Tensor = self.time(_waves(log_snr).to(_dtype(self.time)))
        return embedding


def _require_settings(
    spatial_dims: int,
    channels: Sequence[int],
    strides: Sequence[Sequence[int]],
    mask_channels: int,
    time_conditioning: str,
) -> None:
    if spatial_dims not in _CONV:
        raise RequestError(f"ImgXUNet: spatial_dims must be 2 or 3, got {spatial_dims}")
    fits = len(strides) == len(channels) - 1 and all(
        len(stride) == spatial_dims and min(stride) >= 1 for stride in strides
    )
    if not fits:
        raise RequestError(
            f"ImgXUNet: expected {len(channels) - 1} strides of {spatial_dims} whole numbers for "
            f"{len(channels)} levels, got {[tuple(stride) for stride in strides]}"
        )
    if time_conditioning not in ("film", "none"):
        raise RequestError(
            f"ImgXUNet: time_conditioning must be 'film' or 'none', got '{time_conditioning}'"
        )
    if time_conditioning == "film" and not mask_channels:
        raise RequestError(
            "ImgXUNet: without a mask there is no noise to be told of; set time_conditioning "
            "to 'none'"
        )


def _dtype(module: nn.Module) -> torch.dtype:
    return next(module.parameters()).dtype


def _waves(log_snr: Tensor) -> Tensor:
    """Return sines and cosines of log-SNRs `(B,)`, `(B, 2 * _WAVES)` float32."""
    low, high = (math.log(period) for period in _PERIODS)
    periods = torch.linspace(low, high, _WAVES, device=log_snr.device).exp()
    angles = 2 * math.pi * log_snr.float()[:, None] / periods
    return torch.cat([angles.sin(), angles.cos()], dim=1)


def _gelu(x: Tensor) -> Tensor:
    return functional.gelu(x, approximate="tanh")


def _instance_norm(channels: int) -> GroupNorm:
    return GroupNorm(channels, channels, eps=_EPS)


class _Stem(nn.Module):
    def __init__(self, spatial_dims: int, in_channels: int, out_channels: int) -> None:
        super().__init__()
        self.conv = _CONV[spatial_dims](in_channels, out_channels, 3, padding=1, bias=False)
        self.norm = _instance_norm(out_channels)

    def forward(self, x: Tensor) -> Tensor:
        return _gelu(self.norm(self.conv(x)))


class _Down(nn.Module):
    """Convolution with kernel = stride; sides that it does not divide are padded with zeros."""

    def __init__(
        self, spatial_dims: int, in_channels: int, out_channels: int, stride: Sequence[int]
    ) -> None:
        super().__init__()
        self.stride = tuple(stride)
        self.conv = _CONV[spatial_dims](
            in_channels, out_channels, self.stride, self.stride, bias=False
        )
        self.norm = _instance_norm(out_channels)

    def forward(self, x: Tensor) -> Tensor:
        missing = [-side % step for side, step in zip(x.shape[2:], self.stride, strict=True)]
        if any(missing):
            # torch pads the last axis first: (low, high) of each.
            x = functional.pad(x, [side for high in reversed(missing) for side in (0, high)])
        down: Tensor = self.norm(self.conv(x))
        return down


class _Up(nn.Module):
    """Transposed convolution with kernel = stride."""

    def __init__(
        self, spatial_dims: int, in_channels: int, out_channels: int, stride: Sequence[int]
    ) -> None:
        super().__init__()
        self.conv = _TRANSPOSED[spatial_dims](
            in_channels, out_channels, tuple(stride), tuple(stride), bias=False
        )
        self.norm = _instance_norm(out_channels)

    def forward(self, x: Tensor) -> Tensor:
        up: Tensor = self.norm(self.conv(x))
        return up


class _Block(nn.Module):
    """Two convolutions with norms and a shortcut; the time scales and shifts the second norm."""

    def __init__(self, spatial_dims: int, channels: int, dropout: float, time_dim: int) -> None:
        super().__init__()
        conv = _CONV[spatial_dims]
        self.conv_0 = conv(channels, channels, 3, padding=1, bias=False)
        self.norm_0 = _instance_norm(channels)
        self.dropout = nn.Dropout(dropout)
        self.conv_1 = conv(channels, channels, 3, padding=1, bias=False)
        self.norm_1 = _instance_norm(channels)
        self.film = None
        if time_dim:
            self.film = nn.Linear(time_dim, 2 * channels)
            nn.init.zeros_(self.film.weight)
            nn.init.zeros_(self.film.bias)

    def forward(self, x: Tensor, embedding: Tensor | None) -> Tensor:
        h = self.dropout(_gelu(self.norm_0(self.conv_0(x))))
        h = self.norm_1(self.conv_1(h))
        if self.film is not None:
            modulation: Tensor = self.film(embedding)
            scale, shift = modulation.reshape(*modulation.shape, *[1] * (x.ndim - 2)).chunk(2, 1)
            h = torch.addcmul(shift, h, 1 + scale)
        return _gelu(x + h)


class _Transformer(nn.Module):
    """One pre-norm transformer layer over all points, without positions, and a closing norm."""

    def __init__(self, channels: int, num_heads: int, head_dim: int, dropout: float) -> None:
        super().__init__()
        width = num_heads * head_dim
        self.num_heads = num_heads
        self.norm_0 = nn.LayerNorm(channels, eps=_EPS)
        self.qkv = nn.Linear(channels, 3 * width)
        self.out = nn.Linear(width, channels)
        self.norm_1 = nn.LayerNorm(channels, eps=_EPS)
        self.wide = nn.Linear(channels, _WIDEN * channels)
        self.narrow = nn.Linear(_WIDEN * channels, channels)
        self.norm_2 = nn.LayerNorm(channels, eps=_EPS)
        self.dropout = nn.Dropout(dropout)

    def forward(self, x: Tensor, _embedding: Tensor | None) -> Tensor:
        h = x.flatten(2).transpose(1, 2)  # (B, points, C)
        qkv = self.qkv(self.norm_0(h)).unflatten(-1, (3, self.num_heads, -1))
        q, k, v = qkv.permute(2, 0, 3, 1, 4)  # (B, heads, points, head_dim) each
        seen = functional.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2)
        h = h + self.dropout(self.out(seen))
        h = h + self.dropout(self.narrow(_gelu(self.wide(self.norm_1(h)))))
        out: Tensor = self.norm_2(h).transpose(1, 2).reshape(x.shape)
        return out


class _EncoderLevel(nn.Module):
    """A way in, stem or step down, then residual blocks; returns every map."""

    def __init__(self, entry: nn.Module, blocks: Sequence[_Block]) -> None:
        super().__init__()
        self.entry = entry
        self.blocks = nn.ModuleList(blocks)

    def forward(self, x: Tensor, embedding: Tensor | None) -> list[Tensor]:
        maps: list[Tensor] = [self.entry(x)]
        for block in self.blocks:
            maps.append(block(maps[-1], embedding))
        return maps


class _DecoderLevel(nn.Module):
    """Enlarging (not at the coarsest level), then blocks, each with a map of the encoder."""

    def __init__(self, enlarge: nn.Module | None, blocks: Sequence[_Block]) -> None:
        super().__init__()
        self.enlarge = enlarge
        self.blocks = nn.ModuleList(blocks)

    def forward(self, x: Tensor, maps: Sequence[Tensor], embedding: Tensor | None) -> Tensor:
        if self.enlarge is not None:
            x = self.enlarge(x)[(..., *(slice(side) for side in maps[0].shape[2:]))]
        for block, skip in zip(self.blocks, reversed(maps), strict=True):
            x = block(x + skip, embedding)
        return x
