"""The models that ship with synthgen: `labels/` and `images/`, model folders beside this file."""

from __future__ import annotations

from pathlib import Path

from synthgen.core.model_folder import INDEX

FOLDER = Path(__file__).parent


def starter_folder(kind: str) -> Path | None:
    """Return the shipped model of a kind, such as "labels"; None if there is none."""
    folder = FOLDER / kind
    return folder if (folder / INDEX).is_file() else None
