"""Blocks of HiDiff's binary refiner by counting bits; needs numba.

Source: Chen et al. 2024 (HiDiff), arXiv:2407.03548, section III-C. The loops are in
`synthgen.models.hidiff_popcount`.
"""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from functools import lru_cache
from itertools import pairwise
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from synthgen.models.hidiff_popcount import (
    Constants,
    Grid,
    agreements,
    bits_shape,
    pack_weights,
    run_rows,
)
from synthgen.models.hidiff_tile import WORD
from synthgen.models.norm_silu import norm_silu

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

    from synthgen.models.hidiff_integer import Folded

_Triple = tuple[int, int, int]


class PopcountBlock(nn.Module):
    """A folded block that counts bits, on torch's number of threads.

    Args:
        folded: its constants.
    """

    def __init__(self, folded: Folded) -> None:
        super().__init__()
        rank = len(folded.stride)
        self.kernel, self.stride = _triple(folded.signs.shape[2:]), _triple(folded.stride)
        self.rank, self.outputs = rank, len(folded.signs)
        signs = folded.signs.numpy().reshape(*folded.signs.shape[:2], *self.kernel)
        shared = pack_weights(signs), agreements(signs)
        shift = folded.before + folded.bias
        self.words = -(-signs.shape[1] // WORD)
        self.steps = [
            Constants(*shared, *(np.ascontiguousarray(part.numpy()) for part in parts))
            for parts in zip(
                folded.threshold,
                folded.scale.expand_as(shift),
                shift,
                folded.slope.expand_as(shift),
                folded.after,
                strict=True,
            )
        ]

    def forward(
        self,
        x: Tensor,
        t: Tensor,
        *,
        beside: Tensor | None = None,
        size: Sequence[int] | None = None,
    ) -> Tensor:
        """Return float32 `(B, O, *ceil(S / stride))`, channels last in memory.

        Args:
            x: float32 `(B, I1, *S)`; channels last in memory is not copied.
            t: `(B,)`, steps.
            beside: `(B, I2, *S)`, maps to be joined to x; I1 + I2 = I.
            size: spatial size to which x is enlarged first, if another than its own.
        """
        if beside is not None and not self._takes_apart(x, beside):
            x, beside = torch.cat([x, beside], 1), None
        source = _triple(x.shape[2:])
        grid = _grid(source, source if size is None else _triple(size), self.kernel, self.stride)
        first = _pixels(x)
        second = first[..., :0] if beside is None else _pixels(beside)
        out = _empty(len(x), *grid.output, self.outputs)
        for i, step in enumerate(t.tolist()):
            place = out[i].reshape(-1, self.outputs).numpy()
            self._run(first[i], second[i], grid, self.steps[step], place)
        return out.reshape(len(x), *grid.output[3 - self.rank :], self.outputs).movedim(-1, 1)

    def _takes_apart(self, x: Tensor, beside: Tensor) -> bool:
        """Return whether two sources can be read where they are."""
        share, rest = divmod(x.shape[1] + beside.shape[1], self.outputs)
        width = x.shape[1]
        return share > 1 and not rest and width % WORD == 0 and width % share == 0

    def _run(
        self,
        first: NDArray[np.float32],
        second: NDArray[np.float32],
        grid: Grid,
        constants: Constants,
        out: NDArray[np.float32],
    ) -> None:
        bits = np.zeros(bits_shape(grid, self.words), np.uint64)
        rows, threads = grid.output[0] * grid.output[1], torch.get_num_threads()
        if threads == 1:
            run_rows(0, rows, first, second, grid, constants, bits, out)
            return
        # Neighbours pack the same rows between them: the same words, whoever is first.
        ends = [rows * i // threads for i in range(threads + 1)]
        with ThreadPoolExecutor(threads) as pool:
            parts = [
                pool.submit(run_rows, begin, end, first, second, grid, constants, bits, out)
                for begin, end in pairwise(ends)
            ]
            for part in parts:
                part.result()


class NormSilu(nn.Module):
    """SiLU of a group norm, in place where the input has channels last in memory.

    Args:
        norm: with its weight and bias.
    """

    def __init__(self, norm: nn.GroupNorm) -> None:
        super().__init__()
        self.groups, self.eps = norm.num_groups, norm.eps
        self.weight, self.bias = (part.detach().float().numpy() for part in norm.parameters())

    def forward(self, x: Tensor) -> Tensor:
        """Return `(B, C, *S)`, float32, of maps of that shape, which are lost."""
        pixels = _pixels(x)
        for sample in pixels:
            norm_silu(sample, self.groups, self.weight, self.bias, self.eps)
        shape = len(x), *x.shape[2:], x.shape[1]
        return torch.from_numpy(pixels).reshape(shape).movedim(-1, 1)


@lru_cache(maxsize=256)
def _grid(source: _Triple, size: _Triple, kernel: _Triple, stride: _Triple) -> Grid:
    output = tuple(-(-n // s) for n, s in zip(size, stride, strict=True))
    maps = [_nearest(n, m) for n, m in zip(source, size, strict=True)]
    return Grid(source, size, (output[0], output[1], output[2]), kernel, stride, *maps)


def _nearest(source: int, target: int) -> NDArray[np.int64]:
    """Return which of `source` pixels torch's nearest neighbour puts at each of `target`."""
    places = torch.arange(source, dtype=torch.float32)[None, None]
    return functional.interpolate(places, size=target, mode="nearest")[0, 0].long().numpy()


def _pixels(x: Tensor) -> NDArray[np.float32]:
    """Return `(B, pixels, C)` of `(B, C, *S)`; float32 with channels last is not copied."""
    last = x.movedim(1, -1)
    if x.dtype != torch.float32 or not last.is_contiguous():
        last = _empty(*last.shape).copy_(last)
    return last.reshape(len(x), -1, x.shape[1]).numpy()


def _empty(*shape: int) -> Tensor:
    """Return float32 memory in large pages, as NumPy asks for; to touch torch's costs more."""
    return torch.from_numpy(np.empty(shape, np.float32))


def _triple(values: Sequence[int]) -> _Triple:
    """Return two or three numbers as three, with 1 in front."""
    z, y, x = [1] * (3 - len(values)) + list(values)
    return z, y, x
