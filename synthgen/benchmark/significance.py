"""Tests and intervals on paired scores, with their edge cases decided.

Volumes are the same for all arms, so differences are paired by subject (Student 1908). Below 30
subjects the t interval is used, because a bootstrap then covers too little (.85 to .89 of a nominal
.95 at 5 to 20 subjects); Wilcoxon's (1945) exact test cannot reach .05 below 6. Several tissues are
corrected by Holm's method (1979). "As good as" is a test of its own, of non-inferiority against a
margin that was fixed beforehand: p > .05 in a test of difference shows nothing.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt
from scipy import stats

if TYPE_CHECKING:
    from collections.abc import Sequence

Column = npt.NDArray[np.float64]

CONFIDENCE = 0.95
WILCOXON_FROM = 6
"""With fewer subjects the smallest two-sided exact p is .0625."""
_RESAMPLES = 10_000
_BATCH = 500


def t_interval(values: Column) -> tuple[float, float]:
    """Return the t interval of the mean of `(n,)`; NaN below two values."""
    n = len(values)
    if n < 2:
        return math.nan, math.nan
    half = float(stats.t.ppf((1 + CONFIDENCE) / 2, n - 1)) * float(values.std(ddof=1)) / n**0.5
    mean = float(values.mean())
    return mean - half, mean + half


def paired_t(first: Column, second: Column) -> float | None:
    """Return the two-sided p of the paired t-test; None where the differences do not vary."""
    if not _varies(first - second):
        return None
    return float(stats.ttest_rel(first, second).pvalue)


def unpaired_t(first: Column, second: Column) -> float | None:
    """Return the two-sided p of Student's unpaired t-test; None where neither group varies.

    This is the test in the released code of Fernandez et al. 2022 (`scipy.stats.ttest_ind`). It
    ignores that both groups are the same subjects, and so misses most differences.
    """
    if not (_varies(first) or _varies(second)):
        return None
    moments = [(v.mean(), v.std(ddof=1), len(v)) for v in (first, second)]
    return float(stats.ttest_ind_from_stats(*moments[0], *moments[1]).pvalue)


def wilcoxon(first: Column, second: Column) -> float | None:
    """Return the two-sided p of the signed-rank test; None where n is too small.

    Subjects without a difference are left out (Wilcoxon's own rule); if none differs, p is 1.
    """
    differences = first - second
    if len(differences) < WILCOXON_FROM:
        return None
    different = differences[differences != 0]
    if not different.size:
        return 1.0
    if different.size < WILCOXON_FROM:
        return None
    return float(stats.wilcoxon(different).pvalue)


def non_inferiority(gains: Column, margin: float) -> float | None:
    """Return the one-sided p of "the mean gain is above -margin"; None where gains do not vary."""
    if not _varies(gains):
        return None
    return float(stats.ttest_1samp(gains, -margin, alternative="greater").pvalue)


def holm(p_values: Sequence[float | None]) -> list[float | None]:
    """Return p values adjusted by Holm's step-down method; those that are None stay out.

    Examples:
        >>> holm([0.01, 0.04, 0.03, 0.005])
        [0.03, 0.06, 0.06, 0.02]
        >>> holm([None, 0.02])
        [None, 0.02]
    """
    known = sorted((p, place) for place, p in enumerate(p_values) if p is not None)
    adjusted: list[float | None] = [None] * len(p_values)
    highest = 0.0
    for rank, (p, place) in enumerate(known):
        highest = max(highest, min(1.0, (len(known) - rank) * p))
        adjusted[place] = highest
    return adjusted


def joint_bootstrap(first: Column, second: Column, rng: np.random.Generator) -> tuple[float, float]:
    """Return the percentile interval of mean(first) - mean(second) over subjects and trainings.

    Subjects are drawn for both arms together, trainings for each arm on its own.

    Args:
        first: `(n, k)` scores of n subjects by k trainings.
        second: `(n, m)` scores of the same subjects.
        rng: decides the draws.
    """
    found = []
    for _ in range(0, _RESAMPLES, _BATCH):
        subjects = _weights(rng, len(first))
        means = [
            np.einsum("bn,nk,bk->b", subjects, values, _weights(rng, values.shape[1]))
            for values in (first, second)
        ]
        found.append(means[0] - means[1])
    tail = 50 * (1 - CONFIDENCE)
    low, high = np.percentile(np.concatenate(found), [tail, 100 - tail])
    return float(low), float(high)


def _weights(rng: np.random.Generator, n: int) -> Column:
    """Return the weights `(batch, n)` of draws with replacement; each row sums to 1."""
    return rng.multinomial(n, np.full(n, 1 / n), size=_BATCH) / n


def seed_spread(values: Column) -> float:
    """Return the standard deviation over trainings of the mean over subjects, of `(n, k)`.

    NaN with a single training.
    """
    return float(values.mean(axis=0).std(ddof=1)) if values.shape[1] > 1 else math.nan


def _varies(values: Column) -> bool:
    """Tell whether there are two values that differ by more than rounding."""
    return len(values) > 1 and bool(np.ptp(values) > 1e-12)
