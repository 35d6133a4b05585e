import pytest
import torch
from diffusers import DDIMScheduler

from synthgen.core.errors import RequestError
from synthgen.diffusion.few_step import FewStepScheduler
from synthgen.diffusion.sampling import sample
from synthgen.diffusion.schedule import build_sampler, build_training_scheduler

PAPER = (1000, "scaled_linear", 0.0015, 0.0195)
SIGMAS, TIMES = (83.0, 4.0, 0.5, 0.0), (999, 581, 110)


def draws(*shape, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def test_a_right_prediction_jumps_along_its_own_line():
    """Of x = a x_start + b noise: the next state is of the same x_start and noise."""
    scheduler = FewStepScheduler(sigmas=SIGMAS, times=TIMES)
    x_start, noise = draws(3, 2, 4, 4), draws(3, 2, 4, 4, seed=1)
    levels = torch.tensor(SIGMAS).view(-1, 1, 1, 1)
    a = 1 / (1 + levels**2).sqrt()
    b = levels * a
    jump = torch.arange(3)
    x_t, x_next = a[:3] * x_start + b[:3] * noise, a[1:] * x_start + b[1:] * noise
    start = scheduler.start(a[:3] * noise - b[:3] * x_start, x_t, jump)
    torch.testing.assert_close(start, x_start, atol=1e-5, rtol=0)
    torch.testing.assert_close(scheduler.landing(start, x_t, jump), x_next, atol=1e-5, rtol=0)
    # The first jump gains 0.23 of x_start: float32 errors of x_next grow by 1 / 0.23.
    torch.testing.assert_close(
        scheduler.wanted_start(x_next, x_t, jump), x_start, atol=2e-5, rtol=0
    )


def test_a_jump_is_a_ddim_step():
    training = build_training_scheduler("v", *PAPER)
    oracle = DDIMScheduler.from_config(training.config, clip_sample=False)
    oracle.set_timesteps(4)
    alphas = training.alphas_cumprod[oracle.timesteps]
    sigmas = [*((1 - alphas) / alphas).sqrt().tolist(), 0.0]
    few = FewStepScheduler(sigmas=sigmas, times=oracle.timesteps.tolist())
    few.set_timesteps(4)
    x_ours = x_theirs = draws(2, 3, 4, 4)
    for number, t in enumerate(few.timesteps):
        prediction = draws(2, 3, 4, 4, seed=number + 1)
        x_ours = few.step(prediction, t, x_ours).prev_sample
        x_theirs = oracle.step(prediction, t, x_theirs).prev_sample
        torch.testing.assert_close(x_ours, x_theirs, atol=1e-4, rtol=0)


def test_the_scheduler_survives_saving_and_samples_the_same(tmp_path):
    scheduler = FewStepScheduler(sigmas=SIGMAS, times=TIMES)
    scheduler.save_pretrained(tmp_path)
    loaded = FewStepScheduler.from_pretrained(tmp_path)
    noise, seen = draws(2, 3, 4, 4), []

    def network(x_t, t):
        seen.append(t.tolist())
        return 0.3 * x_t

    first, second = (
        sample(network, build_sampler("distilled", s), 3, noise, []) for s in (scheduler, loaded)
    )
    assert torch.equal(first, second)
    assert seen == 2 * [[999, 999], [581, 581], [110, 110]]


def test_other_steps_and_samplers_are_refused():
    scheduler = FewStepScheduler(sigmas=SIGMAS, times=TIMES)
    with pytest.raises(RequestError, match=r"distilled to 3 step\(s\), got 4"):
        sample(lambda x_t, _: x_t, build_sampler("distilled", scheduler), 4, draws(1, 1, 2, 2), [])
    for name in ("dpm", "ddim", "unipc", "ddpm", "euler"):
        with pytest.raises(RequestError, match=f"'{name}' does not fit.*leave the sampler out"):
            build_sampler(name, scheduler)
    for target in ("v", "epsilon", "flow"):
        with pytest.raises(RequestError, match="'distilled' fits distilled models only"):
            build_sampler("distilled", build_training_scheduler(target, *PAPER))
