"""The report of a benchmark: one HTML file that needs no network, tables and JSON."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

from synthgen.benchmark.arms import REFERENCE
from synthgen.benchmark.figures import draw_figures
from synthgen.benchmark.gallery import draw_gallery
from synthgen.benchmark.rows import MEASURES, NOT_A_RESULT, read_results
from synthgen.benchmark.significance import CONFIDENCE
from synthgen.benchmark.spec import listed
from synthgen.benchmark.statistics import analyse
from synthgen.benchmark.tables import (
    contrast_table,
    latex,
    level_table,
    markdown,
    metrics_csv,
    summary_csv,
)
from synthgen.benchmark.verdict import Outcome
from synthgen.core.errors import StoreError
from synthgen.core.manifest import write_atomic
from synthgen.evaluate.report import HTML, finite, templates

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from synthgen.benchmark.rows import Results
    from synthgen.benchmark.statistics import Analysis
    from synthgen.evaluate.metric import Figure, Table

FORMAT = "synthgen-benchmark-statistics/1"
FOLDER, FIGURES = "report", "figures"
_TONES = {
    Outcome.BETTER: "good",
    Outcome.AS_GOOD: "good",
    Outcome.WORSE_WITHIN: "fair",
    Outcome.WORSE: "poor",
}
"""Colours of verdicts, which only repeat the words; what cannot be told has none."""


@dataclass(frozen=True)
class _Page:
    """What the HTML page shows."""

    stamp: str
    verdicts: tuple[tuple[str, str], ...]
    notes: tuple[str, ...]
    missing: tuple[str, ...]
    figures: tuple[Figure, ...]
    main: tuple[Table, ...]
    other: tuple[Table, ...]
    gallery: tuple[Figure, ...]
    margin: float


def write_report(out: Path) -> Path:
    """Write what the finished trainings of a benchmark show.

    Fills `report/` with `report.html`, `statistics.json`, `metrics.csv` (every score),
    `table.csv` (every level and difference), `table.md`, `table.tex` and `figures/*.png`.

    Args:
        out: folder of the benchmark.

    Returns:
        The HTML file.

    Raises:
        RequestError: no benchmark, or none of its trainings has finished.
        StoreError: a row, volume or prediction is damaged, or the folder cannot be written.
    """
    results = read_results(out)
    analysis = analyse(results)
    page = _page(results, analysis)
    sentences = [*analysis.verdicts.values(), *page.missing]
    folder = out / FOLDER
    try:
        (folder / FIGURES).mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise StoreError(f"{folder}: cannot be made ({error}); free space and repeat") from error
    texts = {
        "metrics.csv": metrics_csv(results),
        "table.csv": summary_csv(analysis, smoke=results.smoke),
        "table.md": markdown(sentences, page.main),
        "table.tex": latex(sentences, page.main),
        "statistics.json": json.dumps(statistics_json(results, analysis), indent=1) + "\n",
        HTML: render(results, page),
    }
    pictures = {f"{FIGURES}/{f.name}.png": f.png for f in (*page.figures, *page.gallery)}
    for old in (folder / FIGURES).glob("*.png"):
        if f"{FIGURES}/{old.name}" not in pictures:
            old.unlink()
    for name, data in {**pictures, **{n: text.encode() for n, text in texts.items()}}.items():
        write_atomic(folder / name, data)
    return folder / HTML


def statistics_json(results: Results, analysis: Analysis) -> dict[str, Any]:
    """Return all numbers as JSON-able values; what is undefined is None."""
    body: dict[str, Any] = finite(
        {
            "format": FORMAT,
            "stamp": NOT_A_RESULT if results.smoke else None,
            "reference": REFERENCE,
            "confidence": CONFIDENCE,
            "margin": analysis.margin,
            "subjects": list(results.subjects),
            "verdicts": analysis.verdicts,
            "headlines": [asdict(contrast) for contrast in analysis.headlines],
            "levels": [asdict(level) for level in analysis.levels],
            "contrasts": [asdict(contrast) for contrast in analysis.contrasts],
            "warnings": list(analysis.warnings),
            "failed": dict(results.failed),
            "pending": list(results.pending),
        }
    )
    return body


def _page(results: Results, analysis: Analysis) -> _Page:
    modalities = list(dict.fromkeys(level.modality for level in analysis.levels))
    dice = MEASURES["dice"]
    others = [measure for measure in MEASURES.values() if measure != dice]
    main = [
        table
        for modality in modalities
        for table in (
            level_table(results, analysis, dice, modality),
            contrast_table(results, analysis, dice, modality),
        )
        if table
    ]
    first = modalities[0]
    main += [level_table(results, analysis, measure, first) for measure in others]
    further = [contrast_table(results, analysis, measure, first) for measure in others]
    outcomes = {c.arm: c.outcome for c in analysis.headlines if c.modality == first}
    return _Page(
        stamp=NOT_A_RESULT if results.smoke else "",
        verdicts=tuple(
            (_TONES.get(outcomes[arm], "") if arm in outcomes else "", sentence)
            for arm, sentence in analysis.verdicts.items()
        ),
        notes=analysis.warnings,
        missing=tuple(_missing(results)),
        figures=draw_figures(results, analysis),
        main=tuple(main),
        other=tuple(table for table in further if table),
        gallery=draw_gallery(results),
        margin=analysis.margin,
    )


def _missing(results: Results) -> Iterator[str]:
    for name, reason in results.failed.items():
        yield f"{name} failed: {reason}"
    for name in results.pending:
        yield f"{name} has not finished; the same command continues it"


def render(results: Results, page: _Page) -> str:
    """Return the HTML page: one file, pictures inlined, nothing from outside."""
    spec = results.spec
    title = f"Benchmark: {spec['trainer']}, {spec['budget_name']} budget"
    return (
        templates("synthgen.benchmark")
        .get_template("benchmark.html.j2")
        .render(title=title, facts=_facts(results), page=page, reference=REFERENCE)
    )


def _facts(results: Results) -> list[tuple[str, str]]:
    """Return the provenance: the settings of `spec.json`, one line each."""
    spec = results.spec
    trained = ", ".join(f"{arm} {len(results.seeds(arm))}" for arm in results.arms)
    facts = [
        ("trainings finished", trained),
        ("test subjects", ", ".join(results.subjects)),
        ("modalities", ", ".join(results.modalities)),
        ("tissues", ", ".join(results.tissues)),
    ]
    told = {"arms", "test", "modalities", "tissues", "sources", "versions", "format"}
    facts += [(name.replace("_", " "), _plain(v)) for name, v in spec.items() if name not in told]
    for kind in ("sources", "versions"):
        facts += [(f"{kind[:-1]} {n}", _plain(v)) for n, v in spec.get(kind, {}).items()]
    return facts


def _plain(value: object) -> str:
    """Return a setting as text for people."""
    if isinstance(value, dict):
        return "; ".join(f"{name} {_plain(entry)}" for name, entry in value.items())
    if isinstance(value, list):
        return listed([_plain(entry) for entry in value], 12) or "none"
    return str(value)
