"""Losses of diffusion segmenters: golden values, MONAI's where they are right, empty labels."""

import math

import pytest
import torch
from monai.losses import DiceLoss, FocalLoss
from torch.nn import functional

from synthgen.losses.segmentation import SegmentationWeights, dice_loss, segmentation_loss

DICE = SegmentationWeights(dice=1, cross_entropy=0, focal=0, gamma=2)
ENTROPY = SegmentationWeights(dice=0, cross_entropy=1, focal=0, gamma=2)
FOCAL = SegmentationWeights(dice=0, cross_entropy=0, focal=1, gamma=2)
ALL = SegmentationWeights(dice=1, cross_entropy=1, focal=20, gamma=2)
SIZES = [(6, 5), (4, 5, 3)]


def noise(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def labels(classes, *size, batch=2, seed=1):
    index = noise(batch, classes, *size, seed=seed).argmax(dim=1)
    return functional.one_hot(index, classes).movedim(-1, 1).float()


def test_known_values_of_one_point():
    # p = (1/4, 1/4, 1/2), the first foreground class is there.
    logits = torch.tensor([0.25, 0.25, 0.5]).log().view(1, 3, 1, 1)
    soft = torch.tensor([0.0, 1.0, 0.0]).view(1, 3, 1, 1)
    expected = {
        DICE: 1 - 2 * 0.25 / (1 + 0.25),
        ENTROPY: math.log(4),
        FOCAL: 0.75**2 * math.log(4),
    }
    for weights, value in expected.items():
        loss = segmentation_loss(logits, soft, weights, exclusive=True)
        assert loss.tolist() == pytest.approx([value], rel=1e-5)
    together = segmentation_loss(logits, soft, ALL, exclusive=True)
    dice, entropy, focal = expected.values()
    assert float(together) == pytest.approx(dice + entropy + 20 * focal, rel=1e-5)


@pytest.mark.parametrize("size", SIZES)
def test_dice_and_focal_equal_monai_where_every_class_is_there(size):
    logits, soft = noise(2, 4, *size), labels(4, *size)
    assert (soft.flatten(2).sum(dim=2) > 0).all()
    theirs = DiceLoss(
        include_background=False, softmax=True, smooth_nr=0, smooth_dr=0, reduction="none"
    )
    expected = theirs(logits, soft).flatten(1).mean(dim=1)
    torch.testing.assert_close(segmentation_loss(logits, soft, DICE, exclusive=True), expected)
    # Theirs is the mean over classes.
    focal = 4 * FocalLoss(use_softmax=True, gamma=2, reduction="none")(logits, soft)
    expected = focal.flatten(1).mean(dim=1)
    torch.testing.assert_close(segmentation_loss(logits, soft, FOCAL, exclusive=True), expected)


@pytest.mark.parametrize("size", SIZES)
def test_overlapping_regions_equal_monai_and_torch(size):
    logits, soft = noise(2, 3, *size), (noise(2, 3, *size, seed=2) > 0).float()
    theirs = DiceLoss(sigmoid=True, smooth_nr=0, smooth_dr=0, reduction="none")
    expected = theirs(logits, soft).flatten(1).mean(dim=1)
    torch.testing.assert_close(segmentation_loss(logits, soft, DICE, exclusive=False), expected)
    focal = 3 * FocalLoss(gamma=2, reduction="none")(logits, soft).flatten(1).mean(dim=1)
    torch.testing.assert_close(segmentation_loss(logits, soft, FOCAL, exclusive=False), focal)
    entropy = functional.binary_cross_entropy_with_logits(logits, soft, reduction="none")
    expected = 3 * entropy.flatten(1).mean(dim=1)
    torch.testing.assert_close(segmentation_loss(logits, soft, ENTROPY, exclusive=False), expected)


def test_cross_entropy_equals_torch():
    logits, soft = noise(2, 4, 6, 5), noise(2, 4, 6, 5, seed=1).softmax(dim=1)
    expected = functional.cross_entropy(logits, soft, reduction="none").flatten(1).mean(dim=1)
    torch.testing.assert_close(segmentation_loss(logits, soft, ENTROPY, exclusive=True), expected)
    no_gamma = SegmentationWeights(dice=0, cross_entropy=0, focal=1, gamma=0)
    torch.testing.assert_close(segmentation_loss(logits, soft, no_gamma, exclusive=True), expected)


def test_absent_classes_are_left_out():
    logits, soft = noise(1, 4, 6, 6), torch.zeros(1, 4, 6, 6)
    soft[:, 0, :3], soft[:, 2, 3:] = 1, 1
    p = logits.softmax(dim=1)[:, 2]
    expected = 1 - 2 * (p * soft[:, 2]).sum() / (p + soft[:, 2]).sum()
    loss = segmentation_loss(logits, soft, DICE, exclusive=True)
    torch.testing.assert_close(loss, expected[None])


@pytest.mark.parametrize("exclusive", [True, False])
def test_a_sample_without_foreground_has_a_finite_loss_and_no_dice(exclusive):
    logits = (50 * noise(2, 3, 6, 6)).requires_grad_()
    soft = labels(3, 6, 6)
    soft[0] = 0
    if exclusive:
        soft[0, 0] = 1
    dice = segmentation_loss(logits, soft, DICE, exclusive=exclusive)
    assert dice[0] == 0
    assert dice[1] > 0
    loss = segmentation_loss(logits, soft, ALL, exclusive=exclusive)
    loss.sum().backward()
    assert loss.isfinite().all()
    assert logits.grad.isfinite().all()
    assert logits.grad[0].abs().max() > 0


@pytest.mark.parametrize("weights", [DICE, ENTROPY])
def test_partial_volumes_are_the_best_answer_to_themselves(weights):
    soft = noise(2, 3, 8, 8).softmax(dim=1)

    def loss(p):
        return segmentation_loss(p.log(), soft, weights, exclusive=True).sum()

    best = loss(soft)
    hard = functional.one_hot(soft.argmax(dim=1), 3).movedim(-1, 1) * 0.97 + 0.01
    for other in (hard, soft.square() / soft.square().sum(dim=1, keepdim=True), soft.flip(0)):
        assert loss(other) > best
    if weights is DICE:
        assert best == pytest.approx(0, abs=1e-5)


def test_samples_do_not_mix():
    logits, soft = noise(3, 3, 6, 6), labels(3, 6, 6, batch=3)
    together = segmentation_loss(logits, soft, ALL, exclusive=True)
    alone = [
        segmentation_loss(logits[i : i + 1], soft[i : i + 1], ALL, exclusive=True) for i in range(3)
    ]
    torch.testing.assert_close(together, torch.cat(alone))


def test_bfloat16_logits_are_reduced_in_float32():
    logits, soft = noise(2, 3, 6, 6), labels(3, 6, 6)
    low = segmentation_loss(logits.bfloat16(), soft, ALL, exclusive=True)
    assert low.dtype == torch.float32
    expected = segmentation_loss(logits.bfloat16().float(), soft, ALL, exclusive=True)
    assert torch.equal(low, expected)


def test_dice_of_equal_masks_is_zero_and_of_disjoint_ones_is_one():
    one = labels(3, 6, 6)
    assert dice_loss(one, one).tolist() == [0, 0]
    assert dice_loss(one.roll(1, dims=1), one).tolist() == pytest.approx([1, 1])
