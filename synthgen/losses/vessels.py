"""Losses between vessel masks, and of painted angiograms; each a float32 scalar.

Sources: clDice, Shit et al. 2021, arXiv:2003.07311 (MONAI's implementation); the cycle loss of
DARL (Kim et al. 2023, arXiv:2209.14566) is `losses.reconstruction.l1` on [-1, 1]. Masks and
images are `(B, 1, X, Y)` in [-1, 1], -1 background and 1 vessel.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from torch.nn import functional

from synthgen.core.errors import RequestError

if TYPE_CHECKING:
    from torch import Tensor

_SMOOTH = 1.0


def soft_dice(prediction: Tensor, target: Tensor) -> Tensor:
    """Return 1 - (2 sum p t + 1) / (sum p + sum t + 1), mean over the batch.

    Two empty masks agree: 0.

    Args:
        prediction: `(B, 1, X, Y)` in [-1, 1].
        target: as `prediction`.
    """
    p, t = _probability(prediction).flatten(1), _probability(target).flatten(1)
    overlap = 2 * (p * t).sum(dim=1) + _SMOOTH
    return (1 - overlap / (p.sum(dim=1) + t.sum(dim=1) + _SMOOTH)).mean()


def centreline_dice(prediction: Tensor, target: Tensor, iterations: int) -> Tensor:
    """Return 1 - clDice, the agreement of each mask with the centreline of the other.

    Args:
        prediction: `(B, 1, X, Y)` in [-1, 1].
        target: as `prediction`.
        iterations: erosions; more than the largest vessel radius in pixels, or the centreline of
            wide vessels is lost (6 at 256^2 and 11 at 512^2 for coronary arteries).
    """
    from monai.losses.cldice import SoftclDiceLoss  # noqa: PLC0415 - slow to import

    loss: Tensor = SoftclDiceLoss(iter_=iterations)(_probability(prediction), _probability(target))
    return loss


def ramp(step: int, start: int, length: int) -> float:
    """Return 0 up to step `start`, 1 from `start + length`, a straight line between.

    Examples:
        >>> [ramp(step, 10, 20) for step in (0, 10, 20, 30, 99)]
        [0.0, 0.0, 0.5, 1.0, 1.0]
    """
    return min(max((step - start) / max(length, 1), 0.0), 1.0)


def background_preservation(
    painted: Tensor, background: Tensor, mask: Tensor, *, margin: int, weights: Tensor
) -> Tensor:
    """Return the mean |painted - background| outside the vessels, weighted by sample.

    Args:
        painted: `(B, 1, X, Y)`, the generator's angiogram.
        background: `(B, 1, X, Y)`, what it was painted on; no gradient flows into it.
        mask: `(B, 1, X, Y)`; a pixel belongs to the vessels where it is above -1.
        margin: pixels around the vessels that do not count either.
        weights: `(B,)`, factor of each sample, 0 where its background was drowned in noise.

    Raises:
        RequestError: margin is negative.
    """
    if margin < 0:
        raise RequestError(f"background preservation: expected a margin >= 0, got {margin}")
    vessels = functional.max_pool2d(mask.float(), 2 * margin + 1, stride=1, padding=margin)
    outside = (vessels <= -1).float()
    gap = (painted.float() - background.detach().float()).abs() * outside
    mean = gap.sum(dim=(1, 2, 3)) / outside.sum(dim=(1, 2, 3)).clamp_min(1)
    return (weights.float() * mean).mean()


def _probability(mask: Tensor) -> Tensor:
    """Return a mask on [0, 1] in float32."""
    return (mask.float() + 1) / 2
