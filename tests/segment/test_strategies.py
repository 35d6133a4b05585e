"""What a denoiser of masks is shown: stop gradients, recycling, and what it finds step by step."""

from __future__ import annotations

import pytest
import torch

from synthgen.core.rng import SampleKey, Stream
from synthgen.diffusion.resample import imgx_scheduler
from synthgen.segment.strategies import Draws, MaskProcess, noisy_input, sample_masks

SHAPES = [(3, 8, 6), (3, 4, 6, 5)]
RECYCLING = ["recycle_next", "recycle_start"]
ALL = ["standard", *RECYCLING, "self_condition"]


def process(*, exclusive=True, clip=False, steps=5):
    scheduler = imgx_scheduler("ddpm", steps)
    return MaskProcess(scheduler.alphas_cumprod, exclusive=exclusive, clip=clip)


def hard(shape, seed=0):
    """Return random one-hot masks `(2, *shape)`."""
    labels = torch.randint(shape[0], (2, *shape[1:]), generator=generator(seed))
    return torch.nn.functional.one_hot(labels, shape[0]).movedim(-1, 1).float()


def generator(seed):
    return torch.Generator().manual_seed(seed)


def draws(shape, steps=5, seed=0, t=None):
    drawn = Draws.of([generator(seed), generator(seed + 1)], steps, shape)
    return drawn if t is None else drawn._replace(t=torch.full((2,), t))


class Recorder:
    """A denoiser with one weight, which remembers what it saw and said."""

    def __init__(self, channels=3):
        self.weight = torch.ones((), requires_grad=True)
        self.channels, self.calls = channels, []

    def __call__(self, seen, t):
        logits = self.weight * seen[:, : self.channels] * 4
        self.calls.append((seen, t, logits))
        return logits


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("strategy", ALL)
def test_no_gradient_passes_through_the_first_prediction(strategy, shape):
    denoise, soft = Recorder(), hard(shape)
    shown = noisy_input(strategy, process(), denoise, soft, draws(shape))
    assert len(denoise.calls) == (strategy != "standard")
    assert all(not logits.requires_grad for *_, logits in denoise.calls)
    assert not shown.requires_grad
    denoise(shown, draws(shape).t).sum().backward()
    assert denoise.weight.grad is not None
    assert shown.shape[1] == (6 if strategy == "self_condition" else 3)


@pytest.mark.parametrize("t", [0, 2, 4])
def test_standard_shows_the_truth_with_noise(t):
    shape = SHAPES[0]
    chain, soft, drawn = process(), hard(shape), draws(shape, t=t)
    abar = chain.alphas_cumprod[t]
    x_t = abar.sqrt() * (2 * soft - 1) + (1 - abar).sqrt() * drawn.noise
    torch.testing.assert_close(
        noisy_input("standard", chain, Recorder(), soft, drawn), (x_t + 1) / 2
    )


@pytest.mark.parametrize(
    ("strategy", "t", "earlier"),
    [("recycle_next", 1, 2), ("recycle_next", 4, 4), ("recycle_start", 0, 4)],
)
def test_recycling_noises_what_was_found_in_an_earlier_step(strategy, t, earlier):
    shape = SHAPES[0]
    chain, soft, drawn, denoise = process(), hard(shape), draws(shape, t=t), Recorder()
    shown = noisy_input(strategy, chain, denoise, soft, drawn)
    ((seen, asked, logits),) = denoise.calls
    assert asked.tolist() == [earlier] * 2
    first = chain.noised(2 * soft - 1, drawn.first_noise, asked)
    torch.testing.assert_close(seen, (first + 1) / 2)
    found = 2 * logits.softmax(dim=1) - 1
    torch.testing.assert_close(shown, (chain.noised(found, drawn.noise, drawn.t) + 1) / 2)


def test_recycled_from_the_start_the_truth_does_not_leak():
    """imgx.md section 16 (5): another label for x_T hardly changes what the network is shown."""
    shape = SHAPES[0]
    shown = {
        strategy: [
            noisy_input(strategy, process(), Recorder(), hard(shape, seed), draws(shape, t=1))
            for seed in (0, 7)
        ]
        for strategy in ("recycle_start", "recycle_next")
    }
    leak = {name: float((one - two).abs().max()) for name, (one, two) in shown.items()}
    assert leak["recycle_start"] < 1e-2
    assert leak["recycle_next"] > 0.1


def test_all_steps_are_trained_so_that_inference_starts_on_a_known_one():
    drawn = [int(Draws.of([generator(i)], 5, (1, 1, 1)).t) for i in range(60)]
    assert set(drawn) == {0, 1, 2, 3, 4}


def test_self_conditioning_shows_the_estimate_to_half_of_the_samples():
    shape = SHAPES[0]
    chain, soft, denoise = process(), hard(shape), Recorder()
    drawn = draws(shape)._replace(conditioned=torch.tensor([True, False]))
    shown = noisy_input("self_condition", chain, denoise, soft, drawn)
    ((seen, _, logits),) = denoise.calls
    assert not seen[:, 3:].any()
    torch.testing.assert_close(shown[0, 3:], logits[0].softmax(dim=0))
    assert not shown[1, 3:].any()
    share = torch.stack([Draws.of([generator(i)], 5, (1, 1)).conditioned for i in range(400)])
    assert 0.4 < share.float().mean() < 0.6


def test_draws_of_a_sample_do_not_depend_on_its_neighbours():
    alone = Draws.of([generator(3)], 5, (2, 4, 4))
    beside = Draws.of([generator(1), generator(3)], 5, (2, 4, 4))
    assert all(torch.equal(one[0], two[1]) for one, two in zip(alone, beside, strict=True))


def test_clipped_inputs_lie_between_0_and_1():
    x_t = 4 * torch.randn(1, 2, 8, 8, generator=generator(0))
    assert process(clip=True).seen(x_t).aminmax() == (0.0, 1.0)
    assert process().seen(x_t).max() > 1


@pytest.mark.parametrize("kind", ["ddpm", "ddim"])
@pytest.mark.parametrize("shape", SHAPES)
def test_a_perfect_denoiser_gives_the_mask_exactly(kind, shape):
    """imgx.md section 16 (6)."""
    soft = hard(shape)
    scheduler = imgx_scheduler(kind, 5)
    keys = [SampleKey(0, i).torch(Stream.NOISE) for i in range(2)]
    seen = []

    def find(mask, t):
        seen.append((mask, t))
        return soft

    found = sample_masks(find, process(), scheduler, keys, shape)
    assert found.shape == (5, 2, *shape)
    assert all(torch.equal(step, soft) for step in found)
    assert [int(t[0]) for _, t in seen] == [4, 3, 2, 1, 0]
    # The last step sees the mask itself, all but noise of 0.01.
    assert torch.equal((seen[-1][0] > 0.5).float(), soft)


def test_self_conditioned_inference_passes_the_estimate_on():
    shape = SHAPES[0]
    answers = [hard(shape, seed) for seed in range(5)]
    seen = []

    def find(mask, _t):
        seen.append(mask)
        return answers[len(seen) - 1]

    keys = [generator(0), generator(1)]
    sample_masks(find, process(), imgx_scheduler("ddpm", 5), keys, shape, self_conditioned=True)
    assert not seen[0][:, 3:].any()
    for number in range(1, 5):
        assert torch.equal(seen[number][:, 3:], answers[number - 1])


def test_overlapping_regions_have_probabilities_of_their_own():
    logits = torch.randn(1, 2, 4, 4, generator=generator(0))
    torch.testing.assert_close(process(exclusive=False).probabilities(logits), logits.sigmoid())
