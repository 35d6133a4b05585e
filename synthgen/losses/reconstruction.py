"""Reconstruction, perceptual and KL losses; each a float32 scalar.

Sources: Fernandez et al. 2022, arXiv:2209.08256 (terms and weights); Johnson et al. 2016,
arXiv:1603.08155 (perceptual loss); Kingma and Welling 2014, arXiv:1312.6114, appendix B (KL).
Deviation: KL is divided by the batch size, where the papers' code sums over the batch.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor
from torch.nn import functional

from synthgen.core.errors import RequestError
from synthgen.losses.adversarial import lsgan_discriminator, lsgan_generator

if TYPE_CHECKING:
    from collections.abc import Sequence

__all__ = [
    "kl_gaussian",
    "l1",
    "lsgan_discriminator",
    "lsgan_generator",
    "perceptual",
    "slice_consistency",
    "soft_cross_entropy",
]


def l1(prediction: Tensor, target: Tensor) -> Tensor:
    """Return the mean absolute difference."""
    return (prediction.float() - target.float()).abs().mean()


def perceptual(fake: Sequence[Tensor], real: Sequence[Tensor], weights: Sequence[float]) -> Tensor:
    """Return the weighted sum over layers of L1 between feature maps.

    Args:
        fake: feature maps of the fakes, one per layer.
        real: feature maps of the real images; no gradient flows into them.
        weights: one weight per layer (1/32, 1/16, 1/8, 1/4, 1 in the papers, fine to coarse).
    """
    if not len(fake) == len(real) == len(weights):
        raise RequestError(
            f"perceptual loss: {len(fake)} fake and {len(real)} real feature maps need as many "
            f"weights, got {len(weights)}"
        )
    terms = [weight * l1(f, r.detach()) for f, r, weight in zip(fake, real, weights, strict=True)]
    return torch.stack(terms).sum()


def kl_gaussian(mu: Tensor, logvar: Tensor) -> Tensor:
    """Return KL(N(mu, exp logvar) || N(0, 1)), summed over dimensions, mean over the batch.

    Args:
        mu: `(B, ...)`.
        logvar: as `mu`.
    """
    mu, logvar = mu.float(), logvar.float()
    return 0.5 * (mu.square() + logvar.exp() - logvar - 1).sum() / mu.shape[0]


def soft_cross_entropy(
    logits: Tensor, pv: Tensor, channel_weights: Sequence[float] | None = None
) -> Tensor:
    """Return cross-entropy against partial volumes, mean over batch and voxels.

    Args:
        logits: `(B, C, *S)`, before the softmax.
        pv: target `(B, C, *S)`, sum 1.
        channel_weights: factor on each channel's term, 1 by default; the mean is not renormalised.
    """
    terms = -pv.float() * functional.log_softmax(logits.float(), dim=1)
    if channel_weights is not None:
        if len(channel_weights) != pv.shape[1]:
            raise RequestError(
                f"soft cross-entropy: expected {pv.shape[1]} channel weights, "
                f"got {len(channel_weights)}"
            )
        weights = torch.tensor(list(channel_weights), device=terms.device)
        terms = terms * weights.view(1, -1, *[1] * (terms.ndim - 2))
    return terms.sum(dim=1).mean()


def slice_consistency(first: Tensor, second: Tensor) -> Tensor:
    """Return L1 between two images of the same label and style, drawn with two codes."""
    return l1(first, second)
