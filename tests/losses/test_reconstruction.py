import math

import pytest
import torch
from torch.nn import functional

from synthgen.core.errors import RequestError
from synthgen.losses.reconstruction import (
    kl_gaussian,
    l1,
    perceptual,
    slice_consistency,
    soft_cross_entropy,
)


def test_kl_value():
    mu = torch.tensor([[1.0, 2.0], [0.0, 0.0]])
    logvar = torch.tensor([[0.0, 0.0], [math.log(2), math.log(3)]])
    expected = 0.5 * (1 + 4 + (2 - math.log(2) - 1) + (3 - math.log(3) - 1)) / 2
    assert float(kl_gaussian(mu, logvar)) == pytest.approx(expected)


def test_kl_of_the_standard_normal_is_zero():
    assert float(kl_gaussian(torch.zeros(3, 4), torch.zeros(3, 4))) == 0


def test_kl_does_not_depend_on_the_batch_size():
    generator = torch.Generator().manual_seed(0)
    mu, logvar = (torch.randn(3, 4, 5, 2, generator=generator) for _ in range(2))
    torch.testing.assert_close(
        kl_gaussian(mu.repeat(2, 1, 1, 1), logvar.repeat(2, 1, 1, 1)), kl_gaussian(mu, logvar)
    )


def test_kl_equals_torch_distributions():
    generator = torch.Generator().manual_seed(0)
    mu, logvar = (torch.randn(3, 4, generator=generator) for _ in range(2))
    posterior = torch.distributions.Normal(mu, (0.5 * logvar).exp())
    prior = torch.distributions.Normal(torch.zeros(4), torch.ones(4))
    expected = torch.distributions.kl_divergence(posterior, prior).sum(dim=1).mean()
    torch.testing.assert_close(kl_gaussian(mu, logvar), expected)


def test_perceptual_weighs_its_layers_and_leaves_the_real_features_alone():
    real = [torch.zeros(2, 3, requires_grad=True), torch.zeros(4, requires_grad=True)]
    fake = [torch.full((2, 3), 2.0, requires_grad=True), torch.full((4,), -3.0)]
    loss = perceptual(fake, real, (0.25, 1.0))
    assert float(loss.detach()) == 0.25 * 2 + 3
    loss.backward()
    assert real[0].grad is None
    torch.testing.assert_close(fake[0].grad, torch.full((2, 3), 0.25 / 6))


def test_perceptual_refuses_a_wrong_number_of_weights():
    with pytest.raises(RequestError, match=r"1 fake and 1 real .* got 2"):
        perceptual([torch.zeros(1)], [torch.zeros(1)], (1.0, 1.0))


def test_soft_cross_entropy_of_hard_labels_is_cross_entropy():
    logits = torch.randn(2, 3, 4, 5, generator=torch.Generator().manual_seed(0))
    labels = logits.flip(1).argmax(dim=1)
    pv = functional.one_hot(labels, 3).permute(0, 3, 1, 2)
    torch.testing.assert_close(
        soft_cross_entropy(logits, pv), functional.cross_entropy(logits, labels)
    )


def test_soft_cross_entropy_is_smallest_at_the_partial_volumes():
    pv = torch.tensor([0.2, 0.3, 0.5]).view(1, 3, 1, 1)
    entropy = -(0.2 * math.log(0.2) + 0.3 * math.log(0.3) + 0.5 * math.log(0.5))
    assert float(soft_cross_entropy(pv.log(), pv)) == pytest.approx(entropy)
    assert float(soft_cross_entropy(torch.zeros(1, 3, 1, 1), pv)) == pytest.approx(math.log(3))


def test_soft_cross_entropy_weighs_channels():
    pv = torch.tensor([0.25, 0.75]).view(1, 2, 1)
    loss = soft_cross_entropy(torch.zeros(1, 2, 1), pv, (1.0, 10.0))
    assert float(loss) == pytest.approx((0.25 + 7.5) * math.log(2))
    with pytest.raises(RequestError, match="2 channel weights, got 3"):
        soft_cross_entropy(torch.zeros(1, 2, 1), pv, (1.0, 1.0, 1.0))


def test_l1_values():
    a, b = torch.tensor([1.0, -1.0]), torch.tensor([0.0, 3.0])
    assert float(l1(a, b)) == float(slice_consistency(a, b)) == 2.5


def test_losses_reduce_in_float32():
    ones = torch.ones(10, 2, 5000, dtype=torch.bfloat16)
    assert float(l1(ones, -ones)) == 2
    assert float(kl_gaussian(ones, 0 * ones)) == 0.5 * 2 * 5000
    assert float(soft_cross_entropy(0 * ones, ones / 2)) == pytest.approx(math.log(2))
    for loss in (l1(ones, ones), kl_gaussian(ones, ones), soft_cross_entropy(ones, ones)):
        assert loss.dtype == torch.float32
