"""Pictures of a report: contact sheets, and each number as a mark on a strip.

Pictures are drawn on matplotlib figures of their own, never on its global state. Slices are shown
as one looks at a person from above: anterior up, left is left.
"""

from __future__ import annotations

import io
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure as Canvas

from synthgen.core.rng import SampleKey, Stream
from synthgen.data.preview import tissue_colours
from synthgen.evaluate.metric import FAIR, Figure, Metric

if TYPE_CHECKING:
    from collections.abc import Sequence

    from synthgen.evaluate.sets import Floats, Indices, SliceSet

COLUMNS = 4
"""Slice positions in a contact sheet."""

MOST_SHEETS = 6
_NEAR = 0.02  # slices this close in position show the same place
_OUTSIDE = 0.5
_MARGIN_PX = 3
_PANEL_IN = 1.75
_TITLE_IN = 0.26
_DPI = 110
_REACH = 4.0  # a strip ends at this many times the distance of the floor from its ideal


@dataclass(frozen=True)
class Strip:
    """A number against its reference on a strip; positions in [0, 100].

    The unit of the strip is the distance of the reference's interval from the ideal, so that the
    verdicts have the same place in every strip. Better is left, or in the middle when a number
    should equal its reference.

    Attributes:
        good: ends of the zone that counts as good.
        fair: ends of the zone that counts as fair; it contains `good`.
        interval: the reference's 5 % to 95 %.
        reference: its median.
        value: the number.
        beyond: the number lies outside the strip: -1 left of it, 1 right of it, else 0.
    """

    good: tuple[float, float]
    fair: tuple[float, float]
    interval: tuple[float, float]
    reference: float
    value: float
    beyond: int


def distance(metric: Metric) -> float:
    """Return how far a number is from its ideal, in distances of its floor: up to 1 is good.

    Examples:
        >>> m = Metric("a/b", "B", 6.0, 1.0, 0.5, 2.0, "lower", 10)
        >>> distance(m), m.verdict
        (3.0, 'fair')
    """
    sign, origin, spread = _scale(metric)
    gap = sign * (metric.value - origin)
    if metric.better == "equal":
        gap = abs(gap)
    if spread > 0:
        return float(gap / spread)
    return 0.0 if gap <= 0 else float("inf")


def strip(metric: Metric) -> Strip:
    """Return where the marks of a metric's strip lie."""
    sign, origin, spread = _scale(metric)
    symmetric = metric.better == "equal"
    low, high = (-_REACH, _REACH) if symmetric else (-0.5, _REACH)

    def place(value: float) -> float:
        gap = sign * (value - origin)
        if not np.isfinite(gap):
            return high
        return gap / spread if spread > 0 else float(np.sign(gap)) * 2 * _REACH

    def percent(at: float) -> float:
        return round(100 * (min(max(at, low), high) - low) / (high - low), 2)

    at = place(metric.value)
    ends = sorted((percent(place(metric.low)), percent(place(metric.high))))
    return Strip(
        good=(percent(-1 if symmetric else low), percent(1)),
        fair=(percent(-FAIR if symmetric else low), percent(FAIR)),
        interval=(ends[0], ends[1]),
        reference=percent(place(metric.reference)),
        value=percent(at),
        beyond=-1 if at < low else int(at > high or not np.isfinite(metric.value)),
    )


def _scale(metric: Metric) -> tuple[float, float, float]:
    """Return the direction that is worse, the best value and the distance of the floor from it."""
    if metric.better == "lower":
        return 1.0, metric.ideal, metric.high - metric.ideal
    if metric.better == "higher":
        return -1.0, metric.ideal, metric.ideal - metric.low
    spread = max(metric.high - metric.reference, metric.reference - metric.low)
    return 1.0, metric.reference, spread


def contact_sheets(synthetic: SliceSet, real: SliceSet, key: SampleKey) -> tuple[Figure, ...]:
    """Draw generated slices above real ones at the same places of the brain.

    One sheet shows label maps, one each modality that both sets have; styles whose modality the
    real data lack get a sheet of their own without a lower row.

    Args:
        synthetic: the generated set.
        real: the real one, of the same schema and shape.
        key: decides which of the slices near a place are shown.
    """
    sheets = [_label_sheet(synthetic, real, key)]
    shared = [m for m in synthetic.modalities if m in real.modalities]
    alone = [
        style
        for style in synthetic.styles
        if synthetic.images.modality[int(synthetic.image_rows(style=style)[0])] not in shared
    ]
    groups = [(m, synthetic.image_rows(modality=m), real.image_rows(modality=m)) for m in shared]
    groups += [(s, synthetic.image_rows(style=s), np.zeros(0, np.int64)) for s in alone]
    for name, rows, real_rows in groups[: MOST_SHEETS - 1]:
        chosen, beside = _matched(
            _positions(synthetic, synthetic.images.slices[rows]),
            _positions(real, real.images.slices[real_rows]),
            key,
        )
        lines = [synthetic.image(rows[chosen])[:, 0]]
        if beside.size:
            lines.append(real.image(real_rows[beside])[:, 0])
        sheets.append(
            Figure(
                f"images-{name}",
                f"Images, {name}: generated above"
                + (", real below, at the same places." if beside.size else "; no real ones."),
                _sheet([[np.repeat(p[..., None], 3, axis=2) for p in line] for line in lines]),
            )
        )
    return tuple(sheets)


