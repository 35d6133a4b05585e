"""What adversarial trainings share: losses, optimisers, frozen critics, averaged weights, rates."""

from __future__ import annotations

from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch
from torch.optim.lr_scheduler import LambdaLR

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from accelerate import Accelerator
    from diffusers.training_utils import EMAModel
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


@dataclass(frozen=True)
class Adams:
    """One Adam a side, prepared, and the schedule of its rate; a side without weights has none."""

    optimizers: Mapping[str, Any]
    schedulers: Mapping[str, Any]

    @classmethod
    def of(
        cls,
        sides: Mapping[str, tuple[Sequence[nn.Module], float]],
        betas: tuple[float, float],
        rate: LinearRate,
        accelerator: Accelerator,
    ) -> Adams:
        """Build them from the networks and the learning rate of each side."""
        optimizers: dict[str, Any] = {}
        schedulers: dict[str, Any] = {}
        for name, (networks, lr) in sides.items():
            parameters = [p for network in networks for p in network.parameters()]
            if parameters:
                adam = torch.optim.Adam(parameters, lr=lr, betas=betas)
                schedulers[name] = LambdaLR(adam, rate)
                optimizers[name] = accelerator.prepare_optimizer(adam)
        return cls(optimizers, schedulers)

    def step(self, accelerator: Accelerator, clip_norm: float) -> None:
        """Step every optimiser, gradients clipped where `clip_norm` is above 0, and clear them."""
        for optimizer in self.optimizers.values():
            if clip_norm and accelerator.sync_gradients:
                parameters = [p for group in optimizer.param_groups for p in group["params"]]
                accelerator.clip_grad_norm_(parameters, clip_norm)
            optimizer.step()
            optimizer.zero_grad()


@contextmanager
def averaged(networks: Mapping[str, nn.Module], ema: Mapping[str, EMAModel]) -> Iterator[None]:
    """Put networks into eval mode for a while, with moving averages as weights where there are."""
    for network in networks.values():
        network.eval()
    for name, average in ema.items():
        average.store(networks[name].parameters())
        average.copy_to(networks[name].parameters())
    try:
        yield
    finally:
        for name, average in ema.items():
            average.restore(networks[name].parameters())
        for network in networks.values():
            network.train()
