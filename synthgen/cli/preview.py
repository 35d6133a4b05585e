"""`synthgen preview`: a contact sheet of a generated dataset."""

from pathlib import Path
from typing import Annotated

import typer

from synthgen.cli.generation import DatasetArgument


def command(
    dataset: DatasetArgument,
    *,
    n: Annotated[int, typer.Option(min=1, help="Samples to show, spread evenly.")] = 16,
    out: Annotated[
        Path | None, typer.Option(help="The PNG file. Default: DATASET/preview.png.")
    ] = None,
) -> None:
    """Draw images, label overlay, label map and lesion outline of some samples."""
    from synthgen.data.preview import write_preview
    from synthgen.data.shards import Shards

    path = out or dataset / "preview.png"
    shown = write_preview(Shards(dataset), n, path)
    print(f"{path}: {shown} samples")
