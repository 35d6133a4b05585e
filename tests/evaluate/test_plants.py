"""Planted copies: each disguise does what it says, to the map and to its images alike."""

import numpy as np
import pytest
from folded_heads import people

from synthgen.core.errors import RequestError
from synthgen.core.rng import SampleKey
from synthgen.evaluate.plants import KINDS, MUST_FIND, changes, planted
from synthgen.evaluate.sets import UNKNOWN

KEY = SampleKey(3, 0)
SOME = people([0, 1]).take([2, 7, 15, 20])
ROWS = range(4)
PV, IMAGES = SOME.pv(ROWS), SOME.image(ROWS)
BRAIN = IMAGES > 0


@pytest.mark.parametrize("kind", KINDS)
def test_plants_are_valid_maps_and_images_of_nobody(kind):
    copies = planted(SOME, kind, KEY)
    assert copies.table.subject == (UNKNOWN,) * 4
    assert copies.ancestors == {"a/s0", "a/s1"}
    assert copies.name == f"{kind} copies of people"
    pv, images = copies.pv(ROWS), copies.image(ROWS)
    assert (pv.dtype, images.dtype) == (np.float32, np.float32)
    np.testing.assert_allclose(pv.sum(axis=1), 1, atol=1e-5)
    assert pv.min() >= 0
    assert 0 <= images.min() <= images.max() <= 1


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("what", ["labels", "images"])
def test_a_disguise_changes_maps_or_images_as_announced(kind, what):
    copies = planted(SOME, kind, KEY)
    pairs = (copies.pv(ROWS), PV) if what == "labels" else (copies.image(ROWS), IMAGES)
    assert np.array_equal(*pairs) == (kind == "exact" or not changes(kind, what))


def test_what_must_be_found_is_what_changes_something():
    assert {*MUST_FIND["images"]} == {*KINDS} - {"warped"}
    assert {*MUST_FIND["labels"]} == {k for k in KINDS if changes(k, "labels")} - {"warped"}


def test_flipped_is_left_to_right():
    copies = planted(SOME, "flipped", KEY)
    np.testing.assert_array_equal(copies.pv(ROWS), PV[:, :, ::-1])
    np.testing.assert_array_equal(copies.image(ROWS), IMAGES[:, :, ::-1])


def shift_of(moved, still):
    """Return the shift that makes `still` `moved`, by trying them all."""
    fits = [
        (x, y)
        for x in range(-4, 5)
        for y in range(-4, 5)
        if np.array_equal(np.roll(still, (x, y), (-2, -1)), moved)
    ]
    assert len(fits) == 1
    return fits[0]


def test_shifted_moves_map_and_image_by_the_same_two_to_four_pixels():
    copies = planted(SOME, "shifted", KEY)
    shifts = [shift_of(copies.read_pv(i), PV[i]) for i in ROWS]
    assert shifts == [shift_of(copies.read_image(i), IMAGES[i]) for i in ROWS]
    assert all(2 <= abs(s) <= 4 for shift in shifts for s in shift)
    assert len({*shifts}) > 1


def test_what_comes_in_at_the_border_is_outside_the_brain():
    full = people([0]).take([0])
    pv = np.zeros((1, 9, 8, 10), np.float32)
    pv[:, 3] = 1
    filled = type(full)(
        "full", full.schema, (8, 10), full.table, full.images,
        lambda _i: pv[0], lambda _i: np.ones((1, 8, 10), np.float32),
    )  # fmt: skip
    copies = planted(filled, "shifted", KEY)
    background, image = copies.read_pv(0)[0], copies.read_image(0)[0]
    np.testing.assert_array_equal(background == 1, image == 0)
    lines, columns = (np.sort((image == 1).sum(axis)) for axis in (0, 1))
    assert 8 - lines[-1] in range(2, 5)
    assert 10 - columns[-1] in range(2, 5)


def test_gamma_raises_grey_values_and_partial_volumes():
    copies = planted(SOME, "gamma", KEY)
    for i in ROWS:
        fits = [
            np.allclose(
                copies.read_image(i)[BRAIN[i]], np.clip(IMAGES[i][BRAIN[i]] ** g, 1 / 255, 1)
            )
            and np.allclose(copies.read_pv(i), PV[i] ** g / (PV[i] ** g).sum(0), atol=1e-5)
            for g in (0.5, 2.0)
        ]
        assert sum(fits) == 1


@pytest.mark.parametrize("kind", ["gamma", "inverted", "remapped", "bias"])
def test_contrast_changes_only_the_brain(kind):
    images = planted(SOME, kind, KEY).image(ROWS)
    assert not images[~BRAIN].any()
    assert (images[BRAIN] >= 1 / 255 - 1e-7).all()


def test_inverted_is_one_minus_the_grey_value():
    images = planted(SOME, "inverted", KEY).image(ROWS)
    np.testing.assert_allclose(images[BRAIN], np.maximum(1 - IMAGES[BRAIN], 1 / 255), atol=1e-6)


def test_remapped_is_a_function_of_the_grey_value_that_rises_and_falls():
    image = planted(SOME, "remapped", KEY).read_image(0)[BRAIN[0]]
    order = np.argsort(IMAGES[0][BRAIN[0]])
    steps = np.diff(image[order])[np.diff(IMAGES[0][BRAIN[0]][order]) > 1e-4]
    assert (steps > 0).any()
    assert (steps < 0).any()


def test_bias_is_a_smooth_factor_of_at_most_one():
    image = planted(SOME, "bias", KEY).read_image(0)[0]
    bright = IMAGES[0, 0] > 0.3
    factor = image[bright] / IMAGES[0, 0][bright]
    assert 0.05 < factor.min() < factor.max() <= 1 + 1e-6
    x, y = np.nonzero(bright)
    x, y = 2 * x / 63 - 1, 2 * y / 95 - 1
    terms = np.stack([np.ones_like(x), x, y, x * y, x**2, y**2], axis=1)
    fitted = terms @ np.linalg.lstsq(terms, np.log(factor), rcond=None)[0]
    np.testing.assert_allclose(np.log(factor), fitted, atol=1e-4)


def test_warped_moves_map_and_image_alike():
    copies = planted(SOME, "warped", KEY)
    for i in ROWS:
        inside, shown = copies.read_pv(i)[0] < 0.5, copies.read_image(i)[0] > 0.05
        assert 2 * (inside & shown).sum() / (inside.sum() + shown.sum()) > 0.97
        assert ((PV[i, 0] < 0.5) != inside).mean() > 0.01


@pytest.mark.parametrize("kind", KINDS)
def test_equal_keys_give_equal_copies(kind, untouched_rng):
    first, second = (planted(SOME, kind, KEY) for _ in range(2))
    np.testing.assert_array_equal(first.pv(ROWS), second.pv([0, 1, 2, 3]))
    np.testing.assert_array_equal(first.image([3, 1]), second.image([3, 1]))
    part = planted(SOME.take([0, 1]), kind, KEY)
    np.testing.assert_array_equal(part.image([0, 1]), first.image([0, 1]))


@pytest.mark.parametrize("kind", ["shifted", "remapped", "bias", "combined", "warped"])
def test_other_keys_give_other_copies(kind):
    other = planted(SOME, kind, SampleKey(4, 0)).image(ROWS)
    assert not np.array_equal(other, planted(SOME, kind, KEY).image(ROWS))


def test_another_kind_is_refused():
    with pytest.raises(RequestError, match=r"planted copies are exact, flipped, .* got 'wig'"):
        planted(SOME, "wig", KEY)
