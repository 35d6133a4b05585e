"""The numbers of a benchmark as tables, and tables as CSV, Markdown and LaTeX."""

from __future__ import annotations

import csv
import io
import math
from dataclasses import asdict
from typing import TYPE_CHECKING

from synthgen.benchmark.arms import REFERENCE
from synthgen.benchmark.rows import MEASURES, NOT_A_RESULT
from synthgen.benchmark.statistics import ALL
from synthgen.evaluate.metric import Table

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from synthgen.benchmark.rows import Measure, Results
    from synthgen.benchmark.statistics import Analysis, Contrast, Level

_NONE = "-"
_PLACE = {"arm", "tissue", "modality", "measure"}
_LATEX = {c: f"\\{c}" for c in "&%$#_{}"} | {"±": r"$\pm$", "<": "$<$"}


def level_table(results: Results, analysis: Analysis, measure: Measure, modality: str) -> Table:
    """Return a measure of each arm (lines) and tissue (columns)."""
    levels = {
        (level.arm, level.tissue): level
        for level in analysis.levels
        if (level.measure, level.modality) == (measure.name, modality)
    }
    tissues = [t for t in (*results.tissues, ALL) if any(t == tissue for _, tissue in levels)]
    digits = _digits(measure)
    return Table(
        f"{_title(results, measure, modality)}: mean ± sd over subjects [sd over trainings]",
        ("arm", *tissues),
        tuple((a, *(_level(levels[a, t], digits) for t in tissues)) for a in results.arms),
    )


def contrast_table(
    results: Results, analysis: Analysis, measure: Measure, modality: str
) -> Table | None:
    """Return the differences to real of one measure; None if there is nothing to compare."""
    order = [*results.tissues, ALL]
    found = [
        c
        for c in (*analysis.contrasts, *analysis.headlines)
        if (c.measure, c.modality) == (measure.name, modality)
    ]
    found.sort(key=lambda c: (results.arms.index(c.arm), order.index(c.tissue)))
    if not found:
        return None
    return Table(
        f"{_title(results, measure, modality)}: arm minus {REFERENCE}, paired by subject",
        (
            "arm",
            "tissue",
            "n",
            "difference [95 % interval]",
            "SE over trainings",
            "ratio",
            "p paired t",
            "p Holm",
            "p Wilcoxon",
            "p unpaired t",
            "p not worse",
            "outcome",
        ),
        tuple(_contrast(c, analysis.margin, _digits(measure)) for c in found),
    )


def _title(results: Results, measure: Measure, modality: str) -> str:
    unit = f", {measure.unit}" if measure.unit else ""
    of = f"mean over {', '.join(results.modalities)}" if modality == ALL else modality
    stamp = f"{NOT_A_RESULT}. " if results.smoke else ""
    return f"{stamp}{measure.title}{unit}, {of}"


def _digits(measure: Measure) -> int:
    return 1 if measure.unit else 3


def _level(level: Level, digits: int) -> str:
    if not level.n:
        return _NONE
    text = show(level.mean, digits)
    if level.n > 1:
        text += f" ± {show(level.sd, digits)}"
    if level.trainings > 1:
        text += f" [{show(level.seed_sd, digits)}]"
    return text + (f", {level.missed} missed" if level.missed else "")


def _contrast(c: Contrast, margin: float, digits: int) -> tuple[str, ...]:
    interval = f" [{c.low:+.{digits}f}, {c.high:+.{digits}f}]" if c.n > 1 else ""
    return (
        c.arm,
        "all tissues" if c.tissue == ALL else c.tissue,
        str(c.n),
        f"{c.difference:+.{digits}f}{interval}" if c.n else _NONE,
        show(c.seed_se, digits),
        show(c.ratio, 3),
        show_p(c.p_paired),
        show_p(c.p_holm),
        "n too small" if c.p_wilcoxon is None else show_p(c.p_wilcoxon),
        show_p(c.p_unpaired),
        show_p(c.p_non_inferior),
        c.outcome.words(margin),
    )


