"""Parts of HiDiff's refiner: what the real and the binary twin share, and the real blocks.

Source: Chen et al. 2024, arXiv:2407.03548, section III, written from the published formulas. The
two twins have one layout (`synthgen.models.hidiff`) and differ in a `Blocks` factory; the binary
one is in `synthgen.models.hidiff_binary`.

Deviations: the real twin normalises in groups and lets the time act by scale and shift behind the
norm, where the published one takes batch norm, whose statistics mix all steps of a small batch.
Its cross-transformer multiplies heads by a softmax and projects them; its time gates start at 0,
as in Peebles & Xie 2023, arXiv:2212.09748.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Protocol, TypeVar

import torch
from torch import Tensor, nn
from torch.nn import functional

from synthgen.models.instance_norm import GroupNorm, group_norm

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

CONVOLUTIONS: dict[int, Callable[..., nn.Conv2d | nn.Conv3d]] = {2: nn.Conv2d, 3: nn.Conv3d}
"""By `spatial_dims`."""

_Layer = TypeVar("_Layer", bound=nn.Linear | nn.Conv2d | nn.Conv3d)

_GROUPS = 32
_WIDEN = 4


class Blocks(Protocol):
    """Makes the modules in which the twins differ."""

    def convolution(self, wide: int, narrow: int, stride: Sequence[int]) -> nn.Module:
        """Return a module `(x (B, wide, *S), emb (B, E)) -> (B, narrow, *ceil(S / stride))`.

        A 3-wide convolution beside `shortcut`; one width is a multiple of the other.
        """

    def crossing(self, width: int, num_heads: int) -> nn.Module:
        """Return a module `(query (B, W, *S), stream (B, W, *S), emb (B, E)) -> (B, W, *S)`.

        One half of the X-Former: `query` asks `stream`, and the answer is added to `stream`.
        """


def norm_groups(channels: int) -> int:
    """Return the number of groups of a group norm: 32, or the largest divisor of it that fits."""
    return math.gcd(_GROUPS, channels)


def shortcut(x: Tensor, channels: int, stride: Sequence[int]) -> Tensor:
    """Return x at another resolution and width, without parameters.

    Resolution falls by averaging windows (incomplete ones at the far border, so that sizes are
    rounded up). Width falls by the mean of adjacent channels and grows by copies of them all.

    Args:
        x: `(B, C, *S)`; C is a multiple or a divisor of `channels`.
        channels: width of the result.
        stride: by which each axis shrinks.

    Examples:
        >>> x = torch.tensor([1.0, 3.0, 5.0, 7.0]).reshape(1, 4, 1, 1)
        >>> shortcut(x, 2, (1, 1)).flatten().tolist()
        [2.0, 6.0]
    """
    if max(stride) > 1:
        pool = functional.avg_pool2d if len(stride) == 2 else functional.avg_pool3d
        x = pool(x, tuple(stride), ceil_mode=True)
    width = x.shape[1]
    if channels < width:
        return x.reshape(x.shape[0], channels, -1, *x.shape[2:]).mean(2)
    return torch.cat([x] * (channels // width), 1) if channels > width else x


def per_channel(values: Tensor, x: Tensor) -> Tensor:
    """Return `(B, C)` values in a shape that broadcasts over x `(B, C, *S)`."""
    return values.reshape(*values.shape, *(1,) * (x.ndim - 2))


class RealBlocks:
    """Factory of the real twin's modules; see `Blocks`.

    Args:
        spatial_dims: 2 or 3.
        time_dim: length E of the time embedding.
    """

    def __init__(self, spatial_dims: int, time_dim: int) -> None:
        self._spatial_dims, self._time_dim = spatial_dims, time_dim

    def convolution(self, wide: int, narrow: int, stride: Sequence[int]) -> nn.Module:
        """Return a `RealBlock`."""
        return RealBlock(self._spatial_dims, wide, narrow, stride, self._time_dim)

    def crossing(self, width: int, num_heads: int) -> nn.Module:
        """Return a `RealCrossing`."""
        return RealCrossing(width, num_heads, self._time_dim)


class RealBlock(nn.Module):
    """A residual convolution: shortcut(x) + conv3(SiLU(norm(x) (1 + scale(t)) + shift(t))).

    Args:
        spatial_dims: 2 or 3.
        wide: input channels.
        narrow: output channels.
        stride: of the convolution, per axis.
        time_dim: length of the time embedding.
    """

    def __init__(
        self, spatial_dims: int, wide: int, narrow: int, stride: Sequence[int], time_dim: int
    ) -> None:
        super().__init__()
        self.stride = tuple(stride)
        self.time = nn.Linear(time_dim, 2 * wide)
        self.conv = CONVOLUTIONS[spatial_dims](wide, narrow, 3, self.stride, padding=1)

    def forward(self, x: Tensor, emb: Tensor) -> Tensor:
        """Return `(B, narrow, *ceil(S / stride))` of x `(B, wide, *S)` and emb `(B, E)`."""
        hidden = group_norm(x, norm_groups(x.shape[1]))
        hidden = self.conv(functional.silu(_modulate(hidden, self.time(emb))))
        narrowed: Tensor = hidden + shortcut(x, self.conv.out_channels, self.stride)
        return narrowed


class ConditionTrunk(nn.Module):
    """The first half of a condition: what does not depend on the time, made once per picture.

    A feature map of the segmenter comes to the refiner's width: norm(conv3(SiLU(norm(x)))) and the
    skip conv1x1(x). Real in both twins, like `ConditionBlock`, the second half.

    Args:
        spatial_dims: 2 or 3.
        wide: channels of the feature map.
        narrow: output channels.
    """

    def __init__(self, spatial_dims: int, wide: int, narrow: int) -> None:
        super().__init__()
        conv = CONVOLUTIONS[spatial_dims]
        self.norm = GroupNorm(norm_groups(wide), wide)
        self.conv = conv(wide, narrow, 3, padding=1)
        self.skip = conv(wide, narrow, 1)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Return the hidden map and the skip, both `(B, narrow, *S)`, of x `(B, wide, *S)`."""
        hidden = self.conv(functional.silu(self.norm(x)))
        return group_norm(hidden, norm_groups(hidden.shape[1])), self.skip(x)


