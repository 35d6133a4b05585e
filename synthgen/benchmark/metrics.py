"""How well a predicted volume agrees with the reference, tissue by tissue.

Dice (1945), the 95th percentile of the symmetric surface distance (HD95) and the normalised surface
Dice (Nikolov et al. 2021, doi:10.2196/26151) at a tolerance; the surface measures are MONAI's,
in millimetres. All of a volume, never the mean over its slices.
"""

from __future__ import annotations

import math
import warnings
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt
import torch

from synthgen.core.errors import GeometryError

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
    if predicted.shape != reference.shape:
        raise GeometryError(f"expected a prediction of {reference.shape}, got {predicted.shape}")
    n_ref, n_pred = int(reference.sum()), int(predicted.sum())
    if not n_ref and not n_pred:
        return Agreement(None, None, None, None, None, 0, 0)
    both = int((predicted & reference).sum())
    hd95, nsd = None, 0.0
    if n_ref and n_pred:
        hd95, nsd = _surfaces(predicted, reference, spacing_mm, tolerance_mm)
    return Agreement(
        dice=2 * both / (n_ref + n_pred),
        hd95_mm=hd95,
        nsd=nsd,
        precision=both / n_pred if n_pred else None,
        recall=both / n_ref if n_ref else None,
        n_ref=n_ref,
        n_pred=n_pred,
    )


def _surfaces(
    predicted: npt.NDArray[np.bool_],
    reference: npt.NDArray[np.bool_],
    spacing_mm: Sequence[float],
    tolerance_mm: float,
) -> tuple[float | None, float]:
    """Return HD95 and surface Dice of two masks that are not empty."""
    from monai.metrics import compute_hausdorff_distance, compute_surface_dice  # noqa: PLC0415

    pair = [torch.from_numpy(np.pad(m, 1)[None, None]) for m in _cropped(predicted, reference)]
    spacing = [float(s) for s in spacing_mm]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of its own future
        hd95 = compute_hausdorff_distance(
            *pair, include_background=True, percentile=95, spacing=spacing
        )
        nsd = compute_surface_dice(
            *pair, class_thresholds=[tolerance_mm], include_background=True, spacing=spacing
        )
    distance = float(hd95)
    return distance if math.isfinite(distance) else None, float(nsd)


def _cropped(
    first: npt.NDArray[np.bool_], second: npt.NDArray[np.bool_]
) -> tuple[npt.NDArray[np.bool_], npt.NDArray[np.bool_]]:
    """Return both masks inside the box that holds both: distances stay, time does not."""
    either = first | second
    box = tuple(
        slice(int(inside[0]), int(inside[-1]) + 1)
        for axis in range(either.ndim)
        for inside in [np.flatnonzero(either.any(tuple(a for a in range(3) if a != axis)))]
    )
    return first[box], second[box]


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
