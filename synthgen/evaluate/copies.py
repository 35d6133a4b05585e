"""Find copies of training slices in a set: exact, mirrored, shifted or with another contrast.

Latent diffusion models memorise patients (Dar et al. 2025, arXiv:2402.01054). A copy is a slice
that is nearer to a training slice than people are to one another: the threshold is a low quantile
of the distances between training slices of different subjects, so that it needs no copies to be
set and raises few alarms on people who were not trained on.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, assert_never

import numpy as np
import numpy.typing as npt
from scipy import ndimage

from synthgen.core.errors import RequestError
from synthgen.core.rng import Stream
from synthgen.evaluate.descriptors import POOL, describe_image, describe_labels, mirrored

if TYPE_CHECKING:
    from collections.abc import Sequence

    from synthgen.core.rng import SampleKey
    from synthgen.evaluate.sets import Floats, Indices, SliceSet

What = Literal["labels", "images"]
SHIFT_PX = 4
"""Copies are recognised when shifted by up to this many pixels along each axis."""

_ALARMS = 0.002
_CANDIDATES = 10
_CALIBRATE = 400
_CHUNK = 256


@dataclass(frozen=True)
class CopyReport:
    """Which rows of a set are copies. Rows are slices for labels, images for images.

    Attributes:
        distance: `(n,)` distance to the nearest training row, 0 for the same structure, about 1
            for none in common.
        nearest: `(n,)` that training row.
        threshold: distance below which a row is a copy.
    """

    distance: npt.NDArray[np.float64]
    nearest: Indices
    threshold: float

    @property
    def flags(self) -> npt.NDArray[np.bool_]:
        """Which rows are copies."""
        return np.asarray(self.distance < self.threshold)


@dataclass(frozen=True)
class _Gallery:
    """Descriptors of a set: fine fields `(n, 2, X, Y)` and coarse unit vectors `(n, d)`."""

    fine: Floats
    coarse: Floats
    subject: npt.NDArray[np.str_]


def find_copies(candidates: SliceSet, train: SliceSet, *, key: SampleKey, what: What) -> CopyReport:
    """Compare every row of a set with every training row.

    Args:
        candidates: the set to audit.
        train: what its models were trained on, at least two subjects.
        key: decides which training rows calibrate the threshold.
        what: compare label maps, or images.

    Raises:
        RequestError: an empty set, no images, or fewer than two training subjects.
    """
    known, asked = _describe(train, what), _describe(candidates, what)
    if len({*known.subject}) < 2:
        raise RequestError(
            f"{train.name}: expected at least 2 training subjects, to know how much people "
            f"differ, got {', '.join(sorted({*known.subject})) or 'none'}"
        )
    rng = key.numpy(Stream.EVALUATE)
    rows = rng.permutation(len(known.fine))[:_CALIBRATE]
    others, _ = _nearest(_take(known, rows), known, other_subjects=True)
    threshold = float(np.quantile(others, _ALARMS))
    distance, nearest = _nearest(asked, known, other_subjects=False)
    return CopyReport(distance, nearest, threshold)


def _describe(subset: SliceSet, what: What) -> _Gallery:
    match what:
        case "labels":
            fields = [describe_labels(subset.read_pv(i)) for i in range(len(subset))]
            subject: Sequence[str] = subset.table.subject
        case "images":
            rows = range(len(subset.images.slices))
            fields = [describe_image(subset.read_image(i)[0]) for i in rows]
            subject = subset.image_subjects()
        case _:
            assert_never(what)
    if not fields:
        raise RequestError(f"{subset.name}: the set has no {what} to compare")
    fine = ndimage.gaussian_filter(np.stack(fields), (0, 0, 0.8, 0.8))
    return _Gallery(fine, _unit(fine[..., ::2, ::2]), np.asarray(subject, dtype=np.str_))


def _take(gallery: _Gallery, rows: Indices) -> _Gallery:
    return _Gallery(gallery.fine[rows], gallery.coarse[rows], gallery.subject[rows])


def _unit(fields: Floats) -> Floats:
    """Return fields, blurred so that shifts of a few pixels matter little, as unit vectors."""
    flat = ndimage.gaussian_filter(fields, (0, 0, 1.0, 1.0)).reshape(len(fields), -1)
    norm = np.linalg.norm(flat, axis=1, keepdims=True)
    return np.asarray(flat / np.maximum(norm, 1e-9), dtype=np.float32)


def _nearest(
    asked: _Gallery, known: _Gallery, *, other_subjects: bool
) -> tuple[npt.NDArray[np.float64], Indices]:
    """Return distance and row of the nearest of `known`; coarse to find it, fine to measure."""
    turned = _unit(mirrored(asked.fine)[..., ::2, ::2])
    distance = np.empty(len(asked.fine))
    nearest = np.empty(len(asked.fine), dtype=np.int64)
    for start in range(0, len(asked.fine), _CHUNK):
        rows = slice(start, start + _CHUNK)
        alike = np.maximum(asked.coarse[rows] @ known.coarse.T, turned[rows] @ known.coarse.T)
        if other_subjects:
            alike[asked.subject[rows, None] == known.subject[None]] = -np.inf
        few = min(_CANDIDATES, alike.shape[1])
        best = np.argpartition(-alike, few - 1, axis=1)[:, :few]
        for row, places in enumerate(best, start):
            usable = places[np.isfinite(alike[row - start, places])]
            found = _fine_distances(asked.fine[row], known.fine[usable])
            distance[row], nearest[row] = found.min(), usable[found.argmin()]
    return distance, nearest


def _fine_distances(field: Floats, others: Floats) -> npt.NDArray[np.float64]:
    """Return 1 - cosine to each of `others`, the best over mirror and small shifts."""
    reach = SHIFT_PX // POOL
    x, y = field.shape[1:]
    moved = []
    for version in (field, mirrored(field)):
        padded = np.pad(version, ((0, 0), (reach, reach), (reach, reach)))
        moved += [
            padded[:, i : i + x, j : j + y].ravel()
            for i in range(2 * reach + 1)
            for j in range(2 * reach + 1)
        ]
    flat = others.reshape(len(others), -1)
    scale = np.linalg.norm(field) * np.linalg.norm(flat, axis=1) + 1e-9
    cosine = (np.stack(moved) @ flat.T) / scale
    return np.asarray(1.0 - cosine.max(axis=0), dtype=np.float64)
