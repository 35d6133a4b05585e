"""`synthgen segment MODEL IMAGES --out DIR`: label maps of pictures and volumes.

Masks lie as their images do: those of pictures have the file's rows and columns, those of NIfTI
volumes its grid, orientation and affine.
"""

import csv
import io
import json
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from synthgen.cli.generation import (
    STARTER,
    DeviceOption,
    FoundModel,
    JsonOption,
    Precision,
    PrecisionOption,
    WorkspaceOption,
    find_model,
    pick_device,
    progress_on_stderr,
)
from synthgen.core.errors import RequestError, StoreError, SynthgenError
from synthgen.core.input_files import read_json

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from synthgen.segment import TrainedSegmenter
    from synthgen.segment.inputs import ImageCase
    from synthgen.segment.masks import Labels

LISTING, TABLE = "masks.csv", "dataset.json"
_KINDS = {"darl": "angiograms", "imgx": "imgx", "hidiff": "hidiff"}
_WHITE = 255


@dataclass(frozen=True)
class Drawing:
    """How masks are made and written.

    Attributes:
        out: their folder.
        threshold: a pixel more probable than this belongs to the tissue.
        seed: of models that draw noise.
        probabilities: whether to write these as well.
    """

    out: Path
    threshold: float
    seed: int
    probabilities: bool


def command(
    model: Annotated[
        str,
        typer.Argument(
            help="darl, imgx or hidiff: the workspace's model (of darl else the shipped one); or a "
            "model folder."
        ),
    ],
    images: Annotated[
        list[Path],
        typer.Argument(
            help="Pictures (PNG, JPEG, TIFF; of colour pictures the green channel is taken), NIfTI "
            "volumes, or folders of them."
        ),
    ],
    *,
    out: Annotated[Path, typer.Option(help="Folder for the masks: NAME.png or NAME.nii.gz.")],
    probabilities: Annotated[
        bool,
        typer.Option(
            "--probabilities",
            help="Of pictures and one tissue: write OUT/probabilities/NAME.png as well.",
        ),
    ] = False,
    threshold: Annotated[
        float | None,
        typer.Option(
            help="A pixel more probable than this, 0.5 by default, is tissue; where a model tells "
            "several tissues apart the most probable one counts."
        ),
    ] = None,
    seed: Annotated[int, typer.Option(help="Seed of models that draw noise.")] = 0,
    device: DeviceOption = "auto",
    precision: PrecisionOption = Precision.FP32,
    as_json: JsonOption = False,
    workspace: WorkspaceOption = Path("work"),
) -> None:
    """Segment images with a trained model; exit code 3 if any image was left out.

    OUT/masks.csv lists what was written, OUT/dataset.json says what its values mean.
    """
    if threshold is not None and not 0 <= threshold < 1:
        raise RequestError(f"--threshold: expected 0 or more and less than 1, got {threshold:g}")
    _require_paths(images)
    found = model_named(model, workspace)
    from synthgen.segment import load_segmenter
    from synthgen.segment.inputs import find_cases
    from synthgen.segment.masks import THRESHOLD

    segmenter = load_segmenter(
        found.folder,
        device=pick_device(device),
        dtype="bfloat16" if precision is Precision.BF16 else "float32",
    )
    cases = find_cases(images, segmenter.use)
    drawing = Drawing(out, THRESHOLD if threshold is None else threshold, seed, probabilities)
    _require_fit(segmenter, cases, drawing, chosen=threshold is not None)
    _write_table(segmenter, cases, out)
    rows: list[Mapping[str, object]] = []
    problems: list[str] = []
    with progress_on_stderr("segment", "images") as progress:
        for number, case in enumerate(cases, start=1):
            try:
                rows.append(_segment(segmenter, case, drawing))
            except SynthgenError as error:
                problems.append(str(error))
            progress(number, len(cases))
    _write_listing(out / LISTING, rows)
    if as_json:
        report = {"folder": str(out), "written": len(rows), "problems": problems}
        print(json.dumps(report | {"model": found.name}))
    else:
        print(f"model: {found.shown}")
        for line in problems:
            print(line, file=sys.stderr)
        print(f"{out}: {len(rows)} masks of {len(cases)} images, listed in {LISTING}")
    if problems:
        raise typer.Exit(3)


def model_named(name: str, workspace: Path) -> FoundModel:
    """Return the model folder that is named, or that the workspace or synthgen holds of a kind.

    Raises:
        StoreError: there is none.
    """
    from synthgen.core.model_folder import RECORD
    from synthgen.core.workspace import Workspace

    if name == "darl" or name.startswith(STARTER):
        return find_model(None if name == "darl" else Path(name), workspace, _KINDS["darl"])
    folder = Workspace(workspace).model(name) if name in _KINDS else Path(name)
    if (folder / RECORD).is_file():
        return FoundModel(folder, str(folder))
    if name in _KINDS:
        raise StoreError(
            f"no {name} model in {folder}; `synthgen train {name} RECIPE --data PATH` makes one"
        )
    raise StoreError(
        f"{name}: no model folder; expected {', '.join(_KINDS)}, or a folder that `synthgen train` "
        "wrote"
    )


