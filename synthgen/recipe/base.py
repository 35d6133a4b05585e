"""The ground of recipe models: strict, frozen, and no key that nobody reads."""

from __future__ import annotations

from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field

Count = Annotated[int, Field(ge=1)]
Steps = Annotated[int, Field(ge=0)]
Weight = Annotated[float, Field(ge=0)]
Positive = Annotated[float, Field(gt=0)]
Probability = Annotated[float, Field(ge=0, le=1)]


class Strict(BaseModel):
    """Base of every recipe section.

    Unknown keys are refused, values are never coerced (an integer is accepted where a float is
    expected, a list where a tuple is), and a loaded section cannot change.
    """

    model_config = ConfigDict(
        strict=True, frozen=True, extra="forbid", protected_namespaces=(), allow_inf_nan=False
    )
