"""Edges as directions: what changes them, and what does not."""

from dataclasses import replace

import numpy as np
import pytest
from folded_heads import SHAPE, SLICES, blank, head, people

from synthgen.core.errors import RequestError
from synthgen.core.schema import BRAIN9
from synthgen.evaluate.descriptors import (
    BLOCK,
    FINE,
    describe,
    image_structure,
    joined,
    label_structure,
    mirrored,
    records,
)
from synthgen.evaluate.sets import from_arrays

PV, IMAGE = head(0)[0][4], head(0)[1][4, 0]
SOME = people([0, 1])


def inside(image, values):
    return np.where(image > 0, np.clip(values, 1e-2, 1), 0).astype(np.float32)


def ramp(angle):
    """Return an image whose grey values rise along an angle from the x axis."""
    x, y = np.meshgrid(np.arange(-32, 32), np.arange(-32, 32), indexing="ij")
    return (0.5 + 0.01 * (np.cos(angle) * x + np.sin(angle) * y)).astype(np.float32)


@pytest.mark.parametrize("degrees", [0, 30, 45, 90, 135, 180, 225, 300])
def test_the_angle_of_a_gradient_is_doubled(degrees):
    cosine, sine = image_structure(ramp(np.deg2rad(degrees)))[:, 8:-8, 8:-8]
    length = np.hypot(cosine, sine)
    np.testing.assert_allclose(cosine / length, np.cos(np.deg2rad(2 * degrees)), atol=2e-3)
    np.testing.assert_allclose(sine / length, np.sin(np.deg2rad(2 * degrees)), atol=2e-3)


def test_a_lasting_edge_has_half_the_full_length():
    # Of constant strength s, s / (s + s + 0.1 s): its neighbourhood is as strong, 0.1 is `_FAINT`.
    structure = image_structure(ramp(0.3))[:, 12:-12, 12:-12]
    np.testing.assert_allclose(np.hypot(*structure), 1 / 2.1, rtol=2e-2)


@pytest.mark.parametrize(
    ("change", "tolerance"),
    [
        (lambda a: 0.5 * a, 1e-3),
        (lambda a: 1.1 - a, 1e-3),
        (lambda a: a * np.linspace(0.8, 1.2, a.shape[1]), 0.3),
        (lambda a: a**0.7, 0.25),
    ],
)
def test_contrast_hardly_matters(change, tolerance):
    changed = image_structure(inside(IMAGE, change(IMAGE)))
    assert np.abs(changed - image_structure(IMAGE)).max() < tolerance


@pytest.mark.parametrize("axes", [(0,), (1,), (0, 1)])
def test_structures_follow_the_mirror(axes):
    flipped = np.ascontiguousarray(np.flip(IMAGE, axes))
    np.testing.assert_allclose(
        image_structure(flipped), mirrored(image_structure(IMAGE), axes), atol=1e-5
    )
    turned = np.ascontiguousarray(np.flip(PV, [axis + 1 for axis in axes]))
    np.testing.assert_allclose(
        label_structure(turned), mirrored(label_structure(PV), axes), atol=1e-5
    )


@pytest.mark.parametrize("axes", [(), (0,), (1,), (0, 1)])
def test_mirroring_twice_is_nothing(axes):
    structure = label_structure(PV)
    before = structure.copy()
    np.testing.assert_array_equal(mirrored(mirrored(structure, axes), axes), structure)
    np.testing.assert_array_equal(structure, before)


def test_the_order_of_the_tissues_does_not_matter():
    order = [0, 5, 3, 1, 2, 4, 8, 7, 6]
    np.testing.assert_allclose(label_structure(PV[order]), label_structure(PV), atol=1e-6)


def test_edges_are_shorter_than_one():
    for structure in (image_structure(IMAGE), label_structure(PV)):
        assert structure.shape == (2, SHAPE[0] // FINE, SHAPE[1] // FINE)
        assert 0.2 < np.hypot(*structure).max() < 1


def test_the_border_of_the_brain_is_no_edge_of_an_image_but_one_of_its_labels():
    brain = (IMAGE > 0).astype(np.float32)
    assert not image_structure(0.7 * brain).any()
    plain = np.zeros_like(PV)
    plain[0], plain[3] = 1 - brain, brain
    assert np.hypot(*label_structure(plain)).max() > 0.2


@pytest.mark.parametrize("what", ["labels", "images"])
def test_a_bank_has_one_record_for_each_map_or_image(what):
    bank = describe(SOME, what)
    assert len(bank) == 2 * SLICES == len(records(SOME, what))
    assert bank.what == what
    np.testing.assert_allclose(np.linalg.norm(bank.coarse.reshape(len(bank), -1), axis=1), 1, 1e-5)
    structure = label_structure(PV) if what == "labels" else image_structure(IMAGE)
    assert bank.content[4] == pytest.approx(np.hypot(*structure).sum(), rel=1e-5)
    assert bank.subject == SOME.table.subject
    chosen = bank.take(np.asarray([5, 20]))
    assert (chosen.rows.tolist(), chosen.subject) == ([5, 20], ("a/s0", "a/s1"))
    twice = joined([chosen, bank.take(np.asarray([3]))])
    np.testing.assert_array_equal(twice.fine, bank.fine[[5, 20, 3]])
    assert twice.slices.tolist() == [5, 20, 3]
    assert (len(bank.light()), bank.light().fine.size) == (len(bank), 0)


def test_records_of_images_know_their_slice_and_its_subject():
    pv, images = SOME.pv([0, SLICES]), SOME.image([0, 1, 2])
    subset = from_arrays(
        pv, BRAIN9, images=images, image_slices=[1, 0, 1], subject=["a/s0", "a/s1"]
    )
    bank = describe(subset, "images", [2, 1])
    assert (bank.rows.tolist(), bank.slices.tolist()) == ([2, 1], [1, 0])
    assert bank.subject == ("a/s1", "a/s0")


@pytest.mark.parametrize("what", ["labels", "images"])
def test_blank_records_have_no_content(what):
    bank = describe(blank(2), what)
    assert not bank.content.any()
    assert not bank.coarse.any()
    assert not bank.fine.any()


def test_fine_structures_are_whole_blocks_and_centred():
    pv = np.zeros((1, 9, 50, 70), np.float32)
    pv[:, 0] = 1
    pv[:, :2, 20:30, 30:40] = [[[[0]], [[1]]]]
    bank = describe(from_arrays(pv, BRAIN9), "labels")
    assert bank.fine.shape == (1, 2, 2 * BLOCK, 3 * BLOCK)
    np.testing.assert_array_equal(bank.fine[0], mirrored(bank.fine[0], (0, 1)))


def test_no_rows_give_an_empty_bank_that_joins_others():
    empty, bank = describe(SOME, "labels", []), describe(SOME, "labels", [1])
    assert len(empty) == 0
    assert len(joined([empty, bank])) == 1


@pytest.mark.parametrize("what", ["labels", "images"])
@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_values_that_are_not_finite_are_refused_with_their_row(what, value):
    spoilt = {
        f"read_{kind}": lambda row, read=read: read(row) + (value if row == 7 else 0)
        for kind, read in (("pv", SOME.read_pv), ("image", SOME.read_image))
    }
    message = f"people: the {what} have values that are not finite, at row 7"
    with pytest.raises(RequestError, match=message):
        describe(replace(SOME, **spoilt), what)
