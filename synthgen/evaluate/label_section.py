"""The labels' part of a report: generated maps against real ones, each number with its floor."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import partial
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure as Canvas

from synthgen.core.errors import RequestError
from synthgen.evaluate import label_metrics
from synthgen.evaluate.findings import Findings
from synthgen.evaluate.label_metrics import LabelDescriptors, describe_labels
from synthgen.evaluate.metric import Better, Figure, Floor, Section, subject_halves, with_floor
from synthgen.evaluate.plots import png
from synthgen.evaluate.sets import require_comparable
from synthgen.evaluate.topology import SPECK

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from synthgen.core.rng import SampleKey
    from synthgen.evaluate.sets import SliceSet

Column = npt.NDArray[np.float64]
Rows = npt.NDArray[np.float64]

AT_LEAST = 50
"""Fewest slices on which a distribution of labels means anything."""
AT_LEAST_LESIONS = 20
_PERCENT = 100.0
_TEXT = (
    "Do the label maps have the anatomy of real ones? Shares and shapes are compared among slices "
    "at the same place in the brain. Lesion requests are measured against picking, for each "
    "request, the real slice that fits it best."
)


@dataclass(frozen=True)
class _Comparison:
    """Generated and real descriptors, and the key of their floors."""

    made: LabelDescriptors
    real: LabelDescriptors
    key: SampleKey

    def floor(
        self,
        column: Callable[[LabelDescriptors], Rows],
        distance: Callable[[Rows, Rows], float] | None = None,
    ) -> Floor:
        """Compare a descriptor `(P, d)` at matched positions; its mean if no distance is given."""
        edges = label_metrics.position_bins(self.made.position, self.real.position)
        synthetic, _ = label_metrics.binned(self.made.position, column(self.made), edges)
        real, inside = label_metrics.binned(self.real.position, column(self.real), edges)
        subjects = [s for s, kept in zip(self.real.subject, inside, strict=True) if kept]
        if distance is None:
            shares = np.bincount(real[:, 0].astype(np.int64), minlength=len(edges) - 1)
            metric = label_metrics.mean_at(shares / max(shares.sum(), 1))
        else:
            metric = label_metrics.in_bins(distance)
        return with_floor(metric, synthetic, real, subjects, self.key, at_least=AT_LEAST)

    def lesion_floor(
        self,
        channel: int,
        column: Callable[[LabelDescriptors], Rows],
        distance: Callable[[Rows, Rows], float],
    ) -> Floor:
        """Compare a descriptor `(K, d)` of the single lesions of one channel."""
        made, real = (d.lesions.channel == channel for d in (self.made, self.real))
        subjects = [self.real.subject[i] for i in self.real.lesions.slices[real]]
        return with_floor(
            distance,
            column(self.made)[made],
            column(self.real)[real],
            subjects,
            self.key,
            at_least=AT_LEAST_LESIONS,
        )

    def request_floor(
        self, lesion: int, measure: Callable[[Column, Column], float], *, positive: bool
    ) -> Floor:
        """Compare realised with requested shares; the reference picks among half of the real."""
        requested = self.made.requested[:, lesion]
        asked = requested > label_metrics.PRESENT if positive else np.isfinite(requested)
        if asked.sum() < AT_LEAST_LESIONS:
            raise RequestError(
                f"needs at least {AT_LEAST_LESIONS} slices with a request, got {asked.sum()}"
            )
        requested, position = requested[asked], self.made.position[asked]
        references = []
        for number, halves in enumerate(subject_halves(self.real.subject, self.key)):
            half = halves[number % 2]
            share = self.real.realised[half, lesion]
            chosen = label_metrics.fitting_slices(
                requested, position, share, self.real.position[half]
            )
            references.append(measure(requested, share[chosen]))
        low, middle, high = (float(v) for v in np.percentile(references, [5, 50, 95]))
        value = measure(requested, self.made.realised[asked, lesion])
        return Floor(value, middle, low, high, int(asked.sum()))


def labels_section(synthetic: SliceSet, real: SliceSet, *, key: SampleKey) -> Section:
    """Compare the label maps of two sets.

    Args:
        synthetic: generated slices.
        real: real slices of at least two subjects.
        key: decides splits and draws.

    Raises:
        SchemaError: different label schemas, or PV values that are not finite.
        GeometryError: different picture sizes.
        RequestError: an empty set.
    """
    require_comparable(synthetic, real)
    made, measured = describe_labels(synthetic), describe_labels(real)
    figures = tuple(_figures(made, measured))
    return replace(compare_labels(made, measured, key=key), figures=figures)


def compare_labels(made: LabelDescriptors, real: LabelDescriptors, *, key: SampleKey) -> Section:
    """Compare descriptors: the section without its figures, and without reading any map."""
    findings, comparison = Findings(), _Comparison(made, real, key)
    if not (np.isfinite(made.position).all() and np.isfinite(real.position).all()):
        findings.refuse(
            "comparison at the same place in the brain",
            "a set does not state its slice positions, so slices of all places are compared",
        )
    _add_shares(findings, comparison)
    _add_shapes(findings, comparison)
    for lesion, channel in enumerate(made.schema.lesion_channels):
        _add_requests(findings, comparison, lesion)
        _add_lesions(findings, comparison, channel)
    return Section(
        "labels",
        "Labels",
        _TEXT,
        tuple(findings.metrics),
        refused=findings.refused,
    )


def _add_shares(findings: Findings, comparison: _Comparison) -> None:
    made, real = comparison.made, comparison.real
    present = [
        c
        for c in range(1, made.schema.channels)
        if max(made.fractions[:, c].max(), real.fractions[:, c].max()) > label_metrics.PRESENT
    ]
    provenance = {"distance": "Wasserstein-1 within position bins", "unit": "share of the brain"}
    # The first entry of the fractions is the brain's share of the picture.
    named = [("mean", "Tissue shares, mean of all tissues", present), ("brain", "Brain size", [0])]
    named += [
        (made.schema.names[c], f"Share of {made.schema.names[c]} in the brain", [c])
        for c in present
    ]
    for name, title, channels in named:
        findings.add(
            f"labels/share/{name}",
            title,
            partial(comparison.floor, partial(_shares, channels), label_metrics.mean_wasserstein),
            unit="%",
            provenance=provenance,
        )
    absent = [made.schema.names[c] for c in range(1, made.schema.channels) if c not in present]
    if absent:
        findings.refuse(f"Share of {', '.join(absent)}", "neither set has any")


def _add_shapes(findings: Findings, comparison: _Comparison) -> None:
    counted = f"pieces and gaps of at least {SPECK} pixels count"
    columns: list[tuple[str, str, Callable[[LabelDescriptors], Column], Better, float, str]] = [
        (
            "one_piece",
            "Brains of one piece",
            lambda d: (d.pieces == 1).astype(np.float64),
            "higher",
            100.0,
            counted,
        ),
        ("outside", "Brain area outside the largest piece", lambda d: d.outside, "lower", 0.0, ""),
        (
            "no_holes",
            "Brains without holes",
            lambda d: (d.holes == 0).astype(np.float64),
            "higher",
            100.0,
            counted,
        ),
        ("hole_area", "Brain area that is hole", lambda d: d.hole_share, "lower", 0.0, ""),
        ("sharpness", "Sharpness: mean of the largest PV", lambda d: d.sharpness, "equal", 0.0, ""),
    ]
    for name, title, column, better, ideal, how in columns:
        findings.add(
            f"labels/{name}",
            title,
            partial(comparison.floor, partial(_percent, column)),
            better,
            ideal=ideal,
            unit="%",
            provenance={"counted": how} if how else {},
        )
    findings.add(
        "labels/boundaries",
        "Boundary length between other tissues than in real maps",
        lambda: comparison.floor(
            lambda d: d.neighbours, lambda a, b: _PERCENT * label_metrics.boundary_distance(a, b)
        ),
        unit="%",
    )


def _add_requests(findings: Findings, comparison: _Comparison, lesion: int) -> None:
    name = comparison.made.schema.lesions[lesion]
    requested = comparison.made.requested[:, lesion]
    asked = requested[requested > label_metrics.PRESENT]
    if not asked.size:
        findings.refuse(f"Requested {name}", "no slice was asked to have any")
        return
    how = {"reference": "the real slices of half the subjects that fit the requests best"}
    findings.add(
        f"labels/request/{name}/presence",
        f"Slices with {name} where, and only where, it was requested",
        lambda: comparison.request_floor(
            lesion, lambda a, b: _PERCENT * label_metrics.presence_right(a, b), positive=False
        ),
        "higher",
        ideal=_PERCENT,
        unit="%",
        provenance=how,
    )
    findings.add(
        f"labels/request/{name}/error",
        f"Typical error of the share of {name}, of what was requested",
        lambda: comparison.request_floor(
            lesion, lambda a, b: _PERCENT * float(np.median(np.abs(b - a) / a)), positive=True
        ),
        unit="%",
        provenance=how,
    )
    title = f"Rank correlation of requested and realised {name}"
    if np.ptp(asked) == 0:
        findings.refuse(title, "every request is the same share")
        return
    findings.add(
        f"labels/request/{name}/rank",
        title,
        lambda: comparison.request_floor(lesion, label_metrics.rank_agreement, positive=True),
        "higher",
        ideal=1.0,
        provenance=how,
    )


def _add_lesions(findings: Findings, comparison: _Comparison, channel: int) -> None:
    name = comparison.made.schema.names[channel]
    if not any((d.lesions.channel == channel).any() for d in (comparison.made, comparison.real)):
        findings.refuse(f"Sizes and places of {name}", "neither set has any")
        return
    lesion = comparison.made.schema.lesion_channels.index(channel)
    # Where shares were requested, the requests decide which slices have lesions.
    if not np.isfinite(comparison.made.requested[:, lesion]).any():
        findings.add(
            f"labels/lesion_slices/{name}",
            f"Slices with {name}",
            partial(comparison.floor, partial(_percent, partial(_present, channel))),
            "equal",
            unit="%",
        )
    findings.add(
        f"labels/lesion_size/{name}",
        f"Sizes of single {name} lesions",
        lambda: comparison.lesion_floor(
            channel, lambda d: np.log2(d.lesions.area)[:, None], label_metrics.mean_wasserstein
        ),
        unit="doublings",
        provenance={"distance": "Wasserstein-1 of log2 of the area in pixels"},
    )
    findings.add(
        f"labels/lesion_place/{name}",
        f"Places of single {name} lesions in the brain",
        lambda: comparison.lesion_floor(
            channel, lambda d: d.lesions.place * _PERCENT, label_metrics.sliced_wasserstein
        ),
        unit="%",
        provenance={"distance": "sliced Wasserstein-1 of the centers", "unit": "of the brain box"},
    )


def _shares(channels: list[int], described: LabelDescriptors) -> Rows:
    shares: Rows = described.fractions[:, channels] * _PERCENT
    return shares


def _present(channel: int, described: LabelDescriptors) -> Column:
    return (described.fractions[:, channel] > label_metrics.PRESENT).astype(np.float64)


def _percent(column: Callable[[LabelDescriptors], Column], described: LabelDescriptors) -> Rows:
    return _PERCENT * column(described)[:, None]


def _figures(made: LabelDescriptors, real: LabelDescriptors) -> Iterator[Figure]:
    shown = [
        c
        for c in range(1, made.schema.channels)
        if max(made.fractions[:, c].max(), real.fractions[:, c].max()) > label_metrics.PRESENT
    ]
    if np.isfinite(made.position).all() and np.isfinite(real.position).all() and shown:
        yield Figure(
            "shares",
            "Share of each tissue in the brain (%) from its foot (0) to its top (1): median and "
            "5 % to 95 % of real slices (grey) and of generated ones (orange).",
            _draw_shares(made, real, shown),
        )
    asked = np.nan_to_num(made.requested) > label_metrics.PRESENT
    if asked.any():
        yield Figure(
            "requests",
            "Requested and realised lesion shares, in % of the brain; the line is what was asked.",
            _draw_requests(made, asked),
        )


def _draw_shares(made: LabelDescriptors, real: LabelDescriptors, shown: list[int]) -> bytes:
    columns = min(4, len(shown))
    lines = -(-len(shown) // columns)
    canvas = Canvas(figsize=(2.4 * columns, 1.8 * lines), layout="constrained")
    FigureCanvasAgg(canvas)
    for place, channel in enumerate(shown):
        axes = canvas.add_subplot(lines, columns, place + 1)
        for described, colour in ((real, "0.45"), (made, "tab:orange")):
            at, low, middle, high = _bands(described.position, described.fractions[:, channel])
            axes.fill_between(at, low, high, color=colour, alpha=0.25, linewidth=0)
            axes.plot(at, middle, color=colour, linewidth=1.5)
        axes.set_title(made.schema.names[channel], fontsize=9)
        axes.tick_params(labelsize=7)
        axes.set_xlim(0, 1)
        axes.set_ylim(bottom=0)
    return png(canvas)


def _bands(position: Column, share: Column) -> tuple[Column, Column, Column, Column]:
    """Return bin centers, and the 5 %, 50 % and 95 % of the shares (in %) of the slices there."""
    edges = np.linspace(0, 1, 2 * label_metrics.BINS + 1)
    bins = np.clip(np.digitize(position, edges) - 1, 0, len(edges) - 2)
    used = np.unique(bins)
    values = [np.percentile(_PERCENT * share[bins == b], [5, 50, 95]) for b in used]
    low, middle, high = np.asarray(values).T
    return (edges[used] + edges[used + 1]) / 2, low, middle, high


def _draw_requests(made: LabelDescriptors, asked: npt.NDArray[np.bool_]) -> bytes:
    lesions = np.flatnonzero(asked.any(axis=0))
    canvas = Canvas(figsize=(3.0 * len(lesions), 3.0), layout="constrained")
    FigureCanvasAgg(canvas)
    for place, lesion in enumerate(lesions):
        axes = canvas.add_subplot(1, len(lesions), place + 1)
        x, y = (
            _PERCENT * table[asked[:, lesion], lesion] for table in (made.requested, made.realised)
        )
        top = max(x.max(), y.max())
        axes.plot([0, top], [0, top], color="0.45", linewidth=1)
        axes.plot(x, y, ".", color="tab:orange", markersize=3, alpha=0.5)
        axes.set_title(made.schema.lesions[lesion], fontsize=9)
        axes.set_xlabel("requested, %", fontsize=8)
        axes.set_ylabel("realised, %", fontsize=8)
        axes.tick_params(labelsize=7)
    return png(canvas)
