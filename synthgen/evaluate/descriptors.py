"""What a slice looks like whatever its contrast: where its edges run, not how strong they are.

A copy may come mirrored, shifted or in another contrast, so slices are compared by the direction
of their edges. The angle of the gradient is doubled, which makes opposite directions equal: an
edge from dark to bright and the same edge from bright to dark look alike, and any smooth change
of the grey values, even an inversion, leaves the direction as it is (Knutsson 1989, "Representing
local structure using tensors"; the invariance is that of Pluim et al. 2000,
doi:10.1109/42.876307). The length is the strength of the edge relative to its neighbourhood, so
bias fields and contrast do not matter either. Label maps use the gradient of all their channels
(Di Zenzo 1986, doi:10.1016/0734-189X(86)90223-9), so that one comparison serves both.

Two resolutions are kept: a coarse one that tolerates shifts and small warps, to search with, and
a fine one of 2 px to decide with.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Literal

import numpy as np
import numpy.typing as npt
from scipy import ndimage

from synthgen.core.errors import RequestError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from synthgen.evaluate.sets import Floats, Indices, SliceSet

What = Literal["labels", "images"]

FINE = 2
"""Pixels of a slice in one pixel of its fine structure, along each axis."""

BLOCK = 16
"""Side of the blocks of the fine structure that `nearest` may shift one by one."""

_COARSE = 4  # fine pixels in one coarse pixel
_FINE_BLUR = 0.6  # fine pixels: tolerates fractions of a pixel
_COARSE_BLUR = 2.5
_OUTSIDE = 1e-3  # images are exactly 0 outside the brain
_INNER = 0.95
_SMOOTH = 1.0
_NEIGHBOURHOOD = 17  # pixels, the side of the window of relative strength
_FAINT = 0.1  # of the mean strength: below, a gradient is hardly an edge
_ROUNDING = 1e-5  # a gradient of float32 values in [0, 1] that means nothing
_TINY = 1e-12


@dataclass(frozen=True)
class Bank:
    """Descriptors of n records: slices, or images of slices.

    Attributes:
        what: which of the two.
        coarse: `(n, 2, h, w)` float32, each of length 1 (or 0 if the record is empty).
        fine: `(n, 2, H, W)` float16; H and W are multiples of `BLOCK`.
        content: `(n,)` total length of the edges, in fine pixels.
        rows: `(n,)` row of each record in its set: of the slice table or of the image table.
        slices: `(n,)` slice of each record.
        subject: `(n,)` subject of each record.
    """

    what: What
    coarse: Floats
    fine: npt.NDArray[np.float16]
    content: npt.NDArray[np.float64]
    rows: Indices
    slices: Indices
    subject: tuple[str, ...]

    def __len__(self) -> int:
        return len(self.rows)

    def take(self, chosen: Indices) -> Bank:
        """Return some of the records."""
        return Bank(
            self.what,
            self.coarse[chosen],
            self.fine[chosen],
            self.content[chosen],
            self.rows[chosen],
            self.slices[chosen],
            tuple(self.subject[i] for i in chosen),
        )

    def light(self) -> Bank:
        """Return the bank without the fine structures, which are most of its memory."""
        return replace(self, fine=self.fine[:, :, :0, :0].copy())


def joined(banks: Sequence[Bank]) -> Bank:
    """Return the records of several banks of one kind, one bank after the other."""
    return Bank(
        banks[0].what,
        np.concatenate([b.coarse for b in banks]),
        np.concatenate([b.fine for b in banks]),
        np.concatenate([b.content for b in banks]),
        np.concatenate([b.rows for b in banks]),
        np.concatenate([b.slices for b in banks]),
        tuple(s for b in banks for s in b.subject),
    )


def records(subset: SliceSet, what: What) -> Indices:
    """Return the rows that a bank of the whole set has."""
    return np.arange(len(subset) if what == "labels" else len(subset.images.slices))


def describe(subset: SliceSet, what: What, rows: Sequence[int] | Indices | None = None) -> Bank:
    """Describe label maps or images, read one at a time.

    Args:
        subset: the set.
        what: its label maps, or its images.
        rows: of the slice table or of the image table; all by default.

    Raises:
        RequestError: a map or image that is not finite.
    """
    chosen = records(subset, what) if rows is None else np.asarray(rows, dtype=np.int64)
    coarse, fine, content = [], [], []
    for row in chosen:
        planes = subset.read_pv(int(row)) if what == "labels" else subset.read_image(int(row))
        if not np.isfinite(planes).all():
            raise RequestError(
                f"{subset.name}: the {what} have values that are not finite, at row {int(row)}"
            )
        found = label_structure(planes) if what == "labels" else image_structure(planes[0])
        content.append(float(np.hypot(*found).sum()))
        fine.append(ndimage.gaussian_filter(found, (0, _FINE_BLUR, _FINE_BLUR)).astype(np.float16))
        coarse.append(_coarse(found))
    slices = chosen if what == "labels" else subset.images.slices[chosen]
    shape = _padded(subset.shape)
    return Bank(
        what,
        np.stack(coarse)
        if coarse
        else np.zeros((0, 2, *(s // _COARSE for s in shape)), np.float32),
        np.stack(fine) if fine else np.zeros((0, 2, *shape), np.float16),
        np.asarray(content, dtype=np.float64),
        chosen,
        slices,
        tuple(subset.table.subject[i] for i in slices) if chosen.size else (),
    )


def image_structure(image: Floats) -> Floats:
    """Return the edges inside an image `(X, Y)` in [0, 1], 0 outside the brain.

    The border of the brain is left out: its strength depends on the contrast alone.

    Returns:
        `(2, H, W)`: cosine and sine of the doubled angle, times the relative strength in [0, 1).
    """
    inside = (image > _OUTSIDE).astype(np.float32)
    weight = np.maximum(_blurred(inside, _SMOOTH), _OUTSIDE)
    smooth: Floats = (_blurred(image, _SMOOTH) / weight).astype(np.float32)
    return _structure(smooth[None], weight > _INNER)


def label_structure(pv: Floats) -> Floats:
    """Return the edges between the tissues of a PV map `(C, X, Y)`, as `image_structure` does."""
    tissues = pv[1:][pv[1:].reshape(len(pv) - 1, -1).any(axis=1)]
    smooth: Floats = tissues if len(tissues) else np.zeros_like(pv[:1])
    for axis in (1, 2):
        smooth = ndimage.uniform_filter1d(smooth, 3, axis).astype(np.float32, copy=False)
    return _structure(smooth, np.ones(pv.shape[1:], dtype=bool))


def mirrored(structure: Floats, axes: tuple[int, ...]) -> Floats:
    """Mirror structures `(..., 2, H, W)` along in-plane axes 0 (left-right) and 1."""
    turned = structure
    for axis in axes:
        turned = np.flip(turned, axis=axis - 2)
    if len(axes) != 1:
        return turned
    turned = turned.copy()
    turned[..., 1, :, :] *= -1
    return turned


def _structure(planes: Floats, inside: npt.NDArray[np.bool_]) -> Floats:
    across, along = _differences(planes)
    cosine = (across**2 - along**2).sum(axis=0)
    sine = 2 * (across * along).sum(axis=0)
    strength = np.sqrt((across**2 + along**2).sum(axis=0)) * inside
    strength[strength < _ROUNDING] = 0
    near = ndimage.uniform_filter(strength, _NEIGHBOURHOOD)
    share = ndimage.uniform_filter(inside.astype(np.float32), _NEIGHBOURHOOD)
    faint = _FAINT * (strength**2).sum() / max(float(strength.sum()), _TINY)
    relative = strength / (strength + near / np.maximum(share, 0.05) + faint + _TINY)
    # Over the squared strength, the doubled angle is shorter where the channels' edges disagree.
    length = relative / np.maximum(strength**2, _TINY)
    return _reduced(np.stack([cosine, sine]) * length)


def _differences(planes: Floats) -> tuple[Floats, Floats]:
    across, along = np.zeros_like(planes), np.zeros_like(planes)
    across[:, 1:-1] = planes[:, 2:] - planes[:, :-2]
    along[:, :, 1:-1] = planes[:, :, 2:] - planes[:, :, :-2]
    return across, along


def _padded(shape: tuple[int, int]) -> tuple[int, int]:
    """Return the size of a fine structure: whole blocks."""
    side = FINE * BLOCK
    return (-(-shape[0] // side) * BLOCK, -(-shape[1] // side) * BLOCK)


def _reduced(structure: Floats) -> Floats:
    height, width = structure.shape[1:]
    lines, columns = _padded((height, width))
    rest = (FINE * lines - height, FINE * columns - width)
    margins = [(0, 0), *((r // 2, r - r // 2) for r in rest)]
    return _pooled(np.pad(structure, margins), FINE)


def _pooled(structure: Floats, side: int) -> Floats:
    # Strided sums: several times faster than a mean over two axes.
    lines = np.add.reduce([structure[:, i::side] for i in range(side)])
    pooled: Floats = np.add.reduce([lines[:, :, i::side] for i in range(side)])
    return pooled / np.float32(side**2)


def _blurred(plane: Floats, sigma: float) -> Floats:
    blurred: Floats = ndimage.gaussian_filter(plane, sigma)
    return blurred


def _coarse(structure: Floats) -> Floats:
    blurred = ndimage.gaussian_filter(structure, (0, _COARSE_BLUR, _COARSE_BLUR))
    pooled = _pooled(blurred, _COARSE)
    return pooled / max(float(np.linalg.norm(pooled)), 1e-6)
