"""The models that ship with synthgen: model folders beside this file, such as `labels/`."""

from __future__ import annotations

from pathlib import Path

from synthgen.core.model_folder import INDEX

FOLDER = Path(__file__).parent


def starter_folder(name: str) -> Path | None:
    """Return the shipped model of a name, such as "labels"; None if there is none."""
    folder = FOLDER / name
    return folder if (folder / INDEX).is_file() else None


def starter_names() -> list[str]:
    """Return the names of all shipped models, sorted."""
    return sorted(index.parent.name for index in FOLDER.glob(f"*/{INDEX}"))
