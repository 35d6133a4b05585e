import math

import pytest
import torch

from synthgen.losses.label_maps import (
    feature_l1,
    kl_to_standard_normal,
    least_squares,
    multi_resolution_l1,
    soft_cross_entropy,
    weighted_l1,
)

ONES = torch.ones(3)


def simplex(seed, shape=(2, 3, 8, 8)):
    draws = torch.randn(shape, generator=torch.Generator().manual_seed(seed))
    return torch.softmax(draws, dim=1)


def test_cross_entropy_of_a_known_pixel():
    pv = torch.tensor([0.5, 0.5, 0.0]).view(1, 3, 1, 1)
    logits = torch.log(torch.tensor([0.25, 0.25, 0.5])).view(1, 3, 1, 1)
    # sum of p log(p / q) = 2 * 0.5 * log 2
    assert soft_cross_entropy(logits, pv, ONES) == pytest.approx(math.log(2), rel=1e-5)
    # The pixel's weight is 0.5 * 4 + 0.5 * 2.
    weights = torch.tensor([4.0, 2.0, 9.0])
    assert soft_cross_entropy(logits, pv, weights) == pytest.approx(3 * math.log(2), rel=1e-5)


@pytest.mark.parametrize("lesion_weight", [1.0, 20.0])
def test_cross_entropy_is_least_at_the_target_whatever_the_weights(lesion_weight):
    pv = simplex(0)
    weights = torch.tensor([1.0, 1.0, lesion_weight])
    logits = torch.log(pv).requires_grad_()
    loss = soft_cross_entropy(logits, pv, weights)
    loss.backward()
    assert float(loss.detach()) == pytest.approx(0, abs=1e-6)
    assert logits.grad.abs().max() < 1e-6


def test_cross_entropy_takes_pure_pixels_and_bfloat16():
    pv = torch.nn.functional.one_hot(torch.tensor([[0, 1], [2, 0]]), 3).permute(2, 0, 1)[None]
    loss = soft_cross_entropy(torch.zeros(1, 3, 2, 2).bfloat16(), pv, ONES)
    assert loss.dtype == torch.float32
    assert loss == pytest.approx(math.log(3), rel=1e-5)


def test_weighted_l1_of_a_known_map():
    out = torch.zeros(1, 3, 2, 2)
    pv = torch.zeros(1, 3, 2, 2)
    pv[0, 2, 0, 0] = 0.6
    assert weighted_l1(out, pv, torch.tensor([1.0, 1.0, 5.0])) == pytest.approx(5 * 0.6 / 12)


def test_multi_resolution_l1_is_a_distance():
    one, two = simplex(1, (2, 3, 16, 16)), simplex(2, (2, 3, 16, 16))
    assert multi_resolution_l1(one, one) == 0
    assert multi_resolution_l1(one, two) == pytest.approx(float(multi_resolution_l1(two, one)))
    # A constant gap c has no gradient, at any resolution.
    assert multi_resolution_l1(one + 0.25, one) == pytest.approx(0.25, rel=1e-5)


def test_multi_resolution_l1_of_a_step_edge():
    out = torch.zeros(1, 1, 2, 2)
    out[..., 1] = 1.0
    # Factor 1: mean 1/2, horizontal gradient 1, vertical 0.
    assert multi_resolution_l1(out, torch.zeros_like(out), (1,)) == pytest.approx(1.5)


def test_kl_equals_the_closed_form_and_ignores_the_batch_size():
    mu = torch.tensor([[1.0, 0.0], [0.0, 2.0]])
    logvar = torch.tensor([[0.0, 0.0], [math.log(4.0), 0.0]])
    # 1/2 (mu^2 + sigma^2 - log sigma^2 - 1): 1/2 and 1/2 (4 - log 4 - 1) + 2
    expected = (0.5 + 0.5 * (3 - math.log(4)) + 2) / 2
    assert kl_to_standard_normal(mu, logvar) == pytest.approx(expected, rel=1e-6)
    doubled = kl_to_standard_normal(mu.repeat(2, 1), logvar.repeat(2, 1))
    assert doubled == pytest.approx(expected, rel=1e-6)


def test_least_squares_is_not_squashed():
    logits = torch.tensor([-3.0, -0.5, 0.5, 3.0])
    assert least_squares(logits, 1.0) == pytest.approx((16 + 2.25 + 0.25 + 4) / 4)
    assert least_squares(logits, 0.0) == pytest.approx((9 + 0.25 + 0.25 + 9) / 4)


def test_feature_l1_pulls_on_the_first_argument_only():
    ours = [torch.zeros(2, 3, requires_grad=True), torch.zeros(2, 1, requires_grad=True)]
    theirs = [torch.full((2, 3), 2.0, requires_grad=True), torch.ones(2, 1, requires_grad=True)]
    loss = feature_l1(ours, theirs)
    loss.backward()
    assert float(loss.detach()) == pytest.approx(1.5)
    assert all(f.grad is not None for f in ours)
    assert all(f.grad is None for f in theirs)
