"""The `distil` section of a recipe: a label model's sampling with fewer network calls.

No defaults for scientific numbers: every value stands in the recipe document, with its source.
"""

from __future__ import annotations

from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from synthgen.recipe.base import Count, Probability, Steps, Strict
from synthgen.recipe.labels import TrainRecipe


class StudentRecipe(Strict):
    """What every student learns from: draws of its teacher.

    `trajectories` is how many are cached and learnt from; `lesion_free` the share of them, for
    each lesion, that asks for none.
    """

    trajectories: Count
    lesion_free: Probability
    train: TrainRecipe


class StepsRecipe(StudentRecipe):
    """How a student learns to jump over its teacher's steps.

    `knots` are the teacher's steps between which the student jumps: K + 1 rising numbers from 0
    to the teacher's own number of steps make a student of K steps. In the first `teacher_states`
    iterations the student starts each jump where the teacher was, from then on where its own
    jumps have led it.
    """

    kind: Literal["steps"]
    knots: Annotated[tuple[Steps, ...], Field(min_length=2)]
    teacher_states: Steps

    @model_validator(mode="after")
    def _rising(self) -> Self:
        if self.knots[0] != 0 or any(
            b <= a for a, b in zip(self.knots, self.knots[1:], strict=False)
        ):
            raise ValueError(f"knots must rise from 0, got {list(self.knots)}")
        return self


class GuidanceRecipe(StudentRecipe):
    """How a student learns to predict in one network call what guidance takes two for.

    `null_share` of what it learns are predictions without a condition, so that other guidance
    than the teacher's stays possible.
    """

    kind: Literal["guidance"]
    null_share: Probability


DistilRecipe = Annotated[StepsRecipe | GuidanceRecipe, Field(discriminator="kind")]
