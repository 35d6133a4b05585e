"""What the scores of a benchmark say: levels, differences to real data, and verdicts.

Scores are averaged over an arm's trainings for each subject before anything is compared, and the
spread of trainings stands beside each difference: one training against another of the same arm
often differs "significantly". A claim needs an interval over subjects that supports it, and a
difference of at least twice its standard error over trainings.

Which subjects count: those where Dice is defined for all trainings of all arms, so that all arms
are compared on the same ones. Where another measure is undefined in one training (no surface
distance without a prediction), the subject counts as missed there and leaves that comparison.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from synthgen.benchmark.arms import REFERENCE
from synthgen.benchmark.rows import MEASURES, Measure
from synthgen.benchmark.significance import (
    holm,
    joint_bootstrap,
    non_inferiority,
    paired_t,
    seed_spread,
    t_interval,
    unpaired_t,
    wilcoxon,
)
from synthgen.benchmark.verdict import (
    DIFFERENT,
    Gain,
    Outcome,
    caveats,
    contrast_sentence,
    level_sentence,
)
from synthgen.core.rng import SampleKey, Stream

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from synthgen.benchmark.rows import Results

ALL = "all"
"""All tissues, or all modalities, averaged for each subject."""
BOOTSTRAP_FROM = 30
_ALPHA = 0.05

Column = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Level:
    """One measure of one arm and tissue.

    Attributes:
        arm: the arm.
        tissue: the tissue, or `ALL`.
        modality: the modality, or `ALL`.
        measure: the measure.
        n: subjects.
        missed: subjects left out because a training has no value there.
        trainings: trainings (seeds).
        mean: mean over subjects, NaN without any.
        sd: standard deviation over subjects.
        low: lower end of the mean's 95 % t interval over subjects.
        high: its upper end.
        seed_sd: standard deviation over trainings of the mean over subjects.
    """

    arm: str
    tissue: str
    modality: str
    measure: str
    n: int
    missed: int
    trainings: int
    mean: float
    sd: float
    low: float
    high: float
    seed_sd: float


@dataclass(frozen=True)
class Contrast:
    """An arm minus real, one measure of one tissue; None or NaN where undefined.

    Attributes:
        arm: the arm.
        tissue: the tissue, or `ALL`.
        modality: the modality, or `ALL`.
        measure: the measure.
        n: subjects.
        trainings: trainings of the arm and of real.
        mean: of the arm.
        reference: of real, on the same subjects.
        difference: mean - reference.
        ratio: mean / reference.
        low: lower end of the difference's 95 % interval.
        high: its upper end.
        interval: "t" over subjects, "bootstrap" over subjects and trainings, or "none".
        p_paired: paired t-test.
        p_holm: the same, corrected over the tissues of this arm, modality and measure.
        p_wilcoxon: signed-rank test; None if n is too small.
        p_unpaired: the paper's unpaired t-test.
        p_non_inferior: one-sided, against the margin; only Dice has one.
        seed_se: standard error of the difference over trainings.
        outcome: what it shows.
    """

    arm: str
    tissue: str
    modality: str
    measure: str
    n: int
    trainings: tuple[int, int]
    mean: float
    reference: float
    difference: float
    ratio: float
    low: float
    high: float
    interval: str
    p_paired: float | None
    p_holm: float | None
    p_wilcoxon: float | None
    p_unpaired: float | None
    p_non_inferior: float | None
    seed_se: float
    outcome: Outcome


@dataclass(frozen=True)
class Analysis:
    """All that is computed from the rows.

    Attributes:
        levels: of every arm, tissue and measure.
        contrasts: of every arm but real.
        headlines: Dice over all tissues, for each arm but real and each modality.
        verdicts: arm to one sentence.
        warnings: what a reader must know to read the numbers right.
        margin: of non-inferiority, in Dice.
    """

    levels: tuple[Level, ...]
    contrasts: tuple[Contrast, ...]
    headlines: tuple[Contrast, ...]
    verdicts: dict[str, str]
    warnings: tuple[str, ...]
    margin: float


def analyse(results: Results) -> Analysis:
    """Compute levels, contrasts with real and verdicts."""
    table = _Table(results)
    margin = float(results.spec["margin"])
    dice = MEASURES["dice"]
    others = [a for a in results.arms if a != REFERENCE] if REFERENCE in results.arms else []
    levels: list[Level] = []
    contrasts: list[Contrast] = []
    headlines = []
    for modality in table.modalities:
        places = [(t, m) for t in results.tissues for m in MEASURES.values()] + [(ALL, dice)]
        levels.extend(table.level(a, t, modality, m) for a in results.arms for t, m in places)
        for arm in others:
            for m in MEASURES.values():
                found = [table.contrast(arm, t, modality, m, margin) for t in results.tissues]
                contrasts.extend(_corrected(found))
            headlines.append(table.contrast(arm, ALL, modality, dice, margin))
    first, smoke = table.modalities[0], results.smoke
    verdicts = {
        level.arm: level_sentence(level, smoke=smoke)
        for level in levels
        if (level.tissue, level.modality) == (ALL, first) and (level.arm == REFERENCE or not others)
    }
    verdicts |= {
        c.arm: contrast_sentence(c, margin, smoke=smoke) for c in headlines if c.modality == first
    }
    warnings = tuple(caveats(results, table.left_out))
    return Analysis(tuple(levels), tuple(contrasts), tuple(headlines), verdicts, warnings, margin)


class _Table:
    """Scores as `(subjects, trainings)`, of the subjects that count."""

    def __init__(self, results: Results) -> None:
        self._results = results
        names = results.modalities
        self.modalities = (ALL, *names) if len(names) > 1 else names
        dice = {
            tissue: np.hstack([results.scores(a, tissue, "dice", names) for a in results.arms])
            for tissue in results.tissues
        }
        self.counted = {t: np.isfinite(v.sum(axis=1)).tolist() for t, v in dice.items()}
        self.tissues = tuple(t for t in results.tissues if any(self.counted[t]))
        self.left_out = {
            tissue: tuple(s for s, c in zip(results.subjects, counted, strict=True) if not c)
            for tissue, counted in self.counted.items()
        }

    def values(self, arm: str, tissue: str, modality: str, measure: str) -> Column:
        """Return the scores of all subjects, NaN in the rows of those that do not count."""
        results = self._results
        if tissue == ALL:
            found = [self.values(arm, t, modality, measure) for t in self.tissues]
            empty = np.full((len(results.subjects), len(results.seeds(arm))), np.nan)
            return np.mean(found, axis=0) if found else empty
        names = results.modalities if modality == ALL else (modality,)
        scores = results.scores(arm, tissue, measure, names)
        return np.where(np.asarray(self.counted[tissue])[:, None], scores, np.nan)

    def level(self, arm: str, tissue: str, modality: str, measure: Measure) -> Level:
        values = self.values(arm, tissue, modality, measure.name)
        complete = np.isfinite(values).all(axis=1)
        possible = len(values) if tissue == ALL else sum(self.counted[tissue])
        kept = values[complete]
        means = kept.mean(axis=1)
        low, high = t_interval(means)
        return Level(
            arm=arm,
            tissue=tissue,
            modality=modality,
            measure=measure.name,
            n=len(kept),
            missed=possible - len(kept),
            trainings=values.shape[1],
            mean=float(means.mean()) if len(kept) else math.nan,
            sd=float(means.std(ddof=1)) if len(kept) > 1 else math.nan,
            low=low,
            high=high,
            seed_sd=seed_spread(kept) if len(kept) else math.nan,
        )

    def contrast(
        self, arm: str, tissue: str, modality: str, measure: Measure, margin: float
    ) -> Contrast:
        """Compare an arm with real, without the correction over tissues."""
        first, second = (self.values(a, tissue, modality, measure.name) for a in (arm, REFERENCE))
        complete = np.isfinite(np.hstack([first, second])).all(axis=1)
        first, second = first[complete], second[complete]
        a, b = first.mean(axis=1), second.mean(axis=1)
        n = len(a)
        low, high = t_interval(a - b)
        interval = "t" if n > 1 else "none"
        if tissue == ALL and n >= BOOTSTRAP_FROM:
            rng = SampleKey(0, 0).numpy(Stream.EVALUATE)
            (low, high), interval = joint_bootstrap(first, second, rng), "bootstrap"
        mean, reference = (float(v.mean()) if n else math.nan for v in (a, b))
        spreads = [seed_spread(v) / v.shape[1] ** 0.5 if n else math.nan for v in (first, second)]
        limit = margin if measure.name == "dice" else None
        ends = (mean - reference, low, high) if measure.higher else (reference - mean, -high, -low)
        gain = Gain(*ends, n=n, seed_se=math.hypot(*spreads), margin=limit)
        return Contrast(
            arm=arm,
            tissue=tissue,
            modality=modality,
            measure=measure.name,
            n=n,
            trainings=(first.shape[1], second.shape[1]),
            mean=mean,
            reference=reference,
            difference=mean - reference,
            ratio=mean / reference if reference else math.nan,
            low=low,
            high=high,
            interval=interval,
            p_paired=paired_t(a, b),
            p_holm=None,
            p_wilcoxon=wilcoxon(a, b),
            p_unpaired=unpaired_t(a, b),
            p_non_inferior=None if limit is None else non_inferiority(a - b, limit),
            seed_se=gain.seed_se,
            outcome=gain.outcome(),
        )


def _corrected(contrasts: Sequence[Contrast]) -> Iterator[Contrast]:
    """Correct over tissues; a difference that does not survive is not claimed."""
    adjusted = holm([contrast.p_paired for contrast in contrasts])
    for contrast, p in zip(contrasts, adjusted, strict=True):
        lost = contrast.outcome in DIFFERENT and p is not None and p >= _ALPHA
        outcome = Outcome.CORRECTED if lost else contrast.outcome
        yield replace(contrast, p_holm=p, outcome=outcome)
