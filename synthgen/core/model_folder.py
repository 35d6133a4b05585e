"""Model folders: written whole or not at all, and checked file by file when loaded.

Beside diffusers' `model_index.json` and the components stand `synthgen.json` (kind, checksums of
every file that decides the output, subjects seen, training facts), `schema.json` and `card.md`.
"""

from __future__ import annotations

import glob
import json
import os
import shutil
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from synthgen.core.errors import SchemaError, StoreError
from synthgen.core.input_files import is_list_of, read_bytes, read_json, read_text
from synthgen.core.lock import file_lock
from synthgen.core.manifest import (
    digest,
    file_digest,
    provenance,
    require_digest,
    sealed,
    temporary_of,
    unsealed,
)
from synthgen.core.model_settings import (
    MAX_ELEMENTS,
    MAX_SETTING,
    require_model_file,
    require_no_programs,
    require_plain_settings,
)
from synthgen.core.schema import LabelSchema

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from pathlib import Path

FORMAT = "synthgen-model/1"
RECORD, SCHEMA, CARD, INDEX = "synthgen.json", "schema.json", "card.md", "model_index.json"
REMEDY = "copy the model again or train it again"


@dataclass(frozen=True)
class ModelFolder:
    """A checked model folder.

    Attributes:
        record: the content of `synthgen.json`.
        schema: the label schema of its maps.
    """

    record: Mapping[str, Any]
    schema: LabelSchema

    @property
    def files(self) -> Mapping[str, str]:
        """SHA-256 of every file that decides the output."""
        files: Mapping[str, str] = self.record["files"]
        return files

    @property
    def digest(self) -> str:
        """SHA-256 of these files' checksums: the model's identity."""
        return files_digest(self.record)


def write_model_folder(
    folder: Path,
    save: Callable[[Path], None],
    *,
    kind: str,
    schema: LabelSchema,
    card: str,
    record: Mapping[str, Any],
) -> None:
    """Write a model folder beside its place, then put it there; an older one is replaced.

    Args:
        folder: the model folder.
        save: writes weights and configurations into the folder it is given; raises OSError.
        kind: "labels", "images" or "angiograms".
        schema: the label schema of its maps.
        card: text of `card.md`.
        record: further content of `synthgen.json`, JSON-able.

    Raises:
        RequestError: another process writes this model.
        StoreError: it cannot be written; an older folder stays.
    """
    with file_lock(folder, f"{kind} model") as alone:
        if alone:
            _clear(folder)
        _write(folder, save, {**record, "format": FORMAT, "kind": kind}, schema, card)


def _left_behind(folder: Path, suffix: str) -> list[Path]:
    """Return what killed processes left beside a model folder."""
    return sorted(folder.parent.glob(f".{glob.escape(folder.name)}.*.{suffix}"))


def _clear(folder: Path) -> None:
    """Put back an older model that a killed process had moved away, and delete its rubbish."""
    for old in _left_behind(folder, "old"):
        if not folder.exists():
            old.rename(folder)
    for rubbish in (*_left_behind(folder, "old"), *_left_behind(folder, "tmp")):
        shutil.rmtree(rubbish, ignore_errors=True)


def _write(
    folder: Path,
    save: Callable[[Path], None],
    body: Mapping[str, Any],
    schema: LabelSchema,
    card: str,
) -> None:
    temporary = temporary_of(folder)
    old = folder.with_name(f".{folder.name}.{os.getpid()}.old")
    try:
        shutil.rmtree(temporary, ignore_errors=True)
        temporary.mkdir(parents=True)
        save(temporary)
        _forget_origin(temporary)
        (temporary / SCHEMA).write_text(schema.to_json() + "\n")
        files = {
            path.relative_to(temporary).as_posix(): file_digest(path)
            for path in sorted(temporary.rglob("*"))
            if path.is_file()
        }
        whole = sealed({**body, "files": files, "provenance": provenance()})
        text = json.dumps(whole, indent=1, sort_keys=True)
        (temporary / RECORD).write_text(text + "\n")
        (temporary / CARD).write_text(card)
        if folder.exists():
            folder.rename(old)
        temporary.rename(folder)
    except BaseException as error:
        shutil.rmtree(temporary, ignore_errors=True)
        if old.exists() and not folder.exists():
            old.rename(folder)
        if not isinstance(error, OSError):
            raise
        raise StoreError(
            f"{folder}: the model could not be written ({error}); free space, then run again"
        ) from error
    shutil.rmtree(old, ignore_errors=True)


