"""What distances to training and to held-out people say of a generated set.

- DCR share: share of samples nearer to training than to held-out people; 0.5 when nothing was
  memorised (distance to closest record; Platzer and Reutterer 2021, arXiv:2104.00635). Deviation:
  the paper takes as many training records as there are held-out ones, and so overlooks the copies
  of all others; here everyone takes part, and each side is weighted by its number of people.
- NNDR: distance to the nearest training record over that to the nearest one of the next person;
  near 0 for the copy of one person.
- Authenticity (Alaa et al. 2022, arXiv:2102.08921, section 3.3): share of samples farther from
  their nearest training record than that record is from other people's. Deviation from the
  paper: the training record's neighbour is another person's, since the next slice of the same
  person is nearer than any sample could be.
- Membership inference: how well the distance to the nearest sample tells training records from
  held-out ones (the attack of Chen et al. 2020, arXiv:1909.03935, with the distance in place of a
  likelihood); AUC 0.5 is chance.

All numbers use the coarse distance, which is complete: every record against every other one.
References come from real people in the place of the generated set, or from membership drawn at
random among people.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Self

import numpy as np
import numpy.typing as npt

from synthgen.core.errors import RequestError
from synthgen.core.rng import SampleKey, Stream
from synthgen.evaluate.copies import Yardstick
from synthgen.evaluate.metric import DRAWS, Floor
from synthgen.evaluate.nearest import BySubject, Distances, by_subject

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Sequence

    from synthgen.evaluate.descriptors import Bank
    from synthgen.evaluate.sets import Indices

_BOOTSTRAPS = 500
_DIVISIONS = 50 * DRAWS  # of people; cheap, and gates depend on the ends of the interval
_INTERVAL = (5, 95)


@dataclass(frozen=True)
class People:
    """Real people of both sides, and the distances among them and to the samples.

    Attributes:
        train: training people.
        holdout: held-out people.
        subject: person of each real record.
        content: `(r,)` content of each real record.
        samples: `(n, G)` from each sample to each person.
        real: `(r, G)` from each real record to each other person.
        to_sample: `(r,)` from each real record to its nearest sample.
    """

    train: tuple[str, ...]
    holdout: tuple[str, ...]
    subject: tuple[str, ...]
    content: npt.NDArray[np.float64]
    samples: BySubject
    real: BySubject
    to_sample: Distances

    @classmethod
    def measure(cls, samples: Bank, real: Bank, held: Collection[str]) -> Self:
        """Measure all distances.

        Args:
            samples: generated records.
            real: records of all real people.
            held: those of them who are held out.
        """
        everyone = sorted({*real.subject})
        return cls(
            tuple(name for name in everyone if name not in held),
            tuple(name for name in everyone if name in held),
            real.subject,
            real.content,
            by_subject(samples, real),
            by_subject(real, real, apart=True),
            by_subject(real, samples).distance.min(axis=1),
        )

    @property
    def everyone(self) -> tuple[str, ...]:
        """All real people."""
        return self.real.subjects

    def rows_of(self, people: Sequence[str]) -> Indices:
        """Return the real records of some people."""
        return np.flatnonzero(np.isin(np.asarray(self.subject), list(people)))


def dcr_share(to_train: Distances, to_holdout: Distances, sizes: tuple[int, int] = (1, 1)) -> float:
    """Return the share of samples nearer to training than to held-out people; ties count half.

    Args:
        to_train: `(n,)` from each sample to its nearest training record.
        to_holdout: `(n,)` to its nearest held-out record.
        sizes: number of training and of held-out people; a sample counts as one over the number
            of people on the side that it is nearer to.
    """
    nearer = float(np.mean((to_train < to_holdout) + 0.5 * (to_train == to_holdout)))
    train, holdout = nearer / sizes[0], (1 - nearer) / sizes[1]
    return train / (train + holdout)


def nndr(distance: Distances) -> Distances:
    """Return the distance to the nearest person over that to the second nearest.

    Args:
        distance: `(n, G)` to each of G >= 2 people.

    Returns:
        `(n,)` in [0, 1]; 1 where both are 0.
    """
    first, second = np.partition(distance, 1, axis=1)[:, :2].T
    ratio: Distances = np.where(second > 0, first / np.where(second > 0, second, 1), 1.0)
    return ratio


def authenticity(distance: Distances, neighbour: Distances) -> float:
    """Return the share of samples farther from their nearest record than it is from its own.

    Args:
        distance: `(n,)` from each sample to its nearest training record.
        neighbour: `(n,)` from that record to its nearest record of another person.
    """
    return float(np.mean(distance > neighbour))


def auc(members: Distances, others: Distances) -> float:
    """Return the chance that a member's distance is smaller than another's; ties count half."""
    column = np.sort(others)
    above = len(column) - np.searchsorted(column, members, side="right")
    ties = len(column) - above - np.searchsorted(column, members, side="left")
    return float(np.mean((above + 0.5 * ties) / len(column)))


def dcr_floor(people: People, key: SampleKey) -> Floor:
    """Measure `dcr_share` beside that of one third of the real people, against the others.

    The others are divided at random; the smaller side is as large as that of the samples, if
    there are enough people, since it decides how far the share varies.

    Raises:
        RequestError: fewer than three real people.
    """
    total = len(people.everyone)
    if total < 3:
        raise RequestError(_too_few(people, 3))
    rng = key.numpy(Stream.EVALUATE)
    asked = total // 3
    fewer = min(len(people.train), len(people.holdout), (total - asked) // 2)
    held = fewer if len(people.holdout) <= len(people.train) else total - asked - fewer
    floors, sizes = [], [len(people.samples.distance)]
    for _ in range(_DIVISIONS):
        order = rng.permutation(people.everyone).tolist()
        rows = people.rows_of(order[:asked])
        sizes.append(len(rows))
        sides = order[asked + held :], order[asked : asked + held]
        floors.append(_side_share(people.real, rows, sides))
    value = _side_share(
        people.samples, np.arange(sizes[0]), (list(people.train), list(people.holdout))
    )
    return _floor([value], floors, min(sizes))


def halves_floor(
    people: People, measure: Callable[[Distances, Indices, BySubject], float], key: SampleKey
) -> Floor:
    """Measure samples against half as many people, beside one half of the real people.

    Args:
        people: the distances.
        measure: of the distances `(n, g)` to g people, the records `(n, g)` that have them, and
            the distances of all real records to those people.
        key: decides the halves.

    Raises:
        RequestError: fewer than four real people, or two training people.
    """
    count = min(len(people.everyone) // 2, len(people.train))
    if len(people.everyone) < 4 or count < 2:
        raise RequestError(_too_few(people, 4))
    rng = key.numpy(Stream.EVALUATE)
    values, floors, sizes = [], [], []
    for _ in range(DRAWS):
        order = rng.permutation(people.everyone).tolist()
        rows = people.rows_of(order[count:])
        sizes.append(n := min(len(rows), len(people.samples.distance)))
        floors.append(
            _against(
                people, people.real, order[:count], rng.choice(rows, n, replace=False), measure
            )
        )
        chosen = rng.choice(people.train, count, replace=False).tolist()
        drawn = rng.choice(len(people.samples.distance), n, replace=False)
        values.append(_against(people, people.samples, chosen, drawn, measure))
    return _floor(values, floors, min(sizes))


def median_nndr(distance: Distances, _index: Indices, _among: BySubject) -> float:
    """Return the median of `nndr`."""
    return float(np.median(nndr(distance)))


def low_nndr(distance: Distances, _index: Indices, _among: BySubject) -> float:
    """Return the 5 % quantile of `nndr`: copies lie in the tail."""
    return float(np.quantile(nndr(distance), 0.05))


def authentic_share(distance: Distances, index: Indices, among: BySubject) -> float:
    """Return `authenticity`: the neighbours of the nearest records are other people's."""
    column = np.argmin(distance, axis=1)
    rows = np.arange(len(distance))
    neighbour = among.distance[index[rows, column]].min(axis=1)
    return authenticity(distance[rows, column], neighbour)


