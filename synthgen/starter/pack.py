"""Pack a trained model for shipping: weights in bfloat16, no file above a limit.

bfloat16 keeps the range of float32 and 8 bits of its precision. The networks load as float32
again; what no network needs in a hurry stays float32: the style bank's Gaussians and the table of
mean latents, some kilobytes.
"""

from __future__ import annotations

import shutil
from typing import TYPE_CHECKING

import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from synthgen.core.errors import RequestError, StoreError
from synthgen.core.model_folder import CARD, read_model_folder, write_model_folder
from synthgen.runtime import tensor_files

if TYPE_CHECKING:
    from pathlib import Path

MAX_BYTES = 16 * 2**20
"""Largest file that is shipped."""

_EXACT = ("mean", "factor", "template")
"""Tensors that stay float32: of a `StyleBank`, and the table of a `ConditionEmbedding`."""

_OWN_KEYS = ("files", "format", "kind", "provenance")


def pack_model(folder: Path, out: Path, about: Path) -> None:
    """Write a copy of a model folder with its weights in bfloat16.

    Args:
        folder: a model folder that `synthgen train` wrote.
        out: the model folder to write; an older one is replaced.
        about: Markdown that goes on the model's card: what training cannot know, such as licences
            of the data and measured quality (`recipes/starter_*.md`).

    Raises:
        StoreError: no such folder or file, a damaged file, or `out` cannot be written.
        RequestError: a packed file is larger than `MAX_BYTES`; an older `out` stays.
    """
    model = read_model_folder(folder)
    try:
        card = (folder / CARD).read_text().rstrip() + "\n\n" + about.read_text()
    except OSError as error:
        raise StoreError(f"{error.filename}: cannot be read ({error.strerror})") from error

    @tensor_files()
    def save(target: Path) -> None:
        for name in model.files:
            (target / name).parent.mkdir(parents=True, exist_ok=True)
            pack = _pack_tensors if name.endswith(".safetensors") else shutil.copyfile
            pack(folder / name, target / name)
            size = (target / name).stat().st_size
            if size > MAX_BYTES:
                raise RequestError(
                    f"{folder / name}: {size / 2**20:.1f} MiB in bfloat16, at most "
                    f"{MAX_BYTES / 2**20:g} MiB can be shipped; train a smaller network"
                )

    write_model_folder(
        out,
        save,
        kind=model.record["kind"],
        schema=model.schema,
        card=card,
        record={k: v for k, v in model.record.items() if k not in _OWN_KEYS},
    )


def _pack_tensors(source: Path, target: Path) -> None:
    with safe_open(source, framework="pt") as opened:
        metadata = opened.metadata()
    tensors = {
        name: tensor.to(torch.bfloat16)
        if tensor.is_floating_point() and name not in _EXACT
        else tensor
        for name, tensor in load_file(source).items()
    }
    save_file(tensors, target, metadata)
