"""The arms of a benchmark: which cases a training sees, and when.

Every arm takes the same number of optimiser steps. A hybrid arm holds no data of its own: its
cases are numbers into the stores of its parts, repeated so that a uniform draw hits each part
with its share.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from synthgen.core.errors import RequestError

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

KINDS = ("real", "synthetic", "hybrid", "few", "contrast", "pretrain")
REFERENCE = "real"
_PRETRAINED = 0.5
_EVENNESS = 10
"""Cases of one part stand at least this often in a hybrid's draws: how even the repeats are."""


@dataclass(frozen=True)
class Part:
    """Cases of one store.

    Attributes:
        store: "real", "synthetic" or "contrast".
        share: probability that a drawn case is one of them.
        few: only this many slices of it; None for all.
    """

    store: str
    share: float = 1.0
    few: int | None = None


@dataclass(frozen=True)
class Stage:
    """A stretch of training on the same cases; `until` is the share of all steps where it ends."""

    until: float
    parts: tuple[Part, ...]


@dataclass(frozen=True)
class Arm:
    """One arm. Its name tells its settings, so that one folder may hold several of a kind."""

    name: str
    stages: tuple[Stage, ...]

    @property
    def stores(self) -> tuple[str, ...]:
        """Names of the stores it draws from, sorted."""
        return tuple(sorted({part.store for stage in self.stages for part in stage.parts}))


def build_arms(kinds: Sequence[str], ratios: Sequence[float], few: int) -> tuple[Arm, ...]:
    """Build the arms that were asked for, `real` first.

    `real` is always there: the others are compared with it.

    Args:
        kinds: some of `KINDS`.
        ratios: synthetic cases for each real one, an arm `hybrid` each; the arm of ratio 1 is
            called `hybrid`, others carry their ratio: `hybrid-0.5`.
        few: slices of the arm `few-N`.

    Raises:
        RequestError: an unknown kind, or a ratio that is not positive.

    Examples:
        >>> [arm.name for arm in build_arms(["hybrid"], [1, 2], 20)]
        ['real', 'hybrid', 'hybrid-2']
    """
    unknown = [kind for kind in kinds if kind not in KINDS]
    if unknown:
        raise RequestError(f"--train: no arm '{unknown[0]}'; there are {', '.join(KINDS)}")
    if not all(0 < ratio < 1000 for ratio in ratios) or few < 1:
        raise RequestError(
            f"expected ratios above 0 and at least one slice, got --ratio "
            f"{','.join(f'{r:g}' for r in ratios)} --few {few}"
        )
    arms = [Arm(REFERENCE, _always(Part(REFERENCE)))]
    for kind in dict.fromkeys(kinds):
        if kind in {"synthetic", "contrast"}:
            arms.append(Arm(kind, _always(Part(kind))))
        elif kind == "few":
            arms.append(Arm(f"few-{few}", _always(Part(REFERENCE, few=few))))
        elif kind == "pretrain":
            first, then = Stage(_PRETRAINED, (Part("synthetic"),)), _always(Part(REFERENCE))
            arms.append(Arm(kind, (first, *then)))
        elif kind == "hybrid":
            arms.extend(_hybrid(ratio) for ratio in dict.fromkeys(ratios))
    return tuple(arms)


def _always(*parts: Part) -> tuple[Stage, ...]:
    return (Stage(1.0, parts),)


def _hybrid(ratio: float) -> Arm:
    real, synthetic = Part(REFERENCE, 1 / (1 + ratio)), Part("synthetic", ratio / (1 + ratio))
    return Arm("hybrid" if ratio == 1 else f"hybrid-{ratio:g}", _always(real, synthetic))


def few_slices(slices: Sequence[str], count: int) -> npt.NDArray[np.int64]:
    """Return the cases of `count` slices, spread evenly over the sorted slices.

    Args:
        slices: name of the slice that each case shows; a slice has a case for each modality.
        count: how many slices; all, if there are no more.
    """
    names = sorted({*slices})
    places = np.linspace(0, len(names) - 1, min(count, len(names))).round().astype(int)
    chosen = {names[place] for place in places}
    return np.asarray([case for case, name in enumerate(slices) if name in chosen], dtype=np.int64)


def draws(parts: Sequence[Part], slices: Mapping[str, Sequence[str]]) -> npt.NDArray[np.int64]:
    """Return case numbers such that a uniform draw of them follows the parts' shares.

    Args:
        parts: of one stage.
        slices: store name to the slice that each of its cases shows.

    Returns:
        `(n,)`: case i of part p has the number i + the sizes of all stores of earlier parts.
    """
    offsets = np.cumsum([0, *(len(slices[part.store]) for part in parts)])
    own = [
        offset + (np.arange(len(names)) if part.few is None else few_slices(names, part.few))
        for part, offset in zip(parts, offsets, strict=False)
        for names in [slices[part.store]]
    ]
    if len(own) == 1:
        return np.asarray(own[0], dtype=np.int64)
    total = _EVENNESS * max(len(o) / part.share for o, part in zip(own, parts, strict=True))
    return np.concatenate(
        [np.resize(o, round(total * part.share)) for o, part in zip(own, parts, strict=True)]
    ).astype(np.int64)
