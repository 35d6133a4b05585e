"""Losses of diffusion segmenters: Dice, cross-entropy and focal, one number a sample.

Dice is that of Wang et al. 2023 (Dice semimetric losses, arXiv:2303.16296, DML1), which for hard
labels is the usual soft Dice 1 - 2 sum(p y) / sum(p + y), and for partial volumes is least where
p = y; the usual one would be least at hard edges. Focal: Lin et al. 2017 (arXiv:1708.02002),
without alpha. Weights of ImgX: Fu et al. 2023 (arXiv:2303.06040, arXiv:2308.16355).
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional


@dataclass(frozen=True)
class SegmentationWeights:
    """Weights of the terms.

    Attributes:
        dice: of the Dice loss.
        cross_entropy: of the cross-entropy.
        focal: of the focal loss.
        gamma: exponent of the focal loss; 0 makes it the cross-entropy.
    """

    dice: float
    cross_entropy: float
    focal: float
    gamma: float


def segmentation_loss(
    logits: Tensor, soft: Tensor, weights: SegmentationWeights, *, exclusive: bool
) -> Tensor:
    """Return the loss of each sample, float32 `(B,)`.

    Cross-entropy and focal loss are sums over classes and means over points.

    Args:
        logits: `(B, C, *S)`.
        soft: labels `(B, C, *S)` in [0, 1].
        weights: of the terms; those of weight 0 are not computed.
        exclusive: whether labels sum to 1 over C, the background first: softmax, and no Dice of
            the background. Else each class is a region of its own: sigmoid, all in the Dice.
    """
    logits, soft = logits.float(), soft.float()
    if exclusive:
        log_p = functional.log_softmax(logits, dim=1)
        terms = [(log_p, soft)]
    else:
        log_p = functional.logsigmoid(logits)
        terms = [(log_p, soft), (functional.logsigmoid(-logits), 1 - soft)]
    total = logits.new_zeros(logits.shape[0])
    if weights.dice:
        first = 1 if exclusive else 0
        total = total + weights.dice * dice_loss(log_p.exp()[:, first:], soft[:, first:])
    if weights.cross_entropy:
        surprise = sum((-log_q * y for log_q, y in terms), start=torch.zeros_like(soft))
        total = total + weights.cross_entropy * _per_point(surprise)
    if weights.focal:
        hard = sum(
            (-log_q * y * (1 - log_q.exp()) ** weights.gamma for log_q, y in terms),
            start=torch.zeros_like(soft),
        )
        total = total + weights.focal * _per_point(hard)
    return total


def dice_loss(p: Tensor, soft: Tensor) -> Tensor:
    """Return the mean Dice loss of the classes that a sample shows, `(B,)`; 0 if it shows none.

    With a = sum |p - y| and b = sum(p + y) over points, a / b.

    Args:
        p: probabilities `(B, C, *S)`.
        soft: labels of the same shape; a class without a label anywhere is left out.
    """
    size = soft.flatten(2).sum(dim=2)  # (B, C)
    present = size > 0
    gap = (p - soft).abs().flatten(2).sum(dim=2)
    both = torch.where(present, p.flatten(2).sum(dim=2) + size, 1.0)
    losses = torch.where(present, gap / both, 0.0)
    return losses.sum(dim=1) / present.sum(dim=1).clamp_min(1)


def _per_point(values: Tensor) -> Tensor:
    """Sum over classes and average over points: `(B, C, *S)` to `(B,)`."""
    return values.sum(dim=1).flatten(1).mean(dim=1)
