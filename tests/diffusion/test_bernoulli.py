import itertools

import pytest
import torch

from synthgen.core.errors import RequestError
from synthgen.core.rng import SampleKey, Stream
from synthgen.diffusion.bernoulli import (
    BernoulliScheduler,
    cosine_betas,
    prior_probabilities,
    seeded_uniform,
)

PRIORS = [0.0, 0.1, 0.37, 0.9, 1.0]
LAST = 9


def scheduler(**settings):
    return BernoulliScheduler(**settings)


def uniform(shape, seed=0):
    return torch.rand(shape, generator=torch.Generator().manual_seed(seed))


def one_hot(classes, count):
    return torch.nn.functional.one_hot(classes, count).movedim(-1, 1).float()


def at(t):
    return torch.tensor([t])


def pixel(value):
    """Return a mask of one pixel and one channel."""
    return torch.full((1, 1, 1, 1), float(value))


def chances(chain, f):
    """Return the prior of every value of a pixel, mixed as the scheduler mixes it."""
    return chain.soft_prior(torch.tensor(f, dtype=torch.float32).reshape(1, -1, 1, 1)).flatten()


def brute_posterior(betas, prior, start, now, t, t_prev):
    """Enumerate all paths of one pixel: p(y_prev | y_t = now, y0 = start) for every value.

    The chain makes step t from the state after step t - 1; index -1 is y0.
    """
    values = range(len(prior))
    joint = torch.zeros(len(prior), dtype=torch.float64)
    for path in itertools.product(values, repeat=t + 1):
        states, chance = (start, *path), 1.0
        for step, (old, new) in enumerate(itertools.pairwise(states)):
            alpha = 1 - betas[step]
            chance *= alpha * (old == new) + (1 - alpha) * prior[new]
        if states[t + 1] == now:
            joint[states[t_prev + 1]] += chance
    return joint / joint.sum()


@pytest.mark.parametrize(
    ("schedule", "betas", "abar"),
    [
        (
            "cosine2",
            [0.0279, 0.0755, 0.1244, 0.1772, 0.2373, 0.3099, 0.4040, 0.5370, 0.7438, 0.9990],
            [0.9721, 0.8987, 0.7869, 0.6475, 0.4938, 0.3408, 0.2031, 0.0940, 0.0241, 2.4e-5],
        ),
        (
            "cosine",
            [0.0141, 0.0385, 0.0643, 0.0929, 0.1267, 0.1693, 0.2280, 0.3196, 0.4939, 0.9990],
            [0.986, 0.948, 0.887, 0.805, 0.703, 0.584, 0.451, 0.307, 0.155, 1.6e-4],
        ),
    ],
)
def test_schedules_have_the_published_values(schedule, betas, abar):
    chain = scheduler(schedule=schedule)
    torch.testing.assert_close(chain.betas, torch.tensor(betas), atol=6e-5, rtol=0)
    torch.testing.assert_close(chain.alphas_cumprod, torch.tensor(abar), atol=6e-4, rtol=0)
    assert bool(((cosine_betas(1000, schedule) > 0) & (cosine_betas(1000, schedule) < 1)).all())


@pytest.mark.parametrize("posterior", ["plugin", "mixture"])
@pytest.mark.parametrize("num_steps", [2, 3])
def test_bernoulli_posterior_equals_enumeration(num_steps, posterior):
    chain = scheduler(num_train_timesteps=num_steps, posterior=posterior)
    for f, start, now in itertools.product(PRIORS, (0, 1), (0, 1)):
        p = float(chances(chain, [f]))
        for t in range(1, num_steps):
            for t_prev in range(t):
                expected = brute_posterior(chain.betas, (1 - p, p), start, now, t, t_prev)[1]
                got = chain.posterior(pixel(now), pixel(start), pixel(f), at(t), at(t_prev))
                # float32 of alpha = abar_t / abar_prev, where alphas are as small as 1e-3.
                assert float(got) == pytest.approx(float(expected), abs=2e-5)


