"""Dataset and model manifests: identity, provenance and the subjects that were seen.

Same identity, same data: the identity holds all that decides a dataset's bytes. Provenance
(versions, device, time) is for people and never compared.
"""

from __future__ import annotations

import hashlib
import json
import os
import platform
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from importlib import metadata
from typing import TYPE_CHECKING, Any

from synthgen.core.errors import RequestError, StoreError
from synthgen.core.input_files import is_list_of, read_json

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

FORMAT = "synthgen-dataset/1"
MANIFEST = "manifest.json"
_SEAL = "sha256"
_REMEDY = "restore it from a copy, or delete the dataset and make it again"


def canonical_json(value: object) -> str:
    """Return JSON with sorted keys and no spaces: equal values give equal text."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False)


def digest(value: object) -> str:
    """Return the SHA-256 hex digest of a JSON-able value."""
    return hashlib.sha256(canonical_json(value).encode()).hexdigest()


def file_digest(path: Path) -> str:
    """Return the SHA-256 hex digest of a file's bytes."""
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def sealed(body: Mapping[str, Any]) -> dict[str, Any]:
    """Return a JSON-able document with the digest of its content, for `unsealed` to compare."""
    plain: dict[str, Any] = json.loads(json.dumps({**body, _SEAL: None}))
    del plain[_SEAL]
    return plain | {_SEAL: digest(plain)}


def unsealed(document: Mapping[str, Any]) -> dict[str, Any]:
    """Return the content of a document that `sealed` returned, read back from JSON.

    Documents without a digest, of versions that did not write one, are taken as they are.

    Raises:
        ValueError: the content is not what was sealed.
    """
    plain = {key: value for key, value in document.items() if key != _SEAL}
    if _SEAL in document and document[_SEAL] != digest(plain):
        raise ValueError("damaged: its checksum differs")
    return plain


def require_digest(path: Path, expected: str, remedy: str) -> None:
    """Refuse a file that is not what was written.

    Raises:
        StoreError: missing or damaged; the message ends with `remedy`.
    """
    if not path.is_file():
        raise StoreError(f"{path}: missing; {remedy}")
    found = file_digest(path)
    if found != expected:
        raise StoreError(
            f"{path}: damaged, its SHA-256 is {found[:12]}... and not {expected[:12]}...; {remedy}"
        )


def write_atomic(path: Path, data: bytes) -> None:
    """Write a file whole or not at all: temporary neighbour, fsync, rename.

    Raises:
        StoreError: the disk is full or the folder cannot be written; an older file stays.
    """
    temporary = temporary_of(path)
    try:
        with temporary.open("wb") as stream:
            stream.write(data)
            stream.flush()
            os.fsync(stream.fileno())
        temporary.replace(path)
    except BaseException as error:
        with suppress(OSError):  # of a disk that is read-only, say
            temporary.unlink()
        if not isinstance(error, OSError):
            raise
        raise StoreError(
            f"{path}: could not be written ({error.strerror or error}); "
            "free space or choose another folder, then run the same command again"
        ) from error


def temporary_of(path: Path) -> Path:
    """Return the name under which this process writes a file or folder until it is whole."""
    return path.with_name(f".{path.name}.{os.getpid()}.tmp")


def sweep(folder: Path, pattern: str) -> None:
    """Delete the temporary files of a pattern, which a killed process left; see `temporary_of`."""
    for leftover in folder.glob(pattern):
        leftover.unlink(missing_ok=True)


def provenance() -> dict[str, str]:
    """Return the versions that made a dataset: synthgen, Python, platform, main libraries."""
    versions = {"python": platform.python_version(), "platform": platform.platform()}
    for package in ("synthgen", "torch", "diffusers", "monai", "numpy", "h5py"):
        try:
            versions[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            versions[package] = "absent"
    return versions


@dataclass(frozen=True)
class Manifest:
    """What a dataset folder is.

    Attributes:
        kind: "labels", "images" or "angiograms".
        identity: all that decides the bytes: model hash, seed, sizes, condition, schema.
        n: number of samples asked for so far (the total; it may grow).
        subjects: real subjects that any ancestor model saw.
        provenance: versions and the like, never compared.
        schema: the label schema's JSON.
    """

    kind: str
    identity: Mapping[str, Any]
    n: int
    schema: str
    subjects: Sequence[str] = ()
    provenance: Mapping[str, str] = field(default_factory=provenance)

    def write(self, folder: Path) -> None:
        """Write `manifest.json` into `folder`, atomically."""
        body = {"format": FORMAT, **asdict(self)}
        text = json.dumps(sealed(body), indent=1, sort_keys=True)
        write_atomic(folder / MANIFEST, text.encode() + b"\n")

    @classmethod
    def read(cls, folder: Path) -> Manifest:
        """Read a dataset folder's manifest.

        Raises:
            StoreError: absent, unreadable, or of another format.
        """
        path = folder / MANIFEST
        try:
            raw = read_json(path)
        except FileNotFoundError as error:
            raise StoreError(f"{path}: no such file; {folder} is not a synthgen dataset") from error
        except (OSError, ValueError) as error:
            raise StoreError(f"{path}: not readable as JSON ({error}); {_REMEDY}") from error
        if not isinstance(raw, dict) or raw.get("format") != FORMAT:
            found = raw.get("format") if isinstance(raw, dict) else type(raw).__name__
            raise StoreError(f"{path}: expected format '{FORMAT}', got {found!r}; {_REMEDY}")
        try:
            content = unsealed(raw)
            content.pop("format")
            manifest = cls(**content)
        except (TypeError, ValueError) as error:
            raise StoreError(f"{path}: not a dataset manifest ({error}); {_REMEDY}") from error
        if wrong := manifest._problem():
            raise StoreError(f"{path}: not a dataset manifest ({wrong}); {_REMEDY}")
        return manifest

    def _problem(self) -> str:
        """Return which field is none that `write` would have written, or ""."""
        text = {"kind": self.kind, "schema": self.schema}
        fine = {
            **{name: isinstance(value, str) for name, value in text.items()},
            "n": type(self.n) is int and self.n >= 0,
            "identity": isinstance(self.identity, dict),
            "subjects": is_list_of(self.subjects, str),
            "provenance": isinstance(self.provenance, dict)
            and is_list_of([*self.provenance.values()], str),
        }
        wrong = [name for name, good in fine.items() if not good]
        return f"'{wrong[0]}' is {getattr(self, wrong[0])!r:.60}" if wrong else ""

    def require_same_identity(self, other: Manifest, folder: Path) -> None:
        """Refuse to continue a folder that holds another dataset.

        Raises:
            RequestError: naming every identity field that differs, with both values.
        """
        differing = [
            f"{key}: there {self.identity.get(key)!r}, asked {other.identity.get(key)!r}"
            for key in sorted(set(self.identity) | set(other.identity))
            if self.identity.get(key) != other.identity.get(key)
        ]
        if self.kind != other.kind:
            differing.insert(0, f"kind: there {self.kind!r}, asked {other.kind!r}")
        if differing:
            raise RequestError(
                f"{folder} holds another dataset ({'; '.join(differing)}); "
                "choose another --out, or repeat the settings it was made with"
            )
