"""The report: one HTML file that needs no network, and the same content as JSON.

The page shows, for each kind of number, the worst one first; all numbers follow, each beside its
reference. Colours only repeat what words and marks say.
"""

from __future__ import annotations

import base64
import json
import math
import re
from collections import Counter
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any, Literal

from jinja2 import ChoiceLoader, Environment, PackageLoader, StrictUndefined

from synthgen.core.errors import StoreError
from synthgen.core.input_files import read_json
from synthgen.core.manifest import write_atomic
from synthgen.evaluate.metric import FAIR, Figure, Metric, Section, Verdict
from synthgen.evaluate.plots import distance, strip

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from pathlib import Path

    from synthgen.evaluate.plots import Strip

FORMAT = "synthgen-report/1"
HTML, JSON, FIGURES = "report.html", "metrics.json", "figures"
MARKS: dict[Verdict, str] = {"good": "●", "fair": "▲", "poor": "■"}
_BETTER = {"lower": "lower is better", "higher": "higher is better", "equal": "should be equal"}
_SHOWN_OPEN = 14
"""A section with more numbers than this keeps its full table folded."""


@dataclass(frozen=True)
class Gate:
    """A condition that a dataset must meet.

    Attributes:
        name: such as `privacy/dcr_share`.
        title: what a reader sees.
        passed: whether it is met.
        detail: what was measured and what is allowed.
    """

    name: str
    title: str
    passed: bool
    detail: str


@dataclass(frozen=True)
class Report:
    """All that a report says.

    Attributes:
        kind: what was asked.
        title: heading.
        sections: the numbers, in the order of the page.
        sheets: contact sheets.
        facts: provenance: what was compared, with what, by which versions.
        notes: remarks that a reader must know to read the numbers right.
        gates: conditions and whether they are met.
    """

    kind: Literal["quality", "privacy", "overview"]
    title: str
    sections: tuple[Section, ...]
    sheets: tuple[Figure, ...] = ()
    facts: tuple[tuple[str, str], ...] = ()
    notes: tuple[str, ...] = ()
    gates: tuple[Gate, ...] = ()

    @property
    def metrics(self) -> tuple[Metric, ...]:
        """All numbers."""
        return tuple(metric for section in self.sections for metric in section.metrics)

    @property
    def refused(self) -> tuple[str, ...]:
        """One line for each number that was not computed."""
        return tuple(line for section in self.sections for line in section.refused)

    @property
    def failed(self) -> tuple[Gate, ...]:
        """Gates that are not met."""
        return tuple(gate for gate in self.gates if not gate.passed)

    @property
    def graded(self) -> bool:
        """Whether any number was to be compared with its reference."""
        return bool(self.metrics or self.refused)

    def verdicts(self) -> dict[Verdict, int]:
        """Return how many numbers are good, fair and poor."""
        counts = Counter(metric.verdict for metric in self.metrics)
        return {verdict: counts[verdict] for verdict in MARKS}

    def summary(self) -> str:
        """Return the verdict in one line.

        Examples:
            >>> Report("quality", "Q", ()).summary()
            'no number could be computed'
        """
        counts = self.verdicts()
        total = sum(counts.values())
        if not self.graded and any(section.tables for section in self.sections):
            text = "tables only, without verdicts"
        elif not total:
            text = "no number could be computed"
        else:
            parts = ", ".join(f"{count} {verdict}" for verdict, count in counts.items())
            text = f"{parts} of {total} number{'s' * (total > 1)}"
        if self.refused:
            text += f"; {len(self.refused)} not computed"
        if self.gates:
            gates = "all gates passed" if not self.failed else "gate failed: "
            text += f"; {gates}" + ", ".join(gate.title for gate in self.failed)
        return text

    def to_json(self) -> dict[str, Any]:
        """Return everything but the pictures as JSON-able values; NaN becomes None."""
        names = _file_names(self)
        body = {
            "format": FORMAT,
            "kind": self.kind,
            "title": self.title,
            "summary": self.summary(),
            "verdicts": self.verdicts(),
            "gates": [asdict(gate) for gate in self.gates],
            "notes": list(self.notes),
            "sheets": [names["", sheet.name] for sheet in self.sheets],
            "sections": [
                {
                    "name": section.name,
                    "title": section.title,
                    "text": section.text,
                    "metrics": [metric.to_json() for metric in section.metrics],
                    "tables": [asdict(table) for table in section.tables],
                    "figures": [
                        {"file": names[section.name, f.name], "caption": f.caption}
                        for f in section.figures
                    ],
                    "refused": list(section.refused),
                }
                for section in self.sections
            ],
            "provenance": [{"fact": fact, "value": value} for fact, value in self.facts],
        }
        clean: dict[str, Any] = finite(body)
        return clean


@dataclass(frozen=True)
class Row:
    """A line of a table of numbers, as it is shown."""

    title: str
    value: str
    verdict: Verdict
    mark: str
    reference: str
    interval: str
    strip: Strip
    better: str
    n: int
    how: str
    worst_of: int = 1


def write_report(report: Report, folder: Path) -> Path:
    """Write `report.html`, `metrics.json` and `figures/*.png`.

    Figures of an older report in the same folder are removed.

    Args:
        report: what to write.
        folder: where; it is made if needed.

    Returns:
        The HTML file.

    Raises:
        StoreError: the folder cannot be written.
    """
    figures = folder / FIGURES
    try:
        figures.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise StoreError(f"{figures}: cannot be made ({error}); choose another --out") from error
    stale = _figures_listed(folder / JSON)
    names = _file_names(report)
    for owner, figure in _figures(report):
        write_atomic(folder / names[owner, figure.name], figure.png)
    body = json.dumps(report.to_json(), indent=1, allow_nan=False, default=_plain)
    write_atomic(folder / JSON, body.encode() + b"\n")
    write_atomic(folder / HTML, render(report).encode())
    for name in stale - {*names.values()}:
        (folder / name).unlink(missing_ok=True)
    return folder / HTML


