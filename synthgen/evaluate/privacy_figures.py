"""Pictures of the privacy audit: the nearest pairs, and how near records are."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure as Canvas

from synthgen.data.preview import tissue_colours
from synthgen.evaluate.metric import Figure
from synthgen.evaluate.plots import png

if TYPE_CHECKING:
    from collections.abc import Sequence

    from synthgen.evaluate.descriptors import What
    from synthgen.evaluate.nearest import Distances
    from synthgen.evaluate.privacy import Pair
    from synthgen.evaluate.sets import Floats, SliceSet

_PANEL_IN, _TITLE_IN = 1.45, 0.36
_MARGIN_PX = 3
_SEEN = 0.02
_BINS = 60
_FARTHEST = 1.6


def gallery_figure(
    what: What, pairs: Sequence[Pair], synthetic: SliceSet, train: SliceSet
) -> Figure:
    """Draw pairs: generated above, training below, mirrored as it fits; anterior up."""
    tops = [_picture(what, synthetic, pair.synthetic_row) for pair in pairs]
    feet = [_mirrored(_picture(what, train, pair.train_row), pair.mirrored) for pair in pairs]
    lines = [[p.transpose(1, 0, 2)[::-1] for p in line] for line in (tops, feet)]
    window = _window([picture for line in lines for picture in line])
    height, width = lines[0][0][window].shape[:2]
    panel_h = _PANEL_IN * height / width
    total_w, total_h = max(len(pairs) * _PANEL_IN, 4.0), 2 * panel_h + 2 * _TITLE_IN
    canvas = Canvas(figsize=(total_w, total_h), facecolor="black")
    FigureCanvasAgg(canvas)
    for number, line in enumerate(lines):
        top = total_h - number * (panel_h + _TITLE_IN) - _TITLE_IN
        for column, (picture, pair) in enumerate(zip(line, pairs, strict=True)):
            box = (
                column * _PANEL_IN / total_w,
                (top - panel_h) / total_h,
                0.985 * _PANEL_IN / total_w,
                panel_h / total_h,
            )
            axes = canvas.add_axes(box)
            axes.imshow(np.clip(picture[window], 0, 1), interpolation="nearest", aspect="auto")
            axes.axis("off")
            colour = "tab:red" if pair.copy else "white"
            canvas.text(
                (column + 0.03) * _PANEL_IN / total_w,
                (top + 0.05) / total_h,
                _title(pair, train) if number else f"generated {pair.synthetic}",
                color=colour,
                fontsize=7,
            )
    noun = "label maps" if what == "labels" else "images"
    return Figure(
        f"pairs-{what}",
        f"Nearest pairs of {noun}: generated above, its nearest training slice below, mirrored "
        "where that fits better; 0 is a copy, 1 another person. Copies have red titles.",
        png(canvas),
    )


def distance_figure(
    what: What, generated: Distances, held: Distances, planted: Distances, threshold: float
) -> Figure:
    """Draw how the distances to the nearest training record are distributed."""
    canvas = Canvas(figsize=(6.4, 2.6), layout="constrained")
    FigureCanvasAgg(canvas)
    axes = canvas.add_subplot()
    bins = np.linspace(0, _FARTHEST, _BINS + 1).tolist()
    for values, name, colour in (
        (planted, "planted copies", "tab:blue"),
        (held, "held-out people", "0.45"),
        (generated, "generated", "tab:orange"),
    ):
        axes.hist(
            np.clip(values, 0, _FARTHEST),
            bins,
            weights=np.full(len(values), 100 / len(values)),
            histtype="stepfilled",
            color=colour,
            alpha=0.5,
            label=name,
        )
    axes.axvline(threshold, color="tab:red", linewidth=1, label="a copy: left of this")
    axes.set_xlim(0, _FARTHEST)
    axes.set_xlabel("distance to the nearest training slice (1: another person)", fontsize=8)
    axes.set_ylabel("% of each", fontsize=8)
    axes.tick_params(labelsize=7)
    axes.legend(fontsize=7, frameon=False)
    noun = "label maps" if what == "labels" else "images"
    return Figure(
        f"distances-{what}",
        f"How near {noun} are to their nearest training slice: generated ones should lie where "
        "held-out people lie, right of the red line.",
        png(canvas),
    )


def _title(pair: Pair, train: SliceSet) -> str:
    subject = train.table.subject[pair.train].split("/")[-1]
    return f"{subject}, {pair.train}\n{pair.distance:.2f}" + (" mirrored" if pair.mirrored else "")


def _picture(what: What, subset: SliceSet, row: int) -> Floats:
    """Return `(X, Y, 3)` in [0, 1]."""
    if what == "images":
        return np.repeat(subset.read_image(row)[0][..., None], 3, axis=2)
    mix: Floats = np.einsum("cxy,cr->xyr", subset.read_pv(row), tissue_colours(subset.schema))
    return mix


def _mirrored(picture: Floats, axes: tuple[int, ...]) -> Floats:
    mirrored: Floats = np.flip(picture, axes) if axes else picture
    return mirrored


def _window(pictures: Sequence[Floats]) -> tuple[slice, slice]:
    """Return the part of the pictures, as (lines, columns), that shows every brain."""
    seen = np.any([picture.max(axis=2) > _SEEN for picture in pictures], axis=0)
    parts = []
    for axis in (1, 0):
        inside = np.flatnonzero(seen.any(axis=axis))
        if not inside.size:
            return slice(None), slice(None)
        parts.append(slice(max(0, inside[0] - _MARGIN_PX), inside[-1] + 1 + _MARGIN_PX))
    return parts[0], parts[1]
