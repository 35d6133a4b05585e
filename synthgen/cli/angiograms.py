"""`synthgen angiograms`: draw vessel trees and paint each as an angiogram, with its mask.

Workers and their launchers: see `synthgen/cli/labels.py`.
"""

import json
import sys
from dataclasses import asdict
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal, TypedDict

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
from synthgen.cli.vessels import DEFAULT_SIZE, Preset, require_size, vessel_generator
from synthgen.core.errors import RequestError, StoreError

if TYPE_CHECKING:
    from synthgen.cli.generation import FoundModel
    from synthgen.generate import AngiogramJob, GateReport, GenerationSettings
    from synthgen.images.angiogram import AngiogramRenderer
    from synthgen.images.angiogram.darl import AngiogramPipeline

PHYSICS = "physics renderer, no weights"


class Renderer(StrEnum):
    """What paints."""

    DARL = "darl"
    PHYSICS = "physics"


class LoadOptions(TypedDict):
    """How trees, renderer and gate of a dataset were set up.

    `gate` is the number of draws of a sample, at most; None without a gate.
    """

    renderer: str
    mask: str
    shape: list[int]
    dtype: str
    backgrounds: str | None
    gate: int | None


def command(  # noqa: PLR0913 - one parameter for each option
    *,
    n: Annotated[int, typer.Option(help="Samples in all; more than before continues.")],
    mask: Annotated[
        Preset | None,
        typer.Option(
            help="Which vessels; see `synthgen vessels`. Default: those that the model was trained "
            "with, else coronary."
        ),
    ] = None,
    renderer: Annotated[
        Renderer, typer.Option(help="darl: a trained model. physics: attenuation, no model.")
    ] = Renderer.DARL,
    size: Annotated[
        int | None,
        typer.Option(
            help="Side of the square pictures, in pixels. Default: as the model's, else 512."
        ),
    ] = None,
    model: Annotated[
        Path | None,
        typer.Option(
            help="Model folder, that of the gate too. Default: WORKSPACE/models/angiograms, else "
            "the shipped one."
        ),
    ] = None,
    backgrounds: Annotated[
        Path | None,
        typer.Option(
            help="physics: folder of real pictures to paint on, such as XCAD, DRIVE or plain "
            "files. Default: backgrounds are made up."
        ),
    ] = None,
    gate: Annotated[
        bool | None,
        typer.Option(
            "--gate/--no-gate",
            help="Draw again what the model finds wrongly painted. Default: wherever a model is "
            "used.",
        ),
    ] = None,
    max_attempts: Annotated[
        int, typer.Option(help="Draws of a sample, at most, until it passes the gate.")
    ] = 4,
    seed: SeedOption = 0,
    out: Annotated[
        Path | None, typer.Option(help="Dataset folder. Default: WORKSPACE/angiograms.")
    ] = None,
    shard_size: ShardSizeOption = 64,
    batch_size: BatchSizeOption = 8,
    device: DeviceOption = "auto",
    precision: PrecisionOption = Precision.FP32,
    threads: ThreadsOption = THREADS,
    repair: RepairOption = False,
    this_worker: WorkerOption = None,
    dry_run: DryRunOption = False,
    as_json: JsonOption = False,
    workspace: WorkspaceOption = Path("work"),
) -> None:
    """Make a dataset of angiograms with their vessel masks, or continue one."""
    if size is not None:
        require_size(size)
    gated = gate if gate is not None else renderer is Renderer.DARL or model is not None
    require_sense(renderer, model, backgrounds, gated=gated)
    from synthgen.cli.generation import complete, idle_cores, pick_device
    from synthgen.core.workspace import Workspace
    from synthgen.generate import GenerationSettings
    from synthgen.runtime import worker

    rank, world = worker(this_worker)
    settings = GenerationSettings(
        seed, batch_size, shard_size, threads, repair, worker=rank, num_workers=world
    )
    settings.plan(n)
    found = _model(model, workspace) if gated or renderer is Renderer.DARL else None
    where = pick_device(device) if found else "cpu"
    pipeline = load_pipeline(found.folder, precision.value, where) if found else None
    own = list(pipeline.shape) if pipeline else [DEFAULT_SIZE, DEFAULT_SIZE]
    load: LoadOptions = {
        "renderer": renderer.value,
        "mask": _mask(mask, pipeline),
        "shape": [size, size] if size is not None else own,
        "dtype": precision.value,
        "backgrounds": str(backgrounds) if backgrounds else None,
        "gate": max_attempts if gated else None,
    }
    job = angiogram_job(load, pipeline, settings)
    if not as_json and rank == 0:
        print(f"trees: {load['mask']}, {' x '.join(map(str, load['shape']))}")
        print(f"model: {found.shown if found else PHYSICS}")
        print(f"gate: {f'at most {max_attempts} draws of a sample' if gated else 'none'}")
        print(idle_cores(settings, where, "angiograms") or f"device: {where}")
    notes = {
        "model": found.name if found else PHYSICS,
        "load": json.dumps(load, sort_keys=True),
        "workspace": str(workspace),
    }
    target = out or Workspace(workspace).angiograms
    alone = gated and world == 1

    def facts() -> dict[str, object]:
        return {"gate": asdict(gate_report(job, target))} if alone else {}

    complete(job, n, target, notes, dry_run=dry_run, as_json=as_json, facts=facts)
    if alone and not dry_run:
        _tell_gate(gate_report(job, target), as_json=as_json)


