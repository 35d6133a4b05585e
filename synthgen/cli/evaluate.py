"""`synthgen evaluate quality|privacy|overview SYN`: how good a dataset is, and whom it copies.

`synthgen evaluate segmentation PREDICTIONS REFERENCE`: how well label maps agree with others.

Exit code 4: `--gate` was given and a gate failed.
"""

import json
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from synthgen.cli.generation import DatasetArgument
from synthgen.core.errors import RequestError
from synthgen.core.manifest import MANIFEST, write_atomic

if TYPE_CHECKING:
    from synthgen.data.store import TrainingStore
    from synthgen.evaluate.case_sets import CaseScores
    from synthgen.evaluate.report import Report
    from synthgen.evaluate.sets import SliceSet

app = typer.Typer(
    no_args_is_help=True, help="Measure a generated dataset, or segmentations; write a report."
)

GATE_FAILED = 4
ALL = "all"
_SPLITS = ("train", "val", "test")
_WORST_SHOWN = 8

SynArgument = Annotated[
    Path,
    typer.Argument(
        metavar="SYN",
        help="The dataset: a folder of `labels` or `images`, an nnU-Net raw folder, or NIfTI.",
    ),
]
HoldoutHelp = "Real slices of other subjects, STORE[:SPLIT+SPLIT]. Default splits: the others."
OutOption = Annotated[Path | None, typer.Option(help="Folder of the report. Default: see below.")]
NMaxOption = Annotated[
    int, typer.Option(min=4, help="Most generated slices to measure; of real ones a quarter.")
]
SeedOption = Annotated[int, typer.Option(help="Seed of draws, splits and judges.")]
JsonOption = Annotated[bool, typer.Option("--json", help="Print one JSON document.")]
WorkspaceOption = Annotated[Path, typer.Option(help="The workspace folder.")]


@dataclass(frozen=True)
class StoreChoice:
    """A training store and which of its splits; none if they were not named."""

    path: Path
    splits: tuple[str, ...] = ()


@app.command("quality")
def quality(
    syn: SynArgument,
    *,
    real: Annotated[
        str, typer.Option(help="Real slices, STORE[:SPLIT+SPLIT]. Default split: train.")
    ],
    holdout: Annotated[str | None, typer.Option(help=HoldoutHelp)] = None,
    encoder: Annotated[
        Path | None, typer.Option(help="Feature encoder of your own, a torch.export file (.pt2).")
    ] = None,
    out: OutOption = None,
    n_max: NMaxOption = 2000,
    seed: SeedOption = 0,
    as_json: JsonOption = False,
    workspace: WorkspaceOption = Path("work"),
) -> None:
    """Compare a generated dataset with real data: fidelity, labels, agreement, style, diversity.

    Writes report.html, metrics.json and figures to --out, WORKSPACE/reports/NAME by default.
    Without --holdout, the other splits of the --real store serve, if it has any.
    """
    chosen = parse_store(real, "--real")
    held = None if holdout is None else parse_store(holdout, "--holdout")
    from synthgen.core.workspace import Workspace, safe_name
    from synthgen.evaluate.foreign import facts_of
    from synthgen.evaluate.quality import QualitySettings, evaluate_quality
    from synthgen.evaluate.report import write_report

    place = Workspace(workspace)
    folder = out or place.reports / safe_name(syn.resolve().name)
    store = _open(chosen)
    splits = chosen.splits or ("train",)
    real_set = _set_of(store, splits)
    holdout_set, held_store = _holdout(held, store, splits)
    report = evaluate_quality(
        _synthetic(syn, store),
        real_set,
        holdout_set,
        QualitySettings(
            judges=place.model("judges"),
            seed=seed,
            n_max=n_max,
            label_model=_model(place.model("labels")),
            image_model=_model(place.model("images")),
            encoder=encoder,
        ),
        facts=(
            *facts_of(syn),
            _store_fact("real data", store, real_set),
            *((_store_fact("holdout", held_store, holdout_set),) if holdout_set else ()),
        ),
        progress=_Progress(),
    )
    _tell(report, write_report(report, folder), as_json=as_json)


