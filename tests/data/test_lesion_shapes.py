"""Lesions: blobs in deep white matter, and patients' masks in their place."""

from __future__ import annotations

import numpy as np
import pytest

from synthgen.core.rng import SampleKey, Stream
from synthgen.data.anatomies import LesionMask
from synthgen.data.lesion_shapes import draw_blobs, place_mask

SHAPE = (60, 70, 50)


def rng(index):
    return SampleKey(5, index).numpy(Stream.CONDITION)


def ball(radius):
    axes = [np.arange(n) - (n - 1) / 2 for n in SHAPE]
    x, y, z = np.meshgrid(*axes, indexing="ij")
    return np.sqrt(x**2 + y**2 + z**2) < radius


def blobs(index, spacing_mm=1.0):
    white = (255 * ball(16)).astype(np.uint8)
    return draw_blobs(white, ball(24), spacing_mm, rng(index), tissue="wmh")


@pytest.mark.parametrize("spacing_mm", [1.0, 2.0])
def test_blobs_are_soft_in_range_and_of_a_patients_load(spacing_mm):
    for index in range(6):
        made = blobs(index, spacing_mm)
        assert (made.tissue, made.origin, made.mask.shape) == ("wmh", "blobs", SHAPE)
        assert made.mask.min() == 0
        assert made.mask.max() <= 1
        # Blobs overlap, and the last one may exceed the load.
        load_ml = float(made.mask.sum()) * spacing_mm**3 / 1000
        assert 0.1 < load_ml < 25
        assert not made.mask[~ball(16 + 14 / spacing_mm)].any()


def test_blobs_lie_where_their_matrix_says():
    corner = blobs(0).from_mm @ [0, 0, 0, 1]
    np.testing.assert_allclose(corner[:3], (np.asarray(SHAPE) - 1) / 2)


def test_no_white_matter_no_blobs():
    made = draw_blobs(np.zeros(SHAPE, np.uint8), ball(20), 1.0, rng(0), tissue="wmh")
    assert not made.mask.any()


def test_draws_differ_by_key_and_repeat():
    assert np.array_equal(blobs(1).mask, blobs(1).mask)
    assert not np.array_equal(blobs(1).mask, blobs(2).mask)


def test_a_patients_mask_is_moved_a_little():
    affine = np.diag([2.0, 2.0, 2.0, 1.0])
    affine[:3, 3] = (-30, -20, -10)
    lesions = LesionMask("d/patient1", "wmh", np.ones((4, 4, 4), np.float32), affine)
    mirrored = 0
    for index in range(20):
        placed = place_mask(lesions, rng(index))
        assert (placed.origin, placed.tissue) == ("d/patient1", "wmh")
        back = np.linalg.inv(placed.from_mm)
        mirrored += np.linalg.det(back) < 0
        place = back @ [1, 1, 1, 1]
        wanted = affine @ [1, 1, 1, 1]
        place[0] = -abs(place[0])
        assert np.abs(place - wanted).max() < 4 + 0.09 * 40 + 5  # shift, scale, 6 degrees
    assert 4 < mirrored < 16
