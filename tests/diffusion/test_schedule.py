import pytest
import torch
from diffusers import DDPMScheduler

from synthgen.core.errors import RequestError
from synthgen.diffusion.schedule import build_sampler, build_training_scheduler, target_of

PAPER = (1000, "scaled_linear", 0.0015, 0.0195)
DIFFUSION_SAMPLERS = ("dpm", "ddim", "unipc", "ddpm")


def test_betas_equal_the_closed_form():
    scheduler = build_training_scheduler("epsilon", *PAPER)
    expected = torch.linspace(0.0015**0.5, 0.0195**0.5, 1000, dtype=torch.float64) ** 2
    torch.testing.assert_close(scheduler.betas.double(), expected, atol=1e-7, rtol=0)
    assert scheduler.alphas_cumprod[-1] == pytest.approx(1.42e-4, rel=5e-3)


def test_ddim_visits_the_papers_timesteps():
    sampler = build_sampler("ddim", build_training_scheduler("epsilon", *PAPER))
    sampler.set_timesteps(50)
    assert sorted(sampler.timesteps.tolist()) == list(range(1, 982, 20))
    assert sampler.final_alpha_cumprod == sampler.alphas_cumprod[0]


@pytest.mark.parametrize("name", DIFFUSION_SAMPLERS)
@pytest.mark.parametrize("target", ["epsilon", "v"])
def test_nothing_is_clipped_and_the_target_is_kept(name, target):
    training = build_training_scheduler(target, *PAPER)
    sampler = build_sampler(name, training)
    assert not training.config.clip_sample
    assert not sampler.config.get("clip_sample", False)
    assert not sampler.config.get("thresholding", False)
    assert target_of(sampler) == target
    assert torch.equal(sampler.betas, training.betas)


def test_karras_sigmas_for_diffusion_only():
    assert build_sampler("dpm", build_training_scheduler("v", *PAPER)).config.use_karras_sigmas
    flow = build_sampler("dpm", build_training_scheduler("flow", *PAPER))
    assert flow.config.use_flow_sigmas
    assert flow.config.prediction_type == "flow_prediction"


@pytest.mark.parametrize(
    ("name", "target"), [("euler", "v"), ("ddim", "flow"), ("unipc", "flow"), ("ddpm", "flow")]
)
def test_a_sampler_that_does_not_fit_is_refused(name, target):
    with pytest.raises(RequestError, match=rf"'{name}'.*'{target}'.*choose"):
        build_sampler(name, build_training_scheduler(target, *PAPER))


@pytest.mark.parametrize(
    ("name", "target"),
    [*((name, "v") for name in DIFFUSION_SAMPLERS), ("dpm", "flow"), ("euler", "flow")],
)
def test_a_sampler_is_the_same_of_a_saved_schedule(name, target, tmp_path):
    training = build_training_scheduler(target, *PAPER)
    training.save_pretrained(tmp_path)
    samplers = [
        build_sampler(name, scheduler)
        for scheduler in (training, type(training).from_pretrained(tmp_path))
    ]
    for sampler in samplers:
        sampler.set_timesteps(7)
    one, two = samplers
    assert torch.equal(one.timesteps, two.timesteps)
    if name not in ("ddim", "ddpm"):
        assert torch.equal(one.sigmas, two.sigmas)


@pytest.mark.parametrize("name", ["dpm", "unipc"])
def test_fast_samplers_start_at_pure_noise(name, tmp_path):
    build_training_scheduler("v", *PAPER).save_pretrained(tmp_path)
    sampler = build_sampler(name, DDPMScheduler.from_pretrained(tmp_path))
    sampler.set_timesteps(5)
    assert sampler.timesteps[0] == 999


def test_schedule_survives_saving(tmp_path):
    for target in ("epsilon", "v", "flow"):
        training = build_training_scheduler(target, *PAPER)
        training.save_pretrained(tmp_path / target)
        loaded = type(training).from_pretrained(tmp_path / target)
        assert target_of(loaded) == target
