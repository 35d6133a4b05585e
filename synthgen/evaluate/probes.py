"""Leakage probes: what a linear model can read from style codes that they should not tell.

A style is a modality and a scanner. A code that also tells the subject, or the place of the slice
in the brain, carries anatomy, and a generator may copy that anatomy into another label map.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
from sklearn.linear_model import LogisticRegression, Ridge
from sklearn.model_selection import GroupKFold, StratifiedGroupKFold, StratifiedKFold
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from synthgen.core.errors import RequestError
from synthgen.core.rng import Stream
from synthgen.evaluate.metric import DRAWS, Floor

if TYPE_CHECKING:
    from collections.abc import Sequence

    from synthgen.core.rng import SampleKey
    from synthgen.evaluate.sets import Indices

Column = npt.NDArray[np.float64]
Rows = npt.NDArray[np.float64]
FOLDS = 5


def probe_accuracy(
    codes: Rows,
    target: npt.NDArray[Any],
    key: SampleKey,
    *,
    groups: Sequence[str] | None = None,
    permutations: int = DRAWS,
) -> Floor:
    """Return how well a linear probe reads a target from codes, beside chance.

    Names are told by logistic regression, scored by balanced accuracy; numbers are predicted by
    ridge regression, scored by the correlation of prediction and target. Both are
    cross-validated. Chance is the same with permuted targets: within groups, if there are any.

    Args:
        codes: `(n, d)`.
        target: `(n,)` names or numbers.
        key: decides folds and permutations.
        groups: rows of one group, such as a subject, are never in both training and test.
        permutations: how many.

    Raises:
        RequestError: codes that are not finite, one class or group only, or too few of them.
    """
    if not np.isfinite(codes).all():
        raise RequestError("the style codes are not all finite")
    rng = key.numpy(Stream.EVALUATE)
    group = None if groups is None else np.unique(np.asarray(groups), return_inverse=True)[1]
    score = _ridge_score if np.issubdtype(target.dtype, np.floating) else _logistic_score
    value = score(codes, target, group, rng)
    chance = [
        score(codes, target[_permuted(len(target), group, rng)], group, rng)
        for _ in range(permutations)
    ]
    low, middle, high = (float(v) for v in np.percentile(chance, [5, 50, 95]))
    return Floor(value, middle, low, high, len(codes))


def _logistic_score(
    codes: Rows, target: npt.NDArray[Any], group: Indices | None, rng: np.random.Generator
) -> float:
    counts = np.unique(target, return_counts=True)[1]
    groups = FOLDS if group is None else len(np.unique(group))
    folds = min(FOLDS, int(counts.min()), groups)
    if len(counts) < 2 or folds < 2:
        raise RequestError(
            f"a probe needs 2 classes or more, each of 2 rows or more, got {counts.tolist()}"
        )
    seed = int(rng.integers(2**31))
    splitter = StratifiedKFold if group is None else StratifiedGroupKFold
    split = splitter(folds, shuffle=True, random_state=seed).split(codes, target, group)
    right = np.zeros(len(target), dtype=bool)
    for train, test in split:
        model = make_pipeline(StandardScaler(), LogisticRegression(max_iter=1000))
        right[test] = model.fit(codes[train], target[train]).predict(codes[test]) == target[test]
    return float(np.mean([right[target == name].mean() for name in np.unique(target)]))


def _ridge_score(
    codes: Rows, target: npt.NDArray[Any], group: Indices | None, rng: np.random.Generator
) -> float:
    # Without groups, rows are dealt to folds at random.
    fold_of = rng.permutation(len(target)) % FOLDS if group is None else group
    folds = min(FOLDS, len(np.unique(fold_of)))
    if folds < 2:
        raise RequestError("a probe of positions needs at least 2 subjects, got 1")
    found = []
    for train, test in GroupKFold(folds).split(codes, target, fold_of):
        model = make_pipeline(StandardScaler(), Ridge()).fit(codes[train], target[train])
        found.append(_correlation(model.predict(codes[test]), target[test]))
    return float(np.mean(found))


def _correlation(first: Column, second: Column) -> float:
    if len(first) < 2 or np.ptp(first) == 0 or np.ptp(second) == 0:
        return 0.0
    return float(np.corrcoef(first, second)[0, 1])


def _permuted(count: int, group: Indices | None, rng: np.random.Generator) -> Indices:
    order = np.arange(count)
    for members in [order] if group is None else [np.flatnonzero(group == g) for g in set(group)]:
        order[members] = rng.permutation(members)
    return order