@pytest.mark.parametrize("posterior", ["plugin", "mixture"])
def test_categorical_posterior_equals_enumeration(posterior):
    chain = scheduler(num_train_timesteps=3, kernel="categorical", posterior=posterior)
    for f in ([0.2, 0.5, 0.3], [1.0, 0.0, 0.0]):
        prior = chances(chain, f).tolist()
        for start, now, t in itertools.product(range(3), range(3), (1, 2)):
            expected = brute_posterior(chain.betas, prior, start, now, t, t - 1)
            y0, y_t = (one_hot(torch.tensor([[[v]]]), 3) for v in (start, now))
            got = chain.posterior(y_t, y0, torch.tensor(f).reshape(1, 3, 1, 1), at(t)).flatten()
            torch.testing.assert_close(got.double(), expected, atol=2e-5, rtol=0)


def test_plugin_and_mixture_have_the_published_values():
    f, t = pixel(0.3), at(5)
    for y_t, y0, plugin, mixture in [(1, 0.2, 0.738, 0.669), (0, 0.5, 0.137, 0.172)]:
        for name, expected in (("plugin", plugin), ("mixture", mixture)):
            got = scheduler(posterior=name).posterior(pixel(y_t), pixel(y0), f, t)
            assert float(got) == pytest.approx(expected, abs=2e-3), name


@pytest.mark.parametrize("kernel", ["bernoulli", "categorical"])
def test_posteriors_of_all_noisy_masks_add_up_to_the_marginal(kernel):
    chain = scheduler(kernel=kernel)
    f = torch.softmax(4 * uniform((2, 3, 4, 4)), 1)
    y0 = one_hot((3 * uniform((2, 4, 4), 1)).long(), 3)
    for t, t_prev in [(9, 8), (9, 3), (4, 3), (1, 0)]:
        marginal = chain.marginal(y0, f, at(t))
        total = torch.zeros_like(f)
        if kernel == "bernoulli":
            for value in (0.0, 1.0):
                chance = marginal if value else 1 - marginal
                y_t = torch.full_like(f, value)
                total += chance * chain.posterior(y_t, y0, f, at(t), at(t_prev))
        else:
            for value in range(3):
                y_t = one_hot(torch.full((2, 4, 4), value), 3)
                chance = marginal[:, value : value + 1]
                total += chance * chain.posterior(y_t, y0, f, at(t), at(t_prev))
        torch.testing.assert_close(total, chain.marginal(y0, f, at(t_prev)), atol=1e-5, rtol=0)


@pytest.mark.parametrize("kernel", ["bernoulli", "categorical"])
def test_marginal_equals_a_simulated_chain(kernel):
    chain, count = scheduler(kernel=kernel), 200
    f = torch.tensor([0.1, 0.6, 0.3]).reshape(1, 3, 1, 1).expand(1, 3, count, count)
    y0 = one_hot(torch.zeros(1, count, count).long(), 3)
    prior, state = chain.soft_prior(f), y0
    for t, beta in enumerate(chain.betas):
        state = chain.draw((1 - beta) * state + beta * prior, uniform(f.shape, t))
        expected = chain.marginal(y0, f, at(t))[0, :, 0, 0]
        # Five standard errors of a mean over 40000 pixels.
        torch.testing.assert_close(state[0].mean((1, 2)), expected, atol=0.0125, rtol=0)
    drawn = chain.add_noise(y0, f, at(4), uniform(f.shape, 99))[0].mean((1, 2))
    expected = chain.marginal(y0, f, at(4))[0, :, 0, 0]
    torch.testing.assert_close(drawn, expected, atol=0.0125, rtol=0)


def test_flips_and_masks_tell_the_same():
    y_t, logits = uniform((2, 3, 4, 4)).round(), 4 * uniform((2, 3, 4, 4), 1) - 2
    flips, mask = scheduler(prediction="flips"), scheduler(prediction="mask")
    predicted = flips.calibrate(logits, y_t)
    torch.testing.assert_close(predicted, (y_t - torch.sigmoid(logits)).abs())
    torch.testing.assert_close(mask.calibrate(torch.logit(predicted), y_t), predicted)
    y0 = uniform((2, 3, 4, 4), 2).round()
    assert torch.equal(mask.target(y_t, y0), y0)
    assert torch.equal(flips.target(y_t, y0), (y_t != y0).float())


