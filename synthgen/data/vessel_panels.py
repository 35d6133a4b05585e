"""How samples of vessel trees and angiograms look on a contact sheet: upright, X down, Y right."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt
from scipy import ndimage

if TYPE_CHECKING:
    from collections.abc import Sequence

    from synthgen.data.shards import ShardRow

Rgb = npt.NDArray[np.float32]

OUTLINE = (1.0, 0.15, 0.15)
_MASK = 0.5
_SHOWN_PX = 256
"""Panels are about this large on the page."""


def vessel_titles(styles: Sequence[str]) -> list[str]:
    """Return what the panels of a sample show."""
    return ["angiogram", "mask outline", "coverage"] if styles else ["coverage", "mask"]


def vessel_panels(row: ShardRow) -> list[Rgb]:
    """Return the pictures of one sample, each `(X, Y, 3)` in [0, 1], as the arrays lie.

    Large pictures are shrunk by averaging blocks of pixels, to about what the page shows.
    """
    coverage, mask = _grey(row.pv[1]), row.pv[1] > _MASK
    block = max(1, round(max(mask.shape) / _SHOWN_PX))
    pictures = [coverage, _grey(mask)]
    if row.images is not None:
        image = _grey(np.clip(row.images[0], 0, 1))
        pictures = [image, outlined(image, mask, block), coverage]
    return [_shrunk(picture, block) for picture in pictures]


def vessel_caption(row: ShardRow) -> str:
    """Return what is written above a sample: index, redraws, what the gate measured."""
    text = f"#{row.index}: {(row.pv[1] > _MASK).mean():.1%} vessel"
    if row.attempt:
        text += f", redrawn {row.attempt} x"
    if row.gate is not None:
        text += f", gate: Dice {row.gate[0]:.2f}, outside {row.gate[1]:.1%}"
    return text


def outlined(picture: Rgb, mask: npt.NDArray[np.bool_], width: int) -> Rgb:
    """Return a picture with a line of so many pixels around a mask."""
    edge = ndimage.binary_dilation(mask, iterations=width) & ~mask
    return np.where(edge[..., None], np.asarray(OUTLINE, dtype=np.float32), picture)


def _grey(image: npt.NDArray[np.float32] | npt.NDArray[np.bool_]) -> Rgb:
    return np.repeat(image.astype(np.float32)[..., None], 3, axis=-1)


def _shrunk(picture: Rgb, block: int) -> Rgb:
    x, y = (side // block for side in picture.shape[:2])
    blocks = picture[: x * block, : y * block].reshape(x, block, y, block, 3)
    shrunk: Rgb = blocks.mean(axis=(1, 3), dtype=np.float32)
    return shrunk
