"""Synthetic, labelled medical images: soft label maps first, then images in many styles.

The public names load on first use, so that `import synthgen` costs nothing.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from synthgen.core.schema import LabelSchema
    from synthgen.data.shards import Shards
    from synthgen.data.store import TrainingStore
    from synthgen.recipe import Recipe, load_recipe

__version__ = "0.1.0"

__all__ = ["LabelSchema", "Recipe", "Shards", "TrainingStore", "__version__", "load_recipe"]

_HOMES = {
    "LabelSchema": "synthgen.core.schema",
    "Recipe": "synthgen.recipe",
    "Shards": "synthgen.data.shards",
    "TrainingStore": "synthgen.data.store",
    "load_recipe": "synthgen.recipe",
}


def __getattr__(name: str) -> object:
    """Import a public name on first use (PEP 562)."""
    if name not in _HOMES:
        raise AttributeError(f"module 'synthgen' has no attribute '{name}'")
    return getattr(import_module(_HOMES[name]), name)


def __dir__() -> list[str]:
    return sorted([*globals(), *_HOMES])
