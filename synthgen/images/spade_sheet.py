"""Sample sheets of the image generator: label, real image, fakes in several styles."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from synthgen.core.rng import SampleKey, Stream
from synthgen.models.spade import draw_noise
from synthgen.training.log import colour_argmax

if TYPE_CHECKING:
    from synthgen.data.image_loader import ImageBatch, ImageBatches
    from synthgen.models.spade import SPADEGenerator
    from synthgen.models.style_encoder import StyleEncoder

_PAINT_BATCH = 4


@dataclass(frozen=True)
class SheetPlan:
    """Rows of a sheet: label (argmax), real, fake in its own style, fake in each other style.

    Attributes:
        content: the slices to paint, unwarped.
        references: `(S, 1, X, Y)`, one real slice of each style.
    """

    content: ImageBatch
    references: Tensor

    @classmethod
    def choose(
        cls, train: ImageBatches, val: ImageBatches | None, *, rows: int = 4, seed: int = 0
    ) -> SheetPlan:
        """Choose slices that show much brain: from validation subjects where there are any."""
        source = val if val is not None else train
        styles = source.styles
        chosen = [
            _full_slice(source, styles[i % len(styles)], 0.2 * (i // len(styles)))
            for i in range(rows)
        ]
        references = train.fixed([_full_slice(train, style, 0.0) for style in train.styles])
        return cls(source.fixed(chosen), references.image)

    @torch.no_grad()
    def paint(
        self, generator: SPADEGenerator, style_encoder: StyleEncoder
    ) -> npt.NDArray[np.float32]:
        """Return the sheet `(rows, columns, X, Y, 3)` in [0, 1]."""
        device = next(generator.parameters()).device
        own = style_encoder(self.content.style_image.to(device)).mu
        others = style_encoder(self.references.to(device)).mu
        pv = self.content.pv.to(device)
        codes = [own, *(other.expand_as(own) for other in others)]
        outside = self.content.pv[:, :1] > 0.5
        columns = [self.content.image]
        for code in codes:
            image = paint_in_batches(generator, pv, code).cpu()
            columns.append(image.masked_fill(outside, -1.0))
        grey = torch.cat(columns, dim=1).add(1).div(2).clamp(0, 1).numpy()  # (rows, columns, X, Y)
        colour = colour_argmax(self.content.pv.numpy())[:, None]
        return np.concatenate([colour, np.repeat(grey[..., None], 3, axis=-1)], axis=1)


def paint_in_batches(generator: SPADEGenerator, pv: Tensor, codes: Tensor) -> Tensor:
    """Paint many maps without holding all their activations; map i always has the same grain."""
    draws = [SampleKey(0, i).torch(Stream.TEXTURE) for i in range(len(pv))]
    size = (pv.shape[-2], pv.shape[-1])
    painted = []
    for start in range(0, len(pv), _PAINT_BATCH):
        part = slice(start, start + _PAINT_BATCH)
        noise = draw_noise(draws[part], size).to(pv.device) if generator.grain_bands else None
        painted.append(generator(pv[part], codes[part], noise)[0].float())
    return torch.cat(painted)


def _full_slice(batches: ImageBatches, style: tuple[str, str], rank: float) -> int:
    """Return a row of one style: 0 is the slice with the most brain, 1 the one with the least."""
    rows = batches.rows_of(*style)
    order = np.argsort(-batches.brain_share(rows), kind="stable")
    return int(rows[order[min(len(rows) - 1, int(rank * len(rows)))]])
