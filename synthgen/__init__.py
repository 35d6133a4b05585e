"""Synthetic, labelled medical images: soft label maps first, then images in many styles.

The public names load on first use, so that `import synthgen` costs nothing.
"""

from __future__ import annotations

from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from synthgen.core.schema import LabelSchema
    from synthgen.data.shards import Shards
    from synthgen.data.store import TrainingStore
    from synthgen.images import ImageGenerator
    from synthgen.images.angiogram.darl import AngiogramPipeline
    from synthgen.labels import LabelGenerator
    from synthgen.recipe import Recipe, load_recipe

__version__ = "0.1.0"

__all__ = ["LabelSchema", "Recipe", "Shards", "TrainingStore", "__version__", "load_pipeline"]
__all__ += ["load_recipe"]

_HOMES = {
    "LabelSchema": "synthgen.core.schema",
    "Recipe": "synthgen.recipe",
    "Shards": "synthgen.data.shards",
    "TrainingStore": "synthgen.data.store",
    "load_recipe": "synthgen.recipe",
}


def load_pipeline(
    folder: str | Path, *, device: str = "cpu"
) -> LabelGenerator | ImageGenerator | AngiogramPipeline:
    """Open a model folder, whichever kind of generator it holds.

    Args:
        folder: what `synthgen train` wrote.
        device: a torch device.

    Raises:
        StoreError: the folder is no model of synthgen, or a file is missing or damaged.
    """
    # Imported here, so that `import synthgen` costs nothing.
    from synthgen.core.errors import StoreError  # noqa: PLC0415
    from synthgen.core.input_files import read_json  # noqa: PLC0415
    from synthgen.images import load_image_generator  # noqa: PLC0415
    from synthgen.labels import load_label_generator  # noqa: PLC0415

    folder = Path(folder)
    index = folder / "model_index.json"
    try:
        name = read_json(index)["_class_name"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise StoreError(
            f"{index}: expected a model that `synthgen train` wrote ({error})"
        ) from error
    match name:
        case "LabelDiffusionPipeline":
            return load_label_generator(folder, device=device)
        case "SpadePipeline":
            return load_image_generator(folder, device=device)
        case "AngiogramPipeline":
            from synthgen.images.angiogram.darl import AngiogramPipeline  # noqa: PLC0415

            return AngiogramPipeline.load(folder, device=device)
    raise StoreError(
        f"{index}: expected a LabelDiffusionPipeline, SpadePipeline or AngiogramPipeline, "
        f"got {name!r}"
    )


def __getattr__(name: str) -> object:
    """Import a public name on first use (PEP 562)."""
    if name not in _HOMES:
        raise AttributeError(f"module 'synthgen' has no attribute '{name}'")
    return getattr(import_module(_HOMES[name]), name)


def __dir__() -> list[str]:
    return sorted([*globals(), *_HOMES])
