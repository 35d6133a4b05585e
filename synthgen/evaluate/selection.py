"""Which slices are compared: what must hold before, and how many are drawn."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from synthgen.core.errors import LeakageError, RequestError
from synthgen.core.rng import SampleKey, Stream
from synthgen.evaluate.sets import UNKNOWN, require_comparable

if TYPE_CHECKING:
    from collections.abc import Iterable

    from synthgen.evaluate.sets import Indices, SliceSet

REAL_SHARE = 4
"""One real slice is measured for this many generated ones: 500 for 2000."""


def draw(whole: SliceSet, count: int, key: SampleKey, *, imaged: bool = False) -> Indices:
    """Draw slices without replacement, in their order; all if there are no more than `count`.

    Args:
        whole: the set.
        count: most slices.
        key: decides which.
        imaged: only slices that have an image.
    """
    pool = np.unique(whole.images.slices) if imaged else np.arange(len(whole))
    if len(pool) <= count:
        return pool
    chosen: Indices = np.sort(key.numpy(Stream.EVALUATE).choice(pool, count, replace=False))
    return chosen


def require_evaluable(synthetic: SliceSet, real: SliceSet) -> None:
    """Refuse sets that no number could compare.

    Raises:
        RequestError: an empty set, or images of which no modality is shared.
        SchemaError: another label schema.
        GeometryError: another slice size.
    """
    for subset in (synthetic, real):
        if not len(subset):
            raise RequestError(f"{subset.name}: the set is empty; expected at least one slice")
    require_comparable(synthetic, real)
    painted = len(synthetic.images.slices) and len(real.images.slices)
    if painted and not {*synthetic.modalities} & {*real.modalities}:
        raise RequestError(
            f"{synthetic.name}: no modality in common with {real.name}; its styles are "
            f"{', '.join(synthetic.styles)}, the real modalities {', '.join(real.modalities)}; "
            "a style's name must end with its modality"
        )


def require_disjoint(train: SliceSet, holdout: SliceSet, others: Iterable[SliceSet] = ()) -> None:
    """Refuse a holdout with subjects that were trained on.

    Args:
        train: the training set.
        holdout: what nobody must have seen.
        others: sets whose `ancestors` must not be in the holdout either.

    Raises:
        LeakageError: naming the subjects.
    """
    sources = [(train.name, {*train.table.subject}), *((o.name, {*o.ancestors}) for o in others)]
    held = {*holdout.table.subject} - {UNKNOWN}
    for name, seen in sources:
        both = sorted(held & seen)
        if both:
            more = f" and {len(both) - 4} more" if len(both) > 4 else ""
            raise LeakageError(
                f"{holdout.name}: {', '.join(both[:4])}{more} also belong to {name} or the models "
                "behind it; a holdout must share no subject with training data"
            )
