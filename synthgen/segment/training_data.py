"""What a recipe of a segmenter asks of its training data, and what its model says of them."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from synthgen.core.errors import GeometryError, RequestError
from synthgen.core.manifest import digest
from synthgen.data.patches import PatchAugmentation, Patches, PatchSettings
from synthgen.segment.use import SegmenterUse

if TYPE_CHECKING:
    from collections.abc import Mapping

    from torch import nn

    from synthgen.data.mixture import Mixture
    from synthgen.recipe.segmentation import PatchRecipe, SegmenterRecipe, SegmenterTrainRecipe


def require_fit(section: str, wanted: PatchRecipe, data: Mixture) -> None:
    """Refuse data that a recipe is not made for.

    Args:
        section: of the recipe, for the message.
        wanted: its tissues and patches.
        data: labelled images.

    Raises:
        RequestError: other tissues.
        GeometryError: another rank.
    """
    tissues = data.tissues if data.overlapping else data.tissues[1:]
    if tuple(tissues) != wanted.tissues:
        raise RequestError(
            f"the recipe knows the tissues {', '.join(wanted.tissues)}, but the data have "
            f"{', '.join(tissues)}; set {section}.data.tissues"
        )
    if data.spatial_dims != wanted.spatial_dims:
        raise GeometryError(
            f"the recipe is for {wanted.spatial_dims}-D images ({section}.data.patch "
            f"{list(wanted.patch)}), but {data.parts[0].name} is {data.spatial_dims}-D"
        )


def patches_of(wanted: PatchRecipe, train: SegmenterTrainRecipe, data: Mixture) -> Patches:
    """Return the training batches that a recipe asks for."""
    augmentation = PatchAugmentation(**wanted.augmentation.model_dump())
    settings = PatchSettings(wanted.patch, train.batch_size, wanted.foreground, augmentation)
    return Patches(data, settings, train.seed)


def use_of(section: SegmenterRecipe, data: Mixture) -> SegmenterUse:
    """Return which images a segmenter takes that is trained on such data."""
    return SegmenterUse(
        data.tissues,
        data.overlapping,
        data.channels,
        data.spatial_dims,
        data.spacing_mm,
        section.window_size,
        section.window.overlap,
    )


def training_facts(networks: Mapping[str, nn.Module], data: Mixture, seed: int) -> dict[str, Any]:
    """Return what a model folder says of its training: parameters, data, seed."""
    return {
        "parameters": {n: sum(p.numel() for p in m.parameters()) for n, m in networks.items()},
        "data": {p.name: round(s, 4) for p, s in zip(data.parts, data.shares, strict=True)},
        "data_identity": digest(dict(data.identity)),
        "seed": seed,
    }
