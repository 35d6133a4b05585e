"""What adversarial trainings share: the sum of their losses, frozen critics, learning rates."""

from __future__ import annotations

from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator

    from torch import Tensor, nn


@dataclass
class LossSum:
    """Losses by name, detached, and their weighted sum."""

    values: dict[str, Tensor] = field(default_factory=dict)
    total: Tensor | float = 0.0

    def add(self, name: str, weight: float, value: Tensor) -> None:
        """Add `weight` times `value` to the sum; the log gets `value`."""
        self.values[name] = value.detach()
        self.total = self.total + weight * value


class LinearRate:
    """Factor of a learning rate: up over `warmup` steps, 1, to 0 over the last `decay` steps.

    Examples:
        >>> rate = LinearRate(6, warmup=2, decay=3)
        >>> [rate(step) for step in range(6)]
        [0.5, 1.0, 1.0, 0.75, 0.5, 0.25]
    """

    def __init__(self, steps: int, *, warmup: int = 0, decay: int = 0) -> None:
        self._steps, self._warmup, self._decay = steps, warmup, decay

    def __call__(self, step: int) -> float:
        """Return the factor of iteration `step`."""
        rise = (step + 1) / self._warmup if step < self._warmup else 1.0
        fall = max(0, self._steps - step) / (self._decay + 1)
        return min(rise, fall, 1.0)


@contextmanager
def frozen(model: nn.Module | None) -> Iterator[None]:
    """Let gradients pass through a model without reaching its parameters."""
    parameters = [] if model is None else list(model.parameters())
    for parameter in parameters:
        parameter.requires_grad_(False)
    try:
        yield
    finally:
        for parameter in parameters:
            parameter.requires_grad_(True)