class ConditionBlock(nn.Module):
    """The second half of a condition: skip + conv3(SiLU(hidden (1 + scale(t)) + shift(t))).

    The convolution starts at 0.

    Args:
        spatial_dims: 2 or 3.
        width: channels.
        time_dim: length of the time embedding.
    """

    def __init__(self, spatial_dims: int, width: int, time_dim: int) -> None:
        super().__init__()
        self.time = nn.Linear(time_dim, 2 * width)
        self.conv = zeroed(CONVOLUTIONS[spatial_dims](width, width, 3, padding=1))

    def forward(self, trunk: tuple[Tensor, Tensor], emb: Tensor) -> Tensor:
        """Return the condition `(B, width, *S)` at the time embedded as emb `(B, E)`."""
        hidden, skip = trunk
        result: Tensor = skip + self.conv(functional.silu(_modulate(hidden, self.time(emb))))
        return result


class RealCrossing(nn.Module):
    """Half of the X-Former: attention of one stream over another, then a feed-forward network.

    Both branches add to the stream that is asked. Without positions: features carry them.

    Args:
        width: channels of both streams.
        num_heads: attention heads, a divisor of the width.
        time_dim: length of the time embedding.
    """

    def __init__(self, width: int, num_heads: int, time_dim: int) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.time = zeroed(nn.Linear(time_dim, 6 * width))
        self.query = nn.Linear(width, width)
        self.key_value = nn.Linear(width, 2 * width)
        self.project = nn.Linear(width, width)
        self.feed_forward = nn.Sequential(
            nn.Linear(width, _WIDEN * width), nn.SiLU(), nn.Linear(_WIDEN * width, width)
        )

    def forward(self, query: Tensor, stream: Tensor, emb: Tensor) -> Tensor:
        """Return the stream, changed.

        Args:
            query: `(B, width, *S)`, the stream that asks.
            stream: `(B, width, *S)`, the stream that is asked.
            emb: `(B, E)`, the time.
        """
        scale, shift, gate, *second = self.time(emb)[:, None].chunk(6, dim=-1)
        asking, tokens = _tokens(query), _tokens(stream)
        asked = _layer_norm(tokens) * (1 + scale) + shift
        tokens = tokens + gate * self._attend(_layer_norm(asking), asked)
        scale, shift, gate = second
        hidden = self.feed_forward(_layer_norm(tokens) * (1 + scale) + shift)
        changed: Tensor = (tokens + gate * hidden).transpose(1, 2).reshape(stream.shape)
        return changed

    def _attend(self, asking: Tensor, asked: Tensor) -> Tensor:
        heads = [
            x.unflatten(-1, (self.num_heads, -1)).transpose(1, 2)
            for x in (self.query(asking), *self.key_value(asked).chunk(2, dim=-1))
        ]
        answer = functional.scaled_dot_product_attention(*heads)
        projected: Tensor = self.project(answer.transpose(1, 2).flatten(2))
        return projected


def zeroed(layer: _Layer) -> _Layer:
    """Return the layer with weight and bias 0."""
    nn.init.zeros_(layer.weight)
    if layer.bias is not None:
        nn.init.zeros_(layer.bias)
    return layer


def _modulate(x: Tensor, scale_shift: Tensor) -> Tensor:
    """Return x (1 + scale) + shift, of `(B, 2 C)`."""
    scale, shift = scale_shift.chunk(2, dim=1)
    return x * (1 + per_channel(scale, x)) + per_channel(shift, x)


def _tokens(x: Tensor) -> Tensor:
    """Return `(B, N, C)` of a map `(B, C, *S)`."""
    return x.flatten(2).transpose(1, 2)


def _layer_norm(tokens: Tensor) -> Tensor:
    return functional.layer_norm(tokens, tokens.shape[-1:])
