"""How well a predicted volume agrees with the reference, tissue by tissue.

Dice, the 95th percentile of the symmetric surface distance (HD95) in millimetres and the
normalised surface Dice at a tolerance, all of `synthgen.evaluate.segmentation`. All of a volume,
never the mean over its slices.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from synthgen.evaluate.segmentation import overlap, surface_agreement

if TYPE_CHECKING:
    from collections.abc import Sequence

Labels = npt.NDArray[np.integer]


@dataclass(frozen=True)
class Agreement:
    """Agreement of one tissue in one volume; None where a measure is undefined.

    Without the tissue in both volumes all measures are None. A tissue that is there and never
    predicted has Dice, surface Dice and recall 0, and no distance: it is missed.

    Attributes:
        dice: overlap in [0, 1].
        hd95_mm: 95th percentile of the surface distance.
        nsd: share of both surfaces that lies within the tolerance.
        precision: share of the predicted voxels that are right.
        recall: share of the reference that was found.
        n_ref: voxels of the reference.
        n_pred: predicted voxels.
    """

    dice: float | None
    hd95_mm: float | None
    nsd: float | None
    precision: float | None
    recall: float | None
    n_ref: int
    n_pred: int


def agreement(
    predicted: npt.NDArray[np.bool_],
    reference: npt.NDArray[np.bool_],
    spacing_mm: Sequence[float],
    tolerance_mm: float,
) -> Agreement:
    """Compare two masks `(X, Y, Z)`.

    Raises:
        GeometryError: the masks have different shapes.
    """
    shared = overlap(predicted, reference)
    surface = surface_agreement(predicted, reference, spacing_mm, tolerance_mm)
    return Agreement(
        dice=shared.dice,
        hd95_mm=surface.hd95,
        nsd=surface.nsd,
        precision=shared.precision,
        recall=shared.recall,
        n_ref=shared.n_ref,
        n_pred=shared.n_pred,
    )


def volume_rows(
    predicted: Labels,
    reference: Labels,
    tissues: Sequence[str],
    spacing_mm: Sequence[float],
    tolerance_mm: float,
) -> list[dict[str, object]]:
    """Return one row for each tissue but the background.

    Args:
        predicted: label map `(X, Y, Z)`; label g is `tissues[g]`.
        reference: label map of the same shape.
        tissues: names, background first.
        spacing_mm: voxel size along each axis.
        tolerance_mm: of the surface Dice.
    """
    rows: list[dict[str, object]] = []
    for label, tissue in enumerate(tissues):
        if label:
            found = agreement(predicted == label, reference == label, spacing_mm, tolerance_mm)
            rows.append({"tissue": tissue, **vars(found), "slices": reference.shape[2]})
    return rows
