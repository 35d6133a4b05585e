"""Copies of training slices in a generated set, and how sure one can be of them.

How near is too near is learnt from real data alone: from the distances of training slices to the
nearest slice of another person. Slices of one person are not counted, since neighbouring slices
resemble each other as much as a copy would. Sparse slices, at the top and the foot of the brain,
resemble each other more than others do, and a faded or noisy slice is far from every other one.
Every distance is therefore divided by the geometric mean of two: what is usual for a slice of that
much content, and how far the record is from the next person. 1 is another person, 0 is a copy.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from synthgen.core.errors import RequestError
from synthgen.core.rng import SampleKey, Stream
from synthgen.evaluate.descriptors import Bank, What, describe, records
from synthgen.evaluate.nearest import Distances, Nearest, nearest
from synthgen.evaluate.plants import Kind, planted
from synthgen.evaluate.sets import UNKNOWN, require_comparable

if TYPE_CHECKING:
    from synthgen.evaluate.sets import Indices, SliceSet

ALARMS = 0.001
"""Share of real slices of unseen people that the detector should mistake for copies."""

MOST_CALIBRATING = 2000
"""Training records whose distances to other people set the threshold."""

BLOCK_OF_RECORDS = 2000
"""Records whose fine structures are in memory at a time."""

_BINS, _A_BIN = 8, 50
_FAINT = 1e-6
_NEXT_PERSON = 3  # training people: with fewer, a person to calibrate with has no next one


@dataclass(frozen=True)
class Yardstick:
    """The usual distance between two people, by the content of a slice.

    Attributes:
        content: `(k,)` increasing logarithms of the content.
        usual: `(k,)` median distance of real slices of about that content.
    """

    content: npt.NDArray[np.float64]
    usual: Distances

    @classmethod
    def fit(cls, content: npt.NDArray[np.float64], distance: Distances) -> Yardstick:
        """Take the medians of up to 8 groups of equal size, of at least 50 records each.

        Args:
            content: `(n,)` of each record.
            distance: `(n,)` to its nearest record of another person.

        Raises:
            RequestError: no record has any content.
        """
        known = np.flatnonzero((content > 0) & np.isfinite(distance))
        if not known.size:
            raise RequestError("expected slices with some tissue or contrast, got blank ones only")
        order = known[np.argsort(content[known], kind="stable")]
        groups = np.array_split(order, min(_BINS, max(1, len(order) // _A_BIN)))
        return cls(
            np.asarray([np.median(np.log(content[group])) for group in groups]),
            np.asarray([max(float(np.median(distance[group])), _FAINT) for group in groups]),
        )

    def relative(self, distance: Distances, content: npt.NDArray[np.float64]) -> Distances:
        """Return distances in units of the usual one."""
        logs = np.log(np.maximum(content, _FAINT))
        relative: Distances = distance / np.interp(logs, self.content, self.usual)
        return relative


@dataclass(frozen=True)
class CopyReport:
    """Which of n records, label maps or images, are copies of training records.

    Attributes:
        what: label maps or images.
        rows: `(n,)` row of each record in its set.
        slices: `(n,)` slice of each record in its set.
        flags: `(n,)` whether it is a copy.
        distance: `(n,)` to the nearest training record: 0 for a copy, 1 for another person or a
            blank record.
        nearest: `(n,)` slice of the training set that it is nearest to; -1 for a blank record.
        nearest_row: `(n,)` row of that record: of the slice table or of the image table.
        orientation: `(n,)` how the training record was mirrored, an index into
            `nearest.ORIENTATIONS`.
        threshold: largest distance of a copy.
        false_alarm_rate: share of held-out real records below the threshold; NaN if there were
            none.
    """

    what: What
    rows: Indices
    slices: Indices
    flags: npt.NDArray[np.bool_]
    distance: Distances
    nearest: Indices
    nearest_row: Indices
    orientation: Indices
    threshold: float
    false_alarm_rate: float = float("nan")

    @property
    def flagged(self) -> Indices:
        """Slices with at least one copy, sorted."""
        return np.unique(self.slices[self.flags])


@dataclass(frozen=True)
class CopyDetector:
    """Training records, and the distance below which another record is a copy of one of them.

    Attributes:
        train: descriptors of all training records.
        yardstick: usual distance between people.
        threshold: largest relative distance of a copy.
    """

    train: Bank
    yardstick: Yardstick
    threshold: float

    @classmethod
    def fit(cls, train: Bank, key: SampleKey) -> CopyDetector:
        """Calibrate on the distances of training records to those of other people.

        The threshold is the distance that the share `ALARMS` of them stays below, and less if
        there are few people: seven eighths of it for 2, 97.5 % for 10.

        Args:
            train: records of at least two people.
            key: chooses the records, if there are more than `MOST_CALIBRATING`.

        Raises:
            RequestError: fewer than two people, or blank records only.
        """
        require_subjects(train.subject, f"{train.what} of the training set")
        chosen = np.arange(len(train))
        if len(train) > MOST_CALIBRATING:
            rng = key.numpy(Stream.EVALUATE)
            chosen = np.sort(rng.choice(len(train), MOST_CALIBRATING, replace=False))
        chosen = chosen[train.content[chosen] > 0]
        found = nearest(train.take(chosen), train, apart=True)
        yardstick = Yardstick.fit(train.content[found.index], found.distance)
        seen = _relative(yardstick, found, train)
        # Few people never come as near to each other as unseen ones may come to them.
        margin = 1 - 0.25 / len({*train.subject})
        return cls(train, yardstick, margin * float(np.quantile(seen, ALARMS)))

    def check(self, bank: Bank) -> CopyReport:
        """Look for copies among the records of a bank; a blank record is a copy of none."""
        found = nearest(bank, self.train)
        blank = bank.content == 0
        relative = _relative(self.yardstick, found, self.train)
        return CopyReport(
            bank.what,
            bank.rows,
            bank.slices,
            (relative <= self.threshold) & ~blank,
            np.where(blank, 1.0, relative),
            np.where(blank, -1, self.train.slices[found.index]),
            np.where(blank, -1, self.train.rows[found.index]),
            found.orientation,
            self.threshold,
        )


def find_copies(
    candidates: SliceSet,
    train: SliceSet,
    *,
    key: SampleKey,
    what: What = "labels",
    holdout: SliceSet | None = None,
) -> CopyReport:
    """Find the records of a set that are copies of training records.

    Copies are found mirrored, shifted and, within bounds, warped; images in any contrast.

    Args:
        candidates: the set to search.
        train: real slices of at least two people.
        key: chooses the records to calibrate with, if there are very many.
        what: compare label maps, or images.
        holdout: real slices of other people, to measure false alarms on.

    Raises:
        RequestError: an empty set, fewer than two people, or values that are not finite.
        SchemaError: different label schemas.
        GeometryError: different slice sizes.
    """
    for other in (candidates, *(() if holdout is None else (holdout,))):
        require_comparable(other, train)
        if not records(other, what).size:
            raise RequestError(f"{other.name}: no {what} to search for copies")
    detector = CopyDetector.fit(describe(train, what), key)
    rate = float("nan")
    if holdout is not None:
        rate = float(detector.check(describe(holdout, what)).flags.mean())
    report, _ = check_in_blocks(detector, candidates)
    return replace(report, false_alarm_rate=rate)


def check_in_blocks(detector: CopyDetector, candidates: SliceSet) -> tuple[CopyReport, list[Bank]]:
    """Check all records of a set; return the banks too, without the fine structures."""
    what = detector.train.what
    rows = records(candidates, what)
    reports, banks = [], []
    for start in range(0, len(rows), BLOCK_OF_RECORDS):
        bank = describe(candidates, what, rows[start : start + BLOCK_OF_RECORDS])
        reports.append(detector.check(bank))
        banks.append(bank.light())
    return _merged(reports), banks


def check_plants(
    detector: CopyDetector, train: SliceSet, kind: Kind, count: int, key: SampleKey
) -> tuple[CopyReport, npt.NDArray[np.bool_]]:
    """Plant copies of some training records and look for them.

    Args:
        detector: of `train`.
        train: the set that the detector was made from.
        kind: disguise of the copies.
        count: how many records, of different slices.
        key: chooses the records and the disguises.

    Returns:
        The report, and for each copy whether its own slice was the nearest.
    """
    bank = detector.train
    rng = key.numpy(Stream.EVALUATE)
    visible = rng.permutation(np.flatnonzero(bank.content > 0))
    _, first = np.unique(bank.slices[visible], return_index=True)
    chosen = visible[np.sort(first)[:count]]
    copies = planted(train.take(bank.slices[chosen]), kind, key)
    rows = np.arange(len(chosen))
    if bank.what == "images":
        # `take` keeps the order of the image table; find where each chosen image went.
        kept = np.flatnonzero(np.isin(train.images.slices, bank.slices[chosen]))
        rows = np.searchsorted(kept, bank.rows[chosen])
    report = detector.check(describe(copies, bank.what, rows))
    return report, report.nearest == bank.slices[chosen]


def require_subjects(subjects: tuple[str, ...], where: str, least: int = 2) -> None:
    """Refuse records of too few people, or of people without a name.

    Raises:
        RequestError: saying how many there are.
    """
    unknown = sum(name == UNKNOWN for name in subjects)
    if unknown:
        raise RequestError(
            f"{where}: {unknown} of {len(subjects)} slices have no subject; without it, a copy "
            "cannot be told from the next slice of the same person"
        )
    names = sorted({*subjects})
    if len(names) < least:
        raise RequestError(
            f"{where}: expected at least {least} subjects, got {len(names)}"
            f"{f' ({names[0]})' if names else ''}; slices of one person resemble each other as "
            "much as copies do"
        )


def _relative(yardstick: Yardstick, found: Nearest, train: Bank) -> Distances:
    relative = yardstick.relative(found.distance, train.content[found.index])
    if len({*train.subject}) < _NEXT_PERSON:
        return relative
    both: Distances = np.sqrt(relative * found.distance / np.maximum(found.other, _FAINT))
    return both


def _merged(reports: list[CopyReport]) -> CopyReport:
    return replace(
        reports[0],
        rows=np.concatenate([r.rows for r in reports]),
        slices=np.concatenate([r.slices for r in reports]),
        flags=np.concatenate([r.flags for r in reports]),
        distance=np.concatenate([r.distance for r in reports]),
        nearest=np.concatenate([r.nearest for r in reports]),
        nearest_row=np.concatenate([r.nearest_row for r in reports]),
        orientation=np.concatenate([r.orientation for r in reports]),
    )
