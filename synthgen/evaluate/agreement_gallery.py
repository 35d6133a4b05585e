"""Gallery of images that show their labels worst: image, label, and what a segmenter sees."""

from __future__ import annotations

import io
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.colors import to_hex
from matplotlib.figure import Figure as Canvas
from matplotlib.patches import Patch

from synthgen.data.preview import tissue_colours
from synthgen.evaluate.metric import Figure

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from synthgen.core.schema import LabelSchema
    from synthgen.evaluate.sets import Floats, Indices, SliceSet

_LINES = ("image", "label", "segmenter")
_PANEL_IN = 1.6
_TEXT_IN = 0.24
_MARGIN_PX = 3
_DPI = 110


def draw_gallery(
    subset: SliceSet, rows: Indices, segment: Callable[[Floats], Floats]
) -> tuple[Figure, ...]:
    """Draw some images with their labels and what a segmenter sees, one column each.

    Args:
        subset: the set.
        rows: its image rows, in the order of the columns; none gives no figure.
        segment: returns probabilities `(n, C, X, Y)` of images `(n, 1, X, Y)`.
    """
    if not len(rows):
        return ()
    slices = subset.images.slices[rows]
    images, pv = subset.image(rows), subset.pv(slices)
    colours = tissue_colours(subset.schema)
    lines = [
        np.repeat(images[:, 0, :, :, None], 3, axis=3),
        colours[pv.argmax(axis=1)],
        colours[segment(images).argmax(axis=1)],
    ]
    window = _window(pv[:, 0].min(axis=0) < 0.5)
    shown = [line[:, window[0], window[1]].transpose(0, 2, 1, 3)[:, ::-1] for line in lines]
    titles = [
        f"{subset.images.style[row] or 'image'}\nslice {index}"
        for row, index in zip(rows, slices, strict=True)
    ]
    caption = (
        "Images that show their label worst, worst first: image, its label, and the tissues that "
        "the segmenter sees in it. Anterior up, left is left."
    )
    return (Figure("agreement-worst", caption, _png(shown, titles, subset.schema)),)


def _window(brain: npt.NDArray[np.bool_]) -> tuple[slice, slice]:
    """Return the part `(X, Y)` that holds the brain."""
    sides = []
    for axis in (1, 0):
        inside = np.flatnonzero(brain.any(axis=axis))
        if not inside.size:
            return slice(None), slice(None)
        sides.append(slice(max(0, inside[0] - _MARGIN_PX), inside[-1] + 1 + _MARGIN_PX))
    return sides[0], sides[1]


def _png(lines: Sequence[Floats], titles: Sequence[str], schema: LabelSchema) -> bytes:
    height, width = lines[0].shape[1:3]
    panel_h = _PANEL_IN * height / width
    size = (
        _TEXT_IN + max(3, len(titles)) * _PANEL_IN,
        2 * _TEXT_IN + len(lines) * panel_h + 2 * _TEXT_IN,
    )
    canvas = Canvas(figsize=size, facecolor="black")
    FigureCanvasAgg(canvas)
    for number, (name, line) in enumerate(zip(_LINES, lines, strict=True)):
        bottom = size[1] - 2 * _TEXT_IN - (number + 1) * panel_h
        canvas.text(
            0.5 * _TEXT_IN / size[0],
            (bottom + panel_h / 2) / size[1],
            name,
            color="white",
            fontsize=8,
            rotation=90,
            ha="center",
            va="center",
        )
        for column, picture in enumerate(line):
            left = (_TEXT_IN + column * _PANEL_IN) / size[0]
            axes = canvas.add_axes(
                (left, bottom / size[1], 0.98 * _PANEL_IN / size[0], 0.98 * panel_h / size[1])
            )
            axes.imshow(np.clip(picture, 0, 1), interpolation="nearest")
            axes.axis("off")
            if number == 0:
                axes.set_title(titles[column], color="white", fontsize=7, pad=2)
    colours = tissue_colours(schema)
    canvas.legend(
        handles=[
            Patch(facecolor=to_hex(tuple(colour)), label=name)
            for name, colour in zip(schema.names[1:], colours[1:], strict=True)
        ],
        loc="lower center",
        ncols=5,
        fontsize=7,
        frameon=False,
        labelcolor="white",
    )
    buffer = io.BytesIO()
    canvas.savefig(buffer, format="png", dpi=_DPI)
    return buffer.getvalue()
