"""`synthgen segment darl IMAGES --model DIR --out DIR`: vessel masks of photographs and X-rays.

Masks lie as their images do: rows and columns of the file, in its size, nothing turned.
"""

import csv
import io
import json
import sys
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Protocol

import typer

from synthgen.cli.generation import (
    DeviceOption,
    JsonOption,
    Precision,
    PrecisionOption,
    WorkspaceOption,
    progress_on_stderr,
)
from synthgen.core.errors import RequestError, StoreError, SynthgenError

if TYPE_CHECKING:
    from collections.abc import Sequence

    import numpy as np
    import numpy.typing as npt

    Floats = npt.NDArray[np.float32]

app = typer.Typer(no_args_is_help=True)
LISTING = "masks.csv"


class OneImageSegmenter(Protocol):
    """Finds vessels in one batch of images of one size."""

    def segment(self, images: "Floats") -> "npt.ArrayLike":
        """Return the probability of vessel `(B, 1, X, Y)` of images `(B, 1, X, Y)` in [0, 1]."""


@dataclass(frozen=True)
class Written:
    """One image and what was written for it, as a row of `LISTING`."""

    image: str
    mask: str
    probability: str
    rows: int
    columns: int
    vessel_share: float


@app.callback()
def segment() -> None:
    """Segment images with a trained model."""


@app.command("darl")
def darl(
    images: Annotated[
        list[Path],
        typer.Argument(
            help="Pictures (PNG, JPEG, TIFF), or folders of them; of colour pictures the green "
            "channel is taken."
        ),
    ],
    *,
    out: Annotated[Path, typer.Option(help="Folder for the masks, NAME.png each, 0 or 255.")],
    model: Annotated[
        Path | None,
        typer.Option(
            help="Model folder. Default: WORKSPACE/models/angiograms, else the shipped one."
        ),
    ] = None,
    probabilities: Annotated[
        bool, typer.Option("--probabilities", help="Write OUT/probabilities/NAME.png as well.")
    ] = False,
    threshold: Annotated[
        float, typer.Option(help="A pixel more probable than this is vessel.")
    ] = 0.5,
    device: DeviceOption = "auto",
    precision: PrecisionOption = Precision.FP32,
    as_json: JsonOption = False,
    workspace: WorkspaceOption = Path("work"),
) -> None:
    """Find the vessels in angiograms or fundus photographs; exit code 3 if any image was left out.

    OUT/masks.csv lists what was written.
    """
    if not 0 <= threshold < 1:
        raise RequestError(f"--threshold: expected 0 or more and less than 1, got {threshold:g}")
    files = pictures_of(images)
    require_names(files, out)
    from synthgen.cli.generation import find_model, pick_device

    found = find_model(model, workspace, "angiograms")
    segmenter = load_segmenter(found.folder, precision, pick_device(device))
    _make(out / "probabilities" if probabilities else out)
    written: list[Written] = []
    problems: list[str] = []
    with progress_on_stderr("segment", "images") as progress:
        for number, path in enumerate(files, start=1):
            try:
                written.append(
                    _segment(segmenter, path, out, threshold, probabilities=probabilities)
                )
            except SynthgenError as error:
                problems.append(str(error))
            progress(number, len(files))
    _write_listing(out / LISTING, written)
    if as_json:
        report = {"folder": str(out), "written": len(written), "problems": problems}
        print(json.dumps(report | {"model": found.name}))
    else:
        print(f"model: {found.shown}")
        for line in problems:
            print(line, file=sys.stderr)
        print(f"{out}: {len(written)} masks of {len(files)} images, listed in {LISTING}")
    if problems:
        raise typer.Exit(3)


def pictures_of(paths: "Sequence[Path]") -> list[Path]:
    """Return the files that are named, and the pictures in the folders that are, in order.

    Raises:
        RequestError: a path that is not there.
        StoreError: a folder without pictures.
    """
    from synthgen.data.picture_files import SUFFIXES

    found: list[Path] = []
    for path in paths:
        if not path.exists():
            raise RequestError(f"{path}: no such file or folder")
        if path.is_file():
            found.append(path)
            continue
        inside = [
            p
            for p in sorted(path.iterdir())
            if p.is_file() and p.suffix.lower() in SUFFIXES and not p.name.startswith(".")
        ]
        if not inside:
            raise StoreError(f"{path}: holds no pictures; expected files like NAME.png")
        found += inside
    return found


def require_names(files: "Sequence[Path]", out: Path) -> None:
    """Refuse images whose masks would overwrite one another, or an image.

    Raises:
        RequestError: they would.
    """
    sources = {path.resolve() for path in files}
    owners: dict[str, Path] = {}
    for path in files:
        if path.stem in owners:
            raise RequestError(
                f"{owners[path.stem]} and {path} would share the mask {path.stem}.png; "
                "rename one, or segment them into two folders"
            )
        owners[path.stem] = path
        if (out / f"{path.stem}.png").resolve() in sources:
            raise RequestError(
                f"--out: the mask {out / path.stem}.png would overwrite an image; choose another "
                "folder"
            )


def load_segmenter(model: Path, precision: Precision, device: str) -> OneImageSegmenter:
    """Load path A of a DARL model.

    Raises:
        StoreError: the folder is no such model, or a file is missing or damaged.
    """
    from synthgen.segment.onestep import OneStepSegmenter

    return OneStepSegmenter.load(
        model,
        device=device,
        dtype="bfloat16" if precision is Precision.BF16 else "float32",
    )


def _segment(
    segmenter: OneImageSegmenter, path: Path, out: Path, threshold: float, *, probabilities: bool
) -> Written:
    """Write the mask of one image, and its probability if asked for."""
    import numpy as np

    from synthgen.core.manifest import write_atomic
    from synthgen.data.picture_files import read_picture
    from synthgen.export.encode import png, to_grey

    image = read_picture(path, colour=True).grey
    probability = np.asarray(segmenter.segment(image[None, None]), dtype=np.float32)[0, 0]
    mask = probability > threshold
    name = f"{path.stem}.png"
    write_atomic(out / name, png(mask.astype(np.uint8) * 255))
    if probabilities:
        write_atomic(out / "probabilities" / name, png(to_grey(probability, 8)))
    return Written(
        image=str(path),
        mask=name,
        probability=f"probabilities/{name}" if probabilities else "",
        rows=mask.shape[0],
        columns=mask.shape[1],
        vessel_share=round(float(mask.mean()), 6),
    )


def _write_listing(path: Path, written: "Sequence[Written]") -> None:
    from synthgen.core.manifest import write_atomic

    text = io.StringIO()
    table = csv.DictWriter(text, [field.name for field in fields(Written)], lineterminator="\n")
    table.writeheader()
    table.writerows(asdict(row) for row in written)
    write_atomic(path, text.getvalue().encode())


def _make(folder: Path) -> None:
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise StoreError(f"{folder}: cannot be created ({error.strerror or error})") from error