@pytest.mark.parametrize("kernel", ["bernoulli", "categorical"])
def test_no_correction_leaves_the_prior(kernel):
    chain = scheduler(kernel=kernel, prediction="correction", prior_floor=0.02)
    f = torch.softmax(6 * uniform((2, 3, 4, 4)), 1)
    y_t = chain.initial(f, uniform(f.shape, 1))
    found = chain.calibrate(chain.complete(torch.zeros_like(f), f), y_t)
    torch.testing.assert_close(found, chain.soft_prior(f))
    assert torch.equal(chain.target(y_t, f.round()), f.round())


@pytest.mark.parametrize("kernel", ["bernoulli", "categorical"])
def test_the_mode_draws_nothing(kernel):
    chain = scheduler(kernel=kernel, sampler="mode")
    drawn = scheduler(kernel=kernel)
    chain.set_timesteps(3)
    drawn.set_timesteps(3)
    f = torch.softmax(6 * uniform((2, 3, 8, 8)), 1)
    likeliest = one_hot(f.argmax(1), 3) if kernel == "categorical" else (f >= 0.5).float()
    assert torch.equal(chain.initial(f, uniform(f.shape, 1)), likeliest)
    logits, y_t = 4 * uniform(f.shape, 2) - 2, likeliest
    first, again = (chain.step(logits, 9, y_t, f, uniform(f.shape, n)) for n in (3, 4))
    assert torch.equal(first.prev_sample, again.prev_sample)
    # The most frequent of many draws, where it is clear.
    draws = torch.stack(
        [drawn.step(logits, 9, y_t, f, uniform(f.shape, n)).prev_sample for n in range(5, 205)]
    ).mean(0)
    best = draws.max(1).values if kernel == "categorical" else torch.maximum(draws, 1 - draws)
    clear = (best > 0.65).unsqueeze(1).expand_as(f) if kernel == "categorical" else best > 0.65
    assert clear.float().mean() > 0.2
    frequent = one_hot(draws.argmax(1), 3) if kernel == "categorical" else draws.round()
    assert torch.equal(first.prev_sample[clear], frequent[clear])


def test_flips_have_the_published_probability():
    chain, f, y0 = scheduler(), pixel(0.37), pixel(1)
    flip = 1 - chain.marginal(y0, f, at(6))
    expected = (1 - chain.alphas_cumprod[6]) * (chain.soft_prior(f) - y0).abs()
    torch.testing.assert_close(flip, expected)


@pytest.mark.parametrize("posterior", ["plugin", "mixture"])
def test_two_classes_equal_one_coin(posterior):
    coin = scheduler(posterior=posterior)
    classes = scheduler(posterior=posterior, kernel="categorical")
    f, y0 = uniform((10, 1, 5, 4)), uniform((10, 1, 5, 4), 1)
    y_t = (uniform((10, 1, 5, 4), 2) < 0.5).float()
    t = torch.arange(10)

    def pair(p):
        return torch.cat([1 - p, p], 1)

    expected = coin.posterior(y_t, y0, f, t)
    got = classes.posterior(pair(y_t), pair(y0), pair(f), t)
    torch.testing.assert_close(got, pair(expected), atol=1e-5, rtol=0)
    torch.testing.assert_close(
        classes.marginal(pair(y0), pair(f), t), pair(coin.marginal(y0, f, t)), atol=1e-6, rtol=0
    )


@pytest.mark.parametrize("sampler", ["ancestral", "ddim", "mode"])
@pytest.mark.parametrize(
    ("kernel", "prediction"),
    [
        ("bernoulli", "flips"),
        ("bernoulli", "mask"),
        ("bernoulli", "correction"),
        ("categorical", "mask"),
        ("categorical", "correction"),
    ],
)
@pytest.mark.parametrize("steps", [1, 2, 5, 10])
def test_a_perfect_prediction_recovers_the_mask(kernel, prediction, sampler, steps):
    chain = scheduler(kernel=kernel, prediction=prediction, sampler=sampler)
    y0 = one_hot((3 * uniform((2, 6, 5), 1)).long(), 3)
    f = torch.softmax(8 * uniform(y0.shape, 2), 1)
    chain.set_timesteps(steps)
    y_t = chain.initial(f, uniform(y0.shape, 3))
    for t in chain.timesteps:
        logits = 40 * (2 * chain.target(y_t, y0) - 1)
        y_t, predicted = chain.step(logits, t, y_t, f, uniform(y0.shape, 4 + int(t)))
        assert torch.equal(predicted.round(), y0)
        assert set(y_t.round().unique().tolist()) <= {0.0, 1.0}
    torch.testing.assert_close(y_t, y0)


