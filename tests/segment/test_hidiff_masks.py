"""Tissues as mask channels and back."""

from __future__ import annotations

import pytest
import torch

from synthgen.segment.hidiff_masks import MaskForm


def soft_of(form, shape=(5, 4)):
    draws = torch.Generator().manual_seed(0)
    soft = torch.rand((2, form.tissues, *shape), generator=draws)
    return soft if form.overlapping else soft / soft.sum(1, keepdim=True)


@pytest.mark.parametrize(
    ("form", "channels", "exclusive"),
    [
        (MaskForm(2, overlapping=False, categorical=False), 1, False),
        (MaskForm(2, overlapping=False, categorical=True), 2, True),
        (MaskForm(4, overlapping=False, categorical=False), 4, True),
        (MaskForm(3, overlapping=True, categorical=False), 3, False),
        (MaskForm(1, overlapping=True, categorical=False), 1, False),
    ],
)
def test_masks_go_to_tissues_and_back(form, channels, exclusive):
    soft = soft_of(form)
    assert (form.channels, form.exclusive) == (channels, exclusive)
    labels, hard = form.labels(soft), form.hard(soft)
    assert labels.shape == hard.shape == (2, channels, 5, 4)
    assert set(hard.unique().tolist()) <= {0.0, 1.0}
    assert torch.allclose(form.probabilities(labels), soft, atol=1e-5)
    found = form.probabilities(hard)
    if form.overlapping:
        assert torch.equal(found, (soft >= 0.5).float())
    else:
        assert torch.equal(found.argmax(1), soft.argmax(1))
        assert torch.allclose(found.sum(1), torch.ones(()))


def test_one_channel_is_a_coin_and_not_a_softmax_over_itself():
    """Which the published code takes: its prior is 1 everywhere."""
    lone = MaskForm(2, overlapping=False, categorical=False)
    assert torch.equal(lone.prior(torch.zeros(1, 1, 2, 2)), torch.full((1, 1, 2, 2), 0.5))
    several = MaskForm(4, overlapping=False, categorical=False)
    assert torch.allclose(several.prior(torch.randn(1, 4, 2, 2)).sum(1), torch.ones(()))
