"""Pictures of a benchmark's scores: every subject in every arm, and differences to real data."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure as Canvas

from synthgen.benchmark.arms import REFERENCE
from synthgen.benchmark.rows import NOT_A_RESULT
from synthgen.benchmark.statistics import ALL
from synthgen.evaluate.metric import Figure
from synthgen.evaluate.plots import png

if TYPE_CHECKING:
    from collections.abc import Sequence

    from matplotlib.axes import Axes

    from synthgen.benchmark.rows import Results
    from synthgen.benchmark.statistics import Analysis, Contrast

_COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#a06a00", "#56b4e9", "#6a3d9a")
"""Colours that colour-blind readers tell apart (Okabe and Ito 2008), after black for real."""
_PANEL_IN = 2.9
_ROW_IN = 0.3
_SUBJECT = "#b4bac1"


def draw_figures(results: Results, analysis: Analysis) -> tuple[Figure, ...]:
    """Draw the paired scores, and the differences to real data if there are any."""
    figures = [_paired(results)]
    if analysis.headlines:
        figures.append(_intervals(results, analysis))
    return tuple(figures)


def arm_colours(arms: Sequence[str]) -> dict[str, str]:
    """Return a colour for each arm, black for real."""
    others = [arm for arm in arms if arm != REFERENCE]
    chosen = {arm: _COLOURS[i % len(_COLOURS)] for i, arm in enumerate(others)}
    return {REFERENCE: "#16191d"} | chosen


def _paired(results: Results) -> Figure:
    """One panel for each tissue: a line for each subject, a dot for the arm's mean."""
    tissues, arms = results.tissues, results.arms
    canvas, panels = _canvas(len(tissues) * _PANEL_IN + 0.5, 3.6, len(tissues), results)
    colours = arm_colours(arms)
    for axes, tissue in zip(panels, tissues, strict=True):
        scores = [results.scores(a, tissue, "dice", results.modalities) for a in arms]
        lines = np.stack([values.mean(axis=1) for values in scores])
        axes.plot(range(len(arms)), lines, color=_SUBJECT, linewidth=0.8, zorder=1)
        for place, (arm, values) in enumerate(zip(arms, scores, strict=True)):
            complete = values[np.isfinite(values).all(axis=1)]
            if not len(complete):
                continue
            each = complete.mean(axis=0)
            axes.plot([place + 0.2] * len(each), each, "_", color=colours[arm], markersize=9)
            axes.plot(place, each.mean(), "o", color=colours[arm], markersize=7, zorder=3)
            points = complete.mean(axis=1)
            axes.plot([place] * len(points), points, ".", color=colours[arm], markersize=4)
        axes.set_title(tissue, fontsize=11)
        axes.set_xticks(range(len(arms)), arms, rotation=35, ha="right", fontsize=9)
        axes.set_xlim(-0.4, len(arms) - 0.5)
        axes.grid(axis="y", color="#e3e6e9", linewidth=0.6)
    panels[0].set_ylabel("Dice")
    return Figure(
        "paired",
        "Dice of every test subject in every arm, averaged over trainings; a grey line joins one "
        "subject. Large dots are means over subjects, short bars the mean of each training.",
        png(canvas),
    )


def _intervals(results: Results, analysis: Analysis) -> Figure:
    """Differences of Dice to real with their intervals, one line for each arm and tissue."""
    first = analysis.headlines[0].modality
    shown = [
        c
        for c in (*analysis.headlines, *analysis.contrasts)
        if c.modality == first and c.measure == "dice" and c.n
    ]
    order = [ALL, *results.tissues]
    arms = [arm for arm in results.arms if arm != REFERENCE]
    shown.sort(key=lambda c: (arms.index(c.arm), order.index(c.tissue)))
    canvas, (axes,) = _canvas(7.2, _ROW_IN * (len(shown) + len(arms)) + 1.2, 1, results)
    colours, heights = arm_colours(arms), _heights(shown)
    for height, c in zip(heights, shown, strict=True):
        thick = 2.6 if c.tissue == ALL else 1.4
        axes.plot([c.low, c.high], [height, height], color=colours[c.arm], linewidth=thick)
        axes.plot(c.difference, height, "o", color=colours[c.arm], markersize=2 + 2 * thick)
    axes.axvline(0, color="#16191d", linewidth=1)
    axes.axvline(-analysis.margin, color="#5a6169", linewidth=1, linestyle="--")
    axes.set_yticks(heights, [_name(c) for c in shown], fontsize=9)
    axes.set_ylim(max(heights, default=0) + 0.8, -0.8)
    axes.set_xlabel(f"Dice minus Dice of {REFERENCE}")
    axes.grid(axis="x", color="#e3e6e9", linewidth=0.6)
    return Figure(
        "differences",
        f"Difference of Dice to {REFERENCE}, with its 95 % interval over subjects. Right of 0 is "
        f"better; the dashed line is the margin of {analysis.margin:g}: an interval right of it is "
        "not worse by more. Trainings add noise of their own, which the tables show.",
        png(canvas),
    )


def _heights(shown: Sequence[Contrast]) -> list[float]:
    """Return one height for each line, a gap between arms."""
    arms = list(dict.fromkeys(c.arm for c in shown))
    return [float(place + arms.index(c.arm)) for place, c in enumerate(shown)]


def _name(contrast: Contrast) -> str:
    return f"{contrast.arm}, {'all tissues' if contrast.tissue == ALL else contrast.tissue}"


def _canvas(
    width: float, height: float, columns: int, results: Results
) -> tuple[Canvas, list[Axes]]:
    canvas = Canvas(figsize=(width, height), layout="constrained")
    FigureCanvasAgg(canvas)
    panels = list(canvas.subplots(1, columns, squeeze=False)[0])
    for axes in panels:
        axes.spines[["top", "right"]].set_visible(False)
    if results.smoke:
        canvas.suptitle(f"{NOT_A_RESULT} (smoke budget)", color="#a3123a", fontsize=11)
    return canvas, panels
