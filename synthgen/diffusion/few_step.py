"""The scheduler of a distilled model: a few jumps between the noise levels it was trained at.

A student that jumps over several of its teacher's steps at once (progressive distillation,
Salimans and Ho 2022, arXiv:2202.00512, section 3) is right at its own noise levels alone, so they
are stored with it. With `a = 1 / sqrt(1 + sigma^2)` and `b = sigma a`, a state is
`x_t = a x_start + b noise`; the network predicts `v = a noise - b x_start`, and a jump is a
deterministic DDIM step (their appendix G, equation 33).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from diffusers import ConfigMixin, SchedulerMixin
from diffusers.configuration_utils import register_to_config
from diffusers.utils import BaseOutput

from synthgen.core.errors import RequestError

if TYPE_CHECKING:
    from collections.abc import Sequence


@dataclass
class FewStepOutput(BaseOutput):  # type: ignore[misc]
    """Output of a jump.

    Attributes:
        prev_sample: `(B, Z, *S)`, the state at the next noise level.
    """

    prev_sample: torch.Tensor


class FewStepScheduler(SchedulerMixin, ConfigMixin):  # type: ignore[misc]
    """Jumps from noise level to noise level; the K jumps are numbered from 0.

    Args:
        sigmas: K + 1 falling noise levels, the last one 0.
        times: K times that the network sees, one for each jump.
        num_train_timesteps: of the schedule that the network was trained with.
        prediction_type: what it predicts, "v_prediction".

    Examples:
        >>> scheduler = FewStepScheduler(sigmas=(2.0, 0.5, 0.0), times=(600, 200))
        >>> scheduler.set_timesteps(2)
        >>> scheduler.timesteps.tolist()
        [600, 200]
    """

    order = 1
    init_noise_sigma = 1.0

    @register_to_config  # type: ignore[untyped-decorator]
    def __init__(
        self,
        *,
        sigmas: Sequence[float],
        times: Sequence[int],
        num_train_timesteps: int = 1000,
        prediction_type: str = "v_prediction",
    ) -> None:
        levels = torch.as_tensor(tuple(sigmas), dtype=torch.float64)
        self._a = 1 / (1 + levels.square()).sqrt()
        self._b = levels * self._a
        self.timesteps = torch.as_tensor(tuple(times))
        self._next = 0

    def set_timesteps(self, num_inference_steps: int, device: torch.device | str = "cpu") -> None:
        """Start anew.

        Raises:
            RequestError: another number of steps than the model was distilled to.
        """
        times = self.config.times
        if num_inference_steps != len(times):
            raise RequestError(
                f"this model was distilled to {len(times)} step(s), got {num_inference_steps}; "
                "leave the steps out, or take the model that it was distilled from"
            )
        self.timesteps = torch.as_tensor(tuple(times), device=device)
        self._next = 0

    def step(self, prediction: torch.Tensor, t: torch.Tensor, x_t: torch.Tensor) -> FewStepOutput:
        """Make the next jump; `t` is the time that the network saw."""
        jump = torch.full((x_t.shape[0],), self._next, device=x_t.device)
        self._next += 1
        return FewStepOutput(self.landing(self.start(prediction, x_t, jump), x_t, jump))

    def start(
        self, prediction: torch.Tensor, x_t: torch.Tensor, jump: torch.Tensor
    ) -> torch.Tensor:
        """Return the clean latents `(B, Z, *S)` that predictions imply, at jumps `(B,)`."""
        a, b = self._of(self._a[:-1], jump, x_t), self._of(self._b[:-1], jump, x_t)
        return a * x_t - b * prediction

    def landing(self, x_start: torch.Tensor, x_t: torch.Tensor, jump: torch.Tensor) -> torch.Tensor:
        """Return the states `(B, Z, *S)` to which clean latents `x_start` lead from `x_t`."""
        kept, gained = self._shares(jump, x_t)
        return kept * x_t + gained * x_start

    def wanted_start(
        self, x_next: torch.Tensor, x_t: torch.Tensor, jump: torch.Tensor
    ) -> torch.Tensor:
        """Return the clean latents that lead from `x_t` to `x_next`; inverts `landing`."""
        kept, gained = self._shares(jump, x_t)
        return (x_next - kept * x_t) / gained

    def _shares(self, jump: torch.Tensor, x_t: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Return the weights of `x_t` and of `x_start` in the next state."""
        kept = self._b[1:] / self._b[:-1]
        gained = self._a[1:] - kept * self._a[:-1]
        return self._of(kept, jump, x_t), self._of(gained, jump, x_t)

    @staticmethod
    def _of(levels: torch.Tensor, jump: torch.Tensor, x_t: torch.Tensor) -> torch.Tensor:
        table = levels.to(x_t.device, x_t.dtype)
        return table[jump].view(-1, *[1] * (x_t.ndim - 1))
