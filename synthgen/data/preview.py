"""Contact sheets: what a generated dataset looks like, on one page.

One row for each sample: its images, the label map mixed over the first image (every pixel the
mean of the tissue colours, weighted by partial volume), the label map of the largest partial
volume, and the first image with the lesions outlined. Slices are shown as one looks at a person
from above: anterior up, the person's left on the left (neurological convention). Vessel trees and
angiograms stand as photographs do; see `vessel_panels`.
"""

from __future__ import annotations

import io
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.colors import to_hex
from matplotlib.figure import Figure
from matplotlib.patches import Patch

from synthgen.core.manifest import write_atomic
from synthgen.data.vessel_panels import (
    OUTLINE,
    outlined,
    vessel_caption,
    vessel_panels,
    vessel_titles,
)

if TYPE_CHECKING:
    from pathlib import Path

    from synthgen.core.schema import LabelSchema
    from synthgen.data.shards import ShardRow, Shards

Rgb = npt.NDArray[np.float32]

TISSUE_COLOURS: dict[str, tuple[float, float, float]] = {
    "background": (0.0, 0.0, 0.0),
    "csf": (0.20, 0.45, 0.85),
    "gm": (0.62, 0.62, 0.62),
    "wm": (0.96, 0.94, 0.86),
    "deep_gm": (0.45, 0.75, 0.45),
    "brainstem": (0.66, 0.48, 0.30),
    "wmh": (1.00, 0.85, 0.10),
    "tumour": (0.90, 0.15, 0.20),
    "oedema": (0.95, 0.50, 0.85),
}
_OTHERS = ((0.55, 0.35, 0.80), (0.10, 0.70, 0.70), (0.95, 0.55, 0.15), (0.60, 0.80, 0.20))
_OVERLAY = 0.45
_LESION = 0.5
_WORTH_SAYING = 5e-4
_MARGIN_PX = 4
_PANEL_IN = 1.5
_PICTURE_IN = 2.4
_TEXT_IN = 0.22


def tissue_colours(schema: LabelSchema) -> Rgb:
    """Return one colour for each channel, `(C, 3)` in [0, 1]."""
    spare = iter(_OTHERS * schema.channels)
    return np.asarray(
        [TISSUE_COLOURS.get(name) or next(spare) for name in schema.names], dtype=np.float32
    )


def panels(row: ShardRow, schema: LabelSchema) -> list[Rgb]:
    """Return the pictures of one sample, each `(Y, X, 3)` in [0, 1], anterior up.

    Without images, the partial-volume mix stands in their place.
    """
    colours = tissue_colours(schema)
    mix = np.einsum("cxy,cr->xyr", row.pv, colours).astype(np.float32)
    if row.images is not None:
        greys = [np.repeat(image[..., None], 3, axis=-1) for image in row.images]
        overlay = np.where(
            row.pv[0][..., None] > _LESION, greys[0], (1 - _OVERLAY) * greys[0] + _OVERLAY * mix
        )
        pictures = [*greys, overlay]
    else:
        pictures = [mix]
    pictures.append(colours[np.argmax(row.pv, axis=0)])
    lesion = row.pv[list(schema.lesion_channels)].sum(axis=0) > _LESION
    pictures.append(outlined(pictures[0], lesion, 1))
    return [np.clip(picture, 0, 1).transpose(1, 0, 2)[::-1] for picture in pictures]


def write_preview(shards: Shards, count: int, path: Path) -> int:
    """Write a contact sheet as a PNG file.

    Args:
        shards: the dataset.
        count: how many samples, spread evenly over the dataset.
        path: the PNG file.

    Returns:
        How many samples it shows.

    Raises:
        StoreError: a shard is missing or damaged, or the file cannot be written.
    """
    write_atomic(path, draw_preview(shards, count))
    return min(count, len(shards))


