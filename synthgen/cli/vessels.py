"""`synthgen vessels`: draw vessel trees as masks, with their centrelines, radii and graphs.

Workers and their launchers: see `synthgen/cli/labels.py`.
"""

import json
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from synthgen.cli.generation import (
    THREADS,
    BatchSizeOption,
    DryRunOption,
    JsonOption,
    RepairOption,
    SeedOption,
    ShardSizeOption,
    WorkerOption,
    WorkspaceOption,
    by_comma,
)
from synthgen.core.errors import RequestError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from synthgen.labels.vessels import VesselGenerator

SMALLEST_SIZE, DEFAULT_SIZE, LARGEST_SIZE = 64, 512, 2048
PROCEDURE = "vessel trees, no weights"


class Preset(StrEnum):
    """Which vessels."""

    CORONARY = "coronary"
    RETINA = "retina"
    SSVS = "ssvs"


def command(  # noqa: PLR0913 - one parameter for each option
    *,
    n: Annotated[int, typer.Option(help="Samples in all; more than before continues.")],
    preset: Annotated[
        Preset,
        typer.Option(
            help="coronary: projected tree. retina: arteries and veins. ssvs: bent rectangles, "
            "the masks of earlier work."
        ),
    ] = Preset.CORONARY,
    size: Annotated[
        int, typer.Option(help="Side of the square pictures, in pixels.")
    ] = DEFAULT_SIZE,
    extras: Annotated[
        str | None,
        typer.Option(
            "--with",
            help="Arrays beside the mask, by comma: centreline, path_length, radius, branches, "
            "bifurcations, graph.",
        ),
    ] = None,
    seed: SeedOption = 0,
    out: Annotated[
        Path | None, typer.Option(help="Dataset folder. Default: WORKSPACE/vessels.")
    ] = None,
    shard_size: ShardSizeOption = 64,
    batch_size: BatchSizeOption = 8,
    repair: RepairOption = False,
    this_worker: WorkerOption = None,
    dry_run: DryRunOption = False,
    as_json: JsonOption = False,
    workspace: WorkspaceOption = Path("work"),
) -> None:
    """Make a dataset of vessel trees, or continue one.

    The same seed draws the trees that `synthgen angiograms` paints at its first attempt.
    """
    require_size(size)
    from synthgen.cli.generation import complete, idle_cores
    from synthgen.core.workspace import Workspace
    from synthgen.generate import GenerationSettings, VesselJob
    from synthgen.runtime import worker

    rank, world = worker(this_worker)
    settings = GenerationSettings(
        seed, batch_size, shard_size, THREADS, repair, worker=rank, num_workers=world
    )
    settings.plan(n)
    load = {"preset": preset.value, "shape": [size, size]}
    job = VesselJob(vessel_generator(preset.value, (size, size)), by_comma(extras), settings)
    if not as_json and rank == 0:
        print(f"trees: {preset.value}, {size} x {size}")
        if hint := idle_cores(settings, "cpu", "vessels"):
            print(hint)
    notes = {"model": PROCEDURE, "load": json.dumps(load, sort_keys=True)}
    target = out or Workspace(workspace).vessels
    complete(job, n, target, notes, dry_run=dry_run, as_json=as_json)


def require_size(size: int) -> None:
    """Refuse a picture size that is too small for a tree, or too large for memory.

    Raises:
        RequestError: it is.
    """
    if not SMALLEST_SIZE <= size <= LARGEST_SIZE:
        raise RequestError(f"--size: expected {SMALLEST_SIZE} to {LARGEST_SIZE} pixels, got {size}")


def vessel_generator(preset: str, shape: "Sequence[int]") -> "VesselGenerator":
    """Return the generator of vessel trees in pictures of a shape (X, Y).

    Raises:
        RequestError: an unknown preset.
    """
    from synthgen.labels.vessels import VesselGenerator

    x, y = shape
    match preset:
        case "coronary" | "retina" | "ssvs":
            return VesselGenerator(preset, (x, y))
    raise RequestError(f"unknown vessel preset '{preset}'; there are {', '.join(Preset)}")