@app.command("privacy")
def privacy(
    syn: SynArgument,
    *,
    train: Annotated[
        str,
        typer.Option(help="What the models were trained on, STORE[:SPLIT+SPLIT]; default train."),
    ],
    holdout: Annotated[str, typer.Option(help=HoldoutHelp)],
    gate: Annotated[
        bool, typer.Option("--gate", help="Exit with code 4 if the dataset fails the audit.")
    ] = False,
    quarantine: Annotated[
        Path | None, typer.Option(help="Write the indices of flagged samples to this JSON file.")
    ] = None,
    out: OutOption = None,
    n_max: NMaxOption = 2000,
    seed: SeedOption = 0,
    as_json: JsonOption = False,
    workspace: WorkspaceOption = Path("work"),
) -> None:
    """Look for copies of training data, beside the same numbers of people unseen in training.

    Writes report.html, metrics.json and figures to --out, WORKSPACE/reports/NAME/privacy by
    default.
    """
    chosen, held = parse_store(train, "--train"), parse_store(holdout, "--holdout")
    from synthgen.core.workspace import Workspace, safe_name
    from synthgen.evaluate.audit import audit_privacy
    from synthgen.evaluate.foreign import facts_of
    from synthgen.evaluate.report import write_report

    folder = out or Workspace(workspace).reports / safe_name(syn.resolve().name) / "privacy"
    store = _open(chosen)
    splits = chosen.splits or ("train",)
    train_set = _set_of(store, splits)
    holdout_set, held_store = _holdout(held, store, splits)
    if holdout_set is None:  # a named store always gives a set
        raise RequestError("--holdout: expected STORE[:SPLIT]")
    audit = audit_privacy(
        _synthetic(syn, store),
        train_set,
        holdout_set,
        seed=seed,
        n_max=n_max,
        facts=(
            *facts_of(syn),
            _store_fact("training data", store, train_set),
            _store_fact("holdout", held_store, holdout_set),
        ),
        progress=_Progress(),
    )
    page = write_report(audit.report, folder)
    if quarantine is not None:
        write_atomic(quarantine, json.dumps(audit.to_json(str(syn)), indent=1).encode() + b"\n")
    _tell(audit.report, page, as_json=as_json, flagged=list(audit.flagged))
    if quarantine is not None and audit.flagged and not as_json and (syn / MANIFEST).is_file():
        print(f"{len(audit.flagged)} samples quarantined: synthgen redraw {quarantine} --out ...")
    if gate and audit.report.failed:
        raise typer.Exit(GATE_FAILED)


@app.command("overview")
def describe(
    dataset: DatasetArgument,
    *,
    out: OutOption = None,
    n_max: NMaxOption = 2000,
    workspace: WorkspaceOption = Path("work"),
) -> None:
    """Describe a generated dataset in tables and a contact sheet; no real data are needed.

    Writes report.html and metrics.json to --out, WORKSPACE/reports/NAME/overview by default.
    """
    from synthgen.core.workspace import Workspace, safe_name
    from synthgen.data.shards import Shards
    from synthgen.evaluate.overview import overview
    from synthgen.evaluate.report import write_report

    folder = out or Workspace(workspace).reports / safe_name(dataset.resolve().name) / "overview"
    report = overview(Shards(dataset), n_max)
    _tell(report, write_report(report, folder), as_json=False)


@app.command("segmentation")
def segmentation(
    predictions: Annotated[
        Path, typer.Argument(help="Folder of label maps: NAME.png, NAME.nii.gz.")
    ],
    reference: Annotated[Path, typer.Argument(help="Folder of the true ones, of the same cases.")],
    *,
    suffix: Annotated[
        str, typer.Option(help="What names of REFERENCE have after NAME, such as _1stHO.")
    ] = "",
    tolerance: Annotated[
        float, typer.Option(help="Of the surface Dice, in mm of volumes, in pixels of pictures.")
    ] = 1.0,
    out: OutOption = None,
    as_json: JsonOption = False,
    workspace: WorkspaceOption = Path("work"),
) -> None:
    """Compare label maps with reference ones: Dice, IoU, clDice, HD95, ASD, surface Dice.

    Both folders must hold the same cases. What label values mean stands in a dataset.json in
    nnU-Net's form. Writes cases.csv and metrics.json to --out, WORKSPACE/reports/NAME/segmentation
    by default.
    """
    from synthgen.cli.generation import progress_on_stderr
    from synthgen.core.workspace import Workspace, safe_name
    from synthgen.evaluate.case_sets import METRICS, evaluate_cases

    name = safe_name(predictions.resolve().name)
    folder = out or Workspace(workspace).reports / name / "segmentation"
    with progress_on_stderr("evaluate", "cases") as progress:
        scores = evaluate_cases(
            predictions, reference, tolerance=tolerance, suffix=suffix, progress=progress
        )
    scores.write(folder, {"predictions": str(predictions), "reference": str(reference)})
    print((folder / METRICS).read_text() if as_json else _scores_text(scores, folder))


def parse_store(text: str, option: str) -> StoreChoice:
    """Read `PATH` or `PATH:SPLIT+SPLIT`.

    Raises:
        RequestError: an unknown split.

    Examples:
        >>> parse_store("work/store:val+test", "--real").splits
        ('val', 'test')
        >>> parse_store("work/store", "--real").splits
        ()
    """
    path, colon, tail = text.rpartition(":")
    names = tuple(dict.fromkeys(tail.split("+")))
    if colon and path and all(name in (*_SPLITS, ALL) for name in names):
        return StoreChoice(Path(path), names)
    if colon and not Path(text).exists() and "/" not in tail and "\\" not in tail:
        raise RequestError(
            f"{option}: unknown split '{tail}' in '{text}'; expected {', '.join(_SPLITS)} or "
            f"{ALL}, joined by '+'"
        )
    return StoreChoice(Path(text))


