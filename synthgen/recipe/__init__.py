"""Recipes: every setting of a model, as one YAML document.

A recipe holds all scientific numbers, with their sources as comments; code holds none. Any value
can be overridden by its path: `-o labels.diffusion.train.lr=1e-4`.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from pydantic import Field, PlainSerializer, PlainValidator, ValidationError

from synthgen.core.errors import RecipeError, SchemaError
from synthgen.core.input_files import read_text
from synthgen.core.manifest import digest
from synthgen.core.schema import SCHEMAS, LabelSchema, Tissue
from synthgen.recipe.angiograms import AngiogramRecipe
from synthgen.recipe.base import Strict
from synthgen.recipe.benchmark import BenchmarkRecipe
from synthgen.recipe.distil import DistilRecipe
from synthgen.recipe.hidiff import HidiffRecipe
from synthgen.recipe.images import ImageRecipe
from synthgen.recipe.imgx import ImgxRecipe
from synthgen.recipe.labels import LabelRecipe
from synthgen.recipe.messages import describe
from synthgen.recipe.yaml12 import MAX_BYTES, parse, render

if TYPE_CHECKING:
    from collections.abc import Sequence

__all__ = ["AngiogramRecipe", "BenchmarkRecipe", "DistilRecipe", "HidiffRecipe", "ImageRecipe"]
__all__ += [
    "ImgxRecipe",
    "LabelRecipe",
    "Recipe",
    "dump",
    "find_recipe",
    "list_recipes",
    "load_recipe",
]

_LATER = ("angiograms", "imgx", "hidiff", "distil")
"""Sections that came later: where absent, they change no fingerprint."""


def _read_schema(value: object) -> LabelSchema:
    if isinstance(value, LabelSchema):
        return value
    if isinstance(value, str) and value in SCHEMAS:
        return SCHEMAS[value]
    if not isinstance(value, list):
        raise ValueError(f"expected {' or '.join(SCHEMAS)}, or a list of tissues")  # noqa: TRY004
    tissues = []
    for entry in value:
        if not isinstance(entry, dict) or not {"name", "value"} <= set(entry):
            raise ValueError("each tissue needs a name and a value, and lesion: true for a lesion")
        unknown = sorted(set(entry) - {"name", "value", "lesion"})
        if unknown:
            raise ValueError(f"a tissue has no key '{unknown[0]}'; it has name, value, lesion")
        tissues.append(
            Tissue(str(entry["name"]), int(entry["value"]), bool(entry.get("lesion", False)))
        )
    return LabelSchema("custom", tuple(tissues))


def _write_schema(schema: LabelSchema) -> object:
    if schema in SCHEMAS.values():
        return schema.name
    return [{"name": t.name, "value": t.value, "lesion": t.lesion} for t in schema.tissues]


class Recipe(Strict):
    """One recipe: a name, a label schema, and a section for each stage it can train.

    Attributes:
        name: names the runs and the models.
        label_schema: `schema` in the document: `brain9`, `vessel`, or a list of tissues.
        labels: settings of `synthgen train labels`.
        distil: settings of `synthgen train distil`.
        images: settings of `synthgen train images`.
        angiograms: settings of `synthgen train angiograms`.
        imgx: settings of `synthgen train imgx`.
        hidiff: settings of `synthgen train hidiff`.
        benchmark: settings of `synthgen benchmark`.
    """

    name: str = Field(min_length=1, pattern=r"^[a-z0-9][a-z0-9_-]*$")
    label_schema: Annotated[
        LabelSchema, PlainValidator(_read_schema), PlainSerializer(_write_schema)
    ] = Field(alias="schema")
    labels: LabelRecipe | None = None
    distil: DistilRecipe | None = None
    images: ImageRecipe | None = None
    angiograms: AngiogramRecipe | None = None
    imgx: ImgxRecipe | None = None
    hidiff: HidiffRecipe | None = None
    benchmark: BenchmarkRecipe | None = None

    @property
    def fingerprint(self) -> str:
        """SHA-256 hex digest of all that a training reads, overrides included."""
        absent = {name for name in _LATER if getattr(self, name) is None}
        return digest(self.model_dump(mode="json", by_alias=True, exclude={"benchmark"} | absent))


def load_recipe(path_or_name: str | Path, overrides: Sequence[str] = ()) -> Recipe:
    """Load and check a recipe.

    Args:
        path_or_name: a YAML file, or the name of a recipe that comes with synthgen.
        overrides: `key.path=value` each; the value is read as YAML.

    Raises:
        RecipeError: not found, not YAML, or an unknown, missing or unusable key; one line that
            names the file and the key's path.
    """
    path = find_recipe(path_or_name)
    try:
        text = read_text(path, MAX_BYTES)
    except (OSError, ValueError) as error:
        raise RecipeError(f"{path}: not readable as text ({error})") from error
    raw = parse(text, str(path))
    if not isinstance(raw, dict):
        raise RecipeError(f"{path}: expected a mapping with 'name' and 'schema', got {raw!r:.60}")
    changed = {}
    for override in overrides:
        key = _override(raw, override)
        changed[key] = override
    try:
        return Recipe.model_validate_json(json.dumps(raw))
    except ValidationError as error:
        raise RecipeError(f"{path}: {describe(error, Recipe, changed)}") from error
    except SchemaError as error:
        raise RecipeError(f"{path}: {error}") from error
    except (TypeError, ValueError) as error:
        raise RecipeError(f"{path}: holds a value that is not plain data ({error})") from error


def find_recipe(path_or_name: str | Path) -> Path:
    """Return the file of a recipe.

    Raises:
        RecipeError: neither a file nor the name of a recipe that comes with synthgen.
    """
    path = Path(path_or_name)
    if path.is_file():
        return path
    known = list_recipes()
    if str(path_or_name) in known:
        return known[str(path_or_name)]
    raise RecipeError(
        f"no recipe '{path_or_name}': neither a file nor one of {', '.join(known) or '(none)'}"
    )


def list_recipes() -> dict[str, Path]:
    """Return the recipes that come with synthgen: name to file, sorted by name."""
    package = Path(__file__).resolve().parent.parent
    # A wheel carries the recipes inside the package; a checkout has them beside it.
    for folder in (package / "recipes", package.parent / "recipes"):
        if folder.is_dir():
            return {path.stem: path for path in sorted(folder.glob("*.yaml"))}
    return {}


def dump(recipe: Recipe) -> str:
    """Return a recipe as YAML text that `load_recipe` reads back equal."""
    return render(recipe.model_dump(mode="json", by_alias=True))


def _override(raw: dict[Any, Any], override: str) -> str:
    """Put one `key.path=value` into the document and return the key path."""
    key, equals, text = override.partition("=")
    key = key.strip()
    if not equals or not key or not all(key.split(".")):
        raise RecipeError(
            f"-o {override}: expected key.path=value, such as labels.diffusion.train.lr=1e-4"
        )
    *sections, last = key.split(".")
    here = raw
    for section in sections:
        below = here.get(section)
        if below is None:
            below = here[section] = {}
        if not isinstance(below, dict):
            raise RecipeError(f"-o {override}: '{section}' is a value, not a section")
        here = below
    here[last] = parse(text, f"-o {override}")
    return key
