"""`synthgen info [models|styles|recipes|formats]`: what there is to use."""

import json
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any

import typer

from synthgen.cli.generation import STARTER, JsonOption, WorkspaceOption, size
from synthgen.core.model_folder import INDEX, read_card, read_record
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
    """List models, styles, recipes and formats; `models` alone shows their cards too."""
    listing = {t.value: _list(t, Workspace(workspace)) for t in ([topic] if topic else Topic)}
    if as_json:
        print(json.dumps(listing, indent=1))
        return
    for name, rows in listing.items():
        print(f"{name}:" if rows else f"{name}: none in {workspace}")
        for row in rows:
            print("  " + "  ".join(_shown(row)))
    for row in listing["models"] if topic is Topic.MODELS else ():
        print(f"\n----- {row['model']} -----\n\n{row['card'].rstrip()}")


def _shown(row: dict[str, Any]) -> list[str]:
    """Return the values of a row for people, the card left out."""
    shown = {**row, "subjects": f"{row.get('subjects')} subjects"} if "subjects" in row else row
    return [
        size(value) if key == "bytes" else str(value)
        for key, value in shown.items()
        if key != "card"
    ]


def _list(topic: Topic, workspace: Workspace) -> list[dict[str, Any]]:
    match topic:
        case Topic.MODELS:
            return _models(workspace)
        case Topic.STYLES:
            from synthgen.cli.styles import known_styles

            return known_styles(None, workspace.root)
        case Topic.RECIPES:
            return _recipes()
        case Topic.FORMATS:
            return [
                {"format": "synthgen-store/1", "is": "training data, one HDF5 file (prepare)"},
                {"format": "synthgen-dataset/1", "is": "generated dataset: manifest and shards"},
                {"format": "synthgen-shard/1", "is": "one checksummed HDF5 file of a dataset"},
                {"format": "nnunet", "is": "export: nnU-Net raw folder, also an imagefolder"},
                {"format": "nifti", "is": "export: BIDS derivatives with partial volumes"},
                {"format": "hf", "is": "export: Parquet for datasets.load_dataset"},
                {"format": "diffusers", "is": "model folder: model_index.json and safetensors"},
            ]


def _models(workspace: Workspace) -> list[dict[str, Any]]:
    from synthgen.starter import FOLDER, starter_names

    folders = {p.parent.name: p.parent for p in (workspace.root / "models").glob(f"*/{INDEX}")}
    shipped = [(f"{STARTER}{name}", FOLDER / name) for name in starter_names()]
    found = sorted(folders.items()) + shipped
    return [_model(name, folder) for name, folder in found]


def _model(name: str, folder: Path) -> dict[str, Any]:
    """Return what a model folder says of itself, without a look at its weights."""
    where = {
        "bytes": sum(path.stat().st_size for path in folder.rglob("*") if path.is_file()),
        "folder": str(folder),
    }
    try:
        record = read_record(folder)
        recipe = record["training"].get("recipe", "unknown recipe")
        return {
            "model": name,
            "kind": record["kind"],
            "recipe": recipe["name"] if isinstance(recipe, dict) else recipe,
            "subjects": len(record["subjects"]),
            **where,
            "card": read_card(folder),
        }
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        return {"model": name, "kind": "unreadable", **where, "card": str(error)}


def _recipes() -> list[dict[str, Any]]:
    from synthgen.core.errors import RecipeError
    from synthgen.recipe import list_recipes, load_recipe

    rows = []
    for name, path in list_recipes().items():
        try:
            recipe = load_recipe(path)
            trains = [s for s in ("labels", "images") if getattr(recipe, s) is not None]
            other = "empty" if recipe.benchmark is None else "budgets of benchmark"
            state = f"trains {' and '.join(trains)}" if trains else other
        except RecipeError as error:
            state = f"unusable: {error}"
        rows.append({"recipe": name, "state": state, "file": str(path)})
    return rows
