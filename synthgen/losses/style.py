"""Losses on style: classifier agreement, self-supervised code consistency, random affine.

Source: Fernandez et al. 2022, arXiv:2209.08256, and its journal version (Medical Image Analysis
2024, doi:10.1016/j.media.2024.103278). The paper prints the cosine itself; the loss is one minus
it. Deviations: codes are compared by their mean mu, not by samples, and each sample of a batch
gets its own affine transform. Every loss is a float32 scalar.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor
from torch.nn import functional

from synthgen.core.errors import RequestError

if TYPE_CHECKING:
    from collections.abc import Sequence


def modality_dataset_bce(
    modality_logits: Tensor,
    dataset_logits: Tensor,
    modality: Tensor,
    dataset: Tensor,
    *,
    alpha_mod: float,
    alpha_dat: float,
) -> Tensor:
    """Return alpha_mod * BCE(modality) + alpha_dat * BCE(dataset) against one-hot targets.

    Args:
        modality_logits: `(B, num_modalities)`.
        dataset_logits: `(B, num_datasets)`.
        modality: class indices `(B,)`, int64.
        dataset: class indices `(B,)`, int64.
        alpha_mod: weight of the modality term (0.75 in the journal run; above `alpha_dat`).
        alpha_dat: weight of the dataset term (0.3 in the journal run).
    """
    return alpha_mod * _one_hot_bce(modality_logits, modality) + alpha_dat * _one_hot_bce(
        dataset_logits, dataset
    )


def style_contrastive(mu: Tensor, mu_transformed: Tensor) -> Tensor:
    """Return mean 1 - cos between the codes of an image and of its affine transform.

    Args:
        mu: code means `(B, Z)`.
        mu_transformed: code means `(B, Z)` of the transformed images.
    """
    return _cosine_distance(mu, mu_transformed)


def code_consistency(mu: Tensor, mu_other: Tensor) -> Tensor:
    """Return mean 1 - cos between the codes of two slices of one volume.

    Args:
        mu: code means `(B, Z)`.
        mu_other: code means `(B, Z)` of another slice of each sample's volume.
    """
    return _cosine_distance(mu, mu_other)


def random_affine(
    image: Tensor,
    generators: Sequence[torch.Generator],
    *,
    scale: float = 0.2,
    rotate: float = 0.75,
    shift_px: float = 3.0,
) -> Tensor:
    """Return each image under its own affine transform, bilinear, border values beyond the edge.

    Args:
        image: `(B, C, X, Y)`.
        generators: one CPU generator per image.
        scale: scales are uniform in 1 +- `scale`.
        rotate: angles are uniform in +- `rotate` radians, about the centre.
        shift_px: shifts along each axis are uniform in +- `shift_px` pixels.
    """
    if len(generators) != image.shape[0]:
        raise RequestError(
            f"random affine: expected one generator per image ({image.shape[0]}), "
            f"got {len(generators)}"
        )
    draws = torch.stack([torch.rand(4, generator=g) for g in generators]) * 2 - 1  # (B, 4)
    theta = _normalised_affine(
        zoom=1 + scale * draws[:, 0],
        angle=rotate * draws[:, 1],
        shift=shift_px * draws[:, 2:],
        size=(image.shape[-2], image.shape[-1]),
    ).to(image.device)
    # In bfloat16, grid coordinates would be off by up to half a pixel.
    with torch.autocast(image.device.type, enabled=False):
        source = image.float()
        grid = functional.affine_grid(theta, list(source.shape), align_corners=False)
        moved = functional.grid_sample(
            source, grid, mode="bilinear", padding_mode="border", align_corners=False
        )
    return moved.to(image.dtype)


def _normalised_affine(zoom: Tensor, angle: Tensor, shift: Tensor, size: tuple[int, int]) -> Tensor:
    """Return `(B, 2, 3)` in grid coordinates, where each axis runs over [-1, 1].

    Torch orders grid coordinates from the last axis; a rotation in pixels therefore needs the
    aspect ratio in its off-diagonal terms.
    """
    x, y = size
    cos, sin = torch.cos(angle) / zoom, torch.sin(angle) / zoom
    rows = [
        torch.stack([cos, -sin * x / y, 2 * shift[:, 1] / y], dim=1),
        torch.stack([sin * y / x, cos, 2 * shift[:, 0] / x], dim=1),
    ]
    return torch.stack(rows, dim=1)


def _one_hot_bce(logits: Tensor, target: Tensor) -> Tensor:
    one_hot = functional.one_hot(target, logits.shape[1]).float()
    return functional.binary_cross_entropy_with_logits(logits.float(), one_hot)


def _cosine_distance(a: Tensor, b: Tensor) -> Tensor:
    return (1 - functional.cosine_similarity(a.float(), b.float(), dim=1)).mean()
