import pytest
import torch

from synthgen.diffusion.schedule import build_training_scheduler
from synthgen.diffusion.targets import antithetic_times, noised, predicted_start

PAPER = (1000, "scaled_linear", 0.0015, 0.0195)
GENERATOR_SEED = 3


@pytest.fixture
def pair():
    generator = torch.Generator().manual_seed(GENERATOR_SEED)
    x_start = torch.randn(4, 2, 3, 3, generator=generator)
    noise = torch.randn(4, 2, 3, 3, generator=generator)
    return x_start, noise, torch.tensor([0.0, 0.25, 0.6, 0.9999])


def coefficients(scheduler, u):
    alpha = scheduler.alphas_cumprod[(u * 1000).long()].view(-1, 1, 1, 1)
    return alpha.sqrt(), (1 - alpha).sqrt()


def test_epsilon_predicts_the_noise(pair):
    x_start, noise, u = pair
    scheduler = build_training_scheduler("epsilon", *PAPER)
    a, s = coefficients(scheduler, u)
    out = noised(scheduler, x_start, noise, u)
    assert out.t.tolist() == [0, 250, 600, 999]
    torch.testing.assert_close(out.x_t, a * x_start + s * noise)
    assert torch.equal(out.target, noise)


def test_v_predicts_the_velocity(pair):
    x_start, noise, u = pair
    scheduler = build_training_scheduler("v", *PAPER)
    a, s = coefficients(scheduler, u)
    out = noised(scheduler, x_start, noise, u)
    torch.testing.assert_close(out.target, a * noise - s * x_start)
    # The rotation (x_t, v) keeps the norm: a^2 + s^2 = 1.
    torch.testing.assert_close(
        out.x_t.square() + out.target.square(), x_start.square() + noise.square()
    )


def test_flow_predicts_the_straight_line(pair):
    x_start, noise, u = pair
    out = noised(build_training_scheduler("flow", *PAPER), x_start, noise, u)
    torch.testing.assert_close(out.t, 1000 * u)
    torch.testing.assert_close(out.target, noise - x_start)
    share = u.view(-1, 1, 1, 1)
    torch.testing.assert_close(out.x_t + (1 - share) * out.target, noise)


@pytest.mark.parametrize("target", ["epsilon", "v", "flow"])
def test_a_perfect_prediction_gives_back_the_start(pair, target):
    x_start, noise, u = pair
    scheduler = build_training_scheduler(target, *PAPER)
    out = noised(scheduler, x_start, noise, u)
    start = predicted_start(scheduler, out.x_t, out.t, out.target)
    # At the last step epsilon is divided by sqrt(1.4e-4) = 0.012, so float32 loses two digits.
    torch.testing.assert_close(start, x_start, atol=1e-4, rtol=1e-3)


def test_antithetic_times_cover_the_unit_interval():
    for seed in range(50):
        u = antithetic_times(8, torch.Generator().manual_seed(seed))
        assert u.dtype == torch.float32
        assert 0 <= u.min() <= u.max() < 1
        assert sorted((u * 8).long().tolist()) == list(range(8))
