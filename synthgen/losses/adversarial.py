"""Adversarial losses over several discriminator scales.

Sources: hinge, Lim and Ye 2017, arXiv:1705.02894; least squares, Mao et al. 2017,
arXiv:1611.04076; feature matching, Wang et al. 2018, arXiv:1711.11585. Weights as in Fernandez et
al. 2022, arXiv:2209.08256 are the caller's. Every loss is a float32 scalar, averaged within a
scale and then over scales, so that it depends neither on the batch size nor on their number.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor

from synthgen.core.errors import RequestError

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence


def scale_logits(outputs: Sequence[Sequence[Tensor]]) -> list[Tensor]:
    """Return the logits of each scale, the last entry of a pyramid discriminator's features."""
    return [features[-1] for features in outputs]


def hinge_discriminator(real: Sequence[Tensor], fake: Sequence[Tensor]) -> Tensor:
    """Return mean max(0, 1 - real) + mean max(0, 1 + fake), averaged over scales.

    Args:
        real: logits of real images, one tensor of any shape per scale.
        fake: logits of fakes.

    Examples:
        >>> real, fake = torch.tensor([-3.0, -0.5, 0.5, 3.0]), torch.tensor([-2.0])
        >>> float(hinge_discriminator([real], [fake]))
        1.5
    """
    return _over_scales(lambda x: (1 - x).clamp_min(0), real) + _over_scales(
        lambda x: (1 + x).clamp_min(0), fake
    )


def hinge_generator(fake: Sequence[Tensor]) -> Tensor:
    """Return -mean fake, averaged over scales; its gradient does not fade when D wins."""
    return _over_scales(torch.neg, fake)


def lsgan_discriminator(real: Sequence[Tensor], fake: Sequence[Tensor]) -> Tensor:
    """Return half of mean (real - 1)^2 + mean fake^2, averaged over scales."""
    return 0.5 * (_over_scales(lambda x: (x - 1).square(), real) + _over_scales(torch.square, fake))


def lsgan_generator(fake: Sequence[Tensor]) -> Tensor:
    """Return mean (fake - 1)^2, averaged over scales."""
    return _over_scales(lambda x: (x - 1).square(), fake)


def feature_matching(fake: Sequence[Sequence[Tensor]], real: Sequence[Sequence[Tensor]]) -> Tensor:
    """Return the sum over layers of L1(fake, real), all layers but the logits, over num scales.

    Args:
        fake: features of a pyramid discriminator on fakes, per scale and layer.
        real: the same on real images; no gradient flows into them.
    """
    if len(fake) != len(real) or not fake:
        raise RequestError(f"feature matching: {len(fake)} fake scales, {len(real)} real scales")
    layers = [
        (f.float() - r.detach().float()).abs().mean()
        for fake_scale, real_scale in zip(fake, real, strict=True)
        for f, r in zip(fake_scale[:-1], real_scale[:-1], strict=True)
    ]
    return torch.stack(layers).sum() / len(fake)


def _over_scales(term: Callable[[Tensor], Tensor], logits: Sequence[Tensor]) -> Tensor:
    if not logits:
        raise RequestError("adversarial loss: expected the logits of at least one scale, got none")
    return torch.stack([term(scale.float()).mean() for scale in logits]).mean()
