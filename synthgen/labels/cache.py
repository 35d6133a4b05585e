"""Tensors that are computed once and kept in a run's folder, checked when they are read back."""

from __future__ import annotations

import hashlib
import logging
from typing import TYPE_CHECKING

from safetensors import safe_open
from safetensors.torch import save_file

from synthgen.core.errors import StoreError
from synthgen.runtime import tensor_files

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

    import torch

logger = logging.getLogger(__name__)


def load_tensors(path: Path, names: Sequence[str], identity: str) -> dict[str, torch.Tensor] | None:
    """Return what `save_tensors` wrote, None if absent, damaged or of another identity."""
    if not path.is_file():
        return None
    try:
        with tensor_files(), safe_open(path, "pt") as file:
            found, _, values = (file.metadata() or {}).get("identity", "").rpartition("/")
            if found != identity:
                return None
            tensors = {name: file.get_tensor(name) for name in names}
        if values != _digest(tensors):
            raise StoreError("its checksum is wrong")
    except OSError as error:
        logger.warning("%s: damaged (%s), computing it anew", path, error)
        return None
    return tensors


def save_tensors(path: Path, tensors: Mapping[str, torch.Tensor], identity: str) -> None:
    """Write tensors beside their place and rename the file.

    Raises:
        StoreError: it cannot be written.
    """
    temporary = path.with_name(f".{path.name}.tmp")
    kept = {name: tensor.contiguous() for name, tensor in tensors.items()}
    # One key: safetensors writes several in no fixed order.
    metadata = {"identity": f"{identity}/{_digest(kept)}"}
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with tensor_files():
            save_file(kept, temporary, metadata=metadata)
        temporary.replace(path)
    except OSError as error:
        raise StoreError(
            f"{path}: could not be written ({error}); free space, then run again with --resume"
        ) from error


def _digest(tensors: Mapping[str, torch.Tensor]) -> str:
    """Return the SHA-256 hex digest of the values, in order."""
    total = hashlib.sha256()
    for tensor in tensors.values():
        total.update(tensor.numpy().data)
    return total.hexdigest()