@pytest.mark.parametrize("sampler", ["ancestral", "ddim"])
def test_a_right_prior_has_no_flips(sampler):
    chain = scheduler(sampler=sampler, prediction="flips")
    y0 = (uniform((2, 1, 8, 8)) < 0.3).float()
    # Away from the share of noise that `prior_floor` turns into flips.
    noise = 0.01 + 0.98 * uniform(y0.shape, 1)
    y_t = chain.initial(y0, noise)
    assert torch.equal(y_t, y0)
    assert torch.equal(chain.add_noise(y0, y0, torch.tensor([0, 9]), noise), y0)
    chain.set_timesteps(10)
    for t in chain.timesteps:
        y_t, _ = chain.step(torch.full_like(y0, -40), t, y_t, y0, noise)
        assert torch.equal(y_t.round(), y0)


def test_ddim_steps_keep_the_marginal_and_their_weights_sum_to_1():
    chain, y0, f = scheduler(), (uniform((1, 1, 4, 4)) < 0.5).float(), uniform((1, 1, 4, 4), 1)
    for t, t_prev in [(9, 8), (9, 6), (6, 3), (3, 0), (1, 0), (5, -1)]:
        ones = torch.ones_like(y0)
        one = chain.interpolated(ones, ones, at(t), at(t_prev))
        torch.testing.assert_close(one, ones)
        got = chain.interpolated(chain.marginal(y0, f, at(t)), y0, at(t), at(t_prev))
        torch.testing.assert_close(got, chain.marginal(y0, f, at(t_prev)), atol=1e-6, rtol=1e-5)


@pytest.mark.parametrize("kernel", ["bernoulli", "categorical"])
@pytest.mark.parametrize("posterior", ["plugin", "mixture"])
def test_hard_priors_that_contradict_the_mask_stay_finite(kernel, posterior):
    chain = scheduler(kernel=kernel, posterior=posterior)
    y0 = one_hot(torch.tensor([[[0, 1]]]), 2)
    y_t, f = y0.clone(), 1 - y0
    logits = torch.full_like(y0, -200.0).requires_grad_()
    prior = f.clone().requires_grad_()
    for t in range(LAST + 1):
        predicted = chain.calibrate(logits, y_t)
        for start in (y0, predicted):
            value = chain.posterior(y_t, start, prior, at(t))
            assert bool(((value >= 0) & (value <= 1 + 1e-6)).all())
        (grad_logits, grad_prior) = torch.autograd.grad(value.sum(), [logits, prior])
        assert bool(grad_logits.isfinite().all() and grad_prior.isfinite().all())


@pytest.mark.parametrize("steps", range(1, 11))
def test_chains_start_at_the_last_step_and_end_at_0(steps):
    chain = scheduler()
    chain.set_timesteps(steps)
    times = chain.timesteps.tolist()
    assert times[0] == LAST
    assert times[-1] == (0 if steps > 1 else LAST)
    assert len(times) == len(set(times)) == steps
    assert times == sorted(times, reverse=True)


def test_categorical_draws_are_one_hot_with_the_right_frequencies():
    chain = scheduler(kernel="categorical")
    p = torch.tensor([0.5, 0.0, 0.3, 0.2]).reshape(1, 4, 1, 1).expand(1, 4, 200, 200)
    drawn = chain.draw(p, uniform(p.shape))
    assert torch.equal(drawn.sum(1), torch.ones(1, 200, 200))
    assert torch.equal(drawn.unique(), torch.tensor([0.0, 1.0]))
    torch.testing.assert_close(drawn[0].mean((1, 2)), p[0, :, 0, 0], atol=0.0125, rtol=0)
    # Probabilities that rounding left below 1 still give a class.
    assert float(chain.draw(0.5 * p, torch.full_like(p, 0.999)).sum(1).min()) == 1


