"""Even contrast: what a network sees of a picture does not depend on its exposure.

Retina photographs are dark, and their vessels differ from what surrounds them by a tenth of the
range: noise that an X-ray picture bears would drown them.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional

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
        middle: `(B, 1, 1, 1)` mean before, or `(B, 1, X, Y)` that of each pixel's neighbourhood.
        reach: what filled the range before, likewise.
        seen: `(B, 1, X, Y)` where the field of view is.
    """

    images: Tensor
    middle: Tensor
    reach: Tensor
    seen: Tensor

    def back(self, images: Tensor, originals: Tensor) -> Tensor:
        """Make on the originals what changed pictures `(B, 1, X, Y)` of even contrast changed.

        Unchanged pictures come back whole, what evening cut off included.
        """
        return originals + self.reach * (images - self.images)

    @property
    def share(self) -> Tensor:
        """The reach as a share of the mean brightness, `(B, 1, 1, 1)`; brightness is 0 at -1."""
        return self.reach / (self.middle + 1).clamp_min(1e-3)


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
    return _evened(images, bright, middle, (_REACH * spread.sqrt()).clamp_min(_FLATTEST))


def even_locally(images: Tensor, window: int, share: float) -> Evened:
    """Spread whole pictures `(B, 1, X, Y)` in [-1, 1] as crops of real angiograms are spread.

    Vessel-free ground has too little contrast of its own to go by, and a bright disc too much: the
    reach is a share of the local brightness, so that a change of 1 is an attenuation.

    Args:
        images: pictures.
        window: side of the square around each pixel whose mean brightness counts.
        share: the typical `Evened.share` of real crops of that side.
    """
    bright = images > _SEEN
    seen = bright.to(images.dtype)
    count = _local_mean(seen, window).clamp_min(1e-6)
    middle = _local_mean(images * seen, window) / count
    return _evened(images, bright, middle, (share * (middle + 1)).clamp_min(_FLATTEST))


def _evened(images: Tensor, bright: Tensor, middle: Tensor, reach: Tensor) -> Evened:
    spread_out = ((images - middle) / reach).clamp(-1, 1)
    return Evened(torch.where(bright, spread_out, -1.0), middle, reach, bright)


def _local_mean(images: Tensor, window: int) -> Tensor:
    """Return the mean of the square around each pixel, zeros beyond the edge."""
    half = window // 2
    rows = functional.avg_pool2d(images, (2 * half + 1, 1), stride=1, padding=(half, 0))
    return functional.avg_pool2d(rows, (1, 2 * half + 1), stride=1, padding=(0, half))
