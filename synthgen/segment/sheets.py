"""Sample sheets of segmenters."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import torch

from synthgen.training.log import colour_labels

if TYPE_CHECKING:
    from collections.abc import Sequence

    import numpy.typing as npt
    from torch import Tensor


def segmentation_sheet(
    images: Tensor, maps: Sequence[Tensor], *, overlapping: bool
) -> npt.NDArray[np.float32]:
    """Show rows of an image and maps of it; of volumes the middle slice along the last axis.

    Args:
        images: `(B, Ci, *S)` in [0, 1]; the first channel is shown.
        maps: each `(B, G, *S)` in [0, 1].
        overlapping: the maps have no background.

    Returns:
        `(B, 1 + len(maps), X, Y, 3)`, RGB in [0, 1].
    """
    grey = _flat(images[:, :1]).expand(-1, 3, -1, -1).movedim(1, -1).numpy()
    return np.stack([grey, *(_coloured(each, overlapping) for each in maps)], axis=1)


def _flat(volumes: Tensor) -> Tensor:
    return volumes[..., volumes.shape[-1] // 2] if volumes.ndim == 5 else volumes


def _coloured(maps: Tensor, overlapping: bool) -> npt.NDArray[np.float32]:
    flat = _flat(maps)
    if overlapping:
        flat = torch.cat([(1 - flat.sum(dim=1, keepdim=True)).clamp_min(0), flat], dim=1)
    return colour_labels(flat.clamp(0, 1).numpy())
