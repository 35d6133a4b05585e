"""Texture: the energy of the fine bands of an image, tissue by tissue.

A discriminator needs many steps to ask for texture, and losses between an image and its
reconstruction ask for none at all: what the label does not tell is averaged away. The energy of a
Laplacian pyramid's bands (Burt and Adelson 1983, doi:10.1109/TCOM.1983.1095851) asks for how much
of it there is, not where. It is measured inside the tissues: at their borders it would be that of
the borders, and grain would be asked to stand in for them.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

_BANDS = 2
_SMALLEST_ENERGY = 1e-4
_SMALLEST_AREA = 32.0


def band_energy(fake: Tensor, real: Tensor, pv: Tensor) -> Tensor:
    """Return the mean |log ratio| of the root energies of two images, over bands and tissues.

    Band b is the image at 1/2**b of its size less its own average over 2 x 2 pixels, enlarged.
    A band's energy in a tissue is its mean square; a pixel weighs 2 v - 1, v the least partial
    volume of the tissue among it and its eight neighbours, and nothing below v = 1/2.

    Args:
        fake: `(B, 1, X, Y)` in [-1, 1], X and Y divisible by 8.
        real: as `fake`; no gradient flows into it.
        pv: `(B, C, X, Y)`, background first; a tissue of less weight than 32 pixels
            does not count.

    Returns:
        A float32 scalar; 0 where no tissue counts.

    Examples:
        >>> image, pv = torch.randn(1, 1, 32, 32), torch.ones(1, 2, 32, 32)
        >>> pv[:, 0] = 0
        >>> round(float(band_energy(image, image, pv)), 4)
        0.0
        >>> bool(band_energy(image / 2, image, pv) > 0.5)
        True
    """
    images = torch.cat([fake.float(), real.detach().float()], dim=1)
    terms: list[Tensor] = []
    with torch.autocast(fake.device.type, enabled=False):
        for _ in range(_BANDS):
            smaller = functional.avg_pool2d(images, 2)
            back = functional.interpolate(smaller, scale_factor=2, mode="bilinear")
            energy = (images - back).square()  # (B, 2, x, y)
            tissue = functional.interpolate(pv.float(), size=images.shape[-2:], mode="area")
            least = -functional.max_pool2d(-tissue[:, 1:], 3, 1, 1)
            tissue = (2 * least - 1).clamp_min(0)
            area = tissue.sum(dim=(2, 3))  # (B, C - 1)
            per_tissue = torch.einsum("bixy,bcxy->ibc", energy, tissue) / area.clamp_min(1)
            logs = (per_tissue + _SMALLEST_ENERGY).log() / 2
            terms.append((logs[0] - logs[1]).abs()[area >= _SMALLEST_AREA])
            images = smaller
    found = torch.cat(terms)
    return found.sum() / max(1, found.numel())
