"""How well a predicted binary mask agrees with the reference, in 2 or 3 dimensions.

Dice (1945), IoU, precision and recall; clDice (Shit et al. 2021, arXiv:2003.07311, eqs. 1-3) for
tubes; the difference of Betti-0, the number of connected pieces; and of the surfaces the 95th
percentile of their distance (HD95), its mean (ASD) and the share within a tolerance (normalised
surface Dice, Nikolov et al. 2021, doi:10.2196/26151). All of an image, never the mean over its
slices.

Where a mask is empty. Both empty: all measures are None, but for the difference of pieces, 0. One
empty: what both masks share is nothing, so Dice, IoU, clDice and surface Dice are 0; precision
(without a prediction) and recall (without a reference) divide by nothing and are None; so are the
distances.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt
from scipy import ndimage

from synthgen.core.errors import GeometryError, SchemaError
from synthgen.evaluate.skeletons import skeleton_of

if TYPE_CHECKING:
    from collections.abc import Sequence

Mask = npt.NDArray[np.bool_]


@dataclass(frozen=True)
class Overlap:
    """What two masks share; None where a measure divides by nothing.

    Attributes:
        dice: 2 TP / (n_pred + n_ref), in [0, 1].
        iou: TP / (n_pred + n_ref - TP).
        precision: TP / n_pred.
        recall: TP / n_ref.
        n_ref: pixels of the reference.
        n_pred: predicted pixels.
    """

    dice: float | None
    iou: float | None
    precision: float | None
    recall: float | None
    n_ref: int
    n_pred: int


@dataclass(frozen=True)
class SurfaceAgreement:
    """How far two surfaces lie from one another; None where there is only one, or none.

    Attributes:
        hd95: the larger of the two 95th percentiles of distances, one for each direction.
        asd: mean distance over the pixels of both surfaces.
        nsd: share of both surfaces that lies within the tolerance of the other.
    """

    hd95: float | None
    asd: float | None
    nsd: float | None


def mask_metrics(
    predicted: Mask,
    reference: Mask,
    *,
    spacing: float | Sequence[float] = 1.0,
    tolerance: float = 1.0,
) -> dict[str, float | None]:
    """Compare two masks `(X, Y)` or `(X, Y, Z)`.

    Args:
        predicted: a binary mask.
        reference: a binary mask of the same shape.
        spacing: size of a pixel along each axis, or along all; the distances are in its unit.
        tolerance: of the surface Dice, in the same unit.

    Returns:
        dice, iou, precision, recall, cldice, betti0_error, hd95, asd and nsd; None where the
        module's rule for empty masks says so.

    Raises:
        SchemaError: a mask is not boolean.
        GeometryError: the shapes differ, or are not of 2 or 3 dimensions, or the spacing does not
            fit them.

    Examples:
        >>> mask = np.zeros((8, 8), bool)
        >>> mask[2:5, 1:7] = True
        >>> found = mask_metrics(mask, mask)
        >>> found["dice"], found["hd95"], mask_metrics(~mask, mask)["iou"]
        (1.0, 0.0, 0.0)
    """
    shared = overlap(predicted, reference)
    surface = surface_agreement(predicted, reference, spacing, tolerance)
    return {
        "dice": shared.dice,
        "iou": shared.iou,
        "precision": shared.precision,
        "recall": shared.recall,
        "cldice": centreline_dice(predicted, reference),
        "betti0_error": float(abs(_pieces(predicted) - _pieces(reference))),
        "hd95": surface.hd95,
        "asd": surface.asd,
        "nsd": surface.nsd,
    }


def overlap(predicted: Mask, reference: Mask) -> Overlap:
    """Return what two masks share. Raises as `mask_metrics` does."""
    _require_pair(predicted, reference)
    n_ref, n_pred = int(reference.sum()), int(predicted.sum())
    both = int((predicted & reference).sum())
    either = n_ref + n_pred - both
    return Overlap(
        dice=2 * both / (n_ref + n_pred) if either else None,
        iou=both / either if either else None,
        precision=both / n_pred if n_pred else None,
        recall=both / n_ref if n_ref else None,
        n_ref=n_ref,
        n_pred=n_pred,
    )


def centreline_dice(predicted: Mask, reference: Mask) -> float | None:
    """Return clDice: the harmonic mean of how much of each skeleton lies inside the other mask.

    The skeletons are scikit-image's, not pruned. Raises as `mask_metrics` does.
    """
    _require_pair(predicted, reference)
    if not predicted.any() or not reference.any():
        return 0.0 if predicted.any() or reference.any() else None
    inside = _box(predicted | reference)
    masks = [np.pad(mask[inside], 1) for mask in (predicted, reference)]
    skeletons = [skeleton_of(mask) for mask in masks]
    precision, sensitivity = (
        float(mask[skeleton].mean())
        for skeleton, mask in zip(skeletons, reversed(masks), strict=True)
    )
    total = precision + sensitivity
    return 2 * precision * sensitivity / total if total else 0.0


def surface_agreement(
    predicted: Mask, reference: Mask, spacing: float | Sequence[float], tolerance: float
) -> SurfaceAgreement:
    """Return how far the surfaces of two masks lie apart.

    A surface is the pixels with a side on the outside; the border of the image is outside.
    Raises as `mask_metrics` does.
    """
    _require_pair(predicted, reference)
    steps = _steps(spacing, predicted.ndim)
    if not predicted.any() or not reference.any():
        return SurfaceAgreement(None, None, 0.0 if predicted.any() or reference.any() else None)
    inside = _box(predicted | reference)
    edges = [_edge(mask[inside]) for mask in (predicted, reference)]
    to_reference, to_predicted = (
        ndimage.distance_transform_edt(~other, sampling=steps)[edge]
        for edge, other in zip(edges, reversed(edges), strict=True)
    )
    both = np.concatenate([to_reference, to_predicted])
    return SurfaceAgreement(
        hd95=float(max(np.percentile(d, 95) for d in (to_reference, to_predicted))),
        asd=float(both.mean()),
        nsd=float((both <= tolerance).mean()),
    )


def _edge(mask: Mask) -> Mask:
    edge: Mask = mask & ~ndimage.binary_erosion(mask)
    return edge


def _pieces(mask: Mask) -> int:
    """Return the number of connected pieces; pixels that touch at a corner are connected."""
    return int(ndimage.label(mask, np.ones((3,) * mask.ndim, dtype=np.int64))[1])


def _box(mask: Mask) -> tuple[slice, ...]:
    """Return the smallest box around a mask: distances in it stay, time does not."""
    (box,) = ndimage.find_objects(mask.astype(np.uint8))
    return tuple(box)


def _require_pair(predicted: Mask, reference: Mask) -> None:
    for name, mask in (("prediction", predicted), ("reference", reference)):
        if mask.dtype != np.bool_:
            raise SchemaError(
                f"the {name} must be a binary mask of dtype bool, got {mask.dtype} from "
                f"{mask.min()} to {mask.max()}; threshold it first"
            )
    if predicted.shape != reference.shape:
        raise GeometryError(f"expected a prediction of {reference.shape}, got {predicted.shape}")
    if predicted.ndim not in {2, 3}:
        raise GeometryError(f"expected masks (X, Y) or (X, Y, Z), got {predicted.shape}")


def _steps(spacing: float | Sequence[float], ndim: int) -> list[float]:
    steps = [float(s) for s in np.atleast_1d(spacing)]
    steps = steps * ndim if np.ndim(spacing) == 0 else steps
    if len(steps) != ndim or min(steps) <= 0:
        raise GeometryError(f"expected {ndim} positive spacings, got {spacing}")
    return steps
