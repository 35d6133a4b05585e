"""Vessel-free pictures inside a model folder: what a trained renderer paints on."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import numpy as np
from safetensors import safe_open
from safetensors.numpy import save_file

from synthgen.core.input_files import parse_json, unusable
from synthgen.core.model_folder import REMEDY
from synthgen.images.angiogram.backgrounds import Background
from synthgen.runtime import tensor_files

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

    import numpy.typing as npt

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
    with unusable(path, REMEDY), tensor_files(), safe_open(path, framework="numpy") as file:
        facts = parse_json(file.metadata()[_TEXTS])
        return tuple(_background(file.get_tensor(f"{i:05d}"), f) for i, f in enumerate(facts))


def _background(picture: npt.NDArray[Any], fact: Mapping[str, Any]) -> Background:
    field, disc = (tuple(float(v) for v in fact[name]) for name in ("field", "disc"))
    if picture.ndim != 2 or picture.dtype != np.uint8 or not picture.size:
        raise ValueError(f"no picture of bytes: {picture.dtype} of shape {picture.shape}")
    if not (len(field) == len(disc) == 3 and np.isfinite([*field, *disc]).all()):
        raise ValueError(f"no circles of three numbers: {field} and {disc}")
    return Background(
        image=picture.astype(np.float32) / np.float32(255),
        name=str(fact["name"]),
        field=field,
        disc=disc,
        subject=str(fact["subject"]),
    )
