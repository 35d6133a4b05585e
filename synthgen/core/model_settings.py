"""What a model folder may hold: weights without programs, settings within measure.

diffusers imports the modules that `model_index.json` names, falls back to pickled weights where it
finds no others, runs `NAME.py` beside them on request, and builds whatever size of network the
settings ask for before it looks at the weights. A model folder may come from anybody, so all of
this is refused first.
"""

from __future__ import annotations

import math
import re
from typing import TYPE_CHECKING, Any

from synthgen.core.errors import StoreError
from synthgen.core.input_files import read_object

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

MAX_SETTING = 2**16
"""Largest whole number in a network's settings: channels, sides, steps of a schedule."""
MAX_COUNT = 64
"""Largest number of layers or blocks of one kind, and of entries in a list of whole numbers."""
MAX_ELEMENTS = 2**28
"""Largest product of a shape in the settings."""

_KINDS = (".json", ".safetensors", ".md")
_PROGRAMS = re.compile(
    r".*\.(bin|pt|pth|pt2|ckpt|pkl|pickle|joblib|npy|npz|msgpack|onnx|py|pyc|so|index\.json)", re.I
)
_COUNTS = re.compile(r"layers|blocks|depth|repeat")
_SHAPES = re.compile(r"shape|size")
_LIBRARIES = re.compile(r"diffusers|synthgen(\.\w+)+")
_NAME = re.compile(r"[A-Za-z_]\w*")


def require_model_file(record: Path, name: str) -> None:
    """Refuse a name in a model's list of files that leaves the folder or is no model file's.

    Raises:
        StoreError: naming the list, `record`, and the file.
    """
    parts = name.split("/")
    plain = all(part and not part.startswith(".") for part in parts) and not {*"\\\0"} & {*name}
    if not plain or not name.endswith(_KINDS) or _PROGRAMS.fullmatch(name):
        raise StoreError(
            f"{record}: lists the file '{name}'; expected {', '.join(_KINDS)} inside the folder"
        )


def require_no_programs(folder: Path) -> None:
    """Refuse a model folder that holds pickles or code, listed or not.

    Raises:
        StoreError: naming the first such file.
    """
    for path in sorted(folder.rglob("*")):
        if _PROGRAMS.fullmatch(path.name) and not path.is_dir():
            raise StoreError(
                f"{path}: a model of synthgen is safetensors and JSON; what can run code is never "
                "read, delete this file"
            )


def require_plain_settings(path: Path, *, index: bool) -> None:
    """Refuse settings that no network can have, and indices that name foreign code.

    Args:
        path: a JSON file of a model folder.
        index: whether it is `model_index.json`.

    Raises:
        StoreError: naming the file and the setting.
    """
    settings = read_object(path)
    problem = next(_problems(settings, ""), "") or (_index_problem(settings) if index else "")
    if problem:
        raise StoreError(f"{path}: {problem}; copy the model again or train it again")


def _problems(value: Any, key: str) -> Iterator[str]:  # noqa: ANN401 - any JSON value
    """Yield what is beyond measure in settings that stand under a key."""
    if isinstance(value, dict):
        for name, entry in value.items():
            yield from _problems(entry, name)
    elif isinstance(value, list):
        whole = [entry for entry in value if type(entry) is int]
        if whole and len(value) > MAX_COUNT:
            yield f"'{key}' has {len(value)} entries, at most {MAX_COUNT} are read"
        if _SHAPES.search(key) and whole and math.prod(whole) > MAX_ELEMENTS:
            yield f"'{key}' is {value}, more than {MAX_ELEMENTS} elements"
        for entry in value:
            yield from _problems(entry, key)
    elif type(value) is int:
        most = MAX_COUNT if _COUNTS.search(key) else MAX_SETTING
        if abs(value) > most:
            yield f"'{key}' is {value}, at most {most} is read"


def _index_problem(index: dict[str, Any]) -> str:
    """Return which entry of a model index is no pipeline or component of ours, or ""."""
    if not isinstance(index.get("_class_name", ""), str):
        return f"'_class_name' is {index['_class_name']!r:.60}"
    for name, entry in index.items():
        pair = isinstance(entry, list) and len(entry) == 2
        if not pair or all(type(part) in (int, float) for part in entry):
            continue
        library, kind = entry
        known = isinstance(library, str) and _LIBRARIES.fullmatch(library)
        named = isinstance(kind, str) and _NAME.fullmatch(kind) and _NAME.fullmatch(name)
        if entry != [None, None] and not (known and named):
            return f"'{name}' names {entry!r:.80}, expected a class of diffusers or synthgen"
    return ""
