"""Losses on vessel masks and painted angiograms."""

import pytest
import torch

from synthgen.core.errors import RequestError
from synthgen.losses.vessels import background_preservation, centreline_dice, ramp, soft_dice


def bar(thickness, *, side=48, gap=0):
    """A horizontal vessel, -1 background, 1 vessel, with a hole of `gap` pixels in the middle."""
    mask = -torch.ones(1, 1, side, side)
    top = (side - thickness) // 2
    mask[..., top : top + thickness, 4:-4] = 1
    if gap:
        middle = (side - gap) // 2
        mask[..., middle : middle + gap] = -1
    return mask


def test_soft_dice_equals_the_formula():
    prediction, target = bar(4) * 0.5, bar(8)
    p, t = (prediction + 1) / 2, (target + 1) / 2
    expected = 1 - (2 * (p * t).sum() + 1) / (p.sum() + t.sum() + 1)
    assert torch.allclose(soft_dice(prediction, target), expected)


@pytest.mark.parametrize("loss", [soft_dice, lambda p, t: centreline_dice(p, t, 6)])
def test_a_perfect_mask_costs_nothing_and_an_empty_one_nearly_all(loss):
    assert loss(bar(5), bar(5)) < 1e-3
    empty = -torch.ones_like(bar(5))
    assert loss(empty, empty) < 1e-3
    assert loss(empty, bar(5)) > 0.9


def test_centrelines_see_a_hole_that_dice_hardly_sees():
    thick = bar(9)
    whole, broken = bar(9), bar(9, gap=4)
    assert soft_dice(broken, thick) - soft_dice(whole, thick) < 0.06
    # Thinner or thicker vessels keep their centreline.
    assert centreline_dice(bar(5), thick, 6) < 0.05
    assert soft_dice(bar(5), thick) > 0.25
    assert centreline_dice(broken, thick, 6) > 0.02


def test_the_centreline_of_a_wide_vessel_needs_more_iterations_than_its_radius():
    whole, broken = bar(15), bar(15, gap=4)
    assert centreline_dice(broken, whole, 9) > 0.02
    # Too few erosions find the corners only, and the hole is not missed.
    assert centreline_dice(broken, whole, 3) < 0.005


def test_ramp_is_zero_then_straight_then_one():
    assert [ramp(s, 100, 50) for s in (0, 100, 125, 150, 10_000)] == [0, 0, 0.5, 1, 1]
    assert [ramp(s, 3, 0) for s in (3, 4)] == [0, 1]


def test_background_counts_outside_the_widened_vessels_only():
    mask = bar(4, side=16)
    background = torch.zeros(1, 1, 16, 16)
    painted = torch.where(mask > 0, 0.9, 0.0)
    ones = torch.ones(1)
    assert background_preservation(painted, background, mask, margin=0, weights=ones) == 0
    # Rows 5 and 10 touch the vessel (rows 6 to 9): a margin of 1 excuses them.
    painted[..., 5, 4:-4] = 0.5
    assert background_preservation(painted, background, mask, margin=1, weights=ones) == 0
    outside = 16 * 16 - 4 * 8
    loss = background_preservation(painted, background, mask, margin=0, weights=ones)
    assert loss == pytest.approx(0.5 * 8 / outside)


def test_samples_of_drowned_backgrounds_do_not_count():
    mask = bar(4, side=16).expand(2, 1, 16, 16)
    painted = torch.stack([torch.full((1, 16, 16), 0.2), torch.full((1, 16, 16), 0.8)])
    background = torch.zeros_like(painted)
    loss = background_preservation(
        painted, background, mask, margin=2, weights=torch.tensor([1.0, 0.0])
    )
    assert loss == pytest.approx(0.2 / 2)


def test_a_mask_without_background_costs_nothing():
    full = torch.ones(1, 1, 8, 8)
    loss = background_preservation(full, -full, full, margin=1, weights=torch.ones(1))
    assert loss == 0


def test_gradients_are_finite_and_leave_the_background_alone():
    mask = bar(5).bfloat16()
    prediction = (0.1 * mask).requires_grad_()
    background = torch.zeros(1, 1, 48, 48, requires_grad=True)
    loss = soft_dice(prediction, mask) + centreline_dice(prediction, mask, 6)
    loss = loss + background_preservation(
        prediction, background, mask, margin=3, weights=torch.ones(1)
    )
    assert loss.dtype == torch.float32
    loss.backward()
    assert prediction.grad.isfinite().all()
    assert prediction.grad.abs().max() > 0
    assert background.grad is None


def test_a_negative_margin_is_refused():
    x = bar(4)
    with pytest.raises(RequestError, match="margin >= 0, got -1"):
        background_preservation(x, x, x, margin=-1, weights=torch.ones(1))
