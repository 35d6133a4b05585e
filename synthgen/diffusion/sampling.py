"""Seeded sampling: one CPU generator per sample, so that batch neighbours change no draw."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from diffusers import DDIMScheduler, DDPMScheduler, SchedulerMixin

from synthgen.core.errors import RequestError

Denoiser = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]
"""`(x_t (B, Z, *S), t (B,)) -> prediction (B, Z, *S)`."""

Predictor = Callable[[torch.Tensor, torch.Tensor, torch.Tensor], torch.Tensor]
"""`(x_t, t, keep) -> prediction`, where `keep` `(B,)` is 1 for the condition and 0 for the
null token."""


def seeded_noise(
    generators: Sequence[torch.Generator], shape: Sequence[int], device: torch.device | str = "cpu"
) -> torch.Tensor:
    """Draw standard normal noise `(B, *shape)`, each sample from its own CPU generator."""
    drawn = [torch.randn(tuple(shape), generator=generator) for generator in generators]
    return torch.stack(drawn).to(device)


def sample(
    denoiser: Denoiser,
    sampler: SchedulerMixin,
    steps: int,
    noise: torch.Tensor,
    generators: Sequence[torch.Generator],
    *,
    eta: float = 0.0,
) -> torch.Tensor:
    """Run a sampler from noise to clean latents.

    Times and coefficients stay on the CPU, so that no step waits for a device.

    Args:
        denoiser: the network, conditioned and guided.
        sampler: from `build_sampler`.
        steps: network calls.
        noise: standard normal `(B, Z, *S)`, float32.
        generators: B CPU generators for stochastic samplers.
        eta: stochasticity of DDIM, 1 as in the paper.

    Returns:
        `(B, Z, *S)` float32.

    Raises:
        RequestError: fewer than 1 step, or more than the model was trained with.
    """
    most = sampler.config.num_train_timesteps
    if not 1 <= steps <= most:
        raise RequestError(f"sampling steps must lie in 1 .. {most}, got {steps}")
    sampler.set_timesteps(steps)
    if hasattr(sampler, "set_begin_index"):
        sampler.set_begin_index(0)  # else it looks the first time up
    extra: dict[str, object] = {}
    if isinstance(sampler, DDIMScheduler):
        extra["eta"] = eta
    if isinstance(sampler, DDIMScheduler | DDPMScheduler):
        extra["generator"] = list(generators)
    x_t = noise * getattr(sampler, "init_noise_sigma", 1.0)
    for t in sampler.timesteps:
        times = t.to(noise.device, non_blocking=True).expand(x_t.shape[0])
        prediction = denoiser(x_t, times).float()
        x_t = sampler.step(prediction, t, x_t, **extra).prev_sample
    return x_t


def guided(predict: Predictor, guidance: float) -> Denoiser:
    """Wrap a conditional network in classifier-free guidance (arXiv:2207.12598).

    Args:
        predict: asked with twice the batch unless `guidance` is 1.
        guidance: 1 is the plain conditional prediction.
    """

    def denoise(x_t: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
        ones = torch.ones(x_t.shape[0], device=x_t.device)
        if guidance == 1:
            return predict(x_t, t, ones)
        both = torch.cat([ones, torch.zeros_like(ones)])
        conditional, null = predict(torch.cat([x_t, x_t]), torch.cat([t, t]), both).float().chunk(2)
        return null + guidance * (conditional - null)

    return denoise
