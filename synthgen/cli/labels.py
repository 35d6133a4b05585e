"""`synthgen labels`: draw soft label maps from a trained label generator.

Several workers share one dataset; each makes whole shards, and the bytes are those of a single
worker. A launcher starts them on one machine, `--worker K/N` tells each of a job array who it is:

    torchrun --nproc-per-node 4 -m -- synthgen labels --n 20000
    accelerate-launch --multi_gpu --num_processes 4 -m synthgen labels --n 20000
    synthgen labels --n 20000 --worker $SLURM_ARRAY_TASK_ID/$SLURM_ARRAY_TASK_COUNT

Launchers also start CPU workers (`--multi_gpu` only chooses the launcher). torchrun needs the
`--`: it takes `--n` for a short form of its own options. `accelerate launch --cpu --num_processes
4` starts one worker only, and says nothing: accelerate leaves CPU processes to MPI.
"""

import json
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
    parse_lesions,
    parse_range,
)
from synthgen.core.errors import RequestError

if TYPE_CHECKING:
    from synthgen.generate import LabelJob
    from synthgen.labels import ConditionRange, LabelGenerator


class LoadOptions(TypedDict):
    """How a label model was loaded; None where its own setting was taken."""

    sampler: Literal["dpm", "ddim", "unipc"] | None
    steps: int | None
    guidance: float | None
    dtype: Literal["fp32", "bf16"]


class Sampler(StrEnum):
    """How to walk from noise to a map."""

    DPM = "dpm"
    DDIM = "ddim"
    UNIPC = "unipc"


def command(  # noqa: PLR0913 - one parameter for each option
    *,
    n: Annotated[int, typer.Option(help="Samples in all; more than before continues.")],
    lesion: Annotated[
        list[str] | None,
        typer.Option(
            help="NAME=LOW:HIGH, share of the brain in the slice, such as wmh=0.01:0.05; NAME "
            "alone takes the range of the training data. May be repeated; lesions not named "
            "are absent."
        ),
    ] = None,
    slices: Annotated[
        str | None,
        typer.Option(
            "--slice",
            help="LOW:HIGH, 0 at the foot of the brain, 1 at its top. Default: the model's.",
        ),
    ] = None,
    csf: Annotated[
        str | None,
        typer.Option(
            help="LOW:HIGH, rank of the CSF's share of the brain among people, 0 least, 1 most, "
            "as in atrophy. Default: 0:1, all of them, if the model knows it."
        ),
    ] = None,
    seed: SeedOption = 0,
    out: Annotated[
        Path | None, typer.Option(help="Dataset folder. Default: WORKSPACE/labels.")
    ] = None,
    model: Annotated[
        Path | None,
        typer.Option(help="Model folder. Default: WORKSPACE/models/labels, else the shipped one."),
    ] = None,
    shard_size: ShardSizeOption = 64,
    batch_size: BatchSizeOption = 16,
    sampler: Annotated[Sampler | None, typer.Option(help="Sampler. Default: the model's.")] = None,
    steps: Annotated[int | None, typer.Option(help="Sampling steps. Default: the model's.")] = None,
    guidance: Annotated[
        float | None,
        typer.Option(help="Strength of guidance, 1 for none. Default: the model's."),
    ] = None,
    max_attempts: Annotated[
        int,
        typer.Option(help="Draws of a map, at most, until it meets its lesion request."),
    ] = 4,
    device: DeviceOption = "auto",
    precision: PrecisionOption = Precision.BF16,
    threads: ThreadsOption = THREADS,
    repair: RepairOption = False,
    this_worker: WorkerOption = None,
    dry_run: DryRunOption = False,
    as_json: JsonOption = False,
    workspace: WorkspaceOption = Path("work"),
) -> None:
    """Make a dataset of soft label maps, or continue one."""
    # Wrong words fail before anything heavy loads.
    lesions = parse_lesions(lesion or ())
    position = parse_range(slices, "--slice") if slices is not None else None
    rank = parse_range(csf, "--csf") if csf is not None else None
    from synthgen.cli.generation import complete, find_model, idle_cores, pick_device, slow_format
    from synthgen.core.workspace import Workspace

    found = find_model(model, workspace, "labels")
    from synthgen.generate import Acceptance, GenerationSettings, LabelJob
    from synthgen.runtime import worker

    number, world = worker(this_worker)
    settings = GenerationSettings(
        seed, batch_size, shard_size, threads, repair, worker=number, num_workers=world
    )
    settings.plan(n)
    acceptance = Acceptance(max_attempts)
    load: LoadOptions = {
        "sampler": sampler.value if sampler else None,
        "steps": steps,
        "guidance": guidance,
        "dtype": precision.value,
    }
    place = pick_device(device)
    generator = label_generator(found.folder, load, place)
    conditions = _conditions(generator.conditions, lesions, position, rank)
    if not as_json and number == 0:
        print(f"model: {found.shown}")
        print(f"conditions: {_shown(conditions)}")
        print(f"training data: {_shown(generator.conditions)}")
        print(idle_cores(settings, place, "labels") or f"device: {place}")
        if slow := slow_format(precision, place):
            print(slow)
    job = LabelJob(generator, conditions, settings, acceptance)
    notes = {"model": found.name, "load": json.dumps(load, sort_keys=True)}
    target = out or Workspace(workspace).labels
    complete(job, n, target, notes, dry_run=dry_run, as_json=as_json)
    if not (as_json or dry_run) and world == 1:
        print(_requests_met(target, job))


