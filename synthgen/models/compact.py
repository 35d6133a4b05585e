"""Label maps without the rows and columns that repeat: their convolutions are done once.

Half of a slice is background around the head. Two 3 x 3 convolutions see 5 x 5 pixels: in a run of
equal rows, those that see no other row and not the same edge of the map all give the same. Such a
run is as good with five rows as with fifty, and likewise for columns; what comes out is put back
where it belongs. The result is that of the whole map, not an approximation.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch
from numpy.lib.stride_tricks import sliding_window_view

if TYPE_CHECKING:
    from torch import Tensor

_REACH = 2
"""Pixels that two 3 x 3 convolutions see in each direction."""
_FEWEST_PIXELS = 2048
"""Of smaller maps little repeats, and a batch of them convolves faster than one at a time."""


@dataclass(frozen=True)
class CompactMaps:
    """Maps, or what convolutions made of them, without repeated rows and columns.

    Attributes:
        values: `(B, C, X', Y')`.
        size: (X, Y) of the whole maps.
        places: `(X Y)`, where each pixel of the whole maps stands among the X' Y'; None where
            nothing is left out.
    """

    values: Tensor
    size: tuple[int, int]
    places: Tensor | None = None

    def put_back(self, results: Tensor) -> Tensor:
        """Return results of convolutions `(B, C, X', Y')` as those of the whole maps."""
        if self.places is None:
            return results
        pixels = results.permute(0, 2, 3, 1).flatten(1, 2)  # as they lie in channels_last
        whole_maps = pixels.index_select(1, self.places).view(len(results), *self.size, -1)
        return whole_maps.permute(0, 3, 1, 2)


def whole(maps: Tensor) -> CompactMaps:
    """Return maps `(B, C, X, Y)` as they are."""
    return CompactMaps(maps, (maps.shape[2], maps.shape[3]))


def compact(maps: Tensor) -> CompactMaps:
    """Leave out what repeats in all of the maps `(B, C, X, Y)`, which lie on the CPU."""
    pixels = maps.permute(0, 2, 3, 1)
    rows, row_of = _kept(pixels, 1)
    pixels = pixels.index_select(1, rows)
    columns, column_of = _kept(pixels, 2)
    values = pixels.index_select(2, columns).permute(0, 3, 1, 2)
    places = (row_of[:, None] * len(columns) + column_of).flatten()
    return CompactMaps(values, (maps.shape[2], maps.shape[3]), places)


def compact_each(maps: Tensor) -> list[CompactMaps]:
    """Return maps `(B, C, X, Y)` one by one and compact, or together where that is faster.

    They stay together where a gradient is wanted and on a GPU, which would have to wait to learn
    their sizes. A map's own part does not depend on the others.
    """
    few = maps.shape[2] * maps.shape[3] < _FEWEST_PIXELS
    if few or torch.is_grad_enabled() or maps.device.type != "cpu":
        return [whole(maps)]
    return [compact(single) for single in torch.split(maps, 1)]


def _kept(pixels: Tensor, dim: int) -> tuple[Tensor, Tensor]:
    """Return the rows (dim 1) or columns (dim 2) to keep, and which of them each one equals.

    Bytes are compared, by NumPy: torch takes ten times as long.
    """
    values = pixels.contiguous().view(torch.uint8).numpy()
    if dim == 1:
        same = (values[:, 1:] == values[:, :-1]).all(axis=(2, 3)).all(axis=0)
    else:
        same = (values[:, :, 1:] == values[:, :, :-1]).all(axis=(0, 1)).all(axis=1)
    # Line i gives what line i - 1 gives if the lines that they see, i - 3 to i + 2, are all equal.
    kept = np.ones(values.shape[dim], dtype=bool)
    if len(same) > 2 * _REACH:
        repeats = sliding_window_view(same, 2 * _REACH + 1).all(axis=1)
        kept[_REACH + 1 : -_REACH] = ~repeats
    return torch.from_numpy(np.flatnonzero(kept)), torch.from_numpy(np.cumsum(kept) - 1)
