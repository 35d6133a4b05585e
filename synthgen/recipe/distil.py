"""The `distil` section of a recipe: a label model's sampler in a few steps.

No defaults for scientific numbers: every value stands in the recipe document, with its source.
"""

from __future__ import annotations

from typing import Annotated, Self

from pydantic import Field, model_validator

from synthgen.recipe.base import Count, Probability, Steps, Strict
from synthgen.recipe.labels import TrainRecipe


class DistilRecipe(Strict):
    """How a student learns its teacher's trajectories.

    `knots` are the teacher's steps between which the student jumps: K + 1 rising numbers from 0
    to the teacher's own number of steps make a student of K steps. `trajectories` is how many
    draws of the teacher are cached and learnt from; `lesion_free` the share of them, for each
    lesion, that asks for none. In the first `teacher_states` iterations the student starts each
    jump where the teacher was, from then on where its own jumps have led it.
    """

    knots: Annotated[tuple[Steps, ...], Field(min_length=2)]
    trajectories: Count
    lesion_free: Probability
    teacher_states: Steps
    train: TrainRecipe

    @model_validator(mode="after")
    def _rising(self) -> Self:
        if self.knots[0] != 0 or any(
            b <= a for a, b in zip(self.knots, self.knots[1:], strict=False)
        ):
            raise ValueError(f"knots must rise from 0, got {list(self.knots)}")
        return self
