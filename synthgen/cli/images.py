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
    WorkspaceOption,
)
from synthgen.core.errors import RequestError

if TYPE_CHECKING:
    from synthgen.core.schema import LabelSchema
    from synthgen.images import ImageGenerator


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
        Path | None, typer.Option(help="Model folder. Default: WORKSPACE/models/images.")
    ] = None,
    shard_size: ShardSizeOption = 64,
    batch_size: BatchSizeOption = 8,
    device: DeviceOption = "auto",
    precision: PrecisionOption = Precision.FP32,
    threads: ThreadsOption = THREADS,
    repair: RepairOption = False,
    dry_run: DryRunOption = False,
    as_json: JsonOption = False,
    workspace: WorkspaceOption = Path("work"),
) -> None:
    """Make a dataset of images, each with its labels, or continue one."""
    from synthgen.cli.generation import complete, idle_cores, pick_device
    from synthgen.core.workspace import Workspace

    styles = [name.strip() for text in style for name in text.split(",") if name.strip()]
    place = Workspace(workspace)
    from synthgen.data.shards import Shards
    from synthgen.generate import GenerationSettings, ImageJob
    from synthgen.runtime import worker

    rank, world = worker()
    settings = GenerationSettings(
        seed, batch_size, shard_size, threads, repair, worker=rank, num_workers=world
    )
    source = Shards(labels or place.labels)
    load = {"renderer": renderer.value, "dtype": precision.value}
    where = "cpu" if renderer is Renderer.CONTRAST else pick_device(device)
    generator, name = image_generator(load, model, workspace, source.schema, where)
    job = ImageJob.of(generator, source, styles, per_label=per_label, settings=settings)
    if not as_json and rank == 0:
        print(f"model: {name}")
        print(f"labels: {source.folder}, {len(source)} maps")
        print(idle_cores(settings, where, "images") or f"device: {where}")
    notes = {"model": name, "load": json.dumps(load, sort_keys=True), "labels": str(source.folder)}
    target = out or place.images("+".join(styles))
    complete(job, job.n, target, notes, dry_run=dry_run, as_json=as_json)


def image_generator(
    load: dict[str, str],
    model: Path | None,
    workspace: Path,
    schema: "LabelSchema",
    device: str,
) -> "tuple[ImageGenerator, str]":
    """Return the image generator that `load` describes, and what to call it.

    Raises:
        RequestError: an unknown renderer.
        StoreError: no model there, or a damaged one.
    """
    from synthgen.cli.generation import find_model

    if load["renderer"] == Renderer.CONTRAST:
        from synthgen.images.contrast import ContrastRenderer

        return ContrastRenderer(schema), "contrast renderer, no weights"
    if load["renderer"] != Renderer.SPADE:
        raise RequestError(f"unknown renderer '{load['renderer']}'; there are spade and contrast")
    from synthgen.images import load_image_generator

    folder = find_model(model, workspace, "images")
    dtype: Literal["float32", "bfloat16"] = (
        "bfloat16" if load["dtype"] == Precision.BF16 else "float32"
    )
    return load_image_generator(folder, device=device, dtype=dtype), str(folder)
