import math

import pytest
import torch

from synthgen.diffusion.bernoulli import BernoulliScheduler
from synthgen.losses.bernoulli import bernoulli_terms, divergence_bits, focal_bits


def uniform(shape, seed=0):
    return torch.rand(shape, generator=torch.Generator().manual_seed(seed))


def batch(kernel="bernoulli", **settings):
    """Return a chain and (y_t, y0, f, t) of the first step, one in the middle and the last."""
    chain = BernoulliScheduler(kernel=kernel, **settings)
    classes = (3 * uniform((3, 6, 5))).long()
    y0 = torch.nn.functional.one_hot(classes, 3).movedim(-1, 1).float()
    f, t = torch.softmax(3 * uniform(y0.shape, 1), 1), torch.tensor([0, 4, 9])
    return chain, (chain.add_noise(y0, f, t, uniform(y0.shape, 2)), y0, f, t)


def test_divergence_of_coins_is_in_bits():
    p, q = torch.full((1, 1, 2, 2), 0.25), torch.full((1, 1, 2, 2), 0.5)
    expected = 0.25 * math.log2(0.25 / 0.5) + 0.75 * math.log2(0.75 / 0.5)
    assert float(divergence_bits(p, q, exclusive=False)) == pytest.approx(expected)
    # A sure truth: the likelihood in bits.
    sure = divergence_bits(torch.ones_like(p), p, exclusive=False)
    assert float(sure) == pytest.approx(2.0)


def test_divergence_of_two_classes_is_that_of_a_coin():
    p, q = uniform((2, 1, 4, 4)), uniform((2, 1, 4, 4), 1)

    def pair(x):
        return torch.cat([x, 1 - x], 1)

    torch.testing.assert_close(
        divergence_bits(pair(p), pair(q), exclusive=True), divergence_bits(p, q, exclusive=False)
    )


def test_focal_loss_of_a_coin():
    logits, flips = torch.zeros(1, 1, 2, 1), torch.tensor([0.0, 1.0]).reshape(1, 1, 2, 1)
    # BCE of an even chance is 1 bit, and its probability 1 / 2.
    assert float(focal_bits(logits, flips, 0.0, exclusive=False)) == pytest.approx(1.0)
    assert float(focal_bits(logits, flips, 2.0, exclusive=False)) == pytest.approx(0.25)
    classes = torch.tensor([1.0, 0.0, 0.0, 0.0]).reshape(1, 4, 1, 1)
    got = focal_bits(torch.zeros(1, 4, 1, 1), classes, 2.0, exclusive=True)
    assert float(got) == pytest.approx(2 * 0.75**2)


@pytest.mark.parametrize(
    ("kernel", "prediction"),
    [("bernoulli", "flips"), ("bernoulli", "mask"), ("categorical", "mask")],
)
def test_a_perfect_prediction_costs_nothing(kernel, prediction):
    chain, (y_t, y0, f, t) = batch(kernel, prediction=prediction)
    perfect = 40 * (2 * chain.target(y_t, y0) - 1)
    terms = bernoulli_terms(chain, perfect, y_t, y0, f, t, gamma=2.0)
    for term in terms:
        assert term.shape == (3,)
        torch.testing.assert_close(term, torch.zeros(3), atol=1e-5, rtol=0)
    worse = bernoulli_terms(chain, torch.zeros_like(y0), y_t, y0, f, t, gamma=2.0)
    assert bool((worse.bound > 1e-4).all())
    assert bool((worse.focal > 0.1).all())


def test_flips_and_masks_cost_the_same():
    chain, (y_t, y0, f, t) = batch(prediction="flips")
    logits = 4 * uniform(y0.shape, 5) - 2
    flips = bernoulli_terms(chain, logits, y_t, y0, f, t, gamma=2.0)
    chain, _ = batch(prediction="mask")
    mask = bernoulli_terms(chain, logits * (1 - 2 * y_t), y_t, y0, f, t, gamma=2.0)
    torch.testing.assert_close(flips, mask)


def test_the_first_step_is_a_likelihood():
    chain, (y_t, y0, f, t) = batch()
    logits = 2 * uniform(y0.shape, 5) - 1
    bound = bernoulli_terms(chain, logits, y_t, y0, f, t, gamma=2.0).bound[0]
    chance = chain.calibrate(logits, y_t)[0]
    chance = torch.where(y0[0] > 0, chance, 1 - chance)
    torch.testing.assert_close(bound, -chance.log2().mean())


@pytest.mark.parametrize("kernel", ["bernoulli", "categorical"])
@pytest.mark.parametrize("posterior", ["plugin", "mixture"])
def test_gradients_are_finite_at_every_step(kernel, posterior):
    chain, (_, y0, f, _) = batch(kernel, posterior=posterior)
    for hard in (f, f.round(), 1 - y0):
        for t in (0, 1, 9):
            times, prior = torch.full((3,), t), hard.clone().requires_grad_()
            y_t = chain.add_noise(y0, hard, times, uniform(y0.shape, 3))
            for strength in (0.0, 300.0):
                logits = (strength * (2 * uniform(y0.shape, 4) - 1)).requires_grad_()
                terms = bernoulli_terms(chain, logits, y_t, y0, prior, times, gamma=2.0)
                loss = (terms.bound + terms.focal).sum()
                grads = torch.autograd.grad(loss, [logits, prior])
                assert bool(loss.isfinite())
                assert all(bool(grad.isfinite().all()) for grad in grads)


def test_the_target_does_not_pull_on_the_prior():
    chain, (y_t, y0, f, _) = batch()
    t, f = torch.tensor([3, 4, 9]), f.requires_grad_()
    logits = 2 * uniform(y0.shape, 5) - 1
    bound = bernoulli_terms(chain, logits, y_t, y0, f, t, gamma=2.0).bound
    (grad,) = torch.autograd.grad(bound.sum(), f)

    def explicit(target):
        mean = chain.posterior(y_t, chain.calibrate(logits, y_t), f, t)
        return torch.autograd.grad(divergence_bits(target, mean, exclusive=False).sum(), f)[0]

    target = chain.posterior(y_t, y0, f, t)
    torch.testing.assert_close(grad, explicit(target.detach()))
    assert not torch.allclose(grad, explicit(target), atol=1e-3)