def show(value: float, digits: int) -> str:
    """Return a score for people, a dash where there is none.

    Examples:
        >>> show(0.81234, 3), show(float("nan"), 3)
        ('0.812', '-')
    """
    return _NONE if math.isnan(value) else f"{value:.{digits}f}"


def show_p(p: float | None) -> str:
    """Return a p value for people.

    Examples:
        >>> show_p(0.0312), show_p(1e-5), show_p(None)
        ('0.031', '<0.001', '-')
    """
    if p is None:
        return _NONE
    return "<0.001" if p < 0.001 else f"{p:.3f}"


def metrics_csv(results: Results) -> str:
    """Return every score: one line for each training, test volume and tissue."""
    measures = [measure.name for measure in MEASURES.values()]
    names = ["arm", "seed", "subject", "modality", "tissue", *measures]
    lines = [
        {**vars(case), **{m: _plain(case.scores[m]) for m in measures}} for case in results.cases
    ]
    return _csv([*names, "n_ref", "n_pred", "slices"], lines)


def summary_csv(analysis: Analysis, *, smoke: bool) -> str:
    """Return every level and, where there is one, its contrast with real, in one long table."""
    contrasts = {
        (c.arm, c.tissue, c.modality, c.measure): asdict(c)
        for c in (*analysis.contrasts, *analysis.headlines)
    }
    lines = []
    for level in analysis.levels:
        place = level.arm, level.tissue, level.modality, level.measure
        against = contrasts.get(place, {}).items()
        line = {name: _plain(value) for name, value in asdict(level).items()}
        line |= {f"vs_{REFERENCE}_{n}": _plain(v) for n, v in against if n not in _PLACE}
        lines.append(line | {"note": NOT_A_RESULT if smoke else ""})
    return _csv(list(dict.fromkeys(name for line in lines for name in line)), lines)


def _plain(value: object) -> object:
    if isinstance(value, tuple):
        return "+".join(str(entry) for entry in value)
    return "" if value is None or (isinstance(value, float) and math.isnan(value)) else value


def _csv(names: Sequence[str], lines: Sequence[Mapping[str, object]]) -> str:
    text = io.StringIO()
    writer = csv.DictWriter(text, names, extrasaction="ignore", lineterminator="\n")
    writer.writeheader()
    writer.writerows(lines)
    return text.getvalue()


def markdown(sentences: Sequence[str], tables: Sequence[Table]) -> str:
    """Return sentences as a list, then the tables, as Markdown."""
    parts = ["\n".join(f"- {sentence}" for sentence in sentences)]
    for table in tables:
        lines = [table.columns, ("---",) * len(table.columns), *table.rows]
        cells = [" | ".join(cell.replace("|", "\\|") for cell in line) for line in lines]
        parts.append(f"**{table.title}**\n\n" + "\n".join(f"| {line} |" for line in cells))
    return "\n\n".join(parts) + "\n"


def latex(sentences: Sequence[str], tables: Sequence[Table]) -> str:
    """Return the sentences as comments, then one `table` each, which needs no package."""
    parts = ["".join(f"% {sentence}\n" for sentence in sentences)]
    for table in tables:
        lines = [" & ".join(_tex(cell) for cell in line) + r" \\" for line in table.rows]
        head = " & ".join(_tex(name) for name in table.columns) + r" \\ \hline"
        body = "\n".join([r"\hline", head, *lines, r"\hline"])
        parts.append(
            f"\\begin{{table}}\n\\centering\\small\n\\caption{{{_tex(table.title)}}}\n"
            f"\\begin{{tabular}}{{{'l' * len(table.columns)}}}\n{body}\n"
            "\\end{tabular}\n\\end{table}\n"
        )
    return "\n".join(parts)


def _tex(text: str) -> str:
    return "".join(_LATEX.get(character, character) for character in text)
