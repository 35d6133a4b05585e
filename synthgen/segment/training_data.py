"""What a recipe of a segmenter asks of its training data."""

from __future__ import annotations

from typing import TYPE_CHECKING

from synthgen.core.errors import GeometryError, RequestError
from synthgen.data.patches import PatchAugmentation, Patches, PatchSettings

if TYPE_CHECKING:
    from synthgen.data.mixture import Mixture
    from synthgen.recipe.segmentation import PatchRecipe, SegmenterTrainRecipe


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
