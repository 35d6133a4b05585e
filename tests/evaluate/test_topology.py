"""Pieces, holes and boundaries of single maps, against shapes drawn by hand."""

import numpy as np
import pytest
from skimage import measure

from synthgen.evaluate.topology import (
    SPECK,
    bounding_box,
    brain_mask,
    neighbour_counts,
    neighbour_pairs,
    patches,
    shape_of,
)


def square(*boxes, size=40):
    mask = np.zeros((size, size), dtype=bool)
    for x0, x1, y0, y1 in boxes:
        mask[x0:x1, y0:y1] = True
    return mask


def test_a_square_is_one_piece_without_holes():
    assert shape_of(square((5, 25, 5, 25))) == (1, 0.0, 0, 0.0)


def test_an_empty_mask_has_no_shape():
    assert shape_of(square()) == (0, 0.0, 0, 0.0)
    assert bounding_box(square()) == (slice(0, 0), slice(0, 0))
    assert patches(square()).center.shape == (0, 2)


def test_two_squares_are_two_pieces_and_the_smaller_is_outside():
    shape = shape_of(square((0, 20, 0, 20), (30, 40, 30, 40)))
    assert shape.pieces == 2
    assert shape.outside == pytest.approx(100 / 500)


def test_a_speck_counts_as_area_but_not_as_a_piece():
    shape = shape_of(square((0, 20, 0, 20), (30, 31, 0, SPECK - 1)))
    assert shape.pieces == 1
    assert shape.outside == pytest.approx((SPECK - 1) / (400 + SPECK - 1))


def test_squares_that_touch_at_a_corner_are_one_piece():
    assert shape_of(square((0, 10, 0, 10), (10, 20, 10, 20))).pieces == 1


def test_a_gap_is_a_hole_with_its_share_of_the_filled_area():
    mask = square((0, 20, 0, 20)) & ~square((5, 10, 5, 10))
    assert shape_of(mask) == (1, 0.0, 1, 25 / 400)


def test_a_small_gap_counts_as_area_but_not_as_a_hole():
    mask = square((0, 20, 0, 20)) & ~square((5, 7, 5, 7))
    assert shape_of(mask) == (1, 0.0, 0, 4 / 400)


def test_a_bay_is_no_hole_but_a_gap_closed_by_a_corner_is():
    bay = square((0, 20, 0, 20)) & ~square((10, 20, 8, 14))
    assert shape_of(bay).holes == 0
    corner = square((0, 10, 0, 10)) & ~square((2, 9, 2, 9)) & ~square((9, 10, 9, 10))
    assert shape_of(corner).holes == 1


@pytest.mark.parametrize("seed", range(3))
def test_patches_are_those_of_scikit_image(seed):
    mask = np.random.default_rng(seed).random((30, 20)) < 0.35
    found = patches(mask)
    expected = measure.regionprops(measure.label(mask, connectivity=2))
    assert sorted(found.area) == sorted(region.area for region in expected)
    np.testing.assert_allclose(
        sorted(map(tuple, found.center)), sorted(region.centroid for region in expected)
    )


@pytest.mark.parametrize("seed", range(3))
def test_boundaries_are_the_sides_between_tissues(seed):
    channels = np.random.default_rng(seed).integers(0, 4, (6, 5))
    expected = dict.fromkeys(neighbour_pairs(range(4)), 0)
    for x in range(6):
        for y in range(5):
            for x2, y2 in ((x + 1, y), (x, y + 1)):
                if x2 < 6 and y2 < 5 and channels[x, y] != channels[x2, y2]:
                    expected[tuple(sorted((channels[x, y], channels[x2, y2])))] += 1
    assert neighbour_counts(channels, 4).tolist() == [*expected.values()]


def test_the_boundary_of_a_square_is_its_perimeter():
    channels = square((10, 20, 10, 20)).astype(int)
    assert neighbour_counts(channels, 2).tolist() == [40]


def test_the_brain_is_where_the_background_is_less_than_half():
    pv = np.zeros((2, 1, 3))
    pv[0, 0] = [0.4, 0.5, 0.6]
    pv[1] = 1 - pv[0]
    assert brain_mask(pv).tolist() == [[True, False, False]]


def test_the_box_is_the_smallest_one():
    assert bounding_box(square((3, 8, 10, 12), (5, 6, 20, 21))) == (slice(3, 8), slice(10, 21))
