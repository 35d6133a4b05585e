"""Blocks of HiDiff's binary refiner in whole numbers, with what torch has.

Source: Chen et al. 2024 (HiDiff), arXiv:2407.03548, section III-C, for the block; the rewriting is
algebra. Batch norm and the scale of the weights become one factor and one number an output, the
sums of signs in between stay whole numbers, and what a block takes from the time is looked up. So
a block equals its simulation (`synthgen.models.hidiff_binary.BinaryBlock`) but for the rounding
of float32.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple, cast

import torch
from torch import Tensor, nn
from torch.nn import functional

from synthgen.models.hidiff_binary import activate
from synthgen.models.hidiff_blocks import per_channel, shortcut

if TYPE_CHECKING:
    from collections.abc import Sequence

    from synthgen.models.hidiff_binary import BinaryBlock

_CONVOLVE = {2: functional.conv2d, 3: functional.conv3d}


class Folded(NamedTuple):
    """A binary block as PReLU(scale * sums + bias + shortcut(x) + before(t)) + after(t).

    `signs` `(O, I, *K)` in {-1, 1}; `scale`, not negative, `bias` and `slope` `(O,)`; `threshold`
    `(T, I)`, `before` and `after` `(T, O)`, a row for each step; `stride` per axis.
    """

    signs: Tensor
    scale: Tensor
    bias: Tensor
    slope: Tensor
    threshold: Tensor
    before: Tensor
    after: Tensor
    stride: tuple[int, ...]


@torch.no_grad()
def fold(block: BinaryBlock, embeddings: Tensor) -> Folded:
    """Return a block's batch norm, scale and time head as constants, float32.

    Args:
        block: as trained; its batch norm's running statistics are used.
        embeddings: `(T, E)`, of every step.
    """
    norm, conv = block.norm, block.conv
    # Typed as optional, but these norms keep running statistics.
    mean, variance = cast("Tensor", norm.running_mean), cast("Tensor", norm.running_var)
    factor = norm.weight / (variance + norm.eps).sqrt()
    threshold, before, after = torch.split(tabulate(block.time, embeddings), list(block.widths), 1)
    turned = torch.where(factor < 0, -1.0, 1.0)
    return Folded(
        signs=conv.signs().float() * per_channel(turned[:, None], conv.weight),
        scale=(conv.scale() * factor.abs()).float(),
        bias=(norm.bias - mean * factor).float(),
        slope=block.slope.detach().float(),
        threshold=threshold.contiguous(),
        before=before.contiguous(),
        after=after.contiguous(),
        stride=conv.stride,
    )


@torch.no_grad()
def tabulate(head: nn.Module, embeddings: Tensor) -> Tensor:
    """Return a time head's numbers `(T, N)`, float32, of embeddings `(T, E)`.

    One at a time: a product of more rows may round otherwise, and a threshold that moves by the
    last bit turns the sign of what equals it.
    """
    return torch.cat([head(row) for row in torch.split(embeddings, 1)]).float()


class IntegerBlock(nn.Module):
    """A folded block by torch's own convolutions.

    Args:
        folded: its constants.
        integers: by oneDNN's convolution of 8-bit integers; else by one of floating-point signs.
    """

    def __init__(self, folded: Folded, *, integers: bool) -> None:
        super().__init__()
        self.folded = folded
        signs = folded.signs
        conv = Int8Conv if integers else SignConv
        self.conv = conv(signs, folded.scale, folded.bias, folded.stride)

    def forward(
        self,
        x: Tensor,
        t: Tensor,
        *,
        beside: Tensor | None = None,
        size: Sequence[int] | None = None,
    ) -> Tensor:
        """Return float32 `(B, O, *ceil(S / stride))`.

        Args:
            x: `(B, I1, *S)`.
            t: `(B,)`, steps.
            beside: `(B, I2, *S)`, maps to be joined to x; I1 + I2 = I.
            size: spatial size to which x is enlarged first, if another than its own.
        """
        x = x.float() if beside is None else torch.cat([x.float(), beside.float()], 1)
        if size is not None:
            x = functional.interpolate(x, size=tuple(size), mode="nearest")
        known = self.folded
        hidden = self.conv(x >= per_channel(known.threshold[t], x))
        summed = hidden + shortcut(x, hidden.shape[1], known.stride)
        return activate(summed, known.before[t], known.slope, known.after[t])


class SignConv(nn.Module):
    """scale * conv(signs) + bias, in floating point.

    Args:
        signs: weights `(O, I, *K)`, 1 or -1.
        scale: `(O,)`.
        bias: `(O,)`.
        stride: per axis.
    """

    def __init__(self, signs: Tensor, scale: Tensor, bias: Tensor, stride: Sequence[int]) -> None:
        super().__init__()
        self.signs, self.scale, self.bias = signs, scale, bias
        self.stride, self.padding = tuple(stride), tuple(n // 2 for n in signs.shape[2:])

    def forward(self, positive: Tensor) -> Tensor:
        """Return `(B, O, *ceil(S / stride))` of `(B, I, *S)`, True where the sign is 1."""
        values = torch.where(positive, 1.0, -1.0)
        convolve = _CONVOLVE[len(self.stride)]
        sums = convolve(values, self.signs, None, self.stride, self.padding)
        return sums * per_channel(self.scale, sums) + per_channel(self.bias, sums)


class Int8Conv(nn.Module):
    """scale * conv(signs) + bias, in 8-bit integers with sums of 32 bits.

    Activations are 0 and 2 with their zero at 1, weights -1 and 1, so that sums are exact and the
    zeros beyond the border are too.

    Args:
        signs: weights `(O, I, *K)`, 1 or -1.
        scale: `(O,)`, not negative.
        bias: `(O,)`.
        stride: per axis.
    """

    def __init__(self, signs: Tensor, scale: Tensor, bias: Tensor, stride: Sequence[int]) -> None:
        super().__init__()
        self.scale, self.bias = scale, bias
        ones = [1] * len(stride)
        self.zero_points = torch.zeros(len(scale), dtype=torch.int64)
        self.geometry = (list(stride), [n // 2 for n in signs.shape[2:]], ones)
        self.weights = torch.ops.onednn.qconv_prepack(
            signs.to(torch.int8), scale, 1.0, 1, *self.geometry, 1, None
        )

    def forward(self, positive: Tensor) -> Tensor:
        """Return `(B, O, *ceil(S / stride))` of `(B, I, *S)`, True where the sign is 1."""
        result: Tensor = torch.ops.onednn.qconv_pointwise(
            positive.to(torch.uint8) * 2,
            *(1.0, 1, self.weights, self.scale, self.zero_points, self.bias),
            *(*self.geometry, 1, 1.0, 0, torch.float32, "none", [], ""),
        )
        return result
