import pytest
import torch

from synthgen.core.errors import RequestError
from synthgen.core.rng import SampleKey, Stream
from synthgen.diffusion.sampling import guided, sample, seeded_noise
from synthgen.diffusion.schedule import build_sampler, build_training_scheduler

PAPER = (1000, "scaled_linear", 0.0015, 0.0195)
START = torch.tensor([[0.5, -2.0], [1.0, 3.0]])[None]  # (1, 2, 2)


def generators(count, first=0):
    return [SampleKey(0, i).torch(Stream.NOISE) for i in range(first, first + count)]


def exact_denoiser(target, scheduler):
    """Return the best prediction for data that always is START."""

    def denoise(x_t, t):
        if target == "flow":
            return (x_t - START) / (t / 1000).view(-1, 1, 1, 1)
        # Solvers visit fractional times between the trained ones.
        low = scheduler.alphas_cumprod[t.floor().long()]
        high = scheduler.alphas_cumprod[t.ceil().long().clamp(max=999)]
        alpha = (low + (high - low) * (t - t.floor())).view(-1, 1, 1, 1)
        eps = (x_t - alpha.sqrt() * START) / (1 - alpha).sqrt()
        return eps if target == "epsilon" else alpha.sqrt() * eps - (1 - alpha).sqrt() * START

    return denoise


@pytest.mark.parametrize(
    ("name", "target", "steps"),
    [
        ("dpm", "epsilon", 20),
        ("dpm", "v", 20),
        ("dpm", "flow", 20),
        ("ddim", "epsilon", 50),
        ("ddim", "v", 50),
        ("unipc", "v", 20),
        ("ddpm", "v", 1000),
        ("euler", "flow", 20),
    ],
)
def test_an_exact_denoiser_leads_to_the_data(name, target, steps):
    scheduler = build_training_scheduler(target, *PAPER)
    drawn = generators(3)
    noise = seeded_noise(drawn, START.shape[0:])
    out = sample(
        exact_denoiser(target, scheduler), build_sampler(name, scheduler), steps, noise, drawn
    )
    # The last step of DDIM and UniPC keeps the noise of the first training step, std 0.04.
    torch.testing.assert_close(out, START.expand(3, *START.shape), atol=0.15, rtol=0)


def test_noise_of_a_sample_depends_on_its_own_generator(untouched_rng):
    together = seeded_noise(generators(4), (2, 3))
    assert together.shape == (4, 2, 3)
    torch.testing.assert_close(seeded_noise(generators(1, first=2), (2, 3))[0], together[2])


def test_stochastic_ddim_draws_per_sample(untouched_rng):
    scheduler = build_training_scheduler("epsilon", *PAPER)

    def run(first, count):
        drawn = generators(count, first)
        noise = seeded_noise(drawn, (1, 4, 4))
        sampler = build_sampler("ddim", scheduler)
        return sample(lambda x, t: 0.1 * x, sampler, 10, noise, drawn, eta=1.0)

    batch = run(0, 4)
    torch.testing.assert_close(run(2, 2), batch[2:], atol=0, rtol=0)
    drawn = generators(4)
    again = sample(
        lambda x, t: 0.1 * x, build_sampler("ddim", scheduler), 10, seeded_noise(drawn, (1, 4, 4)),
        drawn, eta=0.0,
    )  # fmt: skip
    assert not torch.equal(again, batch)


def test_guidance_mixes_condition_and_null():
    def predict(x_t, t, keep):
        return x_t * 0 + torch.where(keep.view(-1, 1) > 0, 3.0, 1.0)

    x_t, t = torch.zeros(2, 5), torch.zeros(2)
    assert guided(predict, 1.0)(x_t, t).unique().tolist() == [3.0]
    assert guided(predict, 2.5)(x_t, t).unique().tolist() == [1 + 2.5 * (3 - 1)]


def test_without_guidance_the_network_is_asked_once_per_sample():
    asked = []

    def predict(x_t, t, keep):
        asked.append(len(x_t))
        return x_t

    guided(predict, 1.0)(torch.zeros(2, 5), torch.zeros(2))
    guided(predict, 1.5)(torch.zeros(2, 5), torch.zeros(2))
    assert asked == [2, 4]


@pytest.mark.parametrize("steps", [0, 1001])
def test_unusable_step_counts_are_refused(steps):
    scheduler = build_training_scheduler("v", *PAPER)
    with pytest.raises(RequestError, match=rf"1 \.\. 1000, got {steps}"):
        sample(lambda x, t: x, build_sampler("dpm", scheduler), steps, torch.zeros(1, 2, 2), [])
