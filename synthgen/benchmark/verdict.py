"""What a comparison with real data shows, in words, and what a reader must be warned of."""

from __future__ import annotations

import math
from dataclasses import dataclass
from enum import StrEnum
from typing import TYPE_CHECKING

import numpy as np

from synthgen.benchmark.arms import REFERENCE
from synthgen.benchmark.rows import NOT_A_RESULT
from synthgen.benchmark.significance import CONFIDENCE, WILCOXON_FROM
from synthgen.benchmark.spec import listed

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from synthgen.benchmark.rows import Results
    from synthgen.benchmark.statistics import Contrast, Level

AT_LEAST = 3
"""Fewest subjects that a claim needs."""
_NOISE = 2.0
"""A claim needs this many standard errors over trainings."""
_ROUNDING = 1e-12
_HOLM_FROM = 8
_TRAININGS = 3


class Outcome(StrEnum):
    """What a comparison with real data shows."""

    BETTER = "better than real"
    AS_GOOD = "not worse than real by more than the margin"
    WORSE_WITHIN = "worse than real, by less than the margin"
    WORSE = "worse than real"
    TOO_FEW = "too few subjects to tell"
    CORRECTED = "inconclusive: not significant after Holm's correction"
    NOISE = "inconclusive: within the noise between trainings"
    ONE_TRAINING = "inconclusive: one training of an arm is no comparison"
    NO_SPREAD = "inconclusive: all subjects differ by the same"

    def words(self, margin: float) -> str:
        """Return the outcome with the margin's value."""
        return self.value.replace("the margin", f"the margin of {margin:g}")


DIFFERENT = {Outcome.BETTER, Outcome.WORSE, Outcome.WORSE_WITHIN}


@dataclass(frozen=True)
class Gain:
    """How much better than real an arm is; positive is better, whatever the measure.

    Attributes:
        value: the difference.
        low: lower end of its interval over subjects.
        high: its upper end.
        n: subjects.
        seed_se: its standard error over trainings; NaN if an arm was trained once.
        margin: of non-inferiority; None if the measure has none.
    """

    value: float
    low: float
    high: float
    n: int
    seed_se: float
    margin: float | None = None

    def outcome(self) -> Outcome:
        """Return what the interval supports, if the noise between trainings leaves it standing.

        The interval may cover both no difference and the margin: then the subjects are too few
        to tell. A claim stands if the difference lies at least two standard errors over trainings
        from what it excludes: 0 for a difference, -margin for non-inferiority.

        Examples:
            >>> Gain(-0.03, -0.04, -0.02, n=20, seed_se=0.004, margin=0.01).outcome().value
            'worse than real'
            >>> Gain(-0.002, -0.006, 0.002, n=20, seed_se=0.002, margin=0.01).outcome().value
            'not worse than real by more than the margin'
            >>> Gain(-0.002, -0.03, 0.026, n=5, seed_se=0.002, margin=0.01).outcome().value
            'too few subjects to tell'
        """
        return self._untellable() or self._claim()

    def _untellable(self) -> Outcome | None:
        if self.n < AT_LEAST:
            return Outcome.TOO_FEW
        if self.high - self.low <= _ROUNDING:
            return Outcome.NO_SPREAD
        if self.low <= 0 <= self.high and not self._above_margin():
            return Outcome.TOO_FEW
        return Outcome.ONE_TRAINING if math.isnan(self.seed_se) else None

    def _claim(self) -> Outcome:
        noise = _NOISE * self.seed_se
        within = self._above_margin(noise)
        if self.low <= 0 <= self.high:
            return Outcome.AS_GOOD if within else Outcome.NOISE
        if abs(self.value) < noise:
            return Outcome.NOISE
        if self.value > 0:
            return Outcome.BETTER
        return Outcome.WORSE_WITHIN if within else Outcome.WORSE

    def _above_margin(self, noise: float = 0.0) -> bool:
        if self.margin is None:
            return False
        return self.low > -self.margin and self.value + self.margin >= noise


def contrast_sentence(contrast: Contrast, margin: float, *, smoke: bool) -> str:
    """Return the verdict on an arm in one sentence, with its interval."""
    c = contrast
    if not c.n:
        text = "nothing to compare, because no subject has every tissue in every training"
        return _stamped(f"{c.arm}: {text}.", smoke=smoke)
    interval = (
        f"{CONFIDENCE:.0%} {c.interval} interval {c.low:+.3f} to {c.high:+.3f} over {c.n} subjects"
        if c.n > 1
        else "no interval from 1 subject"
    )
    noise = (
        f"one training in {'each arm' if max(c.trainings) == 1 else 'an arm'}"
        if math.isnan(c.seed_se)
        else f"standard error over {c.trainings[0]} and {c.trainings[1]} trainings {c.seed_se:.3f}"
    )
    return _stamped(
        f"{c.arm}: {c.outcome.words(margin)}; mean Dice {c.mean:.3f} against {c.reference:.3f} of "
        f"{REFERENCE}, difference {c.difference:+.3f} ({interval}; {noise}).",
        smoke=smoke,
    )


def level_sentence(level: Level, *, smoke: bool) -> str:
    """Return what one arm reached, where there is nothing to compare it with."""
    interval = (
        f"{CONFIDENCE:.0%} t interval {level.low:.3f} to {level.high:.3f} over {level.n} subjects"
        if level.n > 1
        else f"no interval from {level.n} subject"
    )
    trainings = f"{level.trainings} training{'s' * (level.trainings > 1)}"
    text = f"{level.arm}: mean Dice {level.mean:.3f} ({interval}; {trainings})."
    return _stamped(text, smoke=smoke)


def _stamped(text: str, *, smoke: bool) -> str:
    return f"{NOT_A_RESULT} (smoke budget): {text}" if smoke else text


def caveats(results: Results, left_out: Mapping[str, tuple[str, ...]]) -> Iterator[str]:
    """Yield what a reader must know to read the numbers right.

    Args:
        results: the rows.
        left_out: tissue to the subjects that do not count for it.
    """
    if REFERENCE not in results.arms:
        yield f"No training of the arm '{REFERENCE}' has finished: nothing to compare with."
    yield from _few(results)
    for tissue, subjects in left_out.items():
        if subjects:
            yield (
                f"{tissue}: {listed(subjects, 5)} left out for all arms, because the tissue is "
                "neither there nor predicted in some training."
            )
    yield from _never_learnt(results)


def _few(results: Results) -> Iterator[str]:
    n, arms = len(results.subjects), results.arms
    if n < _HOLM_FROM:
        what = "reach .05" if n < WILCOXON_FROM else "stay below .05 after a correction over 6"
        yield f"{n} test subject{'s' * (n > 1)}: Wilcoxon's test cannot {what} here."
    short = [f"{arm} {len(results.seeds(arm))}" for arm in arms]
    if any(len(results.seeds(arm)) < _TRAININGS for arm in arms):
        yield (
            f"Fewer than {_TRAININGS} trainings of some arm ({', '.join(short)}): the noise "
            "between trainings is hardly known."
        )


def _never_learnt(results: Results) -> Iterator[str]:
    for arm in results.arms:
        for tissue in results.tissues:
            scores = results.scores(arm, tissue, "dice", results.modalities)
            for seed, dice in zip(results.seeds(arm), scores.T, strict=True):
                known = dice[np.isfinite(dice)]
                if known.size and not known.any():
                    yield f"{arm} seed {seed} never found {tissue}: Dice 0 in every subject."