def _require_paths(paths: "Sequence[Path]") -> None:
    """Refuse what is not there before a model is loaded."""
    missing = next((path for path in paths if not path.exists()), None)
    if missing is not None:
        raise RequestError(f"{missing}: no such file or folder")


def _require_fit(
    segmenter: "TrainedSegmenter", cases: "Sequence[ImageCase]", drawing: Drawing, *, chosen: bool
) -> None:
    """Refuse options that mean nothing to this model, and masks that would overwrite an image.

    Raises:
        RequestError: naming them.
    """
    use, several = segmenter.use, len(segmenter.use.tissues) > 2
    if chosen and several and not use.overlapping:
        raise RequestError(
            f"--threshold means nothing to a model that tells {', '.join(use.tissues)} apart"
        )
    if drawing.probabilities and (cases[0].volume or several or use.overlapping):
        raise RequestError("--probabilities: for pictures, and models of one tissue")
    sources = {file.resolve() for case in cases for file in case.files}
    for case in cases:
        mask = drawing.out / _file_name(case)
        if mask.resolve() in sources:
            raise RequestError(
                f"--out: the mask {mask} would overwrite an image; choose another folder"
            )


def _segment(
    segmenter: "TrainedSegmenter", case: "ImageCase", drawing: Drawing
) -> "Mapping[str, object]":
    """Write the label map of one image, and return its row in the listing."""
    import numpy as np

    from synthgen.core.manifest import write_atomic
    from synthgen.data.nifti import write_labels_like
    from synthgen.export.encode import png, to_grey
    from synthgen.segment.inputs import segment_picture
    from synthgen.segment.masks import harden
    from synthgen.segment.volumes import segment_volume

    name, use = _file_name(case), segmenter.use
    shown = ""
    if case.volume:
        labels = segment_volume(
            segmenter, case.files, seed=drawing.seed, threshold=drawing.threshold
        )
        write_labels_like(drawing.out / name, labels, case.files[0])
    else:
        found = segment_picture(segmenter, case, drawing.seed)
        labels = harden(found, use, drawing.threshold)
        white = np.uint8(_white(segmenter))
        write_atomic(drawing.out / name, png(labels * white))
        if drawing.probabilities:
            shown = f"probabilities/{name}"
            (drawing.out / shown).parent.mkdir(exist_ok=True)
            write_atomic(drawing.out / shown, png(to_grey(found[1], 8)))
    return {
        "image": str(case.files[0]),
        "mask": name,
        "probability": shown,
        "size": " x ".join(map(str, labels.shape)),
        **_shares(segmenter, labels),
    }


def _shares(segmenter: "TrainedSegmenter", labels: "Labels") -> dict[str, float]:
    """Return the share of the image that each tissue covers."""
    import numpy as np

    from synthgen.segment.masks import label_table

    table = {name: value for name, value in label_table(segmenter.use).items() if value != 0}
    return {
        f"{name}_share": round(float(np.isin(labels, value).mean()), 6)
        for name, value in table.items()
    }


def _file_name(case: "ImageCase") -> str:
    return f"{case.name}{'.nii.gz' if case.volume else '.png'}"


def _white(segmenter: "TrainedSegmenter") -> int:
    """Return what labels of pictures are multiplied by: one tissue is white."""
    use = segmenter.use
    return _WHITE if len(use.tissues) == 2 and not use.overlapping else 1


def _write_table(segmenter: "TrainedSegmenter", cases: "Sequence[ImageCase]", out: Path) -> None:
    """Say in nnU-Net's form what the values of the label maps mean.

    Raises:
        RequestError: the folder holds label maps whose values mean something else.
        StoreError: it cannot be written.
    """
    from synthgen.core.manifest import write_atomic
    from synthgen.segment.masks import label_table

    volume = cases[0].volume
    labels = label_table(segmenter.use, largest=1 if volume else _white(segmenter))
    path = out / TABLE
    try:
        if path.is_file():
            if read_json(path).get("labels") == labels:
                return
            raise RequestError(
                f"--out: {path} names other labels, the folder holds something else; choose "
                "another one"
            )
        out.mkdir(parents=True, exist_ok=True)
        ending = ".nii.gz" if volume else ".png"
        body = {"labels": labels, "file_ending": ending}
        write_atomic(path, json.dumps(body, indent=1).encode() + b"\n")
    except (OSError, ValueError, AttributeError) as error:
        if isinstance(error, SynthgenError):
            raise
        raise StoreError(f"{path}: neither readable nor can it be written ({error})") from error


def _write_listing(path: Path, rows: "Sequence[Mapping[str, object]]") -> None:
    from synthgen.core.manifest import write_atomic

    text = io.StringIO()
    names = [*rows[0]] if rows else ["image", "mask"]
    table = csv.DictWriter(text, names, lineterminator="\n")
    table.writeheader()
    table.writerows(rows)
    write_atomic(path, text.getvalue().encode())
