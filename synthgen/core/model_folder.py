"""Model folders: written whole or not at all, and checked file by file when loaded.

Beside diffusers' `model_index.json` and the components stand `synthgen.json` (kind, checksums of
every file that decides the output, subjects seen, training facts), `schema.json` and `card.md`.
"""

from __future__ import annotations

import json
import os
import shutil
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from synthgen.core.errors import SchemaError, StoreError
from synthgen.core.lock import file_lock
from synthgen.core.manifest import digest, file_digest, provenance
from synthgen.core.schema import LabelSchema

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from pathlib import Path

FORMAT = "synthgen-model/1"
RECORD, SCHEMA, CARD, INDEX = "synthgen.json", "schema.json", "card.md", "model_index.json"
_REMEDY = "copy the model again or train it again"


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
    with file_lock(folder, f"{kind} model"):
        _write(folder, save, {**record, "format": FORMAT, "kind": kind}, schema, card)


def _write(
    folder: Path,
    save: Callable[[Path], None],
    body: Mapping[str, Any],
    schema: LabelSchema,
    card: str,
) -> None:
    temporary = folder.with_name(f".{folder.name}.{os.getpid()}.tmp")
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
        whole = {**body, "files": files, "provenance": provenance()}
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
        settings = json.loads(path.read_bytes())
        if isinstance(settings, dict) and settings.pop("_name_or_path", None) is not None:
            path.write_text(json.dumps(settings, indent=2, sort_keys=True) + "\n")


def read_record(folder: Path, kind: str | None = None) -> dict[str, Any]:
    """Return the content of `synthgen.json`; no other file is looked at.

    Raises:
        StoreError: no such folder, or of another kind than `kind`.
    """
    path = folder / RECORD
    try:
        record = json.loads(path.read_bytes())
    except (FileNotFoundError, NotADirectoryError) as error:
        command = f"synthgen train {kind}" if kind else "synthgen train"
        raise StoreError(
            f"{path}: no such file; expected a model folder that `{command}` wrote"
        ) from error
    except (OSError, ValueError) as error:
        raise StoreError(f"{path}: not readable as JSON ({error}); {_REMEDY}") from error
    found = (record.get("format"), record.get("kind")) if isinstance(record, dict) else record
    if not isinstance(record, dict) or found != (FORMAT, kind or record.get("kind")):
        wanted = f" of kind '{kind}'" if kind else ""
        raise StoreError(f"{path}: expected format '{FORMAT}'{wanted}, got {found!r}")
    files = record.get("files")
    for name in (INDEX, SCHEMA):
        if not isinstance(files, dict) or name not in files:
            raise StoreError(f"{path}: lists no file {name}; {_REMEDY}")
    return record


def files_digest(record: Mapping[str, Any]) -> str:
    """Return the digest of the files that a model's record lists; see `ModelFolder.digest`."""
    return digest(dict(record["files"]))


def read_model_folder(folder: Path, kind: str | None = None) -> ModelFolder:
    """Check every file of a model folder.

    Args:
        folder: the model folder.
        kind: "labels", "images" or "angiograms"; None for any.

    Raises:
        StoreError: no such folder, of another kind, or a file is missing or damaged, by name.
    """
    record = read_record(folder, kind)
    for name, expected in record["files"].items():
        _check_file(folder / name, expected)
    try:
        schema = LabelSchema.from_json((folder / SCHEMA).read_text())
    except SchemaError as error:
        raise StoreError(f"{folder / SCHEMA}: {error}") from error
    return ModelFolder(record, schema)


def _check_file(path: Path, expected: str) -> None:
    if not path.is_file():
        raise StoreError(f"{path}: missing, the model is incomplete; {_REMEDY}")
    found = file_digest(path)
    if found != expected:
        raise StoreError(
            f"{path}: damaged, its SHA-256 is {found[:12]}... and not {expected[:12]}... as "
            f"{RECORD} says; {_REMEDY}"
        )
