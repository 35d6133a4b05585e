"""Failures: for each arm the slices where it goes most wrong, beside image and reference.

Reads `test/SUBJECT_MODALITY.npz`, with `image` (Z, X, Y) and `label` (Z, X, Y), label 0 background
and i + 1 the tissue i, and `preds/ARM/seedK/SUBJECT_MODALITY.nii.gz` (X, Y, Z).
"""

from __future__ import annotations

import zipfile
from dataclasses import dataclass
from typing import TYPE_CHECKING

import nibabel as nib
import numpy as np
import numpy.typing as npt
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure as Canvas
from matplotlib.patches import Patch

from synthgen.benchmark.rows import NOT_A_RESULT
from synthgen.core.errors import StoreError
from synthgen.core.schema import LabelSchema, Tissue
from synthgen.data.preview import tissue_colours
from synthgen.evaluate.metric import Figure
from synthgen.evaluate.plots import png

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from pathlib import Path

    from synthgen.benchmark.rows import Case, Results

Labels = npt.NDArray[np.uint8]
Image = npt.NDArray[np.float32]

WORST = 4
"""Slices shown of each arm, each of another volume if there are that many."""
_LEAST = 0.25
"""Slices with less of the tissues than this share of the fullest slice are not shown."""
_PANEL_IN = 1.9
_TEXT_IN = 0.24
_PERCENTILES = (1.0, 99.0)
_DARKEST = 0.1  # inside the brain; outside is black


@dataclass(frozen=True)
class Failure:
    """One slice that an arm labels badly.

    Attributes:
        arm: the arm.
        seed: training seed.
        volume: subject and modality, as in the file names.
        z: number of the slice.
        dice: mean Dice of the tissues that this slice has or was given.
        image: `(X, Y)`.
        truth: `(X, Y)`.
        predicted: `(X, Y)`.
    """

    arm: str
    seed: int
    volume: str
    z: int
    dice: float
    image: Image
    truth: Labels
    predicted: Labels


def draw_gallery(results: Results) -> tuple[Figure, ...]:
    """Draw one sheet for each arm that has any tissue to label.

    Raises:
        StoreError: a test volume or prediction is missing, damaged, or they disagree.
    """
    found = [worst_slices(results, arm) for arm in results.arms]
    return tuple(_sheet(failures, results) for failures in found if failures)


def worst_slices(results: Results, arm: str) -> list[Failure]:
    """Return the worst slice of each of the arm's worst volumes, the worst first.

    Raises:
        StoreError: a test volume or prediction is missing, damaged, or they disagree.
    """
    found = []
    for subject, modality, seed in _worst_volumes(results, arm):
        volume = f"{subject}_{modality}"
        image, truth = _test_volume(results.folder / "test" / f"{volume}.npz")
        path = results.folder / "preds" / arm / f"seed{seed}" / f"{volume}.nii.gz"
        predicted = _prediction(path, truth.shape)
        scores = slice_dice(predicted, truth, len(results.tissues))
        z = int(np.nanargmin(scores))
        found.append(
            Failure(arm, seed, volume, z, float(scores[z]), image[z], truth[z], predicted[z])
        )
    return sorted(found, key=lambda failure: failure.dice)


def slice_dice(predicted: Labels, truth: Labels, tissues: int) -> npt.NDArray[np.float64]:
    """Return the mean Dice over tissues of each slice `(Z,)`.

    NaN for slices with little of the tissues, unless all are such.
    """
    planes = (1, 2)
    scores = np.full((tissues, len(truth)), np.nan)
    for label in range(1, tissues + 1):
        a, b = predicted == label, truth == label
        total = a.sum(planes) + b.sum(planes)
        some = total > 0
        scores[label - 1, some] = 2 * (a & b).sum(planes)[some] / total[some]
    known = np.isfinite(scores)
    means = np.where(known, scores, 0).sum(axis=0) / np.maximum(known.sum(axis=0), 1)
    size = (truth > 0).sum(planes)
    return np.where(size >= _LEAST * size.max(), means, np.nan)


def _worst_volumes(results: Results, arm: str) -> list[tuple[str, str, int]]:
    """Return subject, modality and seed of the worst volumes, each subject once if possible."""
    dice: dict[tuple[str, str, int], list[float]] = {}
    for case in results.cases:
        if case.arm == arm:
            dice.setdefault(_volume(case), []).append(case.scores["dice"])
    means = {volume: np.nanmean(s) for volume, s in dice.items() if np.isfinite(s).any()}
    ranked = sorted(means, key=lambda volume: (means[volume], volume))
    first = {subject: (subject, modality, seed) for subject, modality, seed in reversed(ranked)}
    chosen = [volume for volume in ranked if first[volume[0]] == volume]
    chosen += [volume for volume in ranked if volume not in chosen]
    return chosen[:WORST]


def _volume(case: Case) -> tuple[str, str, int]:
    return case.subject, case.modality, case.seed


