"""Group and instance normalisation with a gradient that is fast in channels_last.

torch's group norm with groups of one channel is instance norm. On a CPU its forward pass is fast
in every layout, but its gradient in channels_last bfloat16 takes 25 times as long as in NCHW
(141 ms against 5.7 ms for 4 x 32 x 192 x 256, one core), most of a SPADE training step. The
gradient here takes 8 ms: with y = (x - mean) r, and means over a group,
dx = r (g - mean(g) - y mean(g y)).

Maps of fewer than 1024 pixels are another trap of torch's kernel in channels_last, the forward
one too: it walks through them a group at a time, whose channels are no long vectors. Instance norm
of 8 x 256 x 24 x 32 in bfloat16 takes 46 ms so and 1.5 ms here, where sums run over pixels.
"""

from __future__ import annotations

from typing import Any, TypeVar

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn import functional

Net = TypeVar("Net", bound=nn.Module)

_EPS = 1e-5
_FEW_PIXELS = 1024
"""Where torch's kernel in channels_last changes its way (group_norm_kernel.cpp, 2.13)."""
_CACHED = 2**19
"""Numbers that are normalised at once: 2 MiB in float32, measured best of 2^16 to 2^22."""
_NARROW = 16
"""Channels of a group that fill its vectors: from there on that way is fast."""


def instance_norm(x: Tensor, eps: float = _EPS) -> Tensor:
    """Return each channel of each sample with mean 0 and variance 1.

    Args:
        x: `(B, C, X, Y)`.
        eps: added to the variance.

    Examples:
        >>> y = instance_norm(torch.arange(4.0).reshape(1, 1, 2, 2))
        >>> bool(y.mean().abs() < 1e-6)
        True
    """
    return group_norm(x, x.shape[1], eps)


def group_norm(
    x: Tensor,
    groups: int,
    eps: float = _EPS,
    *,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
) -> Tensor:
    """Return each group of channels of each sample with mean 0 and variance 1.

    Args:
        x: `(B, C, *S)`.
        groups: number of groups, a divisor of C.
        eps: added to the variance.
        weight: `(C,)`, factor of each channel afterwards; goes with `bias`.
        bias: `(C,)`, what is added to each channel at last.
    """
    if x.device.type == "cpu" and not x.is_contiguous() and x.movedim(1, -1).is_contiguous():
        if torch.is_grad_enabled():
            if x.ndim == 4:
                result: Tensor = _ChannelsLast.apply(x, weight, bias, groups, eps)  # type: ignore[no-untyped-call]
                return result
        elif x[0, 0].numel() < _FEW_PIXELS and x.shape[1] // groups < _NARROW:
            return _few_pixels(x, groups, eps, weight, bias)
    return functional.group_norm(x, groups, weight, bias, eps)


def with_fast_norms(net: Net) -> Net:
    """Put our `GroupNorm` in the place of each of torch's in a network, and return it.

    Weights and state keys stay.
    """
    for name, norm in list(net.named_modules()):
        if type(norm) is nn.GroupNorm:
            with torch.device("meta"):
                ours = GroupNorm(norm.num_groups, norm.num_channels, norm.eps, norm.affine)
            ours.weight, ours.bias = norm.weight, norm.bias
            net.set_submodule(name, ours.train(norm.training))
    return net


class GroupNorm(nn.GroupNorm):
    """torch's group norm, a learned weight and bias a channel, with the fast gradient."""

    def forward(self, input: Tensor) -> Tensor:  # noqa: A002 (torch's name)
        """Return the normalised features, in the type of the input `(B, C, *S)`."""
        return group_norm(input, self.num_groups, self.eps, weight=self.weight, bias=self.bias)


def _few_pixels(
    x: Tensor, groups: int, eps: float, weight: Tensor | None, bias: Tensor | None
) -> Tensor:
    """Normalise maps in channels_last by sums over their pixels, a cache full of them at a time."""
    pixels = x.flatten(2).transpose(1, 2)  # (B, N, C), as it lies in memory
    result = torch.empty_like(pixels)
    at_once = max(1, _CACHED // pixels[0].numel())
    for maps, out in zip(torch.split(pixels, at_once), torch.split(result, at_once), strict=True):
        exact = maps.float()
        size = exact.shape[2] // groups
        sums = torch.stack([exact.sum(dim=1), (exact * exact).sum(dim=1)])
        means = sums.view(2, len(exact), groups, size).sum(dim=3) / (exact.shape[1] * size)
        mean, square = means.repeat_interleave(size, dim=2)  # (B, C) each
        scale = torch.rsqrt((square - mean * mean).clamp(min=0) + eps)
        if weight is not None:
            scale = scale * weight.float()
        shift = -mean * scale if bias is None else torch.addcmul(bias.float(), mean, -scale)
        out.copy_(torch.addcmul(shift[:, None], exact, scale[:, None]))
    return result.transpose(1, 2).view(x.shape)


class _ChannelsLast(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,  # noqa: ANN401 (as torch calls it)
        x: Tensor,
        weight: Tensor | None,
        bias: Tensor | None,
        groups: int,
        eps: float,
    ) -> Tensor:
        batch, channels, width, height = x.shape
        y, _, rstd = torch.native_group_norm(
            x, None, None, batch, channels, width * height, groups, eps
        )
        ctx.groups = groups
        ctx.save_for_backward(y, rstd.float(), weight)
        if weight is None or bias is None:
            return y
        return _per_channel(y, weight.expand(batch, -1), bias.expand(batch, -1))

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:  # noqa: ANN401
        (g,) = grads
        y, rstd, weight = ctx.saved_tensors
        batch, channels = y.shape[:2]
        size = channels // ctx.groups
        # Sums accumulate in float32 whatever the type; asking for a float32 result copies first.
        sum_g, sum_gy = g.sum(dim=(2, 3)).float(), (g * y).sum(dim=(2, 3)).float()
        factor = torch.ones_like(sum_g) if weight is None else weight.float().expand(batch, -1)

        def mean(sums: Tensor) -> Tensor:
            grouped = (factor * sums).reshape(batch, ctx.groups, size).sum(dim=2)
            means: Tensor = grouped / (size * y.shape[2] * y.shape[3])
            return means.repeat_interleave(size, dim=1)

        r = rstd.repeat_interleave(size, dim=1)
        dx = _per_channel(g, factor * r, -mean(sum_g) * r)
        dx = _per_channel(y, -mean(sum_gy) * r, dx)
        if weight is None:
            return dx, None, None, None, None
        return dx, sum_gy.sum(dim=0).to(weight.dtype), sum_g.sum(dim=0).to(weight.dtype), None, None


def _per_channel(x: Tensor, scale: Tensor, shift: Tensor) -> Tensor:
    """Return x * scale + shift; scale is `(B, C)`, shift likewise or of the shape of x.

    Rows of pixels are long vectors in channels_last. Broadcasting over channels instead would
    make vectors as short as C, ten times as slow for 16 channels.
    """
    batch, channels, width, height = x.shape

    def rows(array: Tensor) -> Tensor:
        if array.ndim == x.ndim:
            return array.permute(0, 2, 3, 1).reshape(batch, width, height * channels)
        return array.to(x.dtype).repeat(1, height)[:, None]

    out = torch.addcmul(rows(shift), rows(x), rows(scale))
    return out.reshape(batch, width, height, channels).permute(0, 3, 1, 2)
