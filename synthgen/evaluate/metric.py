"""A number beside its reference: the same metric between two real halves, split by subject.

A metric alone says little: a Fréchet distance of 12 may be good or bad, and depends on the number
of samples. Every number here stands beside its floor, which is what the metric gives between two
disjoint groups of real subjects, at the same number of samples.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any, Literal, assert_never

import numpy as np
import numpy.typing as npt

from synthgen.core.errors import RequestError
from synthgen.core.rng import SampleKey, Stream

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

Verdict = Literal["good", "fair", "poor"]
Better = Literal["lower", "higher", "equal"]
Rows = npt.NDArray[np.float64]
DRAWS = 20
FAIR = 3.0
"""Up to this many times the distance of the floor from its ideal, a number is still fair."""


@dataclass(frozen=True)
class Metric:
    """A number of a generated set, and the same number of real data.

    Attributes:
        name: unique, such as `fidelity/frechet/classifier/flair`.
        title: what a reader sees.
        value: the number of the generated set.
        reference: the number between real halves: the median over splits of the subjects.
        low: lower end of the reference's interval (5 % of the splits).
        high: its upper end (95 %).
        better: which way is better; "equal" when a number should resemble its reference.
        n: samples on each side.
        ideal: the best value there is: 0 for a distance, 1 for a share.
        unit: such as "mm" or "%".
        provenance: encoder hash, preprocessing, number of splits.
    """

    name: str
    title: str
    value: float
    reference: float
    low: float
    high: float
    better: Better
    n: int
    ideal: float = 0.0
    unit: str = ""
    provenance: Mapping[str, str] = field(default_factory=dict)

    @property
    def verdict(self) -> Verdict:
        """Good inside the reference's interval, fair up to three times as far, else poor."""
        match self.better:
            case "lower":
                gap, spread = self.value - self.ideal, self.high - self.ideal
            case "higher":
                gap, spread = self.ideal - self.value, self.ideal - self.low
            case "equal":
                gap = abs(self.value - self.reference)
                spread = max(self.high - self.reference, self.reference - self.low)
            case _:
                assert_never(self.better)
        if gap <= spread:
            return "good"
        return "fair" if gap <= FAIR * spread else "poor"

    def to_json(self) -> dict[str, Any]:
        """Return all fields and the verdict."""
        return {**asdict(self), "verdict": self.verdict}


@dataclass(frozen=True)
class Figure:
    """A picture of a report: PNG bytes, and what it shows."""

    name: str
    caption: str
    png: bytes


@dataclass(frozen=True)
class Table:
    """A table of a report."""

    title: str
    columns: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]


@dataclass(frozen=True)
class Section:
    """One part of a report.

    Attributes:
        name: short, such as `fidelity`.
        title: what a reader sees.
        text: one or two sentences: what is measured and how to read it.
        metrics: the numbers.
        figures: the pictures.
        tables: further tables.
        refused: one line for each number that was not computed, and why.
    """

    name: str
    title: str
    text: str
    metrics: tuple[Metric, ...] = ()
    figures: tuple[Figure, ...] = ()
    tables: tuple[Table, ...] = ()
    refused: tuple[str, ...] = ()


@dataclass(frozen=True)
class Floor:
    """A metric of a generated set and of real halves, at the same number of samples."""

    value: float
    reference: float
    low: float
    high: float
    n: int


def subject_halves(
    subjects: Sequence[str], key: SampleKey, draws: int = DRAWS
) -> list[tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]]:
    """Return `draws` splits of the rows into two halves that share no subject.

    Args:
        subjects: subject of each row.
        key: decides the splits.
        draws: how many.

    Raises:
        RequestError: fewer than two subjects.
    """
    names = sorted({*subjects})
    if len(names) < 2:
        raise RequestError(
            f"a reference needs real data of at least 2 subjects, got {len(names)} "
            f"({', '.join(names) or 'none'})"
        )
    rng, column = key.numpy(Stream.EVALUATE), np.asarray(subjects)
    halves = []
    for _ in range(draws):
        order = rng.permutation(names)
        first = np.isin(column, order[: len(names) // 2])
        halves.append((np.flatnonzero(first), np.flatnonzero(~first)))
    return halves


def with_floor(
    metric: Callable[[Rows, Rows], float],
    synthetic: Rows,
    real: Rows,
    subjects: Sequence[str],
    key: SampleKey,
    *,
    at_least: int,
    draws: int = DRAWS,
) -> Floor:
    """Measure `metric(synthetic, real)` beside `metric(real half, other real half)`.

    Every evaluation uses the same number n of rows on both sides: the smallest half, or the
    generated set if that is smaller. The generated set is measured against one half of each
    split, so that the number of real subjects is the same too.

    Args:
        metric: of two samples `(n, d)`.
        synthetic: `(m, d)`.
        real: `(k, d)`.
        subjects: subject of each real row.
        key: decides splits and draws.
        at_least: fewest rows on which the metric means anything.
        draws: number of splits.

    Raises:
        RequestError: too few rows or subjects, or features that are not finite.
    """
    for name, rows in (("generated", synthetic), ("real", real)):
        if not np.isfinite(rows).all():
            raise RequestError(f"the features of the {name} images are not all finite")
    halves = subject_halves(subjects, key, draws)
    n = min(len(synthetic), *(min(len(a), len(b)) for a, b in halves))
    if n < at_least:
        raise RequestError(f"needs at least {at_least} samples a side, got {n}")
    rng = key.numpy(Stream.EVALUATE)
    values, floors = [], []
    for number, (a, b) in enumerate(halves):
        first, second = (real[rng.choice(side, n, replace=False)] for side in (a, b))
        drawn = synthetic[rng.choice(len(synthetic), n, replace=False)]
        floors.append(metric(first, second))
        values.append(metric(drawn, first if number % 2 else second))
    low, middle, high = np.percentile(floors, [5, 50, 95])
    return Floor(float(np.median(values)), float(middle), float(low), float(high), n)
