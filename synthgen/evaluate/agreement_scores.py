"""Measures of how well an image shows its own label.

Dice: a segmenter's tissues against the label's, per image. Border fit: the share of an image's
variance near tissue borders that its partial volumes explain; it needs no network and falls to 0
as the label is moved away.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

import numpy as np
import numpy.typing as npt
from scipy import ndimage

if TYPE_CHECKING:
    from collections.abc import Sequence

    from synthgen.core.schema import LabelSchema
    from synthgen.evaluate.sets import Floats, Indices, SliceSet

Numbers = npt.NDArray[np.float64]
Labels = npt.NDArray[np.int64]

FEWEST_PX = 20
"""A tissue with fewer pixels in a label is left out of that image's Dice."""

_BATCH = 16
_BAND_PX = 2
_LOCAL_PX = 15
_FEWEST_BAND_PX = 100


class Segmenter(Protocol):
    """Says what an image shows; see `judges.Judges`."""

    @property
    def schema(self) -> LabelSchema:
        """Label schema of the probabilities."""

    @property
    def known(self) -> tuple[bool, ...]:
        """For each channel, whether the segmenter knows that tissue."""

    @property
    def subjects(self) -> tuple[str, ...]:
        """Real subjects that it saw in training."""

    @property
    def digest(self) -> str:
        """Hash of its weights."""

    def segment(self, images: Floats) -> Floats:
        """Return probabilities `(n, C, X, Y)` of images `(n, 1, X, Y)` in [0, 1]."""


@dataclass(frozen=True)
class Scores:
    """How well N images show their labels.

    Attributes:
        rows: `(N,)` image rows in their set.
        modality: `(N,)`.
        cluster: `(N,)` what is drawn as one in a bootstrap: the subject, or the slice.
        shown: `(N, C)`, whether the label has enough of a tissue to judge it.
        dice: `(N, C)` in [0, 1]; NaN where the tissue is not shown or the segmenter cannot know it.
        border_fit: `(N,)` in [0, 1]; NaN where the label has too few borders.
    """

    rows: Indices
    modality: tuple[str, ...]
    cluster: tuple[str, ...]
    shown: npt.NDArray[np.bool_]
    dice: Numbers
    border_fit: Numbers

    @property
    def measures(self) -> Numbers:
        """Dice of all channels and border fit, `(N, C + 1)`."""
        return np.concatenate([self.dice, self.border_fit[:, None]], axis=1)


def tissue_dice(
    predicted: Labels,
    labels: Labels,
    channels: int,
    *,
    at_least: int = FEWEST_PX,
    ignored: Sequence[int] = (),
) -> Numbers:
    """Return the Dice of every tissue in every image, `(n, channels)`.

    A tissue that is predicted where the label has none of it shows as a lower Dice of the
    tissues whose place it takes, since every pixel has exactly one tissue.

    Args:
        predicted: channel of each pixel `(n, X, Y)`.
        labels: the same of the label.
        channels: number of tissues, background included.
        at_least: a tissue with fewer pixels in the label gets NaN.
        ignored: channels whose pixels in the label count nowhere.
    """
    scores = np.full((len(labels), channels), np.nan)
    for row, (guess, label) in enumerate(zip(predicted, labels, strict=True)):
        counted = ~np.isin(label, ignored)
        pairs = label[counted] * channels + guess[counted]
        table = np.bincount(pairs, minlength=channels**2).reshape(channels, channels)
        inside, found = table.sum(axis=1), table.sum(axis=0)
        shown = inside >= max(1, at_least)
        scores[row, shown] = 2 * np.diag(table)[shown] / (inside + found)[shown]
    return scores


def border_fit(image: Floats, pv: Floats) -> float:
    """Return the share of variance near tissue borders that the partial volumes explain.

    Pixels within 2 px of a border between two tissues (background is none), away from the rim of
    the image's brain, are fitted by least squares with one intensity for each tissue. The mean over
    15 x 15 px is taken off image and partial volumes first, so that a bias field is no misfit.

    Args:
        image: `(X, Y)`, 0 outside the brain.
        pv: `(C, X, Y)`, sums to 1, background first.

    Returns:
        In [0, 1]; NaN where fewer than 100 pixels are near a border.
    """
    brain = image > 0
    near = ndimage.binary_dilation(_borders(pv.argmax(axis=0)), iterations=_BAND_PX)
    near &= ndimage.binary_erosion(brain, iterations=_BAND_PX)
    if near.sum() < _FEWEST_BAND_PX:
        return float("nan")
    shown = pv[(pv[:, near] > 0).any(axis=1)]
    maps = np.concatenate([image[None], shown, np.ones_like(image)[None]]) * brain
    local = ndimage.uniform_filter(maps, (1, _LOCAL_PX, _LOCAL_PX), mode="constant")
    local = local[:, near] / local[-1, near]
    value, *tissues = (maps[:-1, near] - local[:-1]).astype(np.float64)
    columns = np.stack([*tissues, np.ones(len(value))], axis=1)
    rest = value - columns @ np.linalg.lstsq(columns, value, rcond=None)[0]
    spread = value.var()
    return float(np.clip(1 - np.mean(rest**2) / spread, 0, 1)) if spread > 0 else 0.0


def _borders(labels: Labels) -> npt.NDArray[np.bool_]:
    """Return the pixels `(X, Y)` beside a pixel of another tissue; background is no tissue."""
    out = np.zeros(labels.shape, dtype=bool)
    for axis in (0, 1):
        ahead, behind = np.moveaxis(labels, axis, 0)[1:], np.moveaxis(labels, axis, 0)[:-1]
        differ = (ahead != behind) & (ahead > 0) & (behind > 0)
        view = np.moveaxis(out, axis, 0)
        view[1:] |= differ
        view[:-1] |= differ
    return out


def score_images(subset: SliceSet, rows: Indices, segmenter: Segmenter) -> Scores:
    """Measure how well images show their labels.

    Args:
        subset: the set.
        rows: its image rows to measure.
        segmenter: of the same schema.

    Raises:
        SchemaError: the set has another schema than the segmenter.
    """
    segmenter.schema.require_same(subset.schema, subset.name)
    unknown = [c for c, known in enumerate(segmenter.known) if not known]
    shown, dice, fit = [], [], []
    for chosen in np.array_split(rows, max(1, -(-len(rows) // _BATCH))):
        images, pv = subset.image(chosen), subset.pv(subset.images.slices[chosen])
        predicted, labels = segmenter.segment(images).argmax(axis=1), pv.argmax(axis=1)
        every = np.arange(subset.schema.channels)
        shown.append((labels[..., None] == every).sum(axis=(1, 2)) >= FEWEST_PX)
        dice.append(tissue_dice(predicted, labels, len(every), ignored=unknown))
        fit += [border_fit(image[0], label) for image, label in zip(images, pv, strict=True)]
    slices = subset.images.slices[rows]
    owners = [subset.table.subject[s] for s in slices]
    single = len({*owners}) < 2
    return Scores(
        rows,
        tuple(subset.images.modality[r] for r in rows),
        tuple(f"slice {s}" if single else owner for s, owner in zip(slices, owners, strict=True)),
        np.concatenate(shown),
        np.concatenate(dice),
        np.asarray(fit),
    )
