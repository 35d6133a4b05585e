"""Networks out of model folders: from safetensors alone, and every weight of them."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, TypeVar

from diffusers.utils import SAFETENSORS_WEIGHTS_NAME
from safetensors import safe_open

if TYPE_CHECKING:
    from pathlib import Path

    from torch import nn

Net = TypeVar("Net")


def load_network(kind: type[Net], folder: Path) -> Net:
    """Load a network that `save_pretrained` wrote, on the CPU.

    Args:
        kind: a diffusers `ModelMixin`.
        folder: its `config.json` and weights.

    Raises:
        OSError, ValueError, RuntimeError, KeyError, TypeError: whatever diffusers finds wrong.
        ValueError: the file holds other weights than the network; diffusers would leave the
            missing ones as they were initialised.
    """
    # diffusers' types are not seen here.
    source: Any = kind
    net: Net = source.from_pretrained(folder, local_files_only=True, use_safetensors=True)
    require_all_weights(net, folder)  # type: ignore[arg-type]
    return net


def require_all_weights(net: nn.Module, folder: Path) -> None:
    """Refuse a network whose file holds other weights than it has.

    Raises:
        ValueError: naming some of them.
        OSError: no such file.
    """
    with safe_open(folder / SAFETENSORS_WEIGHTS_NAME, framework="pt") as file:
        differing = sorted({*file.keys()} ^ {*net.state_dict()})
    if differing:
        shown = ", ".join(differing[:4]) + (", ..." if len(differing) > 4 else "")
        raise ValueError(f"{folder.name}: weights are missing or too many: {shown}")