def membership_floor(people: People, key: SampleKey) -> tuple[Floor, tuple[float, float]]:
    """Measure the AUC of a membership attack beside membership drawn at random among people.

    Returns:
        The AUC with its reference, and its 5 % to 95 % interval over bootstrapped people.

    Raises:
        RequestError: fewer than three real people.
    """
    if len(people.everyone) < 3:
        raise RequestError(_too_few(people, 3))
    rng = key.numpy(Stream.EVALUATE)
    matrix, weights = _pairs(people)
    place = {name: i for i, name in enumerate(people.everyone)}
    train, holdout = ([place[s] for s in side] for side in (people.train, people.holdout))
    floors = []
    for _ in range(_DIVISIONS):
        order = rng.permutation(len(place))
        floors.append(_pooled(matrix, weights, order[: len(train)], order[len(train) :]))
    boots = [
        _pooled(matrix, weights, *(rng.choice(side, len(side)) for side in (train, holdout)))
        for _ in range(_BOOTSTRAPS)
    ]
    value = _pooled(matrix, weights, np.asarray(train), np.asarray(holdout))
    low, high = np.percentile(boots, _INTERVAL)
    n = min(int(weights[side].sum()) for side in (train, holdout))
    return _floor([value], floors, n), (float(low), float(high))