def _test_volume(path: Path) -> tuple[Image, Labels]:
    try:
        with np.load(path, allow_pickle=False) as arrays:
            image, label = arrays["image"], arrays["label"]
    except (OSError, ValueError, KeyError, zipfile.BadZipFile) as error:
        raise StoreError(
            f"{path}: not a readable test volume ({error}); run the benchmark again"
        ) from error
    if image.ndim != 3 or image.shape != label.shape:
        raise StoreError(f"{path}: image {image.shape} and label {label.shape} must be equal 3-D")
    return image.astype(np.float32), label.astype(np.uint8)


def _prediction(path: Path, shape: tuple[int, ...]) -> Labels:
    """Return a predicted volume as `(Z, X, Y)`."""
    try:
        labels = np.asarray(nib.load(path).dataobj)  # type: ignore[attr-defined]
    except (OSError, ValueError, EOFError, nib.filebasedimages.ImageFileError) as error:
        raise StoreError(
            f"{path}: not a readable prediction ({error}); run that arm again"
        ) from error
    if labels.ndim != 3 or labels.transpose(2, 0, 1).shape != shape:
        raise StoreError(
            f"{path}: shape {labels.shape} does not fit the test volume's {shape} (Z, X, Y)"
        )
    return labels.transpose(2, 0, 1).astype(np.uint8)


def _sheet(failures: Sequence[Failure], results: Results) -> Figure:
    """Lay out image, reference and prediction in three columns, one failure a row."""
    schema = LabelSchema(
        "benchmark", tuple(Tissue(t, i) for i, t in enumerate(("background", *results.tissues)))
    )
    colours = tissue_colours(schema)
    window = _window([labels for f in failures for labels in (f.truth, f.predicted)])
    rows, cols = failures[0].truth[window].shape
    panel_h = _PANEL_IN * cols / rows
    height = len(failures) * (panel_h + _TEXT_IN) + 2 * _TEXT_IN
    canvas = Canvas(figsize=(3 * _PANEL_IN, height))
    FigureCanvasAgg(canvas)
    top = height - _TEXT_IN
    for column, title in enumerate(("image", "reference", "prediction")):
        at = (column + 0.5) / 3, 1 - 0.75 * _TEXT_IN / height
        canvas.text(*at, title, ha="center", fontsize=9)
    for number, failure in enumerate(failures):
        bottom = top - (number + 1) * (panel_h + _TEXT_IN)
        canvas.text(
            0.01, (bottom + panel_h + 0.05) / height, _caption(failure), ha="left", fontsize=7.5
        )
        for column, picture in enumerate(_pictures(failure, colours, window)):
            box = (column / 3 + 0.003, bottom / height, 1 / 3 - 0.006, panel_h / height)
            axes = canvas.add_axes(box)
            axes.imshow(picture, interpolation="nearest", aspect="auto")
            axes.axis("off")
    patches = [
        Patch(facecolor=tuple(c), edgecolor="#5a6169", label=t)
        for t, c in zip(results.tissues, colours[1:], strict=True)
    ]
    canvas.legend(
        handles=patches, loc="lower center", ncols=len(patches), fontsize=7.5, frameon=False
    )
    arm = failures[0].arm
    stamp = f"{NOT_A_RESULT} (smoke budget). " if results.smoke else ""
    return Figure(
        f"worst-{arm}",
        f"{stamp}{arm}: the worst slice of each of its worst volumes, over all trainings; Dice is "
        "the mean over the tissues of that slice. Anterior is up, left is left.",
        png(canvas),
    )


def _caption(failure: Failure) -> str:
    return f"{failure.volume}, slice {failure.z}, seed {failure.seed}: Dice {failure.dice:.2f}"


def _pictures(
    failure: Failure, colours: npt.NDArray[np.float32], window: tuple[slice, slice]
) -> Iterator[npt.NDArray[np.float32]]:
    """Yield image, reference and prediction as `(Y, X, 3)`, anterior up."""
    inside = failure.image[failure.image != 0]
    low, high = np.percentile(inside, _PERCENTILES) if inside.size else (0.0, 1.0)
    grey = np.clip((failure.image - low) / max(float(high - low), 1e-6), _DARKEST, 1)
    grey = np.where(failure.image == 0, 0, grey)
    for picture in (
        np.repeat(grey[..., None], 3, axis=2).astype(np.float32),
        colours[failure.truth],
        colours[failure.predicted],
    ):
        yield picture[window].transpose(1, 0, 2)[::-1]


def _window(maps: Sequence[Labels]) -> tuple[slice, slice]:
    """Return the box of pixels, with a margin, that holds every tissue of label maps."""
    seen = np.any([labels > 0 for labels in maps], axis=0)
    if not seen.any():
        return slice(None), slice(None)
    box = []
    for axis in (1, 0):
        inside = np.flatnonzero(seen.any(axis=axis))
        box.append(slice(max(0, int(inside[0]) - 4), int(inside[-1]) + 5))
    return box[0], box[1]
