"""`synthgen redraw`: draw anew, in a new dataset, the samples that a privacy audit flagged.

Workers and their launchers: see `synthgen/cli/labels.py`.
"""

import json
import shlex
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from synthgen.cli.generation import DeviceOption, JsonOption, RepairOption, WorkerOption
from synthgen.core.errors import RequestError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from synthgen.data.shards import Shards
    from synthgen.generate import Outcome


def command(
    quarantine: Annotated[
        Path,
        typer.Argument(metavar="FILE", help="What `evaluate privacy --quarantine` wrote."),
    ],
    *,
    out: Annotated[Path, typer.Option(help="Folder of the new dataset of labels.")],
    labels: Annotated[
        Path | None,
        typer.Option(
            help="If FILE flags images: the labels behind them. Default: those they were made of."
        ),
    ] = None,
    model: Annotated[
        Path | None, typer.Option(help="Model folder. Default: the one that made the labels.")
    ] = None,
    device: DeviceOption = "auto",
    repair: RepairOption = False,
    this_worker: WorkerOption = None,
    as_json: JsonOption = False,
) -> None:
    """Draw the label maps of flagged samples anew, in a new dataset; the others keep their bytes.

    Images are not painted here: the command that paints the new labels is printed.
    """
    from synthgen.cli.generation import pick_device, progress_on_stderr
    from synthgen.cli.replay import label_job, noted_model
    from synthgen.core.workspace import Workspace
    from synthgen.generate import Quarantine, RedrawJob, flagged_labels, run
    from synthgen.runtime import worker

    found = Quarantine.read(quarantine)
    audited = found.open()
    source = _labels_behind(audited, labels)
    if out.resolve() in (audited.folder.resolve(), source.folder.resolve()):
        raise RequestError(f"--out: {out} is the old dataset, which is kept; name a new folder")
    if not found.flagged:
        _tell(None, source, (), None, as_json=as_json)
        return
    flagged = found.flagged
    if audited is not source:
        flagged = flagged_labels(audited, source, flagged)
    rank, world = worker(this_worker)
    place = noted_model(source, model, Workspace().root)
    job = label_job(source, place, pick_device(device))
    settings = replace(job.settings, repair=repair, worker=rank, num_workers=world)
    redraw = RedrawJob.of(replace(job, settings=settings), source, flagged)
    if not as_json and rank == 0:
        print(f"model: {place.shown}")
        print(f"labels: {source.folder}, {len(source)} maps, {len(flagged)} to draw anew")
    notes = {
        "model": place.name,
        "load": source.manifest.provenance["load"],
        "redrawn_from": str(source.folder),
    }
    with progress_on_stderr("redraw") as progress:
        outcome = run(redraw, redraw.n, out, notes=notes, progress=progress)
    paint = _paint_command(audited, out) if audited is not source and rank == 0 else None
    _tell(outcome, source, flagged, paint, as_json=as_json)


def _labels_behind(audited: "Shards", labels: Path | None) -> "Shards":
    """Return the dataset of labels to draw from: the audited one itself, or the one behind it."""
    from synthgen.core.manifest import MANIFEST
    from synthgen.core.workspace import Workspace
    from synthgen.data.shards import Shards

    if audited.manifest.kind != "images":
        if labels is not None:
            raise RequestError(
                f"--labels: {audited.folder} holds {audited.manifest.kind}, which are drawn anew "
                "themselves; --labels is for images"
            )
        return audited
    noted = audited.manifest.provenance.get("labels", Workspace().labels)
    folder = labels or Path(noted)
    if not (folder / MANIFEST).is_file():
        raise RequestError(
            f"{folder}: no dataset there; name the labels that {audited.folder} was painted from "
            "with --labels"
        )
    return Shards(folder)


def _paint_command(images: "Shards", labels: Path) -> str:
    """Return the command that paints new labels as a dataset of images was painted."""
    identity, notes = images.manifest.identity, images.manifest.provenance
    words = ["synthgen", "images", "--labels", str(labels), "--style", ",".join(images.styles)]
    for name in ("per_label", "seed", "batch_size", "shard_size", "threads"):
        words += [f"--{name.replace('_', '-')}", str(identity[name])]
    if "load" in notes:  # painted by `synthgen images`
        load = json.loads(notes["load"])
        words += ["--renderer", load["renderer"], "--precision", load["dtype"]]
        words += ["--model", notes["model"]] if load["renderer"] == "spade" else []
        words += ["--workspace", notes["workspace"]] if "workspace" in notes else []
    folder = images.folder.with_name(f"{images.folder.name}-{labels.name}")
    return shlex.join([*words, "--out", str(folder)])


def _tell(
    outcome: "Outcome | None",
    source: "Shards",
    flagged: "Sequence[int]",
    paint: str | None,
    *,
    as_json: bool,
) -> None:
    """Report what was drawn anew; without an outcome, that there was nothing to do."""
    from synthgen.cli.generation import duration, size

    if as_json:
        made = {} if outcome is None else asdict(outcome)
        made["folder"] = str(outcome.folder) if outcome is not None else None
        about = {"source": str(source.folder), "redrawn": list(flagged), "paint": paint}
        print(json.dumps(made | about))
        return
    if outcome is None:
        print(f"{source.folder}: no sample was flagged; nothing to draw anew")
        return
    print(
        f"redraw: {outcome.folder} holds {outcome.n} samples in all, {len(flagged)} drawn anew, "
        f"the others copied from {source.folder}; {duration(outcome.seconds)}, "
        f"{size(outcome.bytes)}"
    )
    if paint is not None:
        print(f"paint the new labels: {paint}")
