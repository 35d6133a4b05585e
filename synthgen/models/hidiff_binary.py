"""The binary twin of HiDiff's refiner: weights and activations of two values, as trained.

Source: Chen et al. 2024 (HiDiff), arXiv:2407.03548, section III-C, written from the published
formulas; the gradient of the sign after Liu et al. 2018, arXiv:1808.00278, section 3.2; a real
stream around binary convolutions after Liu et al. 2020, arXiv:2003.03488. The signs are simulated
in floating point; `synthgen.models.hidiff_deploy` counts bits instead.

Deviations: the sign of 0 is 1, so that an activation fits one bit; weights start centred, not all
positive; linear maps are convolutions of one tap, whose bias the batch norm behind them would
remove; attention compares probabilities, not raw scores, with their maximum, so that no row is
left without a key; no axis-wise pools in the feed-forward network.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from synthgen.models.hidiff_blocks import per_channel, shortcut, zeroed

if TYPE_CHECKING:
    from collections.abc import Sequence

_CONVOLVE = {2: functional.conv2d, 3: functional.conv3d}
_BATCH_NORMS: dict[int, type[nn.BatchNorm2d | nn.BatchNorm3d]] = {
    2: nn.BatchNorm2d,
    3: nn.BatchNorm3d,
}
_START_STD = 1e-2
_START_SLOPE = 0.25
_ATTENTION_SHARE = 0.35
_WIDEN = 4


class _Sign(torch.autograd.Function):
    """Two-valued sign, with the gradient of a piecewise parabola."""

    @staticmethod
    def forward(ctx: Any, u: Tensor) -> Tensor:  # noqa: ANN401 - torch's context
        ctx.save_for_backward(u)
        return torch.where(u >= 0, 1.0, -1.0).to(u.dtype)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Tensor:  # noqa: ANN401 - torch's context
        (u,) = ctx.saved_tensors
        slope: Tensor = grads[0] * (2 - 2 * u.abs()).clamp(min=0)
        return slope


def sign(u: Tensor) -> Tensor:
    """Return 1 where u >= 0, else -1; the gradient is max(2 - 2 |u|, 0).

    Examples:
        >>> sign(torch.tensor([-0.5, 0.0, 2.0]))
        tensor([-1.,  1.,  1.])
    """
    return _Sign.apply(u)  # type: ignore[no-any-return, no-untyped-call]  # untyped in torch


def activate(x: Tensor, before: Tensor, slope: Tensor, after: Tensor) -> Tensor:
    """Return PReLU(x + before) + after, all but x `(B, C)` or `(C,)`."""
    shifted = x + per_channel(before, x)
    bent = torch.where(shifted >= 0, shifted, shifted * per_channel(slope, x))
    return bent + per_channel(after, x)


class BinaryConvNd(nn.Module):
    """Convolution of signs with weights mean|W_o| sign(W_o), for each output o.

    The gradient reaches W where |W| <= 1. Beyond the border there is 0, neither sign.

    Args:
        wide: input channels.
        narrow: output channels.
        kernel_size: per axis, odd; its length is the rank, 2 or 3.
        stride: per axis.
        centred: the mean of each output's weights is taken away before the sign, as in the
            published linear maps.
    """

    def __init__(
        self,
        wide: int,
        narrow: int,
        kernel_size: Sequence[int],
        stride: Sequence[int],
        *,
        centred: bool,
    ) -> None:
        super().__init__()
        self.stride, self.centred = tuple(stride), centred
        self.padding = tuple(size // 2 for size in kernel_size)
        self.weight = nn.Parameter(torch.empty(narrow, wide, *kernel_size))
        nn.init.normal_(self.weight, std=_START_STD)

    def forward(self, signs: Tensor) -> Tensor:
        """Return `(B, narrow, *ceil(S / stride))` of signs `(B, wide, *S)`, 1 or -1."""
        binary = self.signs() * per_channel(self.scale()[:, None], self.weight)
        passed = self.weight.clamp(-1, 1)
        weight = passed + (binary - passed).detach()
        return _CONVOLVE[len(self.stride)](signs, weight, None, self.stride, self.padding)

    def signs(self) -> Tensor:
        """Return the weights' signs, 1 or -1, in the shape of the weights."""
        weight = self.weight.detach()
        if self.centred:
            weight = weight - weight.mean(tuple(range(1, weight.ndim)), keepdim=True)
        return torch.where(weight >= 0, 1.0, -1.0).to(weight.dtype)

    def scale(self) -> Tensor:
        """Return mean|W_o|, `(narrow,)`."""
        return self.weight.detach().abs().flatten(1).mean(1)


