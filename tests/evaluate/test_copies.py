"""Planted copies are found, people who were not trained on pass: brainspade.md, check 7."""

import numpy as np
import pytest
from scipy import ndimage

from synthgen.core.errors import RequestError
from synthgen.core.rng import SampleKey
from synthgen.core.schema import BRAIN9
from synthgen.evaluate.copies import find_copies
from synthgen.evaluate.descriptors import describe_image, describe_labels, mirrored
from synthgen.evaluate.sets import from_arrays

SHAPE = (64, 80)
KEY = SampleKey(0, 0)
SLICES = 12


def head(subject, z):
    """Return PV map and image of one slice: folds drawn for the subject, in an ellipse."""
    rng = np.random.default_rng((subject, z))
    x, y = np.meshgrid(*(np.linspace(-1, 1, n) for n in SHAPE), indexing="ij")
    brain = (x / 0.8) ** 2 + (y / 0.85) ** 2 < 1
    folds = ndimage.gaussian_filter(rng.normal(size=SHAPE), 3)
    soft = 1 / (1 + np.exp(-40 * folds))
    pv = np.zeros((9, *SHAPE), np.float32)
    pv[0], pv[3], pv[2] = ~brain, brain * soft, brain * (1 - soft)
    return pv, (0.4 * pv[2] + 0.8 * pv[3]).astype(np.float32)


def people(numbers):
    pairs = [(head(s, z), f"a/s{s}") for s in numbers for z in range(SLICES)]
    return from_arrays(
        np.stack([pv for (pv, _), _ in pairs]),
        BRAIN9,
        images=np.stack([image[None] for (_, image), _ in pairs]),
        subject=[subject for _, subject in pairs],
    )


TRAIN, HOLDOUT = people(range(5)), people([7, 8, 9])


def inside(image, values):
    return np.where(image > 0, np.clip(values, 1e-3, 1), 0).astype(np.float32)


PLANTS = {
    "exact": lambda a: a,
    "mirrored": lambda a: a[..., ::-1, :],
    "shifted": lambda a: np.roll(a, (3, -4), (-2, -1)),
}
CONTRASTS = {
    "gamma": lambda a: inside(a, a**0.5),
    "inverted": lambda a: inside(a, 1.1 - a),
    "bias field": lambda a: inside(a, a * np.linspace(0.6, 1.2, a.shape[-1])),
    "noise": lambda a: inside(a, a + np.random.default_rng(0).normal(0, 0.02, a.shape)),
}


@pytest.mark.parametrize("plant", [*PLANTS, *CONTRASTS])
def test_every_planted_image_is_found(plant):
    rows = np.arange(0, 5 * SLICES, 7)
    images = np.ascontiguousarray({**PLANTS, **CONTRASTS}[plant](TRAIN.image(rows)))
    planted = from_arrays(TRAIN.pv(rows), BRAIN9, images=images)
    report = find_copies(planted, TRAIN, key=KEY, what="images")
    assert report.flags.all(), report.distance
    np.testing.assert_array_equal(report.nearest, rows)


@pytest.mark.parametrize("plant", PLANTS)
def test_every_planted_label_map_is_found(plant):
    rows = np.arange(0, 5 * SLICES, 7)
    pv = np.ascontiguousarray(PLANTS[plant](TRAIN.pv(rows)))
    report = find_copies(from_arrays(pv, BRAIN9), TRAIN, key=KEY, what="labels")
    assert report.flags.all(), report.distance
    np.testing.assert_array_equal(report.nearest, rows)


@pytest.mark.parametrize("what", ["labels", "images"])
def test_people_who_were_not_trained_on_pass(what):
    report = find_copies(HOLDOUT, TRAIN, key=KEY, what=what)
    assert report.flags.mean() <= 0.05
    assert report.distance.shape == (3 * SLICES,)


def test_an_exact_copy_is_at_distance_zero():
    report = find_copies(TRAIN.take([4]), TRAIN, key=KEY, what="images")
    assert report.distance[0] == pytest.approx(0, abs=1e-6)


def test_the_same_key_gives_the_same_report():
    first, second = (find_copies(HOLDOUT, TRAIN, key=KEY, what="labels") for _ in range(2))
    assert first.threshold == second.threshold
    np.testing.assert_array_equal(first.distance, second.distance)


def test_orientation_ignores_contrast_and_follows_the_mirror():
    pv, image = head(0, 0)
    field = describe_image(image)
    assert field.shape == (2, SHAPE[0] // 2, SHAPE[1] // 2)
    inverted = describe_image(inside(image, 1.2 - image))
    np.testing.assert_allclose(inverted, field, atol=1e-3)
    np.testing.assert_allclose(describe_image(image[::-1]), mirrored(field), atol=1e-5)
    np.testing.assert_allclose(
        describe_labels(pv[:, ::-1]), mirrored(describe_labels(pv)), atol=1e-5
    )


def test_a_vertical_edge_has_the_orientation_of_its_normal():
    image = np.full((32, 32), 0.2, np.float32)
    image[16:] = 0.8  # the gradient runs along x: doubled angle 0, so cosine 1 and sine 0
    field = describe_image(image)
    assert field[0, 8, 8] > 0.3
    assert abs(field[1]).max() < 1e-6


@pytest.mark.parametrize(
    ("candidates", "train", "what", "message"),
    [
        (HOLDOUT, people([1]), "labels", "at least 2 training subjects.*got a/s1"),
        (from_arrays(TRAIN.pv([0]), BRAIN9), TRAIN, "images", "arrays: the set has no images"),
    ],
)
def test_too_little_is_refused(candidates, train, what, message):
    with pytest.raises(RequestError, match=message):
        find_copies(candidates, train, key=KEY, what=what)
