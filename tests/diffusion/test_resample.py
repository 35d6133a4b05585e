"""Resampled chains of ImgX (Fu et al. 2023, arXiv:2303.06040)."""

import pytest
import torch
from diffusers import DDIMScheduler, DDPMScheduler

from synthgen.core.errors import RequestError
from synthgen.diffusion.resample import imgx_scheduler, log_snr, resample_betas

BASE = torch.linspace(1e-4, 0.02, 1001, dtype=torch.float64)
ABAR = torch.cumprod(1 - BASE, dim=0)


def noise(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def posterior(abar, k):
    """Return c0, c1, v of q(x_{k-1} | x_k, x_start) = N(c0 x_start + c1 x_k, v)."""
    before = abar[k - 1] if k else torch.ones((), dtype=torch.float64)
    beta = 1 - abar[k] / before
    left = 1 - abar[k]
    c0, c1 = before.sqrt() * beta / left, (1 - beta).sqrt() * (1 - before) / left
    return c0, c1, beta * (1 - before) / left


def test_five_steps_have_the_known_numbers():
    betas = resample_betas(BASE, 5)
    abar = torch.cumprod(1 - betas, dim=0)
    assert abar.tolist() == pytest.approx([0.9999, 0.52175, 0.077992, 0.0033189, 3.9952e-5], 1e-4)
    assert betas.tolist() == pytest.approx([1e-4, 0.47820, 0.85052, 0.95745, 0.98796], 1e-4)
    c0, c1, v = (torch.stack(c) for c in zip(*(posterior(abar, k) for k in range(5)), strict=True))
    assert c0.tolist() == pytest.approx([1, 0.99984, 0.66632, 0.26828, 0.05692], 1e-4)
    assert c1.tolist() == pytest.approx([0, 1.5e-4, 0.2005, 0.1908, 0.1094], abs=6e-5)
    assert v.tolist() == pytest.approx([0, 1.0e-4, 0.441, 0.886, 0.985], abs=6e-4)


@pytest.mark.parametrize("num_steps", [2, 3, 5, 6, 11, 101, 1001])
def test_noise_levels_are_those_of_the_base_chain_and_the_ends_survive(num_steps):
    abar = torch.cumprod(1 - resample_betas(BASE, num_steps), dim=0)
    kept = ABAR[:: 1000 // (num_steps - 1)]
    torch.testing.assert_close(abar, kept, rtol=1e-10, atol=0)
    assert len(kept) == num_steps
    assert abar[-1] == pytest.approx(float(ABAR[-1]), rel=1e-10)


@pytest.mark.parametrize("num_steps", [0, 1, 4, 1002])
def test_steps_that_do_not_divide_the_chain_are_refused(num_steps):
    with pytest.raises(RequestError, match=rf"1001 steps .* 2, 3, 5, 6, 9, .* got {num_steps}$"):
        resample_betas(BASE, num_steps)


@pytest.mark.parametrize("num_steps", [2, 5, 11])
@pytest.mark.parametrize("variance", ["fixed_small", "fixed_large"])
def test_ddpm_steps_equal_the_closed_form(num_steps, variance):
    scheduler = imgx_scheduler("ddpm", num_steps, variance=variance)
    abar = torch.cumprod(1 - resample_betas(BASE, num_steps), dim=0)
    assert scheduler.timesteps.tolist() == list(reversed(range(num_steps)))
    x_start, x_t = noise(2, 3, 4, 4), 3 * noise(2, 3, 4, 4, seed=1)
    for k in reversed(range(num_steps)):
        c0, c1, v = posterior(abar, k)
        if variance == "fixed_large" and k:
            v = resample_betas(BASE, num_steps)[k]
        drawn = noise(2, 3, 4, 4, seed=2)
        expected = c0 * x_start + c1 * x_t + (v.sqrt() * drawn if k else 0)
        generator = torch.Generator().manual_seed(2)
        out = scheduler.step(x_start, k, x_t, generator=generator).prev_sample
        # diffusers keeps its products in float32.
        torch.testing.assert_close(out, expected, rtol=0, atol=2e-5)


@pytest.mark.parametrize("num_steps", [2, 5, 11])
def test_ddim_steps_equal_the_closed_form(num_steps):
    scheduler = imgx_scheduler("ddim", num_steps)
    abar = torch.cumprod(1 - resample_betas(BASE, num_steps), dim=0)
    assert scheduler.timesteps.tolist() == list(reversed(range(num_steps)))
    x_start, x_t = noise(2, 3, 4, 4), 3 * noise(2, 3, 4, 4, seed=1)
    for k in reversed(range(num_steps)):
        before = abar[k - 1] if k else torch.ones((), dtype=torch.float64)
        eps = (x_t - abar[k].sqrt() * x_start) / (1 - abar[k]).sqrt()
        expected = before.sqrt() * x_start + (1 - before).sqrt() * eps
        out = scheduler.step(x_start, k, x_t).prev_sample
        # The same; 1 - abar of the first step is 1e-4 with an error of 6e-8.
        torch.testing.assert_close(out, expected, rtol=0, atol=1e-4)


@pytest.mark.parametrize("kind", ["ddpm", "ddim"])
def test_sampling_with_a_perfect_network_gives_what_it_predicts(kind):
    scheduler, x_start = imgx_scheduler(kind, 5), noise(1, 2, 8, 8).sign()
    x_t, generator = noise(1, 2, 8, 8, seed=1), torch.Generator().manual_seed(0)
    extra = {"generator": generator} if kind == "ddpm" else {}
    for t in scheduler.timesteps:
        x_t = scheduler.step(x_start, t, x_t, **extra).prev_sample
    torch.testing.assert_close(x_t, x_start, rtol=0, atol=1e-6)


@pytest.mark.parametrize(("kind", "loads"), [("ddpm", DDPMScheduler), ("ddim", DDIMScheduler)])
def test_the_schedule_survives_saving(kind, loads, tmp_path):
    scheduler = imgx_scheduler(kind, 5)
    scheduler.save_pretrained(tmp_path)
    loaded = loads.from_pretrained(tmp_path)
    loaded.set_timesteps(5)
    assert torch.equal(loaded.betas, scheduler.betas)
    assert torch.equal(loaded.timesteps, scheduler.timesteps)
    x_start, x_t = noise(1, 2, 4, 4), noise(1, 2, 4, 4, seed=1)
    for k in (4, 1):
        ours, theirs = (
            s.step(x_start, k, x_t, generator=torch.Generator().manual_seed(0)).prev_sample
            for s in (scheduler, loaded)
        )
        assert torch.equal(ours, theirs)


def test_log_snr_is_the_log_of_the_signal_to_noise_ratio():
    scheduler = imgx_scheduler("ddpm", 5)
    values = log_snr(scheduler.alphas_cumprod)
    abar = torch.cumprod(1 - resample_betas(BASE, 5), dim=0)
    # 1 - abar of float32 has an error of 6e-8 / 1e-4 at the first step.
    torch.testing.assert_close(values.double(), (abar / (1 - abar)).log(), rtol=0, atol=2e-3)
    assert values.dtype == torch.float32
    assert (values.diff() < 0).all()
