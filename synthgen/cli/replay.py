"""`synthgen replay`: make one stored sample again and compare it bit for bit."""

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from synthgen.cli.generation import DatasetArgument, DeviceOption, JsonOption
from synthgen.core.errors import RequestError, StoreError

if TYPE_CHECKING:
    from synthgen.cli.generation import FoundModel
    from synthgen.data.shards import Shards
    from synthgen.generate import Job, LabelJob


def command(
    dataset: DatasetArgument,
    *,
    index: Annotated[int, typer.Option(help="Sample to make again.")],
    model: Annotated[
        Path | None, typer.Option(help="Model folder. Default: the one that made the dataset.")
    ] = None,
    workspace: Annotated[
        Path | None,
        typer.Option(help="Workspace of its styles. Default: the one that made the dataset."),
    ] = None,
    device: DeviceOption = "auto",
    as_json: JsonOption = False,
) -> None:
    """Make sample INDEX again from manifest and model; exit code 3 if a bit differs."""
    from synthgen.data.shards import Shards
    from synthgen.generate import replay

    shards = Shards(dataset)
    if not 0 <= index < len(shards):
        raise RequestError(f"--index: {dataset} holds the samples 0 .. {len(shards) - 1}")
    differing = replay(_job(shards, model, workspace, device), shards, index)
    if as_json:
        print(json.dumps({"dataset": str(dataset), "index": index, "differing": differing}))
    elif differing:
        for line in differing:
            print(f"{dataset} sample {index}: {line}")
    else:
        print(f"{dataset} sample {index}: made again, equal bit for bit")
    if differing:
        raise typer.Exit(3)


def noted_model(shards: "Shards", model: Path | None, workspace: Path) -> "FoundModel":
    """Return the model that was given, else the one that a dataset's manifest names.

    Raises:
        StoreError: there is no such model.
    """
    from synthgen.cli.generation import find_model

    noted = shards.manifest.provenance.get("model", "")
    return find_model(model or Path(noted), workspace, shards.manifest.kind)


def label_job(shards: "Shards", model: "FoundModel", device: str) -> "LabelJob":
    """Return the job that made a dataset of labels, with its model loaded as it was then.

    Raises:
        RequestError: the model is not the one that made it.
        StoreError: a damaged model, or the manifest lacks something.
    """
    from synthgen.cli.generation import load_note
    from synthgen.cli.labels import LoadOptions, label_generator
    from synthgen.generate import replay_labels

    load = load_note(shards.manifest, shards.folder)
    options = LoadOptions(
        sampler=load["sampler"],
        steps=load["steps"],
        guidance=load["guidance"],
        dtype=load["dtype"],
    )
    return replay_labels(shards, label_generator(model.folder, options, device))


def _job(shards: "Shards", model: Path | None, workspace: Path | None, device: str) -> "Job":
    """Return the job that made a dataset, with its model loaded as it was then."""
    from synthgen.cli.generation import load_note, pick_device
    from synthgen.generate import replay_images

    kind, noted = shards.manifest.kind, shards.manifest.provenance
    load = load_note(shards.manifest, shards.folder)
    place = workspace or Path(noted.get("workspace", "work"))
    if shards.schema.is_picture:
        return _vessel_job(shards, load, model, place, device)
    if kind == "images":
        from synthgen.cli.images import Renderer, image_generator

        found = None
        if load["renderer"] != Renderer.CONTRAST:
            found = noted_model(shards, model, place)
        files = _style_files(shards, place)
        return replay_images(
            shards, image_generator(load, found, files, shards.schema, pick_device(device))
        )
    if kind != "labels":
        raise StoreError(f"{shards.folder}: of kind '{kind}', cannot be replayed")
    return label_job(shards, noted_model(shards, model, place), pick_device(device))


def _vessel_job(
    shards: "Shards", load: dict[str, Any], model: Path | None, workspace: Path, device: str
) -> "Job":
    """Return the job that made vessel trees or angiograms."""
    from synthgen.cli.angiograms import LoadOptions, Renderer, angiogram_job, load_pipeline
    from synthgen.cli.generation import pick_device
    from synthgen.cli.vessels import vessel_generator
    from synthgen.generate import GenerationSettings, replay_angiograms, replay_vessels

    if shards.manifest.kind == "labels":
        return replay_vessels(shards, vessel_generator(load["preset"], load["shape"]))
    options = LoadOptions(
        renderer=load["renderer"],
        mask=load["mask"],
        shape=load["shape"],
        dtype=load["dtype"],
        backgrounds=load["backgrounds"],
        gate=load["gate"],
    )
    pipeline = None
    if options["renderer"] == Renderer.DARL or options["gate"] is not None:
        folder = noted_model(shards, model, workspace).folder
        pipeline = load_pipeline(folder, options["dtype"], pick_device(device))
    job = angiogram_job(options, pipeline, GenerationSettings())
    return replay_angiograms(shards, job.generator, job.renderer, job.gate)


def _style_files(shards: "Shards", workspace: Path) -> list[Path]:
    """Return the files of the workspace styles that a dataset was painted in, if still there."""
    from synthgen.core.workspace import Workspace
    from synthgen.generate import workspace_styles
    from synthgen.images.workspace_styles import SUFFIX

    folder = Workspace(workspace).styles
    files = [folder / f"{name}{SUFFIX}" for name in workspace_styles(shards)]
    return [path for path in files if path.is_file()]
