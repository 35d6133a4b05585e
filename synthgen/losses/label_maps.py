"""Losses between partial-volume maps, and the least-squares GAN terms of their autoencoder.

The paper's autoencoder (Fernandez et al. 2022, arXiv:2209.08256; weights from its code) uses
L1, KL, LPIPS and LSGAN. LPIPS needs downloaded weights, so `multi_resolution_l1` stands in for
it: a deliberate deviation, not the same loss. All reduce in float32.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch.nn import functional

if TYPE_CHECKING:
    from collections.abc import Sequence


def soft_cross_entropy(
    logits: torch.Tensor, pv: torch.Tensor, channel_weights: torch.Tensor
) -> torch.Tensor:
    """Return the mean over pixels of `w sum_c pv_c log(pv_c / softmax(logits)_c)`.

    The pixel's weight is `w = sum_c w_c pv_c`. A weight on each term of the sum instead would
    pull the optimum away from `pv`, to `w_c pv_c` up to a factor. The entropy of the target is
    taken off, so that a perfect fit gives 0.

    Args:
        logits: `(B, C, X, Y)`.
        pv: target `(B, C, X, Y)`, sums to 1.
        channel_weights: `(C,)`.
    """
    pv = pv.float()
    log_ratio = torch.log(pv.clamp_min(1e-12)) - functional.log_softmax(logits.float(), dim=1)
    weight = (channel_weights.view(1, -1, 1, 1) * pv).sum(dim=1)
    return (weight * (pv * log_ratio).sum(dim=1)).mean()


def weighted_l1(
    pv_out: torch.Tensor, pv: torch.Tensor, channel_weights: torch.Tensor
) -> torch.Tensor:
    """Return the mean over all elements of `w_c * |out - target|`, `(B, C, X, Y)` each."""
    gap = (pv_out.float() - pv.float()).abs()
    return (channel_weights.view(1, -1, 1, 1) * gap).mean()


def multi_resolution_l1(
    pv_out: torch.Tensor, pv: torch.Tensor, factors: Sequence[int] = (1, 2, 4, 8)
) -> torch.Tensor:
    """Return the L1 of maps and of their gradients, averaged over resolutions.

    Args:
        pv_out: `(B, C, X, Y)`.
        pv: target of the same shape; X and Y divisible by every factor, and at least twice it.
        factors: average-pooling factors.
    """
    total = pv_out.new_zeros((), dtype=torch.float32)
    for factor in factors:
        gap = functional.avg_pool2d(pv_out.float() - pv.float(), factor)
        total = total + gap.abs().mean()
        total = total + gap.diff(dim=-1).abs().mean() + gap.diff(dim=-2).abs().mean()
    return total / len(factors)


def kl_to_standard_normal(mu: torch.Tensor, logvar: torch.Tensor) -> torch.Tensor:
    """Return `1/2 sum(mu^2 + sigma^2 - log sigma^2 - 1)` per sample, averaged over the batch."""
    mu, logvar = mu.float(), logvar.float()
    terms = mu.square() + logvar.exp() - logvar - 1
    return 0.5 * terms.flatten(1).sum(dim=1).mean()


def least_squares(logits: torch.Tensor, target: float) -> torch.Tensor:
    """Return `mean((logits - target)^2)` (Mao et al. 2017, arXiv:1611.04076), no activation."""
    return (logits.float() - target).square().mean()


def feature_l1(
    features_out: Sequence[torch.Tensor], features: Sequence[torch.Tensor]
) -> torch.Tensor:
    """Return the L1 between two lists of feature maps, averaged; the target is detached."""
    gaps = [
        (a.float() - b.detach().float()).abs().mean()
        for a, b in zip(features_out, features, strict=True)
    ]
    return torch.stack(gaps).mean()