def _label_sheet(synthetic: SliceSet, real: SliceSet, key: SampleKey) -> Figure:
    chosen, beside = _matched(synthetic.table.position, real.table.position, key)
    colours = tissue_colours(synthetic.schema)
    lines = [
        list(np.einsum("ncxy,cr->nxyr", subset.pv(rows), colours).astype(np.float32))
        for subset, rows in ((synthetic, chosen), (real, beside))
    ]
    return Figure(
        "labels",
        "Label maps, tissue colours mixed by partial volume: generated above, real below, "
        "at the same places.",
        _sheet(lines),
    )


def _positions(subset: SliceSet, slices: Indices) -> npt.NDArray[np.float64]:
    return subset.table.position[slices]


def _matched(
    synthetic: npt.NDArray[np.float64], real: npt.NDArray[np.float64], key: SampleKey
) -> tuple[Indices, Indices]:
    """Choose rows of both sets at the same positions, spread over the generated ones."""
    rng = key.numpy(Stream.EVALUATE)
    known = np.flatnonzero(np.isfinite(synthetic))
    if not known.size:  # nobody knows where these slices lie: show some of each, evenly spread
        return _spread(len(synthetic)), _spread(len(real))
    targets = np.quantile(synthetic[known], (np.arange(COLUMNS) + 0.5) / COLUMNS)

    def nearest(column: npt.NDArray[np.float64], target: float) -> int:
        gap = np.abs(np.where(np.isfinite(column), column, np.inf) - target)
        near = np.flatnonzero(gap <= _NEAR)
        return int(rng.choice(near)) if near.size else int(np.argmin(gap))

    rows = [nearest(synthetic, float(t)) for t in targets]
    beside = [nearest(real, float(synthetic[row])) for row in rows] if len(real) else []
    return np.asarray(rows, dtype=np.int64), np.asarray(beside, dtype=np.int64)


def _spread(count: int) -> Indices:
    columns = min(COLUMNS, count)
    return np.asarray([(2 * i + 1) * count // (2 * columns) for i in range(columns)], np.int64)


def _sheet(lines: Sequence[Sequence[Floats]]) -> bytes:
    """Lay out pictures `(X, Y, 3)`: one line of the sheet generated, the next real."""
    shown = [[picture.transpose(1, 0, 2)[::-1] for picture in line] for line in lines]
    window = _window([picture for line in shown for picture in line])
    height, width = shown[0][0][window].shape[:2]
    columns = max(len(line) for line in shown)
    panel_h = _PANEL_IN * height / width
    total_w, total_h = columns * _PANEL_IN, len(shown) * (panel_h + _TITLE_IN)
    canvas = Canvas(figsize=(total_w, total_h), facecolor="black")
    FigureCanvasAgg(canvas)
    for number, (line, title) in enumerate(zip(shown, ("generated", "real"), strict=False)):
        top = total_h - number * (panel_h + _TITLE_IN)
        canvas.text(
            0.05 / total_w, (top - 0.19) / total_h, title, color="white", fontsize=10, ha="left"
        )
        for column, picture in enumerate(line):
            box = (
                column / columns,
                (top - _TITLE_IN - panel_h) / total_h,
                0.985 / columns,
                panel_h / total_h,
            )
            axes = canvas.add_axes(box)
            axes.imshow(np.clip(picture[window], 0, 1), interpolation="nearest", aspect="auto")
            axes.axis("off")
    return png(canvas)


def png(canvas: Canvas) -> bytes:
    """Return a matplotlib figure as PNG bytes, without the date or version of its maker."""
    buffer = io.BytesIO()
    canvas.savefig(buffer, format="png", dpi=_DPI, metadata={"Software": None})
    return buffer.getvalue()


def _window(pictures: Sequence[Floats]) -> tuple[slice, slice]:
    """Return the part of the pictures, as (lines, columns), that shows every brain."""
    seen = np.any([picture.max(axis=2) > 0.02 for picture in pictures], axis=0)
    parts = []
    for axis in (1, 0):
        inside = np.flatnonzero(seen.any(axis=axis))
        if not inside.size:
            return slice(None), slice(None)
        parts.append(slice(max(0, inside[0] - _MARGIN_PX), inside[-1] + 1 + _MARGIN_PX))
    return parts[0], parts[1]