def _requests_met(folder: Path, job: "LabelJob") -> str:
    """Return how many maps were drawn again, and how many still miss their lesion request."""
    from synthgen.data.shards import Shards

    shards = Shards(folder)
    made = shards.column("realised")
    asked = shards.column("condition")[:, : made.shape[1]]
    again = int((shards.column("attempt") > 0).sum())
    missed = len(shards) - int(job.meets(asked, made).sum())
    return f"lesion requests: {again} maps drawn again, {missed} of {len(shards)} still miss theirs"


def label_generator(folder: Path, load: LoadOptions, device: str) -> "LabelGenerator":
    """Load a label generator as a dataset's provenance says it was loaded.

    Raises:
        StoreError: the folder is no such model, or a file is missing or damaged.
        RequestError: a sampler that does not fit the model.
    """
    from synthgen.labels import load_label_generator

    return load_label_generator(
        folder,
        sampler=load["sampler"],
        steps=load["steps"],
        guidance=load["guidance"],
        dtype=load["dtype"],
        device=device,
    )


def _conditions(
    trained: "ConditionRange",
    lesions: dict[str, tuple[float, float] | None],
    position: tuple[float, float] | None,
    csf: tuple[float, float] | None,
) -> "ConditionRange":
    """Return the ranges asked for; what has no range gets that of the training data.

    Raises:
        RequestError: a lesion without a range that the training data never showed, or a CSF rank
            that the model does not know.
    """
    from synthgen.labels import ConditionRange

    ranges = {}
    for name, ends in lesions.items():
        if ends is None and name not in trained.lesions:
            seen = ", ".join(trained.lesions) or "none"
            raise RequestError(
                f"--lesion {name}: not in the model's training data, which shows {seen}"
            )
        ranges[name] = ends or trained.lesions[name]
    if csf and trained.csf is None:
        raise RequestError("--csf: the label model was trained without it; leave it out")
    return ConditionRange(ranges, position or trained.position, csf or trained.csf)


def _shown(conditions: "ConditionRange") -> str:
    rank = {} if conditions.csf is None else {"csf": conditions.csf}
    ranges = {"slice": conditions.position, **rank, **conditions.lesions}
    shown = [f"{name} {low:.3g}:{high:.3g}" for name, (low, high) in ranges.items()]
    return ", ".join(shown if conditions.lesions else [*shown, "no lesions"])