class BinaryBlock(nn.Module):
    """shortcut(x) + norm(conv(sign(x - a(t)))), then PReLU(. + b(t)) + c(t).

    The time-dependent binariser and activation of the paper; a, b and c start at 0.

    Args:
        wide: input channels.
        narrow: output channels.
        kernel_size: per axis; of one tap it is a linear map of every pixel.
        stride: of the convolution, per axis.
        time_dim: length of the time embedding.
    """

    def __init__(
        self,
        wide: int,
        narrow: int,
        kernel_size: Sequence[int],
        stride: Sequence[int],
        time_dim: int,
    ) -> None:
        super().__init__()
        self.widths = (wide, narrow, narrow)
        self.time = zeroed(nn.Linear(time_dim, sum(self.widths)))
        linear = max(kernel_size) == 1
        self.conv = BinaryConvNd(wide, narrow, kernel_size, stride, centred=linear)
        self.norm = _BATCH_NORMS[len(stride)](narrow)
        self.slope = nn.Parameter(torch.full((narrow,), _START_SLOPE))

    def forward(self, x: Tensor, emb: Tensor) -> Tensor:
        """Return `(B, narrow, *ceil(S / stride))` of x `(B, wide, *S)` and emb `(B, E)`."""
        threshold, before, after = self.time(emb).split(self.widths, 1)
        hidden = self.norm(self.conv(sign(x - per_channel(threshold, x))))
        summed = hidden + shortcut(x, self.widths[1], self.conv.stride)
        return activate(summed, before, self.slope, after)


class BinaryCrossing(nn.Module):
    """Half of the binary X-Former: attention of signs, then a binary feed-forward network.

    A query sums the values of the keys whose probability exceeds 0.35 of its largest; the
    gradient is that of the probabilities. Both branches add to the stream that is asked, through
    gates of the time that start at 0.

    Args:
        spatial_dims: 2 or 3.
        width: channels of both streams.
        num_heads: attention heads, a divisor of the width.
        time_dim: length of the time embedding.
    """

    def __init__(self, spatial_dims: int, width: int, num_heads: int, time_dim: int) -> None:
        super().__init__()
        self.num_heads, self.width = num_heads, width
        self.time = zeroed(nn.Linear(time_dim, 7 * width))
        one = (1,) * spatial_dims

        def linear(wide: int, narrow: int) -> BinaryBlock:
            return BinaryBlock(wide, narrow, one, one, time_dim)

        norm = _BATCH_NORMS[spatial_dims]
        self.norms = nn.ModuleList(norm(width) for _ in range(4))
        self.query, self.key, self.value = (linear(width, width) for _ in range(3))
        self.widen, self.narrow = linear(width, _WIDEN * width), linear(_WIDEN * width, width)

    def forward(self, query: Tensor, stream: Tensor, emb: Tensor) -> Tensor:
        """Return the stream, changed.

        Args:
            query: `(B, width, *S)`, the stream that asks.
            stream: `(B, width, *S)`, the stream that is asked.
            emb: `(B, E)`, the time.
        """
        numbers = torch.split(per_channel(self.time(emb), stream), self.width, 1)
        gate, shift, second_gate, second_shift, *thresholds = numbers
        asking, asked, of_answer, of_hidden = self.norms
        known = asked(stream)
        parts = [self.query(asking(query), emb), self.key(known, emb), self.value(known, emb)]
        signs = [sign(part - at) for part, at in zip(parts, thresholds, strict=True)]
        answer = of_answer(self._attend(*signs)) + parts[0] + parts[1] + parts[2]
        stream = stream + gate * answer + shift
        hidden = self.narrow(self.widen(of_hidden(stream), emb), emb)
        changed: Tensor = stream + second_gate * hidden + second_shift
        return changed

    def _attend(self, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        """Return the sum of the chosen values for every query, `(B, width, *S)`."""
        heads = [
            part.reshape(part.shape[0], self.num_heads, -1, part[0, 0].numel())
            for part in (query, key, value)
        ]
        scores = heads[0].transpose(2, 3) @ heads[1] / math.sqrt(heads[0].shape[2])
        chosen = scores > scores.amax(-1, keepdim=True) + math.log(_ATTENTION_SHARE)
        soft = scores.softmax(-1)
        weights = soft + (chosen.to(soft.dtype) - soft).detach()
        summed: Tensor = (heads[2] @ weights.transpose(2, 3)).reshape(query.shape)
        return summed


class BinaryBlocks:
    """Factory of the binary twin's modules; see `synthgen.models.hidiff_blocks.Blocks`.

    Args:
        spatial_dims: 2 or 3.
        time_dim: length E of the time embedding.
    """

    def __init__(self, spatial_dims: int, time_dim: int) -> None:
        self._spatial_dims, self._time_dim = spatial_dims, time_dim

    def convolution(self, wide: int, narrow: int, stride: Sequence[int]) -> nn.Module:
        """Return a `BinaryBlock` of 3 taps an axis."""
        return BinaryBlock(wide, narrow, (3,) * self._spatial_dims, stride, self._time_dim)

    def crossing(self, width: int, num_heads: int) -> nn.Module:
        """Return a `BinaryCrossing`."""
        return BinaryCrossing(self._spatial_dims, width, num_heads, self._time_dim)
