"""`synthgen styles list | add`: the styles that can be painted, and new ones from own images."""

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from synthgen.cli.generation import JsonOption, WorkspaceOption, find_model
from synthgen.core.errors import StoreError
from synthgen.core.input_files import read_json
from synthgen.core.workspace import Workspace

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from synthgen.images import Style
    from synthgen.images.workspace_styles import WorkspaceStyle

app = typer.Typer(no_args_is_help=True, help="Styles that `synthgen images --style` can name.")

ModelOption = Annotated[
    Path | None,
    typer.Option(help="Image model. Default: WORKSPACE/models/images, else the shipped one."),
]


@app.callback()
def _group() -> None:
    """Styles that `synthgen images --style` can name."""


@app.command("list")
def list_command(
    *,
    model: ModelOption = None,
    workspace: WorkspaceOption = Path("work"),
    as_json: JsonOption = False,
) -> None:
    """List the styles of an image model, of the workspace and of the contrast renderer."""
    styles = known_styles(model, workspace)
    if as_json:
        print(json.dumps(styles, indent=1))
        return
    if not any(style["renderer"].startswith("model ") for style in styles):
        print(f"(no image model in {workspace}: `synthgen train images RECIPE` makes one)")
    for style in styles:
        print(
            f"{style['name']:<20} {style['dataset']:<14} {style['modality']:<7} "
            f"{style['source']:<10} {style['renderer']}"
        )


@app.command("add")
def add_command(
    name: Annotated[str, typer.Argument(help="DATASET_MODALITY, such as oasis_flair.")],
    images: Annotated[
        list[Path],
        typer.Argument(
            help="Skull-stripped NIfTI images (volumes, or axial slices), and BIDS-like folders, "
            "where those whose names tell the modality are taken.",
            show_default=False,
        ),
    ],
    *,
    model: ModelOption = None,
    force: Annotated[
        bool, typer.Option("--force", help="Replace a style of the workspace.")
    ] = False,
    as_json: JsonOption = False,
    workspace: WorkspaceOption = Path("work"),
) -> None:
    """Fit a style on your own images, and keep it in the workspace."""
    from synthgen.cli.generation import progress_on_stderr
    from synthgen.generate import DEFAULT_THREADS, intra_op_threads
    from synthgen.images.spade import SpadePipeline
    from synthgen.images.workspace_styles import add_style

    found = find_model(model, workspace, "images")
    pipeline = SpadePipeline.load(found.folder)
    folder = Workspace(workspace).styles
    # The last bits of a code depend on the number of threads.
    with progress_on_stderr(name, "images") as progress, intra_op_threads(DEFAULT_THREADS):
        added = add_style(folder, pipeline, name, images, force=force, progress=progress)
    row = {
        **_row(added.style, str(folder)),
        "subjects": list(added.style.subjects),
        "images": added.num_images,
        "slices": added.num_slices,
    }
    if as_json:
        print(json.dumps(row))
        return
    print(f"model: {found.shown}")
    print(
        f"{name}: encoded {added.num_slices} slices of {added.num_images} image(s) of "
        f"{len(added.style.subjects)} subject(s), kept in {folder}"
    )


def known_styles(model: Path | None, workspace: Path) -> list[dict[str, Any]]:
    """Return the styles of the image model (if there is one), the workspace and the renderer.

    Raises:
        StoreError: no such model folder, or an unreadable style bank or style.
    """
    from synthgen.core.schema import BRAIN9
    from synthgen.images.contrast import ContrastRenderer

    try:
        found = find_model(model, workspace, "images")
    except StoreError:
        if model is not None:
            raise
        found = None
    own = list(_workspace_styles(Workspace(workspace).styles))
    digest = _digest(found.folder) if found else ""
    taken = {one.style.name for one in own if one.model == digest}
    rows = []
    if found:
        bank = [style for style in _bank(found.folder) if style["name"] not in taken]
        rows = [{**style, "renderer": f"model {found.name}"} for style in bank]
    for one in own:
        state = "" if one.model == digest else ", of another model: add it again"
        rows.append(_row(one.style, f"workspace{state}"))
    return rows + [_row(style, "contrast") for style in ContrastRenderer(BRAIN9).styles]


def style_files(folder: Path, model: Path, wanted: "Sequence[str]") -> list[Path]:
    """Return the workspace's styles of a model, and those asked for that the model has not fitted.

    Args:
        folder: the workspace's folder of styles.
        model: folder of the image model.
        wanted: style names.

    Raises:
        StoreError: the model or a style is damaged.
    """
    own = {one.style.name: one for one in _workspace_styles(folder)}
    if not own:
        return []
    digest = _digest(model)
    fitted = {style["name"] for style in _bank(model) if style["source"] == "fitted"}
    asked = set(wanted) - fitted
    return [
        folder / f"{name}.safetensors"
        for name, one in own.items()
        if one.model == digest or name in asked
    ]


def _workspace_styles(folder: Path) -> "Iterator[WorkspaceStyle]":
    from synthgen.images.workspace_styles import SUFFIX, read_style

    yield from (read_style(path) for path in sorted(folder.glob(f"*{SUFFIX}")))


def _digest(model: Path) -> str:
    from synthgen.core.model_folder import files_digest, read_record

    return files_digest(read_record(model, "images"))


def _bank(model: Path) -> list[dict[str, str]]:
    """Return the records of a model's style bank."""
    path = model / "style_bank" / "config.json"
    try:
        return [dict(style) for style in read_json(path)["styles"]]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise StoreError(f"{path}: not the settings of a style bank ({error})") from error


def _row(style: "Style", renderer: str) -> dict[str, Any]:
    return {
        "name": style.name,
        "dataset": style.dataset,
        "modality": style.modality,
        "source": style.source,
        "renderer": renderer,
    }
