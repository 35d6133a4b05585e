"""What recipes of segmenters share: patches, losses, optimiser, windows.

No defaults for scientific numbers: every value stands in the recipe document, with its source.
"""

from __future__ import annotations

import itertools
from abc import ABC, abstractmethod
from typing import Annotated, Self

from pydantic import Field, model_validator

from synthgen.recipe.base import Count, Positive, Probability, Steps, Strict, Weight
from synthgen.recipe.training import TrainingRecipe

Sides = Annotated[tuple[Count, ...], Field(min_length=2, max_length=3)]
"""One number per axis of an image, of 2 or 3 axes."""


class AugmentationRecipe(Strict):
    """How far training patches are changed; 0 is off. See `synthgen.data.patches`.

    `scale`, `gamma`, `gain` and `bias` are largest natural logarithms, `shift` is a share of the
    patch, `mirror` a chance for each axis; `blur` (voxels) and `noise` (of the range of an image)
    are largest standard deviations.
    """

    rotate_deg: Weight
    scale: Weight
    shift: Probability
    mirror: tuple[Probability, ...]
    gamma: Weight
    gain: Weight
    bias: Weight
    blur: Weight
    noise: Weight


class PatchRecipe(Strict):
    """Tissues that are told apart, and the patches that networks learn from.

    `tissues` without the background; where labels overlap, the regions. `modalities` chooses
    pictures of a store or dataset, all of them where empty. `foreground` is the share of patches
    that are centred on a tissue.
    """

    tissues: Annotated[tuple[str, ...], Field(min_length=1)]
    modalities: tuple[str, ...]
    patch: Sides
    foreground: Probability
    augmentation: AugmentationRecipe

    @model_validator(mode="after")
    def _mirrors_fit(self) -> Self:
        axes, chances = len(self.patch), len(self.augmentation.mirror)
        if chances != axes:
            raise ValueError(
                f"augmentation.mirror needs one chance for each of the {axes} axes of patch, "
                f"got {chances}"
            )
        return self

    @property
    def spatial_dims(self) -> int:
        """2 or 3."""
        return len(self.patch)


class LevelsRecipe(Strict):
    """Widths of a network's levels, finest first, and the strides of its transitions."""

    channels: Annotated[tuple[Count, ...], Field(min_length=2)]
    strides: tuple[Sides, ...]

    @model_validator(mode="after")
    def _transitions_fit(self) -> Self:
        transitions = len(self.channels) - 1
        if len(self.strides) != transitions:
            raise ValueError(
                f"strides needs {transitions} entries for {len(self.channels)} channels, "
                f"got {len(self.strides)}"
            )
        return self

    @property
    def reductions(self) -> tuple[tuple[int, ...], ...]:
        """How many times smaller than the image each level is, one number per axis."""
        finest = (1,) * len(self.strides[0])
        return tuple(
            itertools.accumulate(
                (finest, *self.strides),
                lambda total, stride: tuple(a * b for a, b in zip(total, stride, strict=False)),
            )
        )


class SegmentationLossRecipe(Strict):
    """Weight of each loss of `synthgen.losses.segmentation`; `gamma` is the focal loss's."""

    dice: Weight
    cross_entropy: Weight
    focal: Weight
    gamma: Weight

    @model_validator(mode="after")
    def _something_to_learn(self) -> Self:
        if not (self.dice or self.cross_entropy or self.focal):
            raise ValueError("one of dice, cross_entropy and focal must be above 0")
        return self


class WindowRecipe(Strict):
    """How images larger than a patch are seen.

    In windows of `size` (null: of the training's patch) that overlap by the share `overlap`.
    """

    size: Sides | None
    overlap: Annotated[float, Field(ge=0, lt=1)]


class SegmenterTrainRecipe(TrainingRecipe):
    """AdamW, whose rate rises in `warmup` steps and falls along a cosine.

    From `lr_first` to `lr`, then to `lr_last` at step `decay` (null: at the last step).
    """

    steps: Count
    lr_first: Positive
    lr: Positive
    lr_last: Positive
    warmup: Steps
    decay: Count | None
    weight_decay: Weight


class SegmenterRecipe(Strict, ABC):
    """What every segmenter's section says.

    `validation_cases`: at most so many cases are scored at the end.
    """

    data: PatchRecipe
    window: WindowRecipe
    validation_cases: Count
    train: SegmenterTrainRecipe

    @property
    @abstractmethod
    def strides(self) -> dict[str, tuple[tuple[int, ...], ...]]:
        """Strides of each network's transitions, by the key that holds them."""

    @model_validator(mode="after")
    def _ranks_agree(self) -> Self:
        axes = self.data.spatial_dims
        sizes = {f"{k}[{i}]": s for k, steps in self.strides.items() for i, s in enumerate(steps)}
        if self.window.size is not None:
            sizes["window.size"] = self.window.size
        for name, size in sizes.items():
            if len(size) != axes:
                raise ValueError(f"{name} needs {axes} numbers as data.patch, got {len(size)}")
        return self

    @property
    def window_size(self) -> tuple[int, ...]:
        """Size of the windows that images are seen in."""
        return self.data.patch if self.window.size is None else self.window.size
