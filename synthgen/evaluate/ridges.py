"""Vessel masks from ridge filters: what a trained segmenter must beat.

The filters of Sato et al. (1998, doi:10.1016/S1361-8415(98)80009-1) and Frangi et al. (1998,
doi:10.1007/BFb0056195) as scikit-image has them, on dark ridges. The threshold is matched to the
prior: the strongest pixels become vessel until the wanted share of the field of view is reached,
so the vessel fraction is assumed to be known. Nothing is trained.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal, NamedTuple

import numpy as np
import numpy.typing as npt
from scipy import ndimage

from synthgen.core.errors import GeometryError, RequestError

if TYPE_CHECKING:
    from collections.abc import Callable

    Filter = Callable[..., npt.NDArray[np.floating]]

Mask = npt.NDArray[np.bool_]
RidgePreset = Literal["coronary", "retina"]

_ERODED_PX = 6


class _Scales(NamedTuple):
    """Widths of ridges, as sigmas of the filter, in a field of view of some size; in pixels."""

    sigmas: tuple[float, ...]
    size: float


_SCALES: dict[RidgePreset, _Scales] = {
    "coronary": _Scales((2.0, 3.0, 4.0, 5.0, 6.0), 512.0),
    "retina": _Scales((1.0, 1.5, 2.0, 3.0), 540.0),
}


def sato_mask(
    image: npt.NDArray[np.floating],
    field: Mask | None,
    share: float,
    preset: RidgePreset = "retina",
) -> Mask:
    """Return the strongest dark ridges of an image `(X, Y)` as a mask, by Sato's filter.

    The sigmas (retina 1, 1.5, 2, 3 at a field of 540 pixels, as in DRIVE; coronary 2 to 6 at 512)
    grow with the longer side of the field, and so do the 6 pixels of its rim that are left out.

    Args:
        image: grey values in [0, 1], vessels darker than what is around them.
        field: the field of view; None where the whole frame is seen.
        share: share of the field that becomes vessel.
        preset: which sigmas.

    Raises:
        GeometryError: the field has another shape, or nothing is left of it without its rim.
        RequestError: the share does not lie in (0, 1).
    """
    from skimage.filters import sato  # noqa: PLC0415 - slow to import

    return _strongest(sato, image, field, share, _SCALES[preset])


def frangi_mask(
    image: npt.NDArray[np.floating],
    field: Mask | None,
    share: float,
    preset: RidgePreset = "retina",
) -> Mask:
    """Return the strongest dark ridges as a mask, by Frangi's filter; all else as `sato_mask`."""
    from skimage.filters import frangi  # noqa: PLC0415 - slow to import

    return _strongest(frangi, image, field, share, _SCALES[preset])


def _strongest(
    ridges: Filter,
    image: npt.NDArray[np.floating],
    field: Mask | None,
    share: float,
    scales: _Scales,
) -> Mask:
    if not 0 < share < 1:
        raise RequestError(f"the vessel share of the field must lie in (0, 1), got {share}")
    seen = np.ones(image.shape, dtype=np.bool_) if field is None else field
    if seen.shape != image.shape or not seen.any():
        raise GeometryError(
            f"expected a field of view of {image.shape} with pixels in it, got {seen.shape} with "
            f"{int(seen.sum())}"
        )
    scale = max(np.ptp(axis) + 1 for axis in np.nonzero(seen)) / scales.size
    depth = ndimage.distance_transform_edt(np.pad(seen, 1))[1:-1, 1:-1]
    inner = depth > _ERODED_PX * scale
    if not inner.any():
        raise GeometryError(f"the field of view of {int(seen.sum())} pixels is all rim")
    strength = ridges(image, sigmas=[s * scale for s in scales.sigmas], black_ridges=True)
    wanted = min(round(share * int(seen.sum())), int(inner.sum()))
    rank = np.argsort(-strength[inner], kind="stable")[:wanted]
    mask = np.zeros(image.size, dtype=np.bool_)
    mask[np.flatnonzero(inner)[rank]] = True
    return mask.reshape(image.shape)
