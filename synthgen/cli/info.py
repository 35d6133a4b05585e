"""`synthgen info [models|styles|recipes|formats]`: what there is to use."""

import json
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any

import typer

from synthgen.cli.generation import JsonOption, WorkspaceOption
from synthgen.core.workspace import Workspace


class Topic(StrEnum):
    """What to list."""

    MODELS = "models"
    STYLES = "styles"
    RECIPES = "recipes"
    FORMATS = "formats"


def command(
    topic: Annotated[
        Topic | None, typer.Argument(help="What to list; everything if left out.")
    ] = None,
    *,
    workspace: WorkspaceOption = Path("work"),
    as_json: JsonOption = False,
) -> None:
    """List models, styles, recipes and formats."""
    listing = {t.value: _list(t, Workspace(workspace)) for t in ([topic] if topic else Topic)}
    if as_json:
        print(json.dumps(listing, indent=1))
        return
    for name, rows in listing.items():
        print(f"{name}:" if rows else f"{name}: none in {workspace}")
        for row in rows:
            print("  " + "  ".join(f"{value}" for value in row.values()))


def _list(topic: Topic, workspace: Workspace) -> list[dict[str, Any]]:
    match topic:
        case Topic.MODELS:
            return _models(workspace)
        case Topic.STYLES:
            from synthgen.cli.styles import known_styles

            return known_styles(workspace.model("images"))
        case Topic.RECIPES:
            return _recipes()
        case Topic.FORMATS:
            return [
                {"format": "synthgen-store/1", "is": "training data, one HDF5 file (prepare)"},
                {"format": "synthgen-dataset/1", "is": "generated dataset: manifest and shards"},
                {"format": "synthgen-shard/1", "is": "one checksummed HDF5 file of a dataset"},
                {"format": "diffusers", "is": "model folder: model_index.json and safetensors"},
            ]


def _models(workspace: Workspace) -> list[dict[str, Any]]:
    rows = []
    for index in sorted((workspace.root / "models").glob("*/model_index.json")):
        try:
            kind = json.loads(index.read_bytes()).get("_class_name", "unknown")
        except (OSError, ValueError, AttributeError):
            kind = "unreadable model_index.json"
        rows.append({"model": index.parent.name, "kind": kind, "folder": str(index.parent)})
    return rows


def _recipes() -> list[dict[str, Any]]:
    from synthgen.core.errors import RecipeError
    from synthgen.recipe import list_recipes, load_recipe

    rows = []
    for name, path in list_recipes().items():
        try:
            recipe = load_recipe(path)
            trains = [s for s in ("labels", "images") if getattr(recipe, s) is not None]
            state = f"trains {' and '.join(trains)}" if trains else "empty"
        except RecipeError as error:
            state = f"unusable: {error}"
        rows.append({"recipe": name, "state": state, "file": str(path)})
    return rows
