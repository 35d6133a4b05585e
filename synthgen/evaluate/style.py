"""Style of images: tissue contrast, and what moves when only the style changes.

A change of style must move intensities and leave every boundary where it is. Boundaries are
followed by block matching of the gradient magnitude, which does not see the sign or the amount of
a contrast: of the measures tried on real scans of one slice in two modalities, it alone told a
shift by two pixels (2.1 px) from a change of modality (0.5 px).
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import combinations
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt
from scipy import ndimage, stats

from synthgen.core.errors import RequestError
from synthgen.core.rng import Stream
from synthgen.evaluate.metric import DRAWS, Floor
from synthgen.evaluate.sets import UNKNOWN
from synthgen.evaluate.topology import Mask, bounding_box, brain_mask

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from synthgen.core.rng import SampleKey
    from synthgen.core.schema import LabelSchema
    from synthgen.evaluate.sets import Floats, Indices, SliceSet

Column = npt.NDArray[np.float64]
Rows = npt.NDArray[np.float64]

SLICES = 200
"""Slices of a set whose images are measured."""
PURE = 0.8
"""PV from which a pixel shows one tissue alone."""
MIN_PIXELS = 10
BLOCK = 24
REACH = 4
"""Side of a matched block, and how far it is looked for, in pixels."""
_LEAST_SPREAD = 1e-3
_BRAIN_SHARE = 0.5
_SMOOTH_PX = 1.0


@dataclass(frozen=True)
class ContrastTable:
    """Tissue intensities of N images.

    Attributes:
        schema: label schema of the C channels.
        rows: `(N,)` image row in its set.
        mean: `(N, C)` mean intensity where a tissue is pure; NaN with too few such pixels.
        spread: `(N, C)` standard deviation there.
        subject: `(N,)`.
        modality: `(N,)`.
        style: `(N,)`.
    """

    schema: LabelSchema
    rows: Indices
    mean: Rows
    spread: Rows
    subject: npt.NDArray[np.str_]
    modality: npt.NDArray[np.str_]
    style: npt.NDArray[np.str_]

    def cnr(self, tissue: int, other: int) -> Column:
        """Return the contrast-to-noise ratio `(N,)`, positive where `tissue` is brighter.

        The difference of the means over the root mean square of both spreads.
        """
        noise = np.sqrt((self.spread[:, tissue] ** 2 + self.spread[:, other] ** 2) / 2)
        ratio: Column = (self.mean[:, tissue] - self.mean[:, other]) / np.maximum(
            noise, _LEAST_SPREAD
        )
        return ratio


@dataclass(frozen=True)
class SwapTable:
    """M pairs of images of one slice in two styles.

    Attributes:
        displacement: `(M,)` how far edges moved, in pixels; NaN where no block could be matched.
        change: `(M,)` mean over tissues of the absolute difference of their mean intensities.
        subject: `(M,)`.
        kinds: `(M,)` the two modalities, sorted, or the two styles if a modality is unknown.
    """

    displacement: Column
    change: Column
    subject: tuple[str, ...]
    kinds: tuple[frozenset[str], ...]


@dataclass(frozen=True)
class StyleDescriptors:
    """What the images of a set look like."""

    contrast: ContrastTable
    swaps: SwapTable


def describe_styles(slices: SliceSet, key: SampleKey, most: int = SLICES) -> StyleDescriptors:
    """Describe the images of up to `most` slices, and one pair of images of each slice.

    Raises:
        RequestError: a set without images.
    """
    order = rows_of(slices, key, most)
    tables, pairs, rng = [], [], key.numpy(Stream.EVALUATE)
    for index in np.unique(slices.images.slices[order]):
        pv = slices.read_pv(int(index))
        here = order[slices.images.slices[order] == index]
        images = slices.image(here)[:, 0]
        tables.append(np.stack([tissue_intensities(image, pv) for image in images]))
        pairs += _swap(slices, here, images, tables[-1][:, 0], brain_mask(pv), rng)
    measured = np.concatenate(tables)
    subject = np.asarray(slices.image_subjects())[order]
    contrast = ContrastTable(
        slices.schema,
        order,
        measured[:, 0],
        measured[:, 1],
        subject,
        np.asarray(slices.images.modality)[order],
        np.asarray(slices.images.style)[order],
    )
    return StyleDescriptors(
        contrast,
        SwapTable(
            np.asarray([p[0] for p in pairs], dtype=np.float64),
            np.asarray([p[1] for p in pairs], dtype=np.float64),
            tuple(p[2] for p in pairs),
            tuple(p[3] for p in pairs),
        ),
    )


def rows_of(slices: SliceSet, key: SampleKey, most: int = SLICES) -> Indices:
    """Return all image rows of up to `most` slices, slice by slice.

    Raises:
        RequestError: a set without images.
    """
    column = slices.images.slices
    shown = np.unique(column)
    if not shown.size:
        raise RequestError(f"{slices.name}: a set of labels has no images to describe")
    rng = key.numpy(Stream.EVALUATE)
    chosen = rng.choice(shown, min(most, len(shown)), replace=False)
    order: Indices = np.argsort(column, kind="stable")
    return order[np.isin(column[order], chosen)]


def tissue_intensities(image: Floats, pv: Floats) -> Rows:
    """Return mean and spread `(2, C)` of an image `(X, Y)` where each tissue is pure.

    Args:
        image: `(X, Y)` in [0, 1].
        pv: `(C, X, Y)`.

    Returns:
        NaN where fewer than `MIN_PIXELS` pixels are pure, and for the background.
    """
    table = np.full((2, len(pv)), np.nan)
    for channel in range(1, len(pv)):
        values = image[pv[channel] > PURE]
        if values.size >= MIN_PIXELS:
            table[:, channel] = values.mean(dtype=np.float64), values.std(dtype=np.float64)
    return table


def edge_displacement(first: Floats, second: Floats, brain: Mask) -> float:
    """Return how far the edges of one image lie from those of another, in pixels.

    Blocks of `BLOCK` pixels that lie mostly in the brain are looked for in the other image, up to
    `REACH` pixels away, by the correlation of the gradient magnitudes. The result is the mean
    length of the best shifts, weighted by their correlations.

    Args:
        first: `(X, Y)`.
        second: `(X, Y)`.
        brain: `(X, Y)`.

    Returns:
        NaN if no block has edges in both images.
    """
    edges = [
        ndimage.gaussian_gradient_magnitude(np.asarray(image, dtype=np.float64), _SMOOTH_PX)
        for image in (first, second)
    ]
    total, weight = 0.0, 0.0
    for x, y in _block_corners(brain):
        block = edges[0][x : x + BLOCK, y : y + BLOCK]
        area = edges[1][x - REACH : x + BLOCK + REACH, y - REACH : y + BLOCK + REACH]
        fit = _correlations(block, area)
        best = int(fit.argmax())
        shift = np.asarray(np.unravel_index(best, fit.shape)) - REACH
        strength = max(float(fit.flat[best]), 0.0)
        total, weight = total + strength * float(np.hypot(*shift)), weight + strength
    return total / weight if weight > 0 else float("nan")


def with_gaps(distance: Callable[[Column, Column], float]) -> Callable[[Rows, Rows], float]:
    """Return a distance of rows of `filled`: the mean over columns of the values that are there.

    Raises:
        RequestError: (when called) no column has values on both sides.
    """

    def over_columns(first: Rows, second: Rows) -> float:
        half = first.shape[1] // 2
        found = []
        for column in range(half):
            a, b = (rows[rows[:, half + column] > 0, column] for rows in (first, second))
            if a.size and b.size:
                found.append(distance(a, b))
        if not found:
            raise RequestError("no tissue is pure enough on both sides")
        return float(np.mean(found))

    return over_columns


def filled(values: Rows) -> Rows:
    """Return values `(n, d)` with 0 for NaN, followed by d columns of 1 where there is a value."""
    return np.concatenate([np.nan_to_num(values), np.isfinite(values)], axis=1)


def wasserstein(first: Column, second: Column) -> float:
    """Return the Wasserstein-1 distance of two samples."""
    return float(stats.wasserstein_distance(first, second))


def own_mean(first: Column, second: Column) -> float:
    """Return the mean of the first sample alone."""
    return float(first.mean())


def accuracy_floor(
    hits: npt.NDArray[np.bool_],
    reference: npt.NDArray[np.bool_],
    subjects: Sequence[str],
    key: SampleKey,
    draws: int = 10 * DRAWS,
) -> Floor:
    """Return an accuracy beside that on real images, whose subjects are drawn with replacement.

    A bootstrap of images that are all right would claim that no error is possible; the interval
    therefore reaches at least the 5 % quantile of Jeffreys' posterior of the share of hits. With
    one subject, images are drawn instead of subjects.

    Args:
        hits: whether each generated image was recognised.
        reference: whether each real image was.
        subjects: subject of each real image.
        key: decides the draws.
        draws: how many.

    Raises:
        RequestError: no images on one side.
    """
    if not hits.size or not reference.size:
        raise RequestError(f"no images: {hits.size} generated, {reference.size} real")
    rng = key.numpy(Stream.EVALUATE)
    names, group = np.unique(np.asarray(subjects), return_inverse=True)
    if len(names) < 2:
        group = np.arange(len(reference))
    right = np.bincount(group, weights=reference)
    size = np.bincount(group)
    drawn = rng.integers(0, len(size), (draws, len(size)))
    low, middle, high = np.percentile(
        right[drawn].sum(axis=1) / size[drawn].sum(axis=1), [5, 50, 95]
    )
    possible = stats.beta.ppf(0.05, reference.sum() + 0.5, (~reference).sum() + 0.5)
    return Floor(
        float(hits.mean()), float(middle), float(min(low, possible)), float(high), len(hits)
    )


def _block_corners(brain: Mask) -> Iterator[tuple[int, int]]:
    """Yield the corners of half-overlapping blocks that lie mostly in the brain."""
    box = bounding_box(brain)
    (x0, x1), (y0, y1) = (
        (max(side.start, REACH), min(side.stop, size - REACH) - BLOCK)
        for side, size in zip(box, brain.shape, strict=True)
    )
    for x in range(x0, x1 + 1, BLOCK // 2):
        for y in range(y0, y1 + 1, BLOCK // 2):
            if brain[x : x + BLOCK, y : y + BLOCK].mean() >= _BRAIN_SHARE:
                yield x, y


def _correlations(block: Rows, area: Rows) -> Rows:
    """Return the correlation `(k, k)` of a block with every window of its size in an area."""
    windows = np.lib.stride_tricks.sliding_window_view(area, block.shape)
    centred = block - block.mean()
    mean = windows.mean(axis=(2, 3))
    power = np.maximum(np.einsum("abxy,abxy->ab", windows, windows) / block.size - mean**2, 0)
    # The mean of the block is 0, so that of the windows drops out of the product.
    product = np.einsum("abxy,xy->ab", windows, centred) / block.size
    norm = np.sqrt(power * (centred**2).mean())
    flat: Rows = np.divide(product, norm, out=np.zeros_like(product), where=norm > 1e-12)
    return flat


def _swap(
    slices: SliceSet,
    rows: Indices,
    images: Floats,
    mean: Rows,
    brain: Mask,
    rng: np.random.Generator,
) -> list[tuple[float, float, str, frozenset[str]]]:
    """Return displacement, change, subject and kinds of one pair of a slice's images, if any."""
    modality, style = slices.images.modality, slices.images.style
    known = all(modality[r] != UNKNOWN for r in rows)
    names = [(modality if known else style)[r] for r in rows]
    options = [(i, j) for i, j in combinations(range(len(rows)), 2) if names[i] != names[j]]
    if not options:
        return []
    i, j = options[int(rng.integers(len(options)))]
    both = np.abs(mean[i] - mean[j])
    change = float(np.nanmean(both)) if np.isfinite(both).any() else float("nan")
    subject = slices.table.subject[int(slices.images.slices[rows[0]])]
    return [
        (
            edge_displacement(images[i], images[j], brain),
            change,
            subject,
            frozenset((names[i], names[j])),
        )
    ]