def balanced(bank: Bank, most: int, key: SampleKey) -> Bank:
    """Return at most `most` records of each person, so that no side is denser than the other."""
    rng = key.numpy(Stream.EVALUATE)
    column = np.asarray(bank.subject)
    chosen = [
        rng.permutation(np.flatnonzero(column == name))[:most] for name in sorted({*bank.subject})
    ]
    return bank.take(np.sort(np.concatenate(chosen)))


def _pairs(people: People) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.float64]]:
    """Return the AUC of each person's records against each other one's, and their counts."""
    distance = people.real.distance.min(axis=1)
    usual = Yardstick.fit(people.content, distance)
    score = usual.relative(people.to_sample, people.content)
    records = [score[people.rows_of([name])] for name in people.everyone]
    matrix = np.asarray([[auc(a, b) for b in records] for a in records])
    return matrix, np.asarray([len(r) for r in records], dtype=np.float64)


def _pooled(
    matrix: npt.NDArray[np.float64],
    weights: npt.NDArray[np.float64],
    members: Indices,
    others: Indices,
) -> float:
    """Return the AUC of several people against several others: a mean over pairs of records."""
    weight = weights[members][:, None] * weights[others][None]
    return float((matrix[np.ix_(members, others)] * weight).sum() / weight.sum())


def _side_share(queries: BySubject, rows: Indices, sides: tuple[list[str], list[str]]) -> float:
    train, holdout = sides
    return dcr_share(queries.of(train)[rows], queries.of(holdout)[rows], (len(train), len(holdout)))


def _against(
    people: People,
    queries: BySubject,
    names: list[str],
    rows: Indices,
    measure: Callable[[Distances, Indices, BySubject], float],
) -> float:
    columns = [people.everyone.index(name) for name in names]
    among = BySubject(tuple(names), people.real.index[:, columns], people.real.distance[:, columns])
    part = np.ix_(rows, np.asarray(columns))
    return measure(queries.distance[part], queries.index[part], among)


def _floor(values: list[float], floors: list[float], n: int) -> Floor:
    low, middle, high = np.percentile(floors, [_INTERVAL[0], 50, _INTERVAL[1]])
    return Floor(float(np.median(values)), float(middle), float(low), float(high), n)


def _too_few(people: People, least: int) -> str:
    return (
        f"a reference needs at least {least} real people, training and holdout together; "
        f"got {len(people.everyone)} ({', '.join(people.everyone)})"
    )
