"""What a denoising network is trained to predict: noise, velocity or flow.

With `a = sqrt(alphas_cumprod[t])` and `s = sqrt(1 - alphas_cumprod[t])`:
- epsilon (Ho et al. 2020, arXiv:2006.11239): `x_t = a x_start + s noise`, target `noise`;
- v (Salimans and Ho 2022, arXiv:2202.00512): the same `x_t`, target `a noise - s x_start`;
- flow (Lipman et al. 2023, arXiv:2210.02747): `x_t = (1 - u) x_start + u noise`, target
  `noise - x_start`, where the network sees the time `u * num_train_timesteps`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

import torch

from synthgen.diffusion.schedule import Target, target_of

if TYPE_CHECKING:
    from diffusers import SchedulerMixin


class Noised(NamedTuple):
    """A training pair.

    Attributes:
        x_t: noisy latents `(B, Z, *S)`.
        t: time that the network sees `(B,)`.
        target: what it should predict `(B, Z, *S)`.
    """

    x_t: torch.Tensor
    t: torch.Tensor
    target: torch.Tensor


def noised(
    scheduler: SchedulerMixin, x_start: torch.Tensor, noise: torch.Tensor, u: torch.Tensor
) -> Noised:
    """Make the training pair of each sample.

    Args:
        scheduler: from `build_training_scheduler`; decides the target.
        x_start: clean latents `(B, Z, *S)`.
        noise: standard normal, of the same shape.
        u: uniform draws in [0, 1) `(B,)`, one time each.
    """
    target: Target = target_of(scheduler)
    steps = scheduler.config.num_train_timesteps
    if target == "flow":
        share = u.view(-1, *[1] * (x_start.ndim - 1)).to(x_start.dtype)
        x_t = (1 - share) * x_start + share * noise
        return Noised(x_t, u * steps, noise - x_start)
    t = (u * steps).long().clamp(max=steps - 1)
    x_t = scheduler.add_noise(x_start, noise, t)
    wanted = noise if target == "epsilon" else scheduler.get_velocity(x_start, noise, t)
    return Noised(x_t, t, wanted)


def predicted_start(
    scheduler: SchedulerMixin, x_t: torch.Tensor, t: torch.Tensor, prediction: torch.Tensor
) -> torch.Tensor:
    """Return the clean latents `(B, Z, *S)` that a prediction implies; inverts `noised`."""
    shape = (-1, *[1] * (x_t.ndim - 1))
    target: Target = target_of(scheduler)
    if target == "flow":
        share = (t / float(scheduler.config.num_train_timesteps)).view(shape).to(x_t.dtype)
        return x_t - share * prediction
    alpha: torch.Tensor = scheduler.alphas_cumprod.to(x_t.device)[t].view(shape)
    a, s = alpha.sqrt(), (1 - alpha).sqrt()
    if target == "epsilon":
        return (x_t - s * prediction) / a
    return a * x_t - s * prediction


def antithetic_times(count: int, generator: torch.Generator) -> torch.Tensor:
    """Draw `count` times that cover [0, 1) evenly: one draw, shifted by 1 / count each.

    Kingma et al. 2021 (arXiv:2107.00630, section I.1): each is uniform, and a batch's loss
    varies less.
    """
    shift = torch.arange(count, dtype=torch.float64) / count
    start = torch.rand((), generator=generator, dtype=torch.float64)
    # In float32 a time just below 1 would round to 1.
    return (start + shift).remainder(1.0).to(torch.float32).clamp(max=1 - 2**-24)
