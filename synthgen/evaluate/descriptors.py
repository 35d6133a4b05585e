"""What a slice looks like, whatever its contrast: fields of edge orientation.

A copy may hide behind another contrast, so a descriptor keeps where edges run and forgets how
strong they are and which side is brighter: gradients as doubled angles (Granlund 1978,
doi:10.1016/0146-664X(78)90047-3), which inversion leaves as they are, each divided by its own
magnitude plus the local mean, which takes out gain and bias field.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt
from scipy import ndimage

if TYPE_CHECKING:
    from synthgen.evaluate.sets import Floats

POOL = 2
"""Descriptors have this many pixels of the slice to one of theirs."""

_SIGMA_PX = 1.0
_LOCAL_PX = 17
_INSIDE = 0.95  # share of the smoothing window that lies in the brain: its outline is no edge
_FLAT = 1e-6
_FLAT_PV = 1e-3


def describe_image(image: Floats) -> Floats:
    """Return the field `(2, X / 2, Y / 2)` of an image `(X, Y)` that is 0 outside the brain."""
    brain = (image > 0).astype(np.float32)
    weight = ndimage.gaussian_filter(brain, _SIGMA_PX)
    smooth = ndimage.gaussian_filter(image, _SIGMA_PX) / np.maximum(weight, _FLAT)
    return _field(smooth[None].astype(np.float32), weight > _INSIDE, _FLAT)


def describe_labels(pv: Floats) -> Floats:
    """Return the field `(2, X / 2, Y / 2)` of the tissues of a PV map `(C, X, Y)`."""
    tissues = ndimage.uniform_filter(pv[1:], (0, 3, 3))
    return _field(tissues, np.ones(pv.shape[1:], dtype=bool), _FLAT_PV)


def mirrored(fields: Floats) -> Floats:
    """Return the fields `(..., 2, X, Y)` of the slices seen in a mirror, left for right."""
    turned = np.flip(fields, axis=-2).copy()
    turned[..., 1, :, :] *= -1
    return turned


def _field(maps: Floats, where: npt.NDArray[np.bool_], flat: float) -> Floats:
    """Return doubled-angle gradients summed over maps `(N, X, Y)`, normalised and pooled."""
    gx, gy = np.zeros_like(maps), np.zeros_like(maps)
    gx[:, 1:-1] = maps[:, 2:] - maps[:, :-2]
    gy[..., 1:-1] = maps[..., 2:] - maps[..., :-2]
    magnitude = np.sqrt((gx**2 + gy**2).sum(axis=0)) * where
    local = ndimage.uniform_filter(magnitude, _LOCAL_PX)
    local /= np.maximum(ndimage.uniform_filter(where.astype(np.float32), _LOCAL_PX), 0.05)
    doubled = np.stack([(gx**2 - gy**2).sum(axis=0), (2 * gx * gy).sum(axis=0)])
    doubled *= where / ((magnitude + local + flat) * np.maximum(magnitude, flat))
    x, y = doubled.shape[1] // POOL, doubled.shape[2] // POOL
    pooled = doubled[:, : x * POOL, : y * POOL].reshape(2, x, POOL, y, POOL)
    return np.asarray(pooled.mean(axis=(2, 4)), dtype=np.float32)
