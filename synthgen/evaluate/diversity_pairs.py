"""Pairs of slices of different people at the same place, and how alike they are.

Images are compared by MS-SSIM (Wang et al. 2003, "Multiscale structural similarity for image
quality assessment", doi:10.1109/ACSSC.2003.1292216) without its finest scale, whose weight is
0.045: images are halved first, which takes a quarter of the time. Label maps are compared by the
Dice overlap of fuzzy sets (Crum et al. 2006, doi:10.1109/TMI.2006.880587).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from scipy import stats
from torch.nn.functional import avg_pool2d

from synthgen.core.errors import RequestError
from synthgen.core.rng import SampleKey, Stream
from synthgen.evaluate.label_metrics import NEAR
from synthgen.evaluate.sets import UNKNOWN

if TYPE_CHECKING:
    from synthgen.evaluate.sets import Floats, Indices, SliceSet

Values = npt.NDArray[np.float64]
Names = npt.NDArray[np.str_]
Mask = npt.NDArray[np.bool_]

PAIRS = 120
"""Pairs that are compared for each number, on each side."""

AT_LEAST = 30
"""Fewest pairs whose mean means anything."""

PEOPLE = 3
"""Fewest real subjects: two make one pair of people, which has no interval."""

GAP = 0.02
"""Slices of a pair differ by at most this in position."""

WEIGHTS = (0.2856, 0.3001, 0.2363, 0.1333)
"""Of the second to the fifth scale of MS-SSIM (Wang et al. 2003); used with a sum of 1."""

WINDOW = 11
"""Side of the Gaussian window of SSIM in pixels, of sigma 1.5."""

_SIGMA = 1.5
_TRIES = 30  # for each pair
_BOOTSTRAPS = 2000
_PERCENT = 100.0


@dataclass(frozen=True)
class Side:
    """What decides which records of a set may be paired.

    Attributes:
        rows: `(k,)` rows of the slice table or of the image table.
        person: `(k,)` whose brain each shows; a pair is of two.
        position: `(k,)` place in the brain.
        style: `(k,)`; all the same for label maps.
    """

    rows: Indices
    person: Names
    position: Values
    style: Names

    @classmethod
    def of(
        cls, subset: SliceSet, slices: Indices, modality: str | None = None, *, placed: bool = True
    ) -> Side:
        """Take the label maps of some slices, or their images of one modality.

        Args:
            subset: the set.
            slices: its slices.
            modality: of the images; label maps if None.
            placed: whether to use the positions; otherwise every slice counts as near.
        """
        rows, style = slices, np.full(len(slices), "")
        if modality is not None:
            rows = subset.image_rows(modality=modality)
            rows = rows[np.isin(subset.images.slices[rows], slices)]
            slices = subset.images.slices[rows]
            style = np.asarray([subset.images.style[r] for r in rows], dtype=np.str_)
        position = subset.table.position[slices] if placed else np.zeros(len(slices))
        return cls(rows, people_of(subset, slices), position, style)

    def take(self, mask: Mask) -> Side:
        """Return the marked records."""
        return Side(self.rows[mask], self.person[mask], self.position[mask], self.style[mask])

    def near(self, place: float, gap: float) -> Mask:
        """Return which records are at most `gap` away."""
        return np.abs(self.position - place) <= gap


class Pairs(NamedTuple):
    """Matched pairs of records.

    Attributes:
        made: `(n, 2)` generated rows.
        real: `(n, 2)` real rows.
        people: `(n, 2)` the two real people.
        alike: every pair has one style, whichever it is; otherwise a generated pair has the
            styles of its real one.
    """

    made: Indices
    real: Indices
    people: Names
    alike: bool


def people_of(subset: SliceSet, slices: Indices) -> Names:
    """Return the person `(n,)` that each slice shows; a generated one is its own."""
    subject = subset.table.subject
    names = [f"slice {i}" if subject[i] == UNKNOWN else subject[i] for i in slices]
    return np.asarray(names, dtype=np.str_)


def matched_pairs(made: Side, real: Side, key: SampleKey) -> Pairs:
    """Draw pairs of real people, each with a generated pair of the same place and styles.

    A generated pair has the styles of its real one, if enough real people were imaged in the
    styles of the set. Otherwise both slices of a pair have one style, whichever it is.

    Args:
        made: generated records.
        real: real records of known subjects.
        key: decides the pairs.

    Raises:
        RequestError: pairs of too few real people, or too few pairs.
    """
    shown = np.isin(real.style, made.style)
    alike = len(np.unique(real.person[shown])) < PEOPLE
    if not alike:
        real = real.take(shown)
    names = np.unique(real.person)
    _require_people(names)
    rng = key.numpy(Stream.EVALUATE)
    found: list[tuple[int, ...]] = []
    used: set[tuple[bool, frozenset[int]]] = set()
    for _ in range(_TRIES * PAIRS):
        one, other = rng.choice(names, 2, replace=False)
        four = _four(made, real, (str(one), str(other)), rng, alike=alike)
        taken = {(number < 2, frozenset(four[number : number + 2])) for number in (0, 2)}
        if len(four) < 4 or taken & used:
            continue
        used |= taken
        found.append(four)
        if len(found) == PAIRS:
            break
    if len(found) < AT_LEAST:
        raise RequestError(
            f"needs at least {AT_LEAST} pairs of slices of different brains at the same place in "
            f"both sets, got {len(found)}"
        )
    chosen = np.asarray(found, dtype=np.int64)
    people = real.person[chosen[:, 2:]]
    _require_people(np.unique(people))
    return Pairs(made.rows[chosen[:, :2]], real.rows[chosen[:, 2:]], people, alike)


def pair_interval(values: Values, people: Names, key: SampleKey) -> tuple[float, float]:
    """Return a 90 % interval of the mean over pairs, by a bootstrap over people and pairs.

    A pair counts as often as both of its people were drawn, multiplied, and as it was drawn
    itself; draws without any pair are repeated. The percentiles are those of the expanded
    interval of Hesterberg 2015 (doi:10.1080/00031305.2015.1089789), since those of few people
    would be too narrow.

    Args:
        values: `(n,)` of each pair.
        people: `(n, 2)` of each pair, at least two pairs of people.
        key: decides the draws.
    """
    rng = key.numpy(Stream.EVALUATE)
    names, inverse = np.unique(people, return_inverse=True)
    couples = inverse.reshape(people.shape)
    means: list[float] = []
    while len(means) < _BOOTSTRAPS:
        persons, pairs = (
            np.bincount(rng.integers(n, size=n), minlength=n) for n in (len(names), len(values))
        )
        weights = persons[couples].prod(axis=1) * pairs
        if weights.any():
            means.append(float(np.average(values, weights=weights)))
    n = min(len(names), couple_count(people))
    tail = _PERCENT * stats.norm.cdf(-np.sqrt(n / (n - 1)) * stats.t.ppf(0.95, n - 1))
    low, high = np.percentile(means, [tail, _PERCENT - tail])
    return float(low), float(high)


def couple_count(people: Names) -> int:
    """Return how many different pairs there are in `(n, 2)`, in either order."""
    return len(np.unique(np.sort(people, axis=1), axis=0))


def scale_weights(shape: tuple[int, ...]) -> Values:
    """Return the weights of as many scales as a picture has room for, finest first; sum 1.

    Examples:
        >>> scale_weights((192, 256)).round(3).tolist(), len(scale_weights((64, 80)))
        ([0.299, 0.314, 0.247, 0.14], 2)
    """
    side, count = min(shape) // 2, 0
    while count < len(WEIGHTS) and side >= WINDOW:
        side, count = side // 2, count + 1
    weights = np.asarray(WEIGHTS[:count])
    return weights / weights.sum() if count else weights


def ms_ssim(first: Floats, second: Floats) -> Values:
    """Compare images two by two; 1 if they are equal.

    Args:
        first: `(n, 1, X, Y)` in [0, 1], of at least twice `WINDOW` pixels a side.
        second: the same shape.

    Returns:
        `(n,)` in [0, 1].
    """
    from monai.metrics.regression import compute_ssim_and_cs  # noqa: PLC0415 - slow to import

    a, b = (avg_pool2d(torch.from_numpy(images), 2) for images in (first, second))
    likeness = np.ones(len(first))
    weights = scale_weights(first.shape[2:])
    for scale, weight in enumerate(weights):
        if scale:
            a, b = avg_pool2d(a, 2), avg_pool2d(b, 2)
        ssim, structure = compute_ssim_and_cs(a, b, 2, (WINDOW, WINDOW), (_SIGMA, _SIGMA))
        value = ssim if scale == len(weights) - 1 else structure
        likeness *= value.mean(dim=(1, 2, 3)).clamp(min=0).double().numpy() ** weight
    return likeness


def soft_dice(first: Floats, second: Floats) -> float:
    """Return the mean overlap of two stacks of fuzzy masks `(C, X, Y)` in [0, 1].

    Dice of one mask is `2 sum(min(a, b)) / (sum(a) + sum(b))`. Masks that cover less than a pixel
    of both together are left out; two stacks of nothing but those are equal, 1.
    """
    total = (first.sum(axis=(1, 2)) + second.sum(axis=(1, 2))).astype(np.float64)
    shared = np.minimum(first, second).sum(axis=(1, 2))
    there = ~(total < 1)  # so that NaN stays
    return float(np.mean(2 * shared[there] / total[there])) if there.any() else 1.0


def _four(
    made: Side, real: Side, people: tuple[str, str], rng: np.random.Generator, *, alike: bool
) -> tuple[int, ...]:
    """Return two generated and two real records to compare; none if one of them has no match.

    `alike` asks for one style within a pair, instead of the same styles in both pairs.
    """
    a = _any(real.person == people[0], rng)
    b = _any(
        (real.person == people[1])
        & real.near(real.position[a], GAP)
        & (not alike or real.style == real.style[a]),
        rng,
    )
    c = _any(made.near(real.position[a], NEAR) & (alike or made.style == real.style[a]), rng)
    if b < 0 or c < 0:
        return ()
    d = _any(
        (made.person != made.person[c])
        & made.near(made.position[c], GAP)
        & (made.style == (made.style[c] if alike else real.style[b])),
        rng,
    )
    return () if d < 0 else (c, d, a, b)


def _any(mask: Mask, rng: np.random.Generator) -> int:
    """Return one of the marked records; -1 if there are none."""
    where = np.flatnonzero(mask)
    return int(rng.choice(where)) if where.size else -1


def _require_people(names: Names) -> None:
    if len(names) < PEOPLE:
        raise RequestError(
            f"needs pairs of at least {PEOPLE} real subjects, of the styles of the set or within "
            f"one style, got {len(names)} ({', '.join(names.tolist()) or 'none'})"
        )
