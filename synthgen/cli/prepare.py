"""`synthgen prepare SOURCE...`: real scans into one training store."""

import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from synthgen.cli.generation import JsonOption
from synthgen.core.errors import RequestError, StoreError
from synthgen.core.schema import BRAIN9, LabelSchema

if TYPE_CHECKING:
    from synthgen.data.prepare import Report


def command(  # noqa: PLR0913 - one parameter per option
    source: Annotated[
        list[str],
        typer.Argument(
            help="Folders of NIfTI files (BIDS-like), or the built-in 'mni152'.",
            show_default=False,
        ),
    ],
    *,
    out: Annotated[Path, typer.Option(help="Folder of the store.")] = Path("work/store"),
    schema: Annotated[
        str, typer.Option(help="Label schema: 'brain9', or a JSON file of one.")
    ] = "brain9",
    val: Annotated[
        list[str] | None,
        typer.Option(help="Validation subject, sub-XX or dataset/sub-XX; repeat, or use commas."),
    ] = None,
    test: Annotated[
        list[str] | None, typer.Option(help="Subject kept for tests; repeat, or use commas.")
    ] = None,
    step: Annotated[int, typer.Option(min=1, help="Take every n-th axial slice.")] = 1,
    seed: Annotated[int, typer.Option(help="Seed of the automatic split.")] = 0,
    atlas: Annotated[
        Path | None,
        typer.Option(help="Tissue atlas for scans without tissue maps (4-D probseg)."),
    ] = None,
    label_table: Annotated[
        Path | None, typer.Option(help="Label table of the label maps (.json, .tsv or .txt).")
    ] = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Show what would be done; write nothing.")
    ] = False,
    as_json: JsonOption = False,
) -> None:
    """Turn real scans into a training store: tissue maps, scaled images, one split by subject."""
    from synthgen.data.prepare import PrepareSettings, prepare

    settings = PrepareSettings(
        schema=_schema(schema),
        step=step,
        seed=seed,
        val=_names(val),
        test=_names(test),
        atlas=atlas,
        label_table=label_table,
    )
    report = prepare(source, out, settings, dry_run=dry_run, progress=_progress)
    if as_json:
        print(json.dumps(report.to_dict(), indent=1))
    else:
        _print(report, dry_run=dry_run)


def _progress(line: str) -> None:
    """Show one line per scan on stderr, so that --json stays clean."""
    if sys.stderr.isatty():
        print(f"\r\033[K{line}", end="", file=sys.stderr, flush=True)
        number, total = line.split(" ", maxsplit=1)[0].split("/")
        if number == total:
            print(file=sys.stderr)
    else:
        print(line, file=sys.stderr, flush=True)


def _schema(name: str) -> LabelSchema:
    if name == BRAIN9.name:
        return BRAIN9
    path = Path(name)
    if not path.is_file():
        raise RequestError(f"--schema: expected '{BRAIN9.name}' or a JSON file, got '{name}'")
    try:
        return LabelSchema.from_json(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError) as error:
        raise StoreError(f"{path}: not readable ({error})") from error


def _names(values: list[str] | None) -> tuple[str, ...]:
    return tuple(name.strip() for value in values or () for name in value.split(",") if name)


def _print(report: "Report", *, dry_run: bool) -> None:
    header = ("subject", "split", "tissues from", "modalities", "slices", "brain ml", "lesion ml")
    table: list[tuple[str, ...]] = [header]
    for row in report.rows:
        shown = row.lesion_slices or row.slices
        values = (shown, f"{row.brain_ml:.0f}" if row.brain_ml else "", f"{row.lesion_ml:.2f}")
        numbers = ("", "", "") if dry_run else tuple(str(v) for v in values)
        modalities = " ".join(row.modalities) or "-"
        table.append((row.subject, row.split, row.origin, modalities, *numbers))
    widths = [max(len(line[i]) for line in table) for i in range(len(header))]
    for line in table:
        cells = [
            cell.ljust(w) if i < 4 else cell.rjust(w)
            for i, (cell, w) in enumerate(zip(line, widths, strict=True))
        ]
        print("  ".join(cells).rstrip())
    for note in report.notes:
        print(f"note: {note}")
    print(_summary(report, dry_run=dry_run))


def _summary(report: "Report", *, dry_run: bool) -> str:
    subjects = {row.subject: row.split for row in report.rows}
    datasets = sorted({row.dataset for row in report.rows})
    modalities = sorted({name for row in report.rows for name in row.modalities})
    splits = ", ".join(
        f"{sum(s == split for s in subjects.values())} {split}"
        for split in ("train", "val", "test")
    )
    what = (
        f"{len(subjects)} subject(s) ({splits}), datasets: {', '.join(datasets)}; "
        f"modalities: {' '.join(modalities) or 'none'}"
    )
    size = f"{report.bytes / 1e6:.0f} MB"
    if dry_run:
        return f"{what}\nwould write {report.path}, about {size}; nothing written"
    slices = sum(row.slices for row in report.rows)
    images = sum(row.slices * len(row.modalities) for row in report.rows)
    lesions = sum(row.lesion_slices for row in report.rows)
    return (
        f"{what}\n{report.path}: {slices} slices, {images} images, {lesions} lesion slices, "
        f"{size}, {report.seconds:.0f} s"
    )
