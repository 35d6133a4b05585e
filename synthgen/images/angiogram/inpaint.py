"""Take the vessels out of a photograph of the fundus, without any label.

Dark lines are found where the picture is darker than on both sides, at several widths and
directions, with hysteresis; one-sided edges such as that of the optic disc are not. The gap is
filled from coarse to fine by normalised convolution (Knutsson and Westin 1993,
doi:10.1109/CVPR.1993.341081), and grain is copied from the nearest place that held no vessel,
so that neither a smear nor missing noise gives it away.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
from scipy import ndimage

from synthgen.core.errors import RequestError
from synthgen.images.angiogram.backgrounds import Background
from synthgen.images.angiogram.fields import Circle, inside

if TYPE_CHECKING:
    from synthgen.core.vessels import Floats

Mask = npt.NDArray[np.bool_]

_WIDTHS = (0.004, 0.007, 0.012, 0.02)
"""Half widths of vessels that are looked for, as shares of the field's radius."""
_FAINT, _SURE = 3.0, 7.0
"""Hysteresis in robust standard deviations of the response; set by hand on four photographs of
CHASE_DB1, with an eye on the share of the manual mask that goes."""
_DIRECTIONS = 12


def fundus_background(image: Floats, field: Circle, name: str, subject: str = "") -> Background:
    """Make a background of a fundus photograph: without its vessels, its disc known.

    Args:
        image: green channel `(X, Y)` in [0, 1].
        field: circle of view in pixels; zeros for the whole frame.
        name: of the file, for messages.
        subject: whom it shows.
    """
    disc = find_disc(image, field)
    return Background(vessel_free(image, field), name, field, disc, subject)


def vessel_free(image: Floats, field: Circle) -> Floats:
    """Remove the vessels of a fundus photograph.

    Args:
        image: green channel `(X, Y)` in [0, 1], vessels dark.
        field: circle of view (x, y, radius) in pixels; zeros for the whole frame.

    Returns:
        float32 `(X, Y)` in [0, 1]; what was not taken for a vessel, and what lies outside, is as it
        was. Margins and faint dark lines go too: more is repainted than an observer would mark.

    Raises:
        RequestError: an image that is not one grey picture.
    """
    if image.ndim != 2:
        raise RequestError(
            f"expected one grey picture (X, Y), got the shape {image.shape}: take the green channel"
        )
    radius = field[2] if field[2] > 0 else min(image.shape) / 2
    seen = ndimage.binary_erosion(inside(field, image.shape) >= 1, iterations=3, border_value=1)
    log = np.log(np.maximum(image, 1 / 255), dtype=np.float32)
    vessels = find_vessels(np.where(seen, log, _fill(log, seen, radius)), radius) & seen
    valid = seen & ~vessels
    smooth = _fill(log, valid, radius)
    filled = np.exp(smooth + _grain(log, valid, vessels, radius))
    return np.where(vessels, np.clip(filled, 0, 1), image).astype(np.float32)


def find_vessels(log: Floats, radius: float) -> Mask:
    """Find dark lines.

    Args:
        log: logarithm of the picture, `(X, Y)`.
        radius: of the field of view in pixels.

    Returns:
        bool `(X, Y)`, with some margin.
    """
    found = np.zeros(log.shape, bool)
    for share in _WIDTHS:
        half = max(share * radius, 1.0)
        response = _darker_than_both_sides(ndimage.gaussian_filter(log, 0.6 * half), half)
        spread = 1.4826 * float(np.median(np.abs(response - np.median(response))))
        level = (response - np.median(response)) / max(spread, 1e-6)
        parts, _ = ndimage.label(level > _FAINT, np.ones((3, 3)))
        sure = np.unique(parts[level > _SURE])
        kept = np.isin(parts, sure[sure > 0])
        reach = round(half) + 1
        found |= ndimage.distance_transform_edt(~kept) <= reach
    return found


