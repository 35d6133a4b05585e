"""Even contrast: what a network sees of a picture does not depend on its exposure.

Retina photographs are dark, and their vessels differ from what surrounds them by a tenth of the
range: noise that an X-ray picture bears would drown them.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

_SEEN = -0.94
"""Value above which a pixel belongs to the field of view, on [-1, 1]."""
_REACH = 3.5
"""Standard deviations about the mean that fill the range."""
_FLATTEST = 0.02


class Evened(NamedTuple):
    """Pictures of even contrast, and what they were before.

    Attributes:
        images: `(B, 1, X, Y)` in [-1, 1], mean 0 and a standard deviation of 1 / 3.5 where the
            field of view is, -1 outside.
        middle: `(B, 1, 1, 1)` mean before.
        reach: `(B, 1, 1, 1)` 3.5 standard deviations before.
        seen: `(B, 1, X, Y)` where the field of view is.
    """

    images: Tensor
    middle: Tensor
    reach: Tensor
    seen: Tensor

    def back(self, images: Tensor, originals: Tensor) -> Tensor:
        """Give changed pictures the contrast that the originals had.

        What evening cut off the originals is put back, so that unchanged pictures come back whole.
        """
        lost = originals - (self.images * self.reach + self.middle)
        return images * self.reach + self.middle + lost


def even(images: Tensor) -> Evened:
    """Spread pictures `(B, 1, X, Y)` in [-1, 1] over the range, each by its own statistics.

    Examples:
        >>> picture = torch.linspace(-0.8, -0.6, 64).reshape(1, 1, 8, 8)
        >>> found = even(picture)
        >>> bool(found.images.mean().abs() < 1e-5), float(found.images.std()) > 0.25
        (True, True)
    """
    bright = images > _SEEN
    seen = bright.to(images.dtype)
    count = seen.sum((2, 3), keepdim=True).clamp_min(1)
    middle = (images * seen).sum((2, 3), keepdim=True) / count
    spread = ((images - middle).square() * seen).sum((2, 3), keepdim=True) / count
    reach = (_REACH * spread.sqrt()).clamp_min(_FLATTEST)
    spread_out = ((images - middle) / reach).clamp(-1, 1)
    return Evened(torch.where(bright, spread_out, -1.0), middle, reach, bright)
