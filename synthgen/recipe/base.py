"""The ground of recipe models: strict, frozen, and no key that nobody reads."""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict


class Strict(BaseModel):
    """Base of every recipe section.

    Unknown keys are refused, values are never coerced (an integer is accepted where a float is
    expected, a list where a tuple is), and a loaded section cannot change.
    """

    model_config = ConfigDict(
        strict=True, frozen=True, extra="forbid", protected_namespaces=(), allow_inf_nan=False
    )
