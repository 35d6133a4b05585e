"""Spoiled masks: still masks, spoiled in blobs, a function of their own generator."""

from __future__ import annotations

import pytest
import torch

from synthgen.core.rng import SampleKey, Stream
from synthgen.segment.corruption import Corruption, blobs, corrupt

SETTINGS = Corruption(share=1.0, area=0.3, blob=8, reach=2, temperature=0.5)


def generators(count, first=0):
    return [SampleKey(0, first + i).torch(Stream.AUGMENT) for i in range(count)]


def classes(count=24, shape=(24, 20)):
    """Return a square of class 1 in one of class 2, softened."""
    label = torch.zeros(shape, dtype=torch.long)
    label[(slice(4, 18),) * len(shape)] = 2
    label[(slice(8, 14),) * len(shape)] = 1
    hard = torch.nn.functional.one_hot(label, 3).movedim(-1, 0).float()
    return (0.94 * hard + 0.02).expand(count, 3, *shape)


@pytest.mark.parametrize("shape", [(24, 20), (20, 24, 22)])
def test_classes_stay_classes(shape):
    prior = classes(8, shape)
    spoiled = corrupt(prior, SETTINGS, generators(8), exclusive=True)
    assert spoiled.shape == prior.shape
    assert torch.allclose(spoiled.sum(1), torch.ones(()), atol=1e-5)
    assert float(spoiled.min()) >= 0


def test_every_way_changes_labels_in_blobs_alone():
    cold = Corruption(1.0, 0.3, 8, 2, 0.0)
    prior = classes(60)
    spoiled = corrupt(prior, cold, generators(60), exclusive=True)
    moved = (spoiled.argmax(1) != prior.argmax(1)).flatten(1).float().mean(1)
    assert float(moved.max()) <= 0.31
    assert float((moved > 0).float().mean()) > 0.6
    lone = corrupt(prior[:, 1:2], cold, generators(60), exclusive=False)
    assert 0 <= float(lone.min()) <= float(lone.max()) <= 1
    assert ((lone > 0.5) & (prior[:, 1:2] < 0.5)).any()
    assert ((lone < 0.5) & (prior[:, 1:2] > 0.5)).any()


def test_a_share_of_masks_is_left_alone():
    prior = classes(40)
    half = Corruption(0.5, 0.3, 8, 2, 0.5)
    same = (corrupt(prior, half, generators(40), exclusive=True) == prior).flatten(1).all(1)
    assert 8 <= int(same.sum()) <= 32
    none = Corruption(0.0, 0.0, 1, 1, 0.0)
    assert torch.equal(corrupt(prior, none, generators(40), exclusive=True), prior)


def test_a_mask_does_not_depend_on_its_neighbours():
    prior = classes(6)
    whole = corrupt(prior, SETTINGS, generators(6), exclusive=True)
    part = corrupt(prior[4:], SETTINGS, generators(2, 4), exclusive=True)
    assert torch.equal(whole[4:], part)


@pytest.mark.parametrize("area", [0.1, 0.5])
def test_blobs_cover_what_they_are_asked_to(area):
    drawn = blobs((40, 30), 10, area, SampleKey(0, 0).torch(Stream.AUGMENT))
    assert float(drawn.float().mean()) == pytest.approx(area, abs=0.01)
