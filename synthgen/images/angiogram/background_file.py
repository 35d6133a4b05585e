"""Vessel-free pictures inside a model folder: what a trained renderer paints on."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

import numpy as np
from safetensors import safe_open
from safetensors.numpy import save_file

from synthgen.core.errors import StoreError
from synthgen.images.angiogram.backgrounds import Background
from synthgen.runtime import tensor_files

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

FILE = "backgrounds.safetensors"
_TEXTS = "backgrounds"


def write_backgrounds(folder: Path, backgrounds: Sequence[Background]) -> None:
    """Write `backgrounds.safetensors`: a picture each, a byte a pixel, with circles and subject.

    Raises:
        OSError: it cannot be written.
    """
    pictures = {
        f"{i:05d}": np.ascontiguousarray(np.rint(b.image * 255).astype(np.uint8))
        for i, b in enumerate(backgrounds)
    }
    facts = [
        {"name": b.name, "field": b.field, "disc": b.disc, "subject": b.subject}
        for b in backgrounds
    ]
    with tensor_files():
        save_file(pictures, folder / FILE, metadata={_TEXTS: json.dumps(facts)})


def read_backgrounds(folder: Path) -> tuple[Background, ...]:
    """Read what `write_backgrounds` wrote.

    Raises:
        StoreError: no such file, or not one of ours.
    """
    path = folder / FILE
    try:
        with tensor_files(), safe_open(path, framework="numpy") as file:
            facts = json.loads(file.metadata()[_TEXTS])
            pictures = [file.get_tensor(f"{i:05d}") for i in range(len(facts))]
    except (OSError, KeyError, TypeError, ValueError) as error:
        raise StoreError(
            f"{path}: holds no backgrounds ({error}); copy the model again or train it again"
        ) from error
    return tuple(
        Background(
            image=picture.astype(np.float32) / np.float32(255),
            name=fact["name"],
            field=tuple(fact["field"]),
            disc=tuple(fact["disc"]),
            subject=fact["subject"],
        )
        for picture, fact in zip(pictures, facts, strict=True)
    )
