"""Validation errors of recipes as one line: the key's path, what came, the nearest names."""

from __future__ import annotations

from difflib import get_close_matches
from typing import TYPE_CHECKING, Any, get_args

from pydantic import BaseModel, ValidationError

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from pydantic_core import ErrorDetails

_MOST = 3
"""How many problems one line names."""


def describe(error: ValidationError, root: type[BaseModel], overrides: Mapping[str, str]) -> str:
    """Describe a validation error on one line.

    Args:
        error: what pydantic raised.
        root: the model that was validated.
        overrides: key path to the override that set it, to name it as the cause.
    """
    problems = error.errors(include_url=False)
    # A typo gives an unknown key and a missing one; the unknown key says it all.
    unknown = [p for p in problems if p["type"] == "extra_forbidden"]
    shown = [_problem(p, root, overrides) for p in (unknown or problems)[:_MOST]]
    more = len(unknown or problems) - len(shown)
    return "; ".join(shown) + (f"; and {more} more" if more else "")


def _problem(problem: ErrorDetails, root: type[BaseModel], overrides: Mapping[str, str]) -> str:
    path, siblings = _locate(problem["loc"], root)
    cause = next((f" (from -o {o})" for k, o in overrides.items() if _related(path, k)), "")
    if problem["type"] == "extra_forbidden":
        return f"unknown key '{path}'{cause}; {_nearest(path, siblings, root)}"
    if problem["type"] == "missing":
        return f"missing key '{path}'"
    message = " ".join(problem["msg"].removeprefix("Value error, ").split())
    value = repr(problem["input"])
    return f"key '{path}': {message}, got {value if len(value) < 60 else value[:57] + '...'}{cause}"


def _related(path: str, key: str) -> bool:
    """Tell whether one dotted path is, or lies below, the other."""
    longer, shorter = sorted((f"{path}.", f"{key}."), key=len, reverse=True)
    return longer.startswith(shorter)


def _locate(location: Sequence[int | str], root: type[BaseModel]) -> tuple[str, list[str]]:
    """Return the dotted key path of a pydantic location, and the keys its section has.

    Locations also hold the tags of unions, which are no keys of the document: they are left out.
    """
    models, names, fields = [root], [], _fields([root])
    for depth, part in enumerate(location):
        fields = _fields(models)
        if part in fields:
            names.append(str(part))
            models = list(_models(fields[str(part)]))
        elif isinstance(part, int) or not models or depth == len(location) - 1:
            names.append(str(part))
    return ".".join(names), sorted(fields)


def _fields(models: Sequence[type[BaseModel]]) -> dict[str, Any]:
    """Return key to annotation over all candidate models of one section."""
    return {
        field.alias or name: field.annotation
        for model in models
        for name, field in model.model_fields.items()
    }


def _models(annotation: Any) -> Iterator[type[BaseModel]]:  # noqa: ANN401 - any type form
    """Yield the recipe models that an annotation mentions."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        yield annotation
    for argument in get_args(annotation):
        yield from _models(argument)


def _paths(models: Sequence[type[BaseModel]], prefix: str = "") -> Iterator[str]:
    """Yield the dotted path of every key."""
    for name, annotation in _fields(models).items():
        yield prefix + name
        yield from _paths(list(_models(annotation)), f"{prefix}{name}.")


def _nearest(path: str, siblings: list[str], root: type[BaseModel]) -> str:
    name = path.rpartition(".")[2]
    close = get_close_matches(name, siblings, n=_MOST, cutoff=0.6)
    if not close:
        close = [p for p in _paths([root]) if p.rpartition(".")[2] == name][:_MOST]
    if close:
        return f"did you mean {' or '.join(close)}?"
    return f"expected one of {', '.join(siblings)}"
