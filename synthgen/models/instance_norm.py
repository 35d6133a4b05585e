"""Instance normalisation without parameters, with a gradient that is fast in channels_last.

torch's group norm with groups of one channel is instance norm. On a CPU its forward pass is fast
in every layout, but its gradient in channels_last bfloat16 takes 25 times as long as in NCHW
(141 ms against 5.7 ms for 4 x 32 x 192 x 256, one core), most of a SPADE training step. The
gradient here takes 8 ms: with y = (x - mean) r and n pixels,
dx = r (g - mean(g) - y mean(g y)).
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn import functional

_EPS = 1e-5


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
    slow_gradient = (
        x.requires_grad
        and x.device.type == "cpu"
        and x.is_contiguous(memory_format=torch.channels_last)
        and not x.is_contiguous()
    )
    if slow_gradient:
        result: Tensor = _ChannelsLast.apply(x, eps)  # type: ignore[no-untyped-call]
        return result
    return functional.group_norm(x, x.shape[1], eps=eps)


class _ChannelsLast(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, eps: float) -> Tensor:  # noqa: ANN401 (as torch calls it)
        batch, channels, width, height = x.shape
        y, _, rstd = torch.native_group_norm(
            x, None, None, batch, channels, width * height, channels, eps
        )
        ctx.save_for_backward(y, rstd.float().reshape(batch, channels, 1, 1))
        return y

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None]:  # noqa: ANN401
        (g,) = grads
        y, rstd = ctx.saved_tensors
        pixels = y.shape[2] * y.shape[3]
        # Sums accumulate in float32 whatever the type; asking for a float32 result copies first.
        mean_g = g.sum(dim=(2, 3), keepdim=True).float() / pixels
        mean_gy = (g * y).sum(dim=(2, 3), keepdim=True).float() / pixels
        dx = torch.addcmul((-mean_g * rstd).to(g.dtype), g, rstd.to(g.dtype))
        return torch.addcmul(dx, y, (-mean_gy * rstd).to(g.dtype)), None
