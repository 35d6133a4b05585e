"""`synthgen export DATASET --to FORMAT --out DIR`: datasets for other tools."""

import json
import shutil
from dataclasses import asdict
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from synthgen.cli.generation import JsonOption, by_comma, duration, progress_on_stderr, size

if TYPE_CHECKING:
    from synthgen.export import Outcome

_PREPROCESSED = 570_000
"""Bytes of one preprocessed slice of 192 x 256 with three tissues, measured with nnU-Net 2.8."""


class Format(StrEnum):
    """The names of `synthgen.export.FORMATS`, without importing it."""

    NNUNET = "nnunet"
    NIFTI = "nifti"
    HF = "hf"


def command(  # noqa: PLR0913 - one parameter per option
    dataset: Annotated[
        Path, typer.Argument(help="Dataset folder, or a training store.", show_default=False)
    ],
    *,
    to: Annotated[
        Format,
        typer.Option(
            help="nnunet: DatasetXXX_Name, also an imagefolder; nifti: BIDS derivatives with "
            "partial volumes; hf: Parquet with partial volumes for datasets.load_dataset."
        ),
    ],
    out: Annotated[
        Path, typer.Option(help="Folder to fill; for nnunet the one that holds DatasetXXX_Name.")
    ],
    dataset_id: Annotated[
        int | None, typer.Option(help="nnunet: dataset id, 1 to 999. Default: 901.")
    ] = None,
    name: Annotated[
        str | None, typer.Option(help="nnunet: name after DatasetXXX_. Default: Synthgen.")
    ] = None,
    channels: Annotated[
        str | None,
        typer.Option(
            help="nnunet, hf: styles or modalities that become the channels of one case, such as "
            "t1,flair. Default: each image is a case of its own."
        ),
    ] = None,
    file_ending: Annotated[
        str | None, typer.Option(help="nnunet: .png or .nii.gz. Default: .png.")
    ] = None,
    bits: Annotated[int | None, typer.Option(help="nnunet: 8 or 16, of PNG. Default: 8.")] = None,
    split: Annotated[
        str | None,
        typer.Option(
            help="Splits of a store, such as train,val. Default: all; test is kept apart."
        ),
    ] = None,
    spacing_mm: Annotated[
        float | None, typer.Option(help="Voxel size of a generated dataset. Default: 1.")
    ] = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Print files and bytes; write nothing.")
    ] = False,
    as_json: JsonOption = False,
) -> None:
    """Export generated samples or real slices; the same command completes a killed export."""
    from synthgen.export import ExportOptions, export, forecast, open_source

    source = open_source(dataset, splits=by_comma(split), spacing_mm=spacing_mm)
    options = ExportOptions(
        dataset_id=dataset_id,
        name=name,
        channels=by_comma(channels),
        file_ending=_ending(file_ending),
        bits=bits,
    )
    if dry_run:
        outcome = forecast(source, to.value, out, options)
        print(json.dumps(asdict(outcome)) if as_json else _forecast_text(outcome, out))
        return
    with progress_on_stderr(f"export to {to.value}") as progress:
        outcome = export(source, to.value, out, options, progress=progress)
    print(json.dumps(asdict(outcome)) if as_json else _outcome_text(outcome))


def _ending(text: str | None) -> str | None:
    return f".{text.lstrip('.')}" if text else None


def _left_out(outcome: "Outcome") -> str:
    parts = [f"{count} {reason}" for reason, count in outcome.left_out.items()]
    return f"\nleft out: {', '.join(parts)}" if parts else ""


def _outcome_text(outcome: "Outcome") -> str:
    return (
        f"{outcome.folder}: {outcome.count} {outcome.what}, {outcome.files} files, "
        f"{size(outcome.bytes)}; wrote {outcome.written} in {duration(outcome.seconds)}"
        f"{_left_out(outcome)}"
    )


def _forecast_text(outcome: "Outcome", out: Path) -> str:
    existing = next(folder for folder in (out, *out.absolute().parents) if folder.exists())
    free = shutil.disk_usage(existing).free
    lines = [
        f"{outcome.folder}: {outcome.count} {outcome.what}{_left_out(outcome)}",
        f"files: about {outcome.files}",
        f"bytes: about {size(outcome.bytes)}, {size(free)} free there",
        f"time:  about {duration(outcome.seconds)}",
    ]
    if outcome.to == "nnunet":
        lines.append(
            f"nnU-Net's own preprocessing would add {size(_PREPROCESSED * outcome.count)} or more"
        )
    if outcome.bytes > free:
        lines.append("this does not fit: free space or choose another --out")
    return "\n".join(lines)