def _open(choice: StoreChoice) -> "TrainingStore":
    from synthgen.data.store import TrainingStore

    return TrainingStore.open(choice.path)


def _set_of(store: "TrainingStore", splits: tuple[str, ...]) -> "SliceSet":
    from synthgen.evaluate.sets import from_store

    return from_store(store, _named(store, splits))


def _named(store: "TrainingStore", splits: tuple[str, ...]) -> tuple[str, ...]:
    """Return the splits that are meant, "all" resolved to those that hold slices."""
    return _filled(store) if ALL in splits else splits


def _filled(store: "TrainingStore") -> tuple[str, ...]:
    return tuple(split for split in _SPLITS if store.slice_indices(split).size)


def _holdout(
    held: StoreChoice | None, store: "TrainingStore", splits: tuple[str, ...]
) -> "tuple[SliceSet | None, TrainingStore]":
    """Return the holdout and its store: the splits named, else those that are not in use."""
    other = store if held is None else _open(held)
    if held is not None and held.splits:
        return _set_of(other, held.splits), other
    same = other.path.resolve() == store.path.resolve()
    used = _named(store, splits) if same else ("train",)
    rest = tuple(split for split in _filled(other) if split not in used)
    if rest:
        return _set_of(other, rest), other
    return (None if held is None else _set_of(other, (ALL,))), other


def _synthetic(syn: Path, store: "TrainingStore") -> "SliceSet":
    from synthgen.evaluate.cases import Frame
    from synthgen.evaluate.foreign import open_set

    return open_set(syn, Frame.of(store))


def _model(folder: Path) -> Path | None:
    """Return a model folder if there is a model in it."""
    return folder if (folder / "model_index.json").is_file() else None


def _store_fact(what: str, store: "TrainingStore", subset: "SliceSet") -> tuple[str, str]:
    return what, (
        f"{store.path}: {subset.name}, {len(subset)} slices and {len(subset.images.slices)} "
        f"images of {len(subset.subjects)} subjects; fingerprint {store.fingerprint[:16]}"
    )


class _Progress:
    """Says on stderr what is being done, with the time since the start."""

    def __init__(self) -> None:
        self._start = time.monotonic()

    def __call__(self, line: str) -> None:
        print(f"{time.monotonic() - self._start:6.1f} s  {line}", file=sys.stderr, flush=True)


def _tell(report: "Report", page: Path, *, as_json: bool, flagged: list[int] | None = None) -> None:
    from synthgen.evaluate.report import show_number

    if as_json:
        body = report.to_json()
        told = {
            key: body[key] for key in ("kind", "title", "summary", "verdicts", "gates", "notes")
        }
        if flagged is not None:
            told["flagged"] = flagged
        print(
            json.dumps(told | {"report": str(page), "metrics": str(page.parent / "metrics.json")})
        )
        return
    print(f"{report.title}: {report.summary()}")
    poor = [metric for metric in report.metrics if metric.verdict == "poor"]
    for metric in poor[:_WORST_SHOWN]:
        print(
            f"  poor: {metric.title}: {show_number(metric.value)}, real against real "
            f"{show_number(metric.reference)} ({show_number(metric.low)} to "
            f"{show_number(metric.high)})"
        )
    if len(poor) > _WORST_SHOWN:
        print(f"  and {len(poor) - _WORST_SHOWN} more")
    for gate in report.gates:
        print(f"  gate {'passed' if gate.passed else 'FAILED'}: {gate.title}: {gate.detail}")
    for note in report.notes:
        print(f"  note: {note}")
    print(page)


def _scores_text(scores: "CaseScores", folder: Path) -> str:
    """Return the means of each tissue as a table, and what stands behind them."""
    from synthgen.evaluate.case_sets import EMPTY_RULE, MEASURES

    shown = [name for name in MEASURES if name not in {"precision", "recall"}]
    units = {"hd95": f" {scores.unit}", "asd": f" {scores.unit}"}
    rows = [["tissue", "cases", "missed", "invented", *(n + units.get(n, "") for n in shown)]]
    for tissue, found in scores.summary().items():
        counts = [str(found["cases"] - found["absent"]), str(found["missed"])]
        means = [found[name]["mean"] for name in shown]
        numbers = ["-" if mean is None else f"{mean:.3f}" for mean in means]
        rows.append([tissue, *counts, str(found["invented"]), *numbers])
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = [
        "  ".join(
            cell.rjust(width) if column else cell.ljust(width)
            for column, (cell, width) in enumerate(zip(row, widths, strict=True))
        )
        for row in rows
    ]
    rule = f"means over cases; NSD at {scores.tolerance:g} {scores.unit}; {EMPTY_RULE}"
    return "\n".join([*lines, rule, f"{scores.cases} cases: {folder}"])
