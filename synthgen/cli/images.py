"""`synthgen images`: paint a dataset of labels in one or more styles.

Workers and their launchers: see `synthgen/cli/labels.py`.
"""

import json
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from synthgen.cli.generation import (
    THREADS,
    BatchSizeOption,
    DeviceOption,
    DryRunOption,
    JsonOption,
    Precision,
    PrecisionOption,
    RepairOption,
    SeedOption,
    ShardSizeOption,
    ThreadsOption,
    WorkerOption,
    WorkspaceOption,
)
from synthgen.core.errors import RequestError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from synthgen.cli.generation import FoundModel
    from synthgen.core.schema import LabelSchema
    from synthgen.images import ImageGenerator

CONTRAST = "contrast renderer, no weights"
SIMULATED = (
    "{0}: simulated from its protocol, not fitted on its images; "
    "replace it with `synthgen styles add {0} IMAGES...`"
)


class Renderer(StrEnum):
    """What paints."""

    SPADE = "spade"
    CONTRAST = "contrast"


def command(  # noqa: PLR0913 - one parameter for each option
    *,
    style: Annotated[
        list[str],
        typer.Option(help="Style names (see `synthgen styles list`), by comma or repeated."),
    ],
    labels: Annotated[
        Path | None, typer.Option(help="Dataset of labels. Default: WORKSPACE/labels.")
    ] = None,
    per_label: Annotated[int, typer.Option(help="Images of each style made of one label.")] = 1,
    renderer: Annotated[
        Renderer, typer.Option(help="spade: the trained generator. contrast: physics, no model.")
    ] = Renderer.SPADE,
    seed: SeedOption = 0,
    out: Annotated[
        Path | None, typer.Option(help="Dataset folder. Default: WORKSPACE/images/STYLES.")
    ] = None,
    model: Annotated[
        Path | None,
        typer.Option(help="Model folder. Default: WORKSPACE/models/images, else the shipped one."),
    ] = None,
    shard_size: ShardSizeOption = 64,
    batch_size: BatchSizeOption = 8,
    device: DeviceOption = "auto",
    precision: PrecisionOption = Precision.BF16,
    threads: ThreadsOption = THREADS,
    repair: RepairOption = False,
    this_worker: WorkerOption = None,
    dry_run: DryRunOption = False,
    as_json: JsonOption = False,
    workspace: WorkspaceOption = Path("work"),
) -> None:
    """Make a dataset of images, each with its labels, or continue one."""
    from synthgen.cli.generation import complete, find_model, idle_cores, pick_device, slow_format
    from synthgen.cli.styles import style_files
    from synthgen.core.workspace import Workspace

    styles = [name.strip() for text in style for name in text.split(",") if name.strip()]
    place = Workspace(workspace)
    from synthgen.data.shards import Shards
    from synthgen.generate import GenerationSettings, ImageJob
    from synthgen.runtime import worker

    rank, world = worker(this_worker)
    settings = GenerationSettings(
        seed, batch_size, shard_size, threads, repair, worker=rank, num_workers=world
    )
    source = Shards(labels or place.labels)
    load = {"renderer": renderer.value, "dtype": precision.value}
    where, found, files = "cpu", None, []
    if renderer is Renderer.SPADE:
        where, found = pick_device(device), find_model(model, workspace, "images")
        files = style_files(place.styles, found.folder, styles)
    generator = image_generator(load, found, files, source.schema, where)
    job = ImageJob.of(generator, source, styles, per_label=per_label, settings=settings)
    if not as_json and rank == 0:
        print(f"model: {found.shown if found else CONTRAST}")
        print(f"labels: {source.folder}, {len(source)} maps")
        for one in generator.styles if found else ():
            if one.name in styles and one.source == "simulated":
                print(SIMULATED.format(one.name))
        print(idle_cores(settings, where, "images") or f"device: {where}")
        if found and (slow := slow_format(precision, where)):
            print(slow)
    notes = {
        "model": found.name if found else CONTRAST,
        "load": json.dumps(load, sort_keys=True),
        "labels": str(source.folder),
        "workspace": str(workspace),
    }
    target = out or place.images("+".join(styles))
    complete(job, job.n, target, notes, dry_run=dry_run, as_json=as_json)


def image_generator(
    load: dict[str, str],
    model: "FoundModel | None",
    styles: "Sequence[Path]",
    schema: "LabelSchema",
    device: str,
) -> "ImageGenerator":
    """Return the image generator that `load` describes.

    Args:
        load: renderer and dtype, as in a dataset's provenance.
        model: the image model; None for the contrast renderer.
        styles: files of workspace styles.
        schema: label schema of the maps, for the contrast renderer.
        device: a torch device.

    Raises:
        RequestError: an unknown renderer, or a style of another model.
        StoreError: a damaged model or style.
    """
    if load["renderer"] == Renderer.CONTRAST:
        from synthgen.images.contrast import ContrastRenderer

        return ContrastRenderer(schema)
    if load["renderer"] != Renderer.SPADE or model is None:
        raise RequestError(f"unknown renderer '{load['renderer']}'; there are spade and contrast")
    from synthgen.images import load_image_generator

    dtype: Literal["float32", "bfloat16"] = (
        "bfloat16" if load["dtype"] == Precision.BF16 else "float32"
    )
    return load_image_generator(model.folder, device=device, dtype=dtype, styles=styles)
