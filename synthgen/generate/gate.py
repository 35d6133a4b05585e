"""Which painted angiograms are kept: those whose vessels a segmenter finds, and no others.

A renderer may leave a vessel of the mask unpainted, or paint one that the mask does not hold:
both are wrong labels. The gate asks a segmenter what it sees. Bounds: a Dice of 0.8, and at most
5 % of the mask's area found further than 5 pixels from it. A sample that fails is drawn again
from its next key, tree, background and noise alike, so that sample *i* stays a pure function of
(models, seed, *i*): its first draw that passes, or the one that fails by least.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
import numpy.typing as npt
from scipy import ndimage

from synthgen.core.errors import RequestError, SchemaError

if TYPE_CHECKING:
    from collections.abc import Mapping

Floats = npt.NDArray[np.float32]
Bools = npt.NDArray[np.bool_]

MARGIN_PX = 5
"""What is found this near to the mask is not counted as painted outside."""
MANY = 0.4
"""Share of refused draws above which the model, not the luck of the draw, is to blame."""
_VESSEL = 0.5


class VesselSegmenter(Protocol):
    """Finds vessels in angiograms; each image counts alone."""

    @property
    def identity(self) -> Mapping[str, Any]:
        """All that decides what it finds."""

    @property
    def subjects(self) -> tuple[str, ...]:
        """Real subjects that it saw."""

    def segment(self, images: Floats) -> npt.ArrayLike:
        """Return the probability of vessel `(B, 1, X, Y)` of images `(B, 1, X, Y)` in [0, 1]."""


@dataclass(frozen=True)
class GateReport:
    """What a gate did to a dataset.

    Attributes:
        samples: samples in the dataset.
        draws: how often a sample was drawn, first draws included.
        rejected: draws that did not pass.
        failed: samples that were kept although none of their draws passed.
    """

    samples: int
    draws: int
    rejected: int
    failed: int

    @property
    def rate(self) -> float:
        """Share of the draws that did not pass."""
        return self.rejected / self.draws


@dataclass(frozen=True)
class Gate:
    """When an angiogram shows the vessels of its mask.

    Attributes:
        segmenter: what looks at it.
        max_attempts: draws of a sample at most; 1 measures and keeps each first draw.
        min_dice: smallest Dice of what it finds and the mask.
        max_outside: most that it may find beyond `MARGIN_PX`, as a share of the mask's area.
    """

    segmenter: VesselSegmenter
    max_attempts: int = 4
    min_dice: float = 0.8
    max_outside: float = 0.05

    def __post_init__(self) -> None:
        if self.max_attempts < 1:
            raise RequestError(f"max-attempts must be at least 1, got {self.max_attempts}")

    def measure(self, images: Floats, masks: Bools) -> Floats:
        """Return Dice, and share found outside, of B images.

        Args:
            images: `(B, 1, X, Y)` in [0, 1].
            masks: `(B, X, Y)`.

        Returns:
            `(B, 2)`. Where nothing is drawn, Dice is 1 if nothing is found, else 0, and the
            second number is the count of pixels found.

        Raises:
            SchemaError: the segmenter returned something else than probabilities.
        """
        found = np.asarray(self.segmenter.segment(images), dtype=np.float32)
        if found.shape != images.shape or not ((found >= 0) & (found <= 1)).all():
            raise SchemaError(
                f"segmenter of the gate: expected probabilities in [0, 1] of shape "
                f"{images.shape}, got {found.min():g} .. {found.max():g} of {found.shape}"
            )
        pairs = zip(found[:, 0] > _VESSEL, masks, strict=True)
        return np.asarray([_scores(seen, mask) for seen, mask in pairs], dtype=np.float32)

    def passes(self, scores: Floats) -> Bools:
        """Return which of B samples `(B, 2)` pass."""
        return np.asarray(self._shortfall(scores) == 0)

    def better(self, fresh: Floats, kept: Floats) -> Bools:
        """Return which of B fresh draws pass, or fail by less than the kept ones."""
        return np.asarray(self.passes(fresh) | (self._shortfall(fresh) < self._shortfall(kept)))

    def report(self, scores: Floats, attempts: npt.NDArray[Any]) -> GateReport:
        """Return what happened to the samples whose kept draws have these scores and attempts."""
        passed = self.passes(scores)
        draws = np.where(passed, attempts + 1, self.max_attempts)
        return GateReport(
            samples=len(passed),
            draws=int(draws.sum()),
            rejected=int(draws.sum() - passed.sum()),
            failed=int((~passed).sum()),
        )

    def identity(self) -> dict[str, Any]:
        """Return the bounds and the segmenter; they decide the bytes."""
        return {
            "segmenter": dict(self.segmenter.identity),
            "max_attempts": self.max_attempts,
            "min_dice": self.min_dice,
            "max_outside": self.max_outside,
            "margin_px": MARGIN_PX,
        }

    def _shortfall(self, scores: Floats) -> npt.NDArray[np.float64]:
        """Return how far each of B samples misses the two bounds, together; 0 where it passes."""
        dice, outside = scores.astype(np.float64).T
        missed: npt.NDArray[np.float64] = np.maximum(
            np.float32(self.min_dice) - dice, 0
        ) + np.maximum(outside - np.float32(self.max_outside), 0)
        return missed


def _scores(found: Bools, mask: Bools) -> tuple[float, float]:
    area, seen = int(mask.sum()), int(found.sum())
    if not area:
        return float(not seen), float(seen)
    far = ndimage.distance_transform_edt(~mask) > MARGIN_PX
    dice = 2 * int((found & mask).sum()) / (area + seen)
    return dice, int((found & far).sum()) / area
