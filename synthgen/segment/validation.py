"""Dice of a segmenter on labelled data: what a model folder says about itself.

Dice (1945) of hard masks, counted over all pictures of a group (a subject, or one generated map)
and averaged over the groups that show the tissue or in which it was found; never the mean over
slices. The background does not count.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import torch
from torch.nn import functional

from synthgen.core.errors import LeakageError, RequestError

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from torch import Tensor

    from synthgen.data.labelled import LabelledData
    from synthgen.data.mixture import Mixture

_MODES = {4: "bilinear", 5: "trilinear"}
Scores = dict[str, float | None]
"""Dice by tissue, and their `mean`; None for a tissue that is nowhere."""


def require_unseen(training: Mixture, validation: LabelledData) -> None:
    """Refuse validation data that do not fit the training data.

    Raises:
        RequestError: other tissues, channels or rank.
        LeakageError: real images of a subject that the training data show or descend from.
    """
    ours, theirs = (
        (d.tissues, d.overlapping, len(d.channels), d.spatial_dims) for d in (training, validation)
    )
    if ours != theirs:
        raise RequestError(
            f"{validation.name}: expected validation data with tissues {', '.join(ours[0])}, "
            f"{ours[2]} channels and {ours[3]} axes as the training data, got "
            f"{', '.join(theirs[0])}, {theirs[2]} and {theirs[3]}"
        )
    seen = sorted({*training.subjects} & {*validation.subjects}) if validation.real else []
    if seen:
        raise LeakageError(
            f"{validation.name}: '{seen[0]}' is in the training data too, or they descend from "
            "it; leave it out with --exclude or validate on other subjects"
        )


def chosen_cases(data: LabelledData, most: int) -> list[int]:
    """Return the places of at most so many cases, evenly spread.

    Examples:
        >>> from types import SimpleNamespace
        >>> chosen_cases(SimpleNamespace(cases=range(10)), 4)
        [0, 3, 6, 9]
    """
    count = len(data.cases)
    return sorted({int(i) for i in np.linspace(0, count - 1, min(most, count)).round()})


def dice_of_steps(
    predict: Callable[[Tensor, int], Tensor],
    data: LabelledData,
    cases: Sequence[int],
    spacing_mm: Sequence[float],
) -> list[Scores]:
    """Score every step of a segmenter.

    Args:
        predict: `(image (1, Ci, *S), number of the case) -> probabilities (K, G, *S)`.
        data: labelled images.
        cases: places of those that are scored.
        spacing_mm: of the images that the segmenter knows; others are brought to it, and what it
            finds is brought back.

    Returns:
        Dice of each of the K steps.
    """
    counts: dict[str, Tensor] = {}
    for index in cases:
        image, soft = (torch.from_numpy(array) for array in data.load(index))
        scaled = _resized(image[None], data.cases[index].spacing_mm, spacing_mm)
        found = predict(scaled, index)
        if scaled.shape[2:] != image.shape[1:]:
            found = functional.interpolate(found, image.shape[1:], mode=_MODES[found.ndim])
        found = _hard(found, data.overlapping)
        truth = _hard(soft[None], data.overlapping)
        axes = tuple(range(2, found.ndim))
        parts = torch.stack(
            [(found & truth).sum(axes), found.sum(axes) + truth.sum(axes)]
        )  # (2, K, tissues)
        group = data.cases[index].group
        counts[group] = counts.get(group, torch.zeros_like(parts)) + parts
    both, sizes = torch.stack([*counts.values()], dim=1).double()  # (groups, K, tissues) each
    dice = (2 * both / sizes).nanmean(dim=0)  # 0 / 0 where a group has none of it
    names = data.tissues if data.overlapping else data.tissues[1:]
    return [_scores(names, row) for row in dice]


def _resized(image: Tensor, spacing_mm: Sequence[float], target_mm: Sequence[float]) -> Tensor:
    """Return an image `(1, Ci, *S)` on voxels of another size, in [0, 1]."""
    sides = zip(image.shape[2:], spacing_mm, target_mm, strict=True)
    size = [max(1, round(side * old / new)) for side, old, new in sides]
    if size == list(image.shape[2:]):
        return image
    return functional.interpolate(image, size, mode=_MODES[image.ndim]).clamp(0, 1)


def _hard(probabilities: Tensor, overlapping: bool) -> Tensor:
    """Return masks `(K, tissues, *S)` without the background."""
    if overlapping:
        return probabilities >= 0.5
    labels = probabilities.argmax(dim=1)
    return torch.stack([labels == c for c in range(1, probabilities.shape[1])], dim=1)


def _scores(names: Sequence[str], dice: Tensor) -> Scores:
    mean = dice.nanmean()
    values = {**dict(zip(names, dice, strict=True)), "mean": mean}
    return {n: None if v.isnan() else round(float(v), 4) for n, v in values.items()}