def _darker_than_both_sides(smooth: Floats, half: float) -> Floats:
    """How much brighter the less bright side is, averaged along the line; best direction."""
    best = np.full(smooth.shape, -np.inf, np.float32)
    padded = _Shifts(smooth, 2.2 * half)
    for angle in np.arange(_DIRECTIONS) * (np.pi / _DIRECTIONS):
        across = np.array([np.cos(angle), np.sin(angle)])
        along = np.array([-across[1], across[0]])
        sides = [padded.at(sign * 2.2 * half * across) for sign in (-1, 1)]
        rise = _Shifts(np.minimum(*sides) - smooth, 4.5 * half)
        response = rise.at(0 * along)
        for k in (-3, -2, -1, 1, 2, 3):
            response = response + rise.at(k * 1.5 * half * along)
        np.maximum(best, response / 7, out=best)
    return best


class _Shifts:
    """An array, its edges repeated, to be read at offsets of up to `reach` pixels."""

    def __init__(self, array: npt.NDArray[Any], reach: float) -> None:
        self._shape, self._margin = array.shape, int(np.ceil(reach)) + 1
        self._padded = np.pad(array, self._margin, mode="edge")

    def at(self, offset: npt.NDArray[np.float64]) -> npt.NDArray[Any]:
        """A view at an offset, rounded to whole pixels."""
        x, y = np.rint(offset).astype(int) + self._margin
        return self._padded[x : x + self._shape[0], y : y + self._shape[1]]


def _soften(array: Floats, sigma: float) -> Floats:
    """Blur by three passes of a mean: near a Gaussian, and as fast for a wide one."""
    width = max(1, 2 * round(sigma) + 1)
    for _ in range(3):
        array = ndimage.uniform_filter(array, width, mode="nearest")
    return array


def _fill(log: Floats, valid: Mask, radius: float) -> Floats:
    """Smooth values everywhere, from the valid ones: fine where there are some, else coarse."""
    weight = valid.astype(np.float32)
    filled = np.full(log.shape, log[valid].mean(), np.float32)
    for share in (0.3, 0.16, 0.08, 0.05, 0.03, 0.018, 0.01):
        near = _soften(weight, share * radius)
        mean = _soften(log * weight, share * radius) / np.maximum(near, 1e-6)
        filled += np.clip(near * 8 - 0.4, 0, 1) * (mean - filled)
    return filled


def _grain(log: Floats, valid: Mask, gaps: Mask, radius: float) -> Floats:
    """Fine structure for the gaps, copied from the nearest valid place; no edges."""
    weight = valid.astype(np.float32)
    near = _soften(weight, 0.008 * radius)
    local = _soften(log * weight, 0.008 * radius) / np.maximum(near, 1e-6)
    detail = np.where(valid & (near > 0.3), log - local, 0)
    spread = 1.4826 * float(np.median(np.abs(detail[valid])))
    sources = valid & (np.abs(detail) < 3.5 * spread)
    farthest = 0.4 * radius
    details, usable = _Shifts(detail, farthest), _Shifts(sources, farthest)
    missing = gaps.copy()
    grain = np.zeros(log.shape, np.float32)
    for distance in np.arange(0.04, 0.4, 0.02) * radius:
        for angle in (np.arange(8) + distance) * (np.pi / 4):
            offset = distance * np.array([np.cos(angle), np.sin(angle)])
            take = missing & usable.at(offset)
            grain[take] = details.at(offset)[take]
            missing &= ~take
        if not missing.any():
            break
    return grain


def find_disc(image: Floats, field: Circle) -> Circle:
    """Find the optic disc: the brightest spot of a disc's size.

    Args:
        image: green channel `(X, Y)` in [0, 1].
        field: circle of view in pixels; zeros for the whole frame.

    Returns:
        Centre (x, y) in pixels and an assumed radius of 0.16 field radii.
    """
    radius = field[2] if field[2] > 0 else min(image.shape) / 2
    seen = inside(field, image.shape) >= 1
    flat = np.where(seen, image, image[seen].mean())
    spot = ndimage.gaussian_filter(flat, 0.08 * radius)
    around = ndimage.gaussian_filter(flat, 0.3 * radius)
    rim = ndimage.distance_transform_edt(np.pad(seen, 1))[1:-1, 1:-1] < 0.12 * radius
    x, y = np.unravel_index(np.argmax(np.where(seen & ~rim, spot - around, -1)), image.shape)
    return (float(x), float(y), 0.16 * radius)