def draw_preview(shards: Shards, count: int) -> bytes:
    """Return a contact sheet of `count` samples as PNG; see `write_preview`."""
    count = min(count, len(shards))
    rows = [shards[i * len(shards) // count] for i in range(count)]
    if shards.schema.is_picture:
        figure = _sheet(
            [vessel_panels(row) for row in rows],
            [vessel_caption(row) for row in rows],
            vessel_titles(shards.styles),
            _PICTURE_IN,
        )
        _add_note(figure, shards, "Rows down, columns to the right, as the files hold them.")
    else:
        window = _window(rows)
        figure = _sheet(
            [[p[window] for p in panels(row, shards.schema)] for row in rows],
            [caption(row) for row in rows],
            _titles(shards.styles),
            _PANEL_IN,
        )
        _add_legend(figure, shards)
        _add_note(figure, shards, "Anterior up, left is left (neurological).")
    buffer = io.BytesIO()
    FigureCanvasAgg(figure)
    figure.savefig(buffer, format="png", dpi=110)
    return buffer.getvalue()


def _titles(styles: tuple[str, ...]) -> list[str]:
    first = [*(s.replace("_", "\n") for s in styles), "PV overlay"] if styles else ["PV mix"]
    return [*first, "largest PV", "lesion outline"]


def caption(row: ShardRow) -> str:
    """Return what is written above a sample: index, place, lesions asked for and made."""
    lesions = [
        f"{name} asked {wanted:.1%}, made {row.realised[name]:.1%}"
        for name, wanted in row.condition.items()
        if name in row.realised and (wanted > 0 or row.realised[name] > _WORTH_SAYING)
    ]
    source = f" (label {row.label_index})" if row.label_index is not None else ""
    place = f"slice at {row.condition['position']:.2f}"
    return f"#{row.index}{source}: " + ", ".join([place, *(lesions or ["no lesion"])])


def _window(rows: list[ShardRow]) -> tuple[slice, slice]:
    """Return the part of the pictures, as (lines, columns), that shows the brain of every row."""
    brain = np.any([row.pv[0] < _LESION for row in rows], axis=0).T[::-1]  # (Y, X), as shown
    parts = []
    for axis in (1, 0):
        inside = np.flatnonzero(brain.any(axis=axis))
        if not inside.size:
            return slice(None), slice(None)
        parts.append(slice(max(0, inside[0] - _MARGIN_PX), inside[-1] + 1 + _MARGIN_PX))
    return parts[0], parts[1]


def _sheet(
    samples: list[list[Rgb]], captions: list[str], titles: list[str], panel_w: float
) -> Figure:
    """Lay out the samples in one or two blocks of rows, with room for the legend below."""
    blocks = 2 if len(samples) > 3 and len(titles) < 6 else 1
    lines = -(-len(samples) // blocks)
    height, width = samples[0][0].shape[:2]
    panel_h = panel_w * height / width
    total_w = blocks * len(titles) * panel_w
    legend_h = 4 * _TEXT_IN
    total_h = _TEXT_IN + lines * (panel_h + _TEXT_IN) + legend_h
    figure = Figure(figsize=(max(total_w, 5), total_h), facecolor="black")
    for number, pictures in enumerate(samples):
        line, block = number % lines, number // lines
        top = total_h - _TEXT_IN - line * (panel_h + _TEXT_IN)
        left = block * len(titles) * panel_w
        figure.text(
            (left + 0.05) / max(total_w, 5),
            (top - 0.75 * _TEXT_IN) / total_h,
            captions[number],
            color="white",
            fontsize=7,
        )
        for column, picture in enumerate(pictures):
            box = (
                (left + column * panel_w) / max(total_w, 5),
                (top - _TEXT_IN - panel_h) / total_h,
                0.98 * panel_w / max(total_w, 5),
                panel_h / total_h,
            )
            axes = figure.add_axes(box)
            axes.imshow(picture, interpolation="nearest")
            axes.axis("off")
            if line == 0:
                x = (left + (column + 0.5) * panel_w) / max(total_w, 5)
                y = (total_h - 0.7 * _TEXT_IN) / total_h
                figure.text(
                    x, y, titles[column], color="white", fontsize=7, ha="center", va="center"
                )
    return figure


def _add_legend(figure: Figure, shards: Shards) -> None:
    colours = tissue_colours(shards.schema)
    handles = [
        Patch(facecolor=to_hex(colour), label=name)
        for name, colour in zip(shards.schema.names[1:], colours[1:], strict=True)
    ]
    handles.append(Patch(facecolor="none", edgecolor=OUTLINE, label="outline: lesion PV > 0.5"))
    figure.legend(
        handles=handles,
        loc="lower center",
        ncols=min(len(handles), 5),
        fontsize=7,
        frameon=False,
        labelcolor="white",
        bbox_to_anchor=(0.5, _TEXT_IN / figure.get_figheight()),
    )


def _add_note(figure: Figure, shards: Shards, orientation: str) -> None:
    what = f"styles: {', '.join(shards.styles)}. " if shards.styles else ""
    figure.text(
        0.5,
        0.25 * _TEXT_IN / figure.get_figheight(),
        f"{shards.manifest.kind}, {len(shards)} samples. {what}{orientation}",
        color="white",
        fontsize=7,
        ha="center",
    )
