"""Label maps of a generated set that nearly repeat another one of it.

The search is that of the copy detector, of a set in itself: mirrored, shifted or warped repeats
are found too.
"""

from __future__ import annotations

import hashlib
from collections import Counter
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np

from synthgen.core.errors import RequestError
from synthgen.core.rng import SampleKey, Stream
from synthgen.evaluate.copies import ALARMS, Yardstick
from synthgen.evaluate.descriptors import Bank, describe
from synthgen.evaluate.diversity_pairs import AT_LEAST, PEOPLE, Mask, Names, Values, people_of
from synthgen.evaluate.metric import Floor
from synthgen.evaluate.nearest import Nearest, nearest
from synthgen.evaluate.selection import draw
from synthgen.evaluate.sets import UNKNOWN

if TYPE_CHECKING:
    from synthgen.evaluate.sets import Indices, SliceSet

MOST = 500
"""Slices of each set that are searched."""

_BOOTSTRAPS = 500
_PERCENT = 100.0


@dataclass(frozen=True)
class Duplicates:
    """Which generated label maps nearly repeat another one of their set.

    Attributes:
        slices: `(n,)` generated slices that were searched.
        found: the nearest one of another person for each, an index into `slices`.
        relative: `(n,)` its distance: 0 for a copy, 1 for the usual one between two people.
        threshold: largest relative distance of a duplicate.
        real: `(m,)` relative distances of real slices to those of other people.
        alarms: `(m,)` real slices that look like duplicates, by thresholds learnt without them.
        people: `(m,)` subject of each real slice.
    """

    slices: Indices
    found: Nearest
    relative: Values
    threshold: float
    real: Values
    alarms: Mask
    people: Names

    @property
    def flags(self) -> Mask:
        """Return which generated slices are duplicates `(n,)`."""
        flags: Mask = self.relative <= self.threshold
        return flags


def find_duplicates(synthetic: SliceSet, real: SliceSet, *, key: SampleKey) -> Duplicates:
    """Find label maps that nearly repeat another one of their set, mirrored or not.

    How near is too near is learnt from real slices and those of other people, as `CopyDetector`
    does. No more generated slices are searched than there are real ones to learn from, since
    the nearest of many is nearer than the nearest of few.

    Args:
        synthetic: takes of one label map count as one, see `distinct`.
        real: slices of at least three known subjects.
        key: decides which slices are searched, at most `MOST` of each set.

    Raises:
        RequestError: too few slices or subjects, or values that are not finite.
    """
    known = known_slices(real)
    chosen = known[draw(real.take(known), MOST, key)]
    names = {real.table.subject[i] for i in chosen}
    if len(names) < PEOPLE:
        raise RequestError(
            f"needs real slices of at least {PEOPLE} subjects, got {len(names)} "
            f"({', '.join(sorted(names)) or 'none'})"
        )
    slices = distinct(synthetic, draw(synthetic, min(MOST, len(chosen)), key))
    if min(len(slices), len(chosen)) < AT_LEAST:
        raise RequestError(
            f"needs at least {AT_LEAST} different label maps of each set, got {len(slices)} "
            f"generated and {len(chosen)} real ones"
        )
    bank = describe(real, "labels", chosen)
    apart = nearest(bank, bank, apart=True)
    everyone = np.ones(len(bank), dtype=bool)
    yardstick, threshold = _calibrated(bank, apart, everyone)
    made = describe(synthetic, "labels", slices)
    made = replace(made, subject=tuple(people_of(synthetic, slices).tolist()))
    found = nearest(made, made, apart=True)
    if (found.index < 0).any():
        raise RequestError(f"all label maps of {synthetic.name} show {made.subject[0]}")
    return Duplicates(
        slices,
        found,
        yardstick.relative(found.distance, made.content[found.index]),
        threshold,
        yardstick.relative(apart.distance, bank.content[apart.index]),
        _alarms(bank, apart),
        np.asarray(bank.subject),
    )


def distinct(subset: SliceSet, slices: Indices) -> Indices:
    """Leave out further takes of a label map, which a set with images may have several of.

    Takes have the same request and the same map, bit for bit. In a set without images there are
    no takes, and equal maps are what they look like.
    """
    if not len(subset.images.slices):
        return slices
    asked = [
        (subset.table.position[i].tobytes(), subset.table.requested[i].tobytes()) for i in slices
    ]
    times = Counter(asked)
    seen, kept = set(), []
    for number, request in enumerate(asked):
        digest = b""
        if times[request] > 1:
            digest = hashlib.blake2b(subset.read_pv(int(slices[number])).tobytes()).digest()
        if (request, digest) not in seen:
            seen.add((request, digest))
            kept.append(number)
    return slices[kept]


def alarm_floor(found: Duplicates, key: SampleKey) -> Floor:
    """Return the shares in %; the interval bootstraps people.

    Its upper end is at least the share that none among as many slices leaves possible (5 %).
    """
    rng = key.numpy(Stream.EVALUATE)
    groups = [found.alarms[found.people == name] for name in np.unique(found.people)]
    boots = [
        np.concatenate([groups[i] for i in rng.integers(len(groups), size=len(groups))]).mean()
        for _ in range(_BOOTSTRAPS)
    ]
    low, high = np.percentile(boots, [5, 95])
    possible = 1 - 0.05 ** (1 / len(found.alarms))
    return Floor(
        _PERCENT * float(found.flags.mean()),
        _PERCENT * float(found.alarms.mean()),
        _PERCENT * float(low),
        _PERCENT * max(float(high), possible),
        len(found.slices),
    )


def known_slices(real: SliceSet) -> Indices:
    """Return the slices whose subject is known."""
    subject = real.table.subject
    return np.asarray([i for i, s in enumerate(subject) if s != UNKNOWN], dtype=np.int64)


def _calibrated(bank: Bank, apart: Nearest, used: Mask) -> tuple[Yardstick, float]:
    """Return the usual distances of some records and the threshold, as `CopyDetector.fit` does."""
    content = bank.content[apart.index]
    yardstick = Yardstick.fit(content[used], apart.distance[used])
    seen = yardstick.relative(apart.distance, content)[used & (bank.content > 0)]
    people = {name for name, kept in zip(bank.subject, used, strict=True) if kept}
    return yardstick, (1 - 0.5 / len(people)) * float(np.quantile(seen, ALARMS))


def _alarms(bank: Bank, apart: Nearest) -> Mask:
    """Return which real records look like duplicates, to a threshold learnt from other people."""
    subject = np.asarray(bank.subject)
    flags = np.zeros(len(bank), dtype=bool)
    for name in np.unique(subject):
        own = subject == name
        used = ~own & (subject[apart.index] != name)
        if not used.any():
            raise RequestError(
                f"all real slices are nearest to those of {name}, so that nothing is left to "
                "learn a threshold from; more subjects are needed"
            )
        yardstick, threshold = _calibrated(bank, apart, used)
        relative = yardstick.relative(apart.distance, bank.content[apart.index])
        flags |= own & (relative <= threshold)
    return flags