def test_volumes_take_the_same_path():
    chain = scheduler(sampler="ddim")
    flat = (uniform((2, 3, 6, 4)) < 0.5).float()
    deep = flat.reshape(2, 3, 3, 2, 4)
    noise, f, t = uniform(flat.shape, 1), uniform(flat.shape, 2), torch.tensor([1, 8])
    shape = deep.shape
    expected = chain.add_noise(flat, f, t, noise)
    got = chain.add_noise(deep, f.reshape(shape), t, noise.reshape(shape))
    assert torch.equal(got.reshape(flat.shape), expected)
    expected = chain.posterior(flat, f, f, t)
    got = chain.posterior(deep, f.reshape(shape), f.reshape(shape), t)
    assert torch.equal(got.reshape(flat.shape), expected)


def test_the_prior_of_one_channel_is_a_sigmoid():
    logits = torch.tensor([0.0, 2.0]).reshape(1, 1, 2, 1)
    for exclusive in (True, False):
        prior = prior_probabilities(logits, exclusive=exclusive)
        torch.testing.assert_close(prior, torch.sigmoid(logits))
    logits = uniform((2, 3, 4, 4)).to(torch.bfloat16)
    prior = prior_probabilities(logits, exclusive=True)
    assert prior.dtype == torch.float32
    torch.testing.assert_close(prior.sum(1), torch.ones(2, 4, 4))
    overlapping = prior_probabilities(logits, exclusive=False)
    torch.testing.assert_close(overlapping, torch.sigmoid(logits.float()))


def test_mixed_priors_stay_distributions():
    f = torch.tensor([[1.0, 0.0, 0.0], [0.2, 0.5, 0.3]]).reshape(2, 3, 1, 1)
    mixed = scheduler(kernel="categorical", prior_floor=0.02).soft_prior(f)
    torch.testing.assert_close(mixed.sum(1), torch.ones(2, 1, 1))
    assert float(mixed.min()) == pytest.approx(0.02)
    coins = scheduler(prior_floor=0.02).soft_prior(f)
    assert float(coins.min()) == pytest.approx(0.02)
    assert float(coins.max()) == pytest.approx(0.98)


def test_noise_of_a_sample_depends_on_its_own_generator(untouched_rng):
    def draw(first, count):
        keys = [SampleKey(0, i).torch(Stream.NOISE) for i in range(first, first + count)]
        return seeded_uniform(keys, (2, 3))

    together = draw(0, 4)
    assert together.shape == (4, 2, 3)
    assert torch.equal(draw(2, 1)[0], together[2])


def test_saved_settings_come_back(tmp_path):
    chain = scheduler(num_train_timesteps=4, kernel="categorical", sampler="ddim", prior_floor=0.02)
    chain.save_pretrained(tmp_path)
    loaded = BernoulliScheduler.from_pretrained(tmp_path)
    for name in ("num_train_timesteps", "schedule", "kernel", "posterior", "prediction", "sampler"):
        assert loaded.config[name] == chain.config[name], name
    assert loaded.config["prior_floor"] == 0.02
    assert loaded.exclusive
    assert torch.equal(loaded.alphas_cumprod, chain.alphas_cumprod)


def test_unusable_settings_are_refused():
    with pytest.raises(RequestError, match="1 step or more, got 0"):
        scheduler(num_train_timesteps=0)
    with pytest.raises(RequestError, match=r"at most 0\.05, got 0\.2"):
        scheduler(prior_floor=0.2)
    with pytest.raises(RequestError, match="categorical kernel has no flips"):
        scheduler(kernel="categorical", prediction="flips")
    chain = scheduler()
    for steps in (0, 11):
        with pytest.raises(RequestError, match=rf"1 \.\. 10, got {steps}"):
            chain.set_timesteps(steps)
    chain.set_timesteps(2)
    with pytest.raises(RequestError, match=r"step 5 is none of \[9, 0\]"):
        chain.step(pixel(0), 5, pixel(0), pixel(0.5), pixel(0))
