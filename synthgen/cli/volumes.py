"""`synthgen volumes SOURCE...`: labelled volumes, painted without any model or read from scans.

Workers and their launchers: see `synthgen/cli/labels.py`.
"""

import json
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from synthgen.cli.generation import (
    DryRunOption,
    JsonOption,
    SeedOption,
    WorkerOption,
    WorkspaceOption,
    by_comma,
)
from synthgen.core.errors import RequestError

if TYPE_CHECKING:
    from synthgen.generate import VolumeOutcome, Volumes, VolumeSet


def command(  # noqa: PLR0913 - one parameter for each option
    source: Annotated[
        list[str],
        typer.Argument(
            help="Folders of label maps, tissue maps or scans, as `synthgen prepare` reads them. "
            "Lesion masks without a brain are laid into the brains.",
            show_default=False,
        ),
    ],
    *,
    n: Annotated[
        int | None,
        typer.Option(help="Volumes in all; more than before continues. With --real: all scans."),
    ] = None,
    style: Annotated[
        str,
        typer.Option(
            help="Styles, by comma: t1, t2, flair, t1ce, pd or random, with another scanner for "
            "each volume; oasis_t1 is one scanner for all."
        ),
    ] = "t1,t2,flair",
    stack: Annotated[
        bool,
        typer.Option(
            "--stack",
            help="The styles are channels of one case. Default: each image is a case of its own.",
        ),
    ] = False,
    tissues: Annotated[
        str, typer.Option(help="Labels, by comma: groups of tissues such as csf,gm,wm,wmh.")
    ] = "csf,gm,wm",
    spacing_mm: Annotated[float, typer.Option(help="Size of the voxels, 0.5 to 4 mm.")] = 1.0,
    crop: Annotated[
        bool, typer.Option("--crop", help="Keep the box around the brain alone.")
    ] = False,
    lesions: Annotated[
        float, typer.Option(help="Share of volumes that get lesions beside their own.")
    ] = 0.5,
    exclude: Annotated[
        str | None,
        typer.Option(help="Subjects to leave out, by comma, such as those of your test set."),
    ] = None,
    real: Annotated[
        bool,
        typer.Option("--real", help="The scans' own images, nothing painted: data to test on."),
    ] = False,
    val: Annotated[
        str | None, typer.Option(help="--real: subjects for validation, by comma.")
    ] = None,
    seed: SeedOption = 0,
    out: Annotated[
        Path | None,
        typer.Option(
            help="Dataset folder; nnU-Net wants it to be called DatasetXXX_Name. Default: "
            "WORKSPACE/volumes."
        ),
    ] = None,
    this_worker: WorkerOption = None,
    dry_run: DryRunOption = False,
    as_json: JsonOption = False,
    workspace: WorkspaceOption = Path("work"),
) -> None:
    """Make a dataset of labelled 3-D volumes in nnU-Net's raw format, or continue one."""
    _require_sense(n, val, real=real)
    from synthgen.core.schema import BRAIN9
    from synthgen.core.workspace import Workspace
    from synthgen.data.anatomies import Anatomies
    from synthgen.data.real_volumes import VolumeLayout
    from synthgen.generate import VolumeSet
    from synthgen.runtime import worker

    rank, world = worker(this_worker)
    anatomies = Anatomies(source, BRAIN9, exclude=by_comma(exclude))
    layout = VolumeLayout(by_comma(tissues), spacing_mm, crop)
    held = [anatomies.find(name) for name in by_comma(val)]
    volumes: Volumes
    if real:
        from synthgen.data.real_volumes import RealVolumes

        volumes = RealVolumes(anatomies, by_comma(style), layout)
        n = len(volumes)
    else:
        from synthgen.images.volumes import VolumeGenerator

        volumes = VolumeGenerator(anatomies, by_comma(style), layout, seed=seed, lesions=lesions)
    target = VolumeSet(
        volumes, n or 0, out or Workspace(workspace).volumes, stack, held, rank, world
    )
    if not as_json and rank == 0:
        for note in anatomies.notes:
            print(f"note: {note}")
        print(f"sources: {len(anatomies.scans)} brains, {len(anatomies.lesions)} lesion masks")
    _complete(target, dry_run=dry_run, as_json=as_json)


def _require_sense(n: int | None, val: str | None, *, real: bool) -> None:
    """Refuse options that mean nothing together.

    Raises:
        RequestError: they do.
    """
    if real and n is not None:
        raise RequestError("--n means nothing to --real, which takes every scan; leave it out")
    if not real and n is None:
        raise RequestError("--n: how many volumes? expected a number, such as --n 100")
    if not real and val is not None:
        raise RequestError("--val is for --real; painted volumes are for training")


def _complete(target: "VolumeSet", *, dry_run: bool, as_json: bool) -> None:
    """Write the volumes, or only estimate, and report."""
    from synthgen.cli.generation import progress_on_stderr

    if dry_run:
        outcome = target.forecast()
    else:
        with progress_on_stderr("volumes", "volumes") as progress:
            outcome = target.write(progress)
    if as_json:
        print(json.dumps(asdict(outcome)))
    else:
        print(_text(outcome, dry_run=dry_run))


def _text(outcome: "VolumeOutcome", *, dry_run: bool) -> str:
    from synthgen.cli.generation import duration, size

    where = f"volumes: {outcome.folder}"
    if dry_run and outcome.generated:
        return (
            f"{where}: {outcome.generated} of {outcome.n} volumes to make, {outcome.kept} there; "
            f"about {outcome.files} files, {size(outcome.bytes)}, {duration(outcome.seconds)} "
            "(measured on one volume)"
        )
    if not outcome.generated and outcome.complete:
        return f"{where} holds all {outcome.n} volumes; nothing to do"
    rest = "" if outcome.complete else "; the rest is in other workers' hands"
    return (
        f"{where}: made {outcome.generated} of {outcome.n} volumes in "
        f"{duration(outcome.seconds)}, {outcome.kept} were there, {size(outcome.bytes)}{rest}"
    )
