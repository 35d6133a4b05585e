import pytest
import torch

from synthgen.core.errors import RequestError
from synthgen.losses.adversarial import (
    feature_matching,
    hinge_discriminator,
    hinge_generator,
    lsgan_discriminator,
    lsgan_generator,
    scale_logits,
)

LOGITS = torch.tensor([-3.0, -0.5, 0.5, 3.0])
BEYOND = torch.tensor([5.0])


def test_hinge_of_real_logits():
    # (4 + 1.5 + 0.5 + 0) / 4, and 0 for a fake beyond the margin.
    assert float(hinge_discriminator([LOGITS], [-BEYOND])) == 1.5


def test_hinge_of_fake_logits():
    # (0 + 0.5 + 1.5 + 4) / 4, and 0 for a real image beyond the margin.
    assert float(hinge_discriminator([BEYOND], [LOGITS])) == 1.5


def test_hinge_discriminator_is_zero_beyond_the_margin():
    assert float(hinge_discriminator([BEYOND], [-BEYOND])) == 0


def test_hinge_generator_is_minus_the_mean():
    assert float(hinge_generator([torch.tensor([1.0, 2.0, 6.0])])) == -3


@pytest.mark.parametrize("logit", [-50.0, -5.0, 0.0, 5.0, 50.0])
def test_hinge_generator_gradient_does_not_fade(logit):
    fake = torch.full((4,), logit, requires_grad=True)
    hinge_generator([fake]).backward()
    torch.testing.assert_close(fake.grad, torch.full((4,), -1 / 4))


def test_scales_are_averaged_whatever_their_size():
    small, large = torch.tensor([1.0]), torch.full((100,), 3.0)
    assert float(hinge_generator([small, large])) == -2
    # Half of ((1 - 1)^2 + 1^2) and ((3 - 1)^2 + 3^2), averaged.
    assert float(lsgan_discriminator([small, large], [small, large])) == (0.5 + 6.5) / 2


def test_least_squares_values():
    assert float(lsgan_discriminator([LOGITS], [LOGITS])) == 0.5 * (
        (16 + 2.25 + 0.25 + 4) / 4 + (9 + 0.25 + 0.25 + 9) / 4
    )
    assert float(lsgan_generator([LOGITS])) == (16 + 2.25 + 0.25 + 4) / 4


def test_feature_matching_sums_layers_over_the_number_of_scales_without_logits():
    real = [[torch.zeros(2, 2), torch.zeros(3), torch.zeros(1)] for _ in range(2)]
    fake = [[torch.full((2, 2), 1.0), torch.full((3,), -2.0), torch.full((1,), 99.0)]] * 2
    assert float(feature_matching(fake, real)) == (1 + 2 + 1 + 2) / 2


def test_feature_matching_sends_no_gradient_to_the_real_features():
    real, fake = (torch.randn(2, 3, requires_grad=True) for _ in range(2))
    logits = torch.zeros(1)
    feature_matching([[fake, logits]], [[real, logits]]).backward()
    assert real.grad is None
    assert bool(fake.grad.abs().sum() > 0)


def test_losses_reduce_in_float32():
    # 100 000 terms of 1 stall at 256 when summed in bfloat16.
    ones = torch.ones(100_000, dtype=torch.bfloat16)
    for loss in (
        hinge_generator([ones]),
        hinge_discriminator([-ones], [ones]),
        feature_matching([[ones, ones]], [[-ones, ones]]),
        lsgan_generator([-ones]),
    ):
        assert loss.dtype == torch.float32
    assert float(hinge_generator([ones])) == -1
    assert float(feature_matching([[ones, ones]], [[-ones, ones]])) == 2


def test_scale_logits_takes_the_last_feature():
    features = [[torch.zeros(1), torch.ones(1)], [torch.zeros(1), torch.full((1,), 2.0)]]
    assert [float(x) for x in scale_logits(features)] == [1, 2]


def test_nothing_to_compare_is_refused():
    with pytest.raises(RequestError, match="at least one scale"):
        hinge_generator([])
    with pytest.raises(RequestError, match="1 fake scales, 2 real"):
        feature_matching([[LOGITS]], [[LOGITS], [LOGITS]])
