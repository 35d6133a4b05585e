"""`synthgen replay`: make one stored sample again and compare it bit for bit."""

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from synthgen.cli.generation import DatasetArgument, DeviceOption, JsonOption
from synthgen.core.errors import RequestError, StoreError

if TYPE_CHECKING:
    from synthgen.data.shards import Shards
    from synthgen.generate import Job, LabelJob


def command(
    dataset: DatasetArgument,
    *,
    index: Annotated[int, typer.Option(help="Sample to make again.")],
    model: Annotated[
        Path | None, typer.Option(help="Model folder. Default: the one that made the dataset.")
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
    differing = replay(_job(shards, model, device), shards, index)
    if as_json:
        print(json.dumps({"dataset": str(dataset), "index": index, "differing": differing}))
    elif differing:
        for line in differing:
            print(f"{dataset} sample {index}: {line}")
    else:
        print(f"{dataset} sample {index}: made again, equal bit for bit")
    if differing:
        raise typer.Exit(3)


def noted_model(shards: "Shards", model: Path | None) -> Path:
    """Return the model folder that was given, else the one that a dataset's manifest names."""
    return model or Path(shards.manifest.provenance.get("model", ""))


def label_job(shards: "Shards", folder: Path, device: str) -> "LabelJob":
    """Return the job that made a dataset of labels, with its model loaded as it was then.

    Raises:
        RequestError: the model is not the one that made it.
        StoreError: no model there, or the manifest lacks something.
    """
    from synthgen.cli.generation import find_model, load_note
    from synthgen.cli.labels import LoadOptions, label_generator
    from synthgen.generate import replay_labels

    load = load_note(shards.manifest, shards.folder)
    options = LoadOptions(
        sampler=load["sampler"],
        steps=load["steps"],
        guidance=load["guidance"],
        dtype=load["dtype"],
    )
    place = find_model(folder, Path("work"), "labels")
    return replay_labels(shards, label_generator(place, options, device))


def _job(shards: "Shards", model: Path | None, device: str) -> "Job":
    """Return the job that made a dataset, with its model loaded as it was then."""
    from synthgen.cli.generation import load_note, pick_device
    from synthgen.generate import replay_images

    load = load_note(shards.manifest, shards.folder)
    folder = noted_model(shards, model)
    if shards.manifest.kind == "images":
        from synthgen.cli.images import image_generator

        generator, _ = image_generator(
            load, folder, Path("work"), shards.schema, pick_device(device)
        )
        return replay_images(shards, generator)
    if shards.manifest.kind != "labels":
        raise StoreError(f"{shards.folder}: of kind '{shards.manifest.kind}', cannot be replayed")
    return label_job(shards, folder, pick_device(device))
