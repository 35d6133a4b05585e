"""Angiograms whose masks are known, for the supervised term: rendered without training, cropped."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from synthgen.core.rng import SampleKey, Stream

if TYPE_CHECKING:
    import numpy.typing as npt

    from synthgen.data.pools import Draw
    from synthgen.images.angiogram import AngiogramRenderer

_ATTEMPT = 1  # trees of their own, not those of the three pools


class RenderedPairs:
    """Crops around vessels of pictures that are rendered once, when they are first asked for.

    Batch `step` is a function of (seed, step) alone.

    Args:
        draw: draws vessel trees.
        renderer: paints them.
        pictures: how many trees there are.
        crop: side S of the crops.
        batch_size: rows a batch.
        seed: seed of trees, pictures and crops.
        decimate: keep every other row and column, as the pools do.
    """

    def __init__(
        self,
        draw: Draw,
        renderer: AngiogramRenderer,
        *,
        pictures: int,
        crop: int,
        batch_size: int,
        seed: int,
        decimate: bool,
    ) -> None:
        self._draw, self._renderer = draw, renderer
        self._pictures, self._crop, self._batch_size = pictures, crop, batch_size
        self._seed, self._pixel = seed, 2 if decimate else 1
        self._made: dict[int, npt.NDArray[np.float32]] = {}

    def batch(self, step: int) -> tuple[Tensor, Tensor]:
        """Return images and masks, `(B, 1, S, S)` in [-1, 1]; masks are -1 or 1."""
        first = step * self._batch_size
        rows = np.stack([self._row(first + row) for row in range(self._batch_size)])
        both = torch.from_numpy(rows) * 2 - 1
        return both[:, :1], both[:, 1:]

    def _row(self, index: int) -> npt.NDArray[np.float32]:
        rng = SampleKey(self._seed, index, _ATTEMPT).numpy(Stream.AUGMENT)
        picture = self._picture(int(rng.integers(self._pictures)))
        vessel = np.argwhere(picture[1] > 0)
        shape = picture.shape[1:]
        centre = vessel[rng.integers(len(vessel))] if len(vessel) else rng.integers(shape)
        shift = rng.integers(-(self._crop // 2), self._crop // 2, size=2, endpoint=True)
        corner = np.clip(centre + shift - self._crop // 2, 0, np.subtract(shape, self._crop))
        x, y = (int(c) for c in corner)
        return picture[:, x : x + self._crop, y : y + self._crop]

    def _picture(self, index: int) -> npt.NDArray[np.float32]:
        """Return image and mask `(2, X, Y)` in [0, 1]."""
        if index not in self._made:
            keys = [SampleKey(self._seed, index, _ATTEMPT)]
            maps = self._draw(keys)
            image = self._renderer.render(maps, keys)[0, 0]
            both = np.stack([image, maps.mask[0].astype(np.float32)])
            self._made[index] = both[:, :: self._pixel, :: self._pixel]
        return self._made[index]
