"""Few-step noise schedules of ImgX: steps taken out of a long chain, with its noise levels.

Source: Fu et al. 2023, "Importance of aligning training strategy with evaluation for diffusion
models in 3D multiclass segmentation" (arXiv:2303.06040), after Nichol and Dhariwal 2021
(arXiv:2102.09672, section 4). Kept are abar at equal distances, first and last among them. A
chain of its own, rather than steps left out while sampling: `DDIMScheduler` with "linspace"
spacing takes the wrong step before, by 0.8 in abar.
"""

from __future__ import annotations

from typing import Literal

import torch
from diffusers import DDIMScheduler, DDPMScheduler

from synthgen.core.errors import RequestError

ImgXSampler = Literal["ddpm", "ddim"]
Variance = Literal["fixed_small", "fixed_large"]


def resample_betas(betas: torch.Tensor, num_steps: int) -> torch.Tensor:
    """Return betas `(K,)` float64 of the chain that keeps every (T - 1) / (K - 1)-th abar.

    Args:
        betas: `(T,)` of the base chain, in (0, 1).
        num_steps: K, at least 2; K - 1 must divide T - 1.

    Raises:
        RequestError: it does not.

    Examples:
        >>> base = torch.linspace(1e-4, 0.02, 1001, dtype=torch.float64)
        >>> [round(float(beta), 3) for beta in resample_betas(base, 5)]
        [0.0, 0.478, 0.851, 0.957, 0.988]
    """
    last = len(betas) - 1
    if not 2 <= num_steps <= len(betas) or last % (num_steps - 1):
        fitting = [k + 1 for k in range(1, last + 1) if last % k == 0]
        raise RequestError(
            f"a chain of {len(betas)} steps can be resampled to "
            f"{', '.join(map(str, fitting))} steps, got {num_steps}"
        )
    abar = torch.cumprod(1 - betas.double(), dim=0)[:: last // (num_steps - 1)]
    before = torch.cat([torch.ones_like(abar[:1]), abar[:-1]])
    return 1 - abar / before


def imgx_scheduler(
    kind: ImgXSampler,
    num_steps: int,
    *,
    base_steps: int = 1001,
    beta_start: float = 1e-4,
    beta_end: float = 0.02,
    variance: Variance = "fixed_small",
) -> DDPMScheduler | DDIMScheduler:
    """Build the scheduler of a K-step chain that predicts x_start; it trains and samples.

    Its `timesteps` are K - 1 .. 0. A scheduler read from a file needs `set_timesteps(K)` first.

    Args:
        kind: "ddpm", ancestral, or "ddim", without noise (`eta` 0).
        num_steps: K; see `resample_betas`.
        base_steps: T of the base chain.
        beta_start: its first beta; betas are linear.
        beta_end: its last.
        variance: of "ddpm"'s steps: "fixed_small", of the posterior, or "fixed_large", beta.

    Raises:
        RequestError: K does not fit the base chain.
    """
    base = torch.linspace(beta_start, beta_end, base_steps, dtype=torch.float64)
    betas = resample_betas(base, num_steps).tolist()
    scheduler: DDPMScheduler | DDIMScheduler
    if kind == "ddpm":
        scheduler = DDPMScheduler(
            num_train_timesteps=num_steps,
            trained_betas=betas,
            variance_type=variance,
            prediction_type="sample",
            clip_sample=False,
        )
    else:
        scheduler = DDIMScheduler(
            num_train_timesteps=num_steps,
            trained_betas=betas,
            prediction_type="sample",
            clip_sample=False,
            set_alpha_to_one=True,
        )
    scheduler.set_timesteps(num_steps)
    return scheduler


def log_snr(alphas_cumprod: torch.Tensor) -> torch.Tensor:
    """Return log(abar / (1 - abar)), float32 of the same shape.

    Examples:
        >>> [round(float(value), 1) for value in log_snr(torch.tensor([0.5, 0.9999]))]
        [0.0, 9.2]
    """
    return torch.logit(alphas_cumprod.double()).float()
