"""`synthgen styles list`: which styles a model, or the contrast renderer, can paint."""

import json
from pathlib import Path
from typing import Annotated, Any

import typer

from synthgen.cli.generation import JsonOption

app = typer.Typer(no_args_is_help=True, help="Styles that `synthgen images --style` can name.")

_BANK = Path("style_bank") / "config.json"


@app.callback()
def _group() -> None:
    """Styles that `synthgen images --style` can name."""


@app.command("list")
def list_command(
    *,
    model: Annotated[Path, typer.Option(help="Folder of an image model.")] = Path(
        "work/models/images"
    ),
    as_json: JsonOption = False,
) -> None:
    """List the styles of an image model, and those of the contrast renderer."""
    styles = known_styles(model)
    if as_json:
        print(json.dumps(styles, indent=1))
        return
    if not (model / _BANK).is_file():
        print(f"(no image model at {model}: `synthgen train images` makes one)")
    for style in styles:
        print(
            f"{style['name']:<20} {style['dataset']:<14} {style['modality']:<7} "
            f"{style['source']:<10} {style['renderer']}"
        )


def known_styles(model: Path) -> list[dict[str, Any]]:
    """Return the styles of a model folder (if there is one) and of the contrast renderer.

    Raises:
        StoreError: the model's style bank is not readable.
    """
    from synthgen.core.errors import StoreError

    found: list[dict[str, Any]] = []
    bank = model / _BANK
    if bank.is_file():
        try:
            rows = json.loads(bank.read_bytes())["styles"]
            found = [{**row, "renderer": f"model {model}"} for row in rows]
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise StoreError(f"{bank}: not the settings of a style bank ({error})") from error
    return found + _contrast_styles()


def _contrast_styles() -> list[dict[str, Any]]:
    from synthgen.core.schema import BRAIN9
    from synthgen.images.contrast import ContrastRenderer

    return [
        {
            "name": style.name,
            "dataset": style.dataset,
            "modality": style.modality,
            "source": style.source,
            "renderer": "contrast",
        }
        for style in ContrastRenderer(BRAIN9).styles
    ]