def require_sense(
    renderer: Renderer, model: Path | None, backgrounds: Path | None, *, gated: bool
) -> None:
    """Refuse options that mean nothing together.

    Raises:
        RequestError: they do.
    """
    if renderer is Renderer.DARL and backgrounds is not None:
        raise RequestError(
            "--backgrounds is for --renderer physics; a darl model holds its backgrounds"
        )
    if renderer is Renderer.PHYSICS and model is not None and not gated:
        raise RequestError("--model means nothing to --renderer physics --no-gate; leave it out")


def _mask(mask: Preset | None, pipeline: "AngiogramPipeline | None") -> str:
    """Return which trees to draw: those asked for, else the model's.

    Raises:
        RequestError: trees of the heart for a model of the retina, or the other way round.
    """
    own = pipeline.masks if pipeline else "pool"
    if mask is None:
        return Preset.CORONARY.value if own == "pool" else own
    if {mask.value, own} == {Preset.CORONARY.value, Preset.RETINA.value}:
        raise RequestError(
            f"--mask {mask.value}: the model was trained with {own} trees; leave --mask out, or "
            "name another --model"
        )
    return mask.value


def _model(model: Path | None, workspace: Path) -> "FoundModel":
    from synthgen.cli.generation import find_model

    try:
        return find_model(model, workspace, "angiograms")
    except StoreError as error:
        raise StoreError(f"{error}; `--renderer physics --no-gate` needs none") from error


def load_pipeline(folder: Path, dtype: str, device: str) -> "AngiogramPipeline":
    """Load a DARL model, which paints and segments.

    Raises:
        StoreError: the folder is no such model, or a file is missing or damaged.
    """
    from synthgen.images.angiogram.darl import AngiogramPipeline

    return AngiogramPipeline.load(
        folder, device=device, dtype="bfloat16" if dtype == Precision.BF16 else "float32"
    )


def angiogram_job(
    load: LoadOptions, pipeline: "AngiogramPipeline | None", settings: "GenerationSettings"
) -> "AngiogramJob":
    """Return the job that `load` describes.

    Args:
        load: trees, renderer and gate, as in a dataset's provenance.
        pipeline: the model that paints or guards; None where nothing needs one.
        settings: seed, sizes, threads, worker.

    Raises:
        RequestError: an unknown preset or renderer, or backgrounds of another size than the trees.
        StoreError: an unusable background.
    """
    from synthgen.generate import AngiogramJob, Gate

    trees = vessel_generator(load["mask"], load["shape"])
    painter: AngiogramRenderer
    if load["renderer"] == Renderer.PHYSICS:
        painter = _physics(load)
    elif load["renderer"] == Renderer.DARL and pipeline is not None:
        painter = pipeline
    else:
        raise RequestError(f"unknown renderer '{load['renderer']}'; there are darl and physics")
    gate = None
    if load["gate"] is not None and pipeline is not None:
        gate = Gate(pipeline, load["gate"])
    return AngiogramJob(trees, painter, gate, settings)


def _physics(load: LoadOptions) -> "AngiogramRenderer":
    """Return the training-free renderer, with real backgrounds if any were given."""
    from synthgen.images.angiogram.physics import PhysicsRenderer

    kind: Literal["retina", "coronary"] = "retina" if load["mask"] == Preset.RETINA else "coronary"
    if load["backgrounds"] is None:
        return PhysicsRenderer(kind)
    from synthgen.images.angiogram.background_folder import read_background_folder

    x, y = load["shape"]
    pool = read_background_folder(Path(load["backgrounds"]), (x, y), exact=kind == "coronary")
    return PhysicsRenderer(kind, pool)


def gate_report(job: "AngiogramJob", folder: Path) -> "GateReport":
    """Return what the gate of a job did to its dataset.

    Raises:
        RequestError: a job without a gate.
        StoreError: a missing or damaged shard.
    """
    from synthgen.data.shards import Shards

    if job.gate is None:
        raise RequestError(f"{folder}: was made without a gate")
    shards = Shards(folder)
    return job.gate.report(shards.column("gate"), shards.column("attempt"))


def _tell_gate(report: "GateReport", *, as_json: bool) -> None:
    """Say how many draws the gate refused; warn, on stderr, where that is the model's fault."""
    from synthgen.generate.gate import MANY

    if not as_json:
        print(
            f"gate: refused {report.rejected} of {report.draws} draws ({report.rate:.1%}); "
            f"{report.samples - report.failed} of {report.samples} samples pass, "
            f"{report.failed} are the best of their draws"
        )
    if report.rate > MANY:
        print(
            f"warning: the gate refused {report.rate:.0%} of the draws, more than {MANY:.0%}: the "
            "model paints vessels that the masks do not hold, or misses theirs; train it longer, "
            "or on masks and backgrounds like these",
            file=sys.stderr,
        )