def _forget_origin(folder: Path) -> None:
    """Drop the path from which diffusers loaded a network, which it adds to its settings."""
    for path in folder.rglob("*.json"):
        settings = read_json(path)
        if isinstance(settings, dict) and settings.pop("_name_or_path", None) is not None:
            path.write_text(json.dumps(settings, indent=2, sort_keys=True) + "\n")


def read_record(folder: Path, kind: str | None = None) -> dict[str, Any]:
    """Return the content of `synthgen.json`; no other file is looked at.

    Raises:
        StoreError: no such folder, or of another kind than `kind`.
    """
    path = folder / RECORD
    try:
        record = read_json(path)
    except (FileNotFoundError, NotADirectoryError) as error:
        command = f"synthgen train {kind}" if kind else "synthgen train"
        moved = "".join(
            f"; {old} is an older one that a killed process left: rename it"
            for old in _left_behind(folder, "old")
        )
        raise StoreError(
            f"{path}: no such file; expected a model folder that `{command}` wrote{moved}"
        ) from error
    except (OSError, ValueError) as error:
        raise StoreError(f"{path}: not readable as JSON ({error}); {REMEDY}") from error
    found = (record.get("format"), record.get("kind")) if isinstance(record, dict) else record
    if not isinstance(record, dict) or found != (FORMAT, kind or record.get("kind")):
        wanted = f" of kind '{kind}'" if kind else ""
        raise StoreError(f"{path}: expected format '{FORMAT}'{wanted}, got {found!r}; {REMEDY}")
    try:
        record = unsealed(record)
    except ValueError as error:
        raise StoreError(f"{path}: {error}; {REMEDY}") from error
    _require_files(path, record.get("files"))
    if not is_list_of(record.get("subjects", []), str):
        raise StoreError(f"{path}: 'subjects' must be a list of names; {REMEDY}")
    return record


def _require_files(path: Path, files: object) -> None:
    """Refuse a list of files that no model has."""
    listed = files if isinstance(files, dict) else {}
    for name in (INDEX, SCHEMA):
        if name not in listed:
            raise StoreError(f"{path}: lists no file {name}; {REMEDY}")
    if not is_list_of([*listed.values()], str):
        raise StoreError(f"{path}: 'files' must hold checksums; {REMEDY}")
    for name in listed:
        require_model_file(path, name)


def read_shape(record: Mapping[str, Any]) -> tuple[int, int]:
    """Return the size (X, Y) of a model's images, from its record.

    Raises:
        ValueError, TypeError, KeyError: the record does not say, or says what cannot be.
    """
    x, y = (int(side) for side in record["shape"])
    if not (1 <= x <= MAX_SETTING and 1 <= y <= MAX_SETTING and x * y <= MAX_ELEMENTS):
        raise ValueError(f"no model of images has the shape {record['shape']}")
    return x, y


def files_digest(record: Mapping[str, Any]) -> str:
    """Return the digest of the files that a model's record lists; see `ModelFolder.digest`."""
    return digest(dict(record["files"]))


def read_model_folder(folder: Path, kind: str | None = None) -> ModelFolder:
    """Check every file of a model folder.

    Args:
        folder: the model folder.
        kind: "labels", "images" or "angiograms"; None for any.

    Raises:
        StoreError: no such folder, of another kind; a file is missing or damaged, by name; or it
            holds what no model of synthgen holds: pickles, code, settings beyond measure.
    """
    record = read_record(folder, kind)
    require_no_programs(folder)
    for name, expected in record["files"].items():
        require_digest(folder / name, expected, REMEDY)
    for name in record["files"]:
        if name.endswith(".json") and name != SCHEMA:
            require_plain_settings(folder / name, index=name == INDEX)
    try:
        schema = LabelSchema.from_json(read_text(folder / SCHEMA))
    except (OSError, SchemaError, ValueError) as error:
        raise StoreError(f"{folder / SCHEMA}: {error}") from error
    return ModelFolder(record, schema)


def read_card(folder: Path) -> str:
    """Return the text of `card.md`, which no checksum guards; "" without one."""
    path = folder / CARD
    return read_bytes(path).decode(errors="replace") if path.is_file() else ""