def render(report: Report) -> str:
    """Return the HTML page: one file, pictures inlined, no script, nothing from outside."""
    return (
        templates()
        .get_template("report.html.j2")
        .render(
            title=report.title,
            facts=report.facts,
            report=report,
            counts=report.verdicts(),
            marks=MARKS,
            fair=f"{FAIR:g}",
            headlines=[(section, _headlines(section)) for section in report.sections],
            rows={section.name: [_row(m) for m in section.metrics] for section in report.sections},
            shown_open=_SHOWN_OPEN,
        )
    )


def templates(*packages: str) -> Environment:
    """Return the templates of reports, and of further packages that extend `page.html.j2`."""
    environment = Environment(
        loader=ChoiceLoader([PackageLoader(p) for p in (*packages, "synthgen.evaluate")]),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["inlined"] = _inlined
    return environment


def show_number(value: float) -> str:
    """Return a number for people: three significant digits, more where it is whole.

    Examples:
        >>> show_number(0.123456), show_number(1234.5), show_number(2e-7), show_number(1)
        ('0.123', '1234', '2.00e-07', '1')
        >>> show_number(float("nan"))
        'not a number'
    """
    if math.isnan(value):
        return "not a number"
    if math.isinf(value) or value == int(value):
        return f"{value:.0f}"
    size = abs(value)
    if size >= 100:
        return f"{value:.0f}"
    if size < 1e-4:
        return f"{value:.2e}"
    return f"{value:.{2 - math.floor(math.log10(size))}f}"


def _row(metric: Metric, worst_of: int = 1) -> Row:
    unit = f" {metric.unit}" if metric.unit else ""
    return Row(
        title=metric.title,
        value=show_number(metric.value) + unit,
        verdict=metric.verdict,
        mark=MARKS[metric.verdict],
        reference=show_number(metric.reference) + unit,
        interval=f"{show_number(metric.low)} to {show_number(metric.high)}",
        strip=strip(metric),
        better=_BETTER[metric.better],
        n=metric.n,
        how="; ".join(f"{name}: {value}" for name, value in metric.provenance.items()),
        worst_of=worst_of,
    )


def _headlines(section: Section) -> list[Row]:
    """Return the worst number of each kind: of those whose names share their first two parts."""
    kinds: dict[str, list[Metric]] = {}
    for metric in section.metrics:
        kinds.setdefault("/".join(metric.name.split("/")[:2]), []).append(metric)
    return [_row(max(members, key=_badness), len(members)) for members in kinds.values()]


def _badness(metric: Metric) -> tuple[int, float]:
    far = distance(metric)
    return [*MARKS].index(metric.verdict), math.inf if math.isnan(far) else far


def _figures(report: Report) -> Iterator[tuple[str, Figure]]:
    """Yield every picture with the name of its section, "" for a contact sheet."""
    yield from (("", sheet) for sheet in report.sheets)
    for section in report.sections:
        yield from ((section.name, figure) for figure in section.figures)


def _file_names(report: Report) -> dict[tuple[str, str], str]:
    """Return a file name, inside the report's folder, for every picture."""
    names: dict[tuple[str, str], str] = {}
    for owner, figure in _figures(report):
        stem = re.sub(r"[^A-Za-z0-9_]+", "-", f"{owner or 'sheet'}-{figure.name}").strip("-")[:80]
        wanted, number = f"{FIGURES}/{stem}.png", 1
        while wanted in names.values():
            number += 1
            wanted = f"{FIGURES}/{stem}-{number}.png"
        names[owner, figure.name] = wanted
    return names


def _figures_listed(path: Path) -> set[str]:
    """Return the picture files that an older report of this folder lists."""
    try:
        old = read_json(path)
        if old.get("format") != FORMAT:
            return set()
        files = [*old["sheets"], *(f["file"] for s in old["sections"] for f in s["figures"])]
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return set()
    inside = re.compile(rf"{FIGURES}/[A-Za-z0-9_-]+\.png")
    return {name for name in files if isinstance(name, str) and inside.fullmatch(name)}


def _inlined(figure: Figure) -> str:
    return "data:image/png;base64," + base64.b64encode(figure.png).decode()


def finite(value: Any) -> Any:  # noqa: ANN401 - any JSON value
    """Return a JSON value in which numbers that are not finite are None."""
    if isinstance(value, dict):
        return {name: finite(entry) for name, entry in value.items()}
    if isinstance(value, list | tuple):
        return [finite(entry) for entry in value]
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value


def _plain(value: object) -> Any:  # noqa: ANN401 - any JSON value
    """Return a NumPy scalar as a number, anything else that JSON does not know as text."""
    item = getattr(value, "item", None)
    return item() if callable(item) else str(value)


def facts_of_metrics(metrics: Sequence[Metric]) -> tuple[tuple[str, str], ...]:
    """Return what the numbers' provenance says of encoders, each once."""
    found: dict[str, list[str]] = {}
    for metric in metrics:
        for name, value in metric.provenance.items():
            if value not in found.setdefault(name, []):
                found[name].append(value)
    return tuple((name, "; ".join(values)) for name, values in found.items() if len(values) <= 8)
