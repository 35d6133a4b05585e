"""Losses of the Bernoulli diffusion: the variational bound and the focal loss, one forward pass.

Source: Chen et al. 2024 (HiDiff), arXiv:2407.03548, section III: L_Diff = L_VB + lambda L_Focal;
the focal loss is Lin et al. 2017, arXiv:1708.02002. Both are in bits, float32.

Deviation: both terms use one evaluation of the network (the published code makes two), and the
prior is detached in the target, which a segmenter could otherwise move towards the prediction.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, NamedTuple, Protocol

import torch
from torch.nn import functional

if TYPE_CHECKING:
    from torch import Tensor

_LN2 = math.log(2)
_TINY = 1e-6


class Chain(Protocol):
    """What the losses need of `synthgen.diffusion.bernoulli.BernoulliScheduler`."""

    @property
    def exclusive(self) -> bool:
        """Whether the channels exclude one another."""

    def target(self, y_t: Tensor, y0: Tensor) -> Tensor:
        """Return what the network predicts."""

    def complete(self, output: Tensor, f: Tensor) -> Tensor:
        """Return the logits of what the network predicts."""

    def calibrate(self, logits: Tensor, y_t: Tensor) -> Tensor:
        """Return the predicted probabilities of y0."""

    def posterior(self, y_t: Tensor, y0: Tensor, f: Tensor, t: Tensor) -> Tensor:
        """Return the probabilities of the mask one step earlier."""


class BernoulliTerms(NamedTuple):
    """Terms of the loss, each `(B,)`, in bits a pixel (and channel, if these are independent)."""

    bound: Tensor
    focal: Tensor


def bernoulli_terms(
    chain: Chain, output: Tensor, y_t: Tensor, y0: Tensor, f: Tensor, t: Tensor, *, gamma: float
) -> BernoulliTerms:
    """Return the terms of the loss of one prediction.

    Args:
        chain: the scheduler.
        output: `(B, K, *S)` of the network at y_t.
        y_t: `(B, K, *S)`, noisy masks of 0 and 1.
        y0: `(B, K, *S)`, true masks of 0 and 1.
        f: `(B, K, *S)`, the segmenter's masks in [0, 1].
        t: `(B,)`, steps of y_t; at 0 the bound is -log2 of the likelihood of y0.
        gamma: exponent of the focal loss (2 in the paper).
    """
    logits = chain.complete(output, f)
    predicted = chain.calibrate(logits, y_t)
    first = (t == 0).reshape(-1, *(1,) * (y0.ndim - 1))
    with torch.no_grad():
        target = torch.where(first, y0.float(), chain.posterior(y_t, y0, f, t))
    mean = torch.where(first, predicted, chain.posterior(y_t, predicted, f, t))
    bound = divergence_bits(target, mean, exclusive=chain.exclusive)
    focal = focal_bits(logits, chain.target(y_t, y0), gamma, exclusive=chain.exclusive)
    return BernoulliTerms(bound, focal)


def divergence_bits(target: Tensor, predicted: Tensor, *, exclusive: bool) -> Tensor:
    """Return KL(target || predicted) `(B,)` in bits.

    Args:
        target: `(B, K, *S)` probabilities.
        predicted: `(B, K, *S)` probabilities.
        exclusive: channels are the classes of one distribution; else each is a coin of its own.
    """
    kl = _divergence(target, predicted)
    if exclusive:
        return kl.sum(1).flatten(1).mean(1) / _LN2
    return (kl + _divergence(1 - target, 1 - predicted)).flatten(1).mean(1) / _LN2


def focal_bits(logits: Tensor, target: Tensor, gamma: float, *, exclusive: bool) -> Tensor:
    """Return the focal loss `(B,)` in bits: the mean of (1 - exp(-CE)) ** gamma * CE.

    Args:
        logits: `(B, K, *S)`.
        target: `(B, K, *S)` of 0 and 1.
        gamma: exponent; 0 is the cross-entropy.
        exclusive: softmax over channels and one cross-entropy a pixel; else a sigmoid and one a
            channel.
    """
    logits, target = logits.float(), target.float()
    if exclusive:
        entropy = functional.cross_entropy(logits, target, reduction="none")
    else:
        entropy = functional.binary_cross_entropy_with_logits(logits, target, reduction="none")
    weight = (-torch.expm1(-entropy)) ** gamma
    return (weight * entropy).flatten(1).mean(1) / _LN2


def _divergence(target: Tensor, predicted: Tensor) -> Tensor:
    """Return target log(target / predicted), 0 where the target is 0."""
    return torch.xlogy(target, target) - target * predicted.clamp_min(_TINY).log()
