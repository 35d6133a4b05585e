"""Planted copies are found, people who were not trained on pass: brainspade.md, check 7."""

from dataclasses import replace

import numpy as np
import pytest
from folded_heads import SHAPE, SLICES, blank, nameless, people

from synthgen.core.errors import GeometryError, RequestError, SchemaError
from synthgen.core.rng import SampleKey
from synthgen.core.schema import BRAIN9, LabelSchema
from synthgen.evaluate.copies import (
    ALARMS,
    CopyDetector,
    Yardstick,
    check_in_blocks,
    check_plants,
    find_copies,
    require_subjects,
)
from synthgen.evaluate.descriptors import describe
from synthgen.evaluate.nearest import nearest
from synthgen.evaluate.plants import MUST_FIND
from synthgen.evaluate.sets import from_arrays

KEY = SampleKey(0, 0)
TRAIN, HOLDOUT = people(range(6), name="train"), people(range(7, 12), name="holdout")
WHATS = ("labels", "images")
DETECTORS = {what: CopyDetector.fit(describe(TRAIN, what), KEY) for what in WHATS}


@pytest.mark.parametrize(
    ("what", "kind"), [(what, kind) for what in WHATS for kind in MUST_FIND[what]]
)
def test_every_planted_copy_is_found_and_its_own_slice_is_the_nearest(what, kind):
    report, own = check_plants(DETECTORS[what], TRAIN, kind, 30, SampleKey(1, 0))
    assert report.flags.tolist() == [True] * 30
    assert own.all()


@pytest.mark.parametrize("what", WHATS)
def test_most_warped_copies_are_found(what):
    # The warps are made for slices three times as large as these.
    report, own = check_plants(DETECTORS[what], TRAIN, "warped", 30, SampleKey(1, 0))
    assert report.flags.mean() >= 0.6
    assert own.mean() >= 0.8


@pytest.mark.parametrize("what", WHATS)
def test_people_who_were_not_trained_on_pass(what):
    report = find_copies(HOLDOUT, TRAIN, key=KEY, what=what, holdout=people([20, 21]))
    assert report.flags.mean() <= 0.05
    assert report.false_alarm_rate <= 0.05
    assert report.distance.shape == (len(HOLDOUT),)
    assert 0.8 < np.median(report.distance) < 1.2


@pytest.mark.parametrize("what", WHATS)
def test_exact_and_mirrored_copies_are_at_distance_zero(what):
    some = TRAIN.take([4, 40])
    report = find_copies(some, TRAIN, key=KEY, what=what)
    np.testing.assert_allclose(report.distance, 0, atol=2e-3)
    assert report.nearest.tolist() == report.nearest_row.tolist() == [4, 40]
    assert report.orientation.tolist() == [0, 0]
    turned = {
        "read_pv": lambda i: some.read_pv(i)[:, ::-1],
        "read_image": lambda i: some.read_image(i)[:, ::-1],
    }
    mirrored = find_copies(replace(some, **turned), TRAIN, key=KEY, what=what)
    np.testing.assert_allclose(mirrored.distance, report.distance, atol=2e-3)
    assert mirrored.orientation.tolist() == [1, 1]


def test_inverting_the_contrast_changes_no_distance():
    noisy = HOLDOUT.take(range(10))
    inverted = replace(
        noisy,
        read_image=lambda i: np.where(
            noisy.read_image(i) > 0, 1.05 - noisy.read_image(i), 0
        ).astype(np.float32),
    )
    first, second = (DETECTORS["images"].check(describe(s, "images")) for s in (noisy, inverted))
    np.testing.assert_allclose(first.distance, second.distance, atol=0.02)


def test_noise_hides_no_copy():
    noise = np.random.default_rng(0).normal(0, 0.03, (len(TRAIN), 1, *SHAPE))
    some = TRAIN.take(range(0, len(TRAIN), 5))
    noisy = replace(
        some,
        read_image=lambda i: np.where(
            some.read_image(i) > 0, np.clip(some.read_image(i) + noise[i], 0.01, 1), 0
        ).astype(np.float32),
    )
    report = find_copies(noisy, TRAIN, key=KEY, what="images")
    assert report.flags.all(), report.distance


def test_a_slice_is_flagged_once_however_many_of_its_images_are_copies():
    images = np.concatenate([TRAIN.image([3, 3]), HOLDOUT.image([0])])
    made = from_arrays(HOLDOUT.pv([0, 1]), BRAIN9, images=images, image_slices=[1, 1, 0])
    report = find_copies(made, TRAIN, key=KEY, what="images")
    assert report.flags.tolist() == [True, True, False]
    assert (report.rows.tolist(), report.slices.tolist()) == ([0, 1, 2], [1, 1, 0])
    assert report.flagged.tolist() == [1]


@pytest.mark.parametrize("what", WHATS)
def test_blank_records_are_copies_of_nothing(what):
    beside = TRAIN.take(range(3 * SLICES))
    train = from_arrays(
        np.concatenate([beside.pv(range(len(beside))), blank(2).pv([0, 1])]),
        BRAIN9,
        images=np.concatenate([beside.image(range(len(beside))), blank(2).image([0, 1])]),
        subject=[*beside.table.subject, "a/s0", "a/s1"],
    )
    report = find_copies(nameless(blank(3)), train, key=KEY, what=what)
    assert not report.flags.any()
    assert report.nearest.tolist() == report.nearest_row.tolist() == [-1, -1, -1]
    assert report.distance.tolist() == [1, 1, 1]
    # Blank slices of the training set neither hide a copy nor move the threshold.
    assert find_copies(beside.take([5]), train, key=KEY, what=what).flags.all()
    without = CopyDetector.fit(describe(beside, what), KEY)
    assert CopyDetector.fit(describe(train, what), KEY).threshold == pytest.approx(
        without.threshold, rel=1e-6
    )


def test_the_yardstick_is_the_median_of_slices_of_like_content():
    content, distance = np.repeat([1.0, 100.0], 50), np.repeat([0.2, 0.4], 50)
    distance[:10], distance[50:60] = 0.1, 0.9  # medians do not mind
    fitted = Yardstick.fit(content, distance)
    ones = fitted.relative(np.asarray([0.2, 0.4]), np.asarray([1.0, 100.0]))
    np.testing.assert_allclose(ones, [1, 1])
    # Between, usual distances follow the logarithm; outside, they stay.
    middle = fitted.relative(np.asarray([0.3, 0.2, 0.4]), np.asarray([10.0, 1e-9, 1e9]))
    np.testing.assert_allclose(middle, [1, 1, 1])
    with pytest.raises(RequestError, match="got blank ones only"):
        Yardstick.fit(np.zeros(3), np.ones(3))


def test_the_threshold_is_a_low_quantile_of_the_distances_between_people():
    bank, detector = describe(TRAIN, "labels"), DETECTORS["labels"]
    found = nearest(bank, bank, apart=True)
    usual = Yardstick.fit(bank.content[found.index], found.distance)
    relative = usual.relative(found.distance, bank.content[found.index])
    both = np.sqrt(relative * found.distance / found.other)
    assert detector.threshold == pytest.approx((1 - 0.25 / 6) * np.quantile(both, ALARMS))
    unseen = detector.check(bank)  # of its own training slices, every one is a copy
    assert unseen.flags.all()


def test_with_two_people_there_is_no_next_person():
    bank = describe(TRAIN.of_subjects(["a/s0", "a/s1"]), "labels")
    found = nearest(bank, bank, apart=True)
    usual = Yardstick.fit(bank.content[found.index], found.distance)
    relative = usual.relative(found.distance, bank.content[found.index])
    detector = CopyDetector.fit(bank, KEY)
    assert detector.threshold == pytest.approx(0.875 * np.quantile(relative, ALARMS))
    assert detector.check(bank).flags.all()


def test_blocks_change_nothing(monkeypatch):
    mixed = HOLDOUT.take(range(20))
    whole, _ = check_in_blocks(DETECTORS["images"], mixed)
    monkeypatch.setattr("synthgen.evaluate.copies.BLOCK_OF_RECORDS", 7)
    parts, banks = check_in_blocks(DETECTORS["images"], mixed)
    assert [len(bank) for bank in banks] == [7, 7, 6]
    assert all(bank.fine.size == 0 for bank in banks)
    np.testing.assert_array_equal(parts.nearest_row, whole.nearest_row)
    np.testing.assert_array_equal(parts.rows, whole.rows)
    np.testing.assert_allclose(parts.distance, whole.distance, atol=1e-6)


def test_the_key_decides_which_of_many_records_calibrate(monkeypatch, untouched_rng):
    monkeypatch.setattr("synthgen.evaluate.copies.MOST_CALIBRATING", 20)
    bank = describe(TRAIN, "labels")
    first, same, other = (CopyDetector.fit(bank, SampleKey(s, 0)).threshold for s in (0, 0, 1))
    assert first == same != other


def test_equal_keys_give_equal_reports():
    first, second = (find_copies(HOLDOUT, TRAIN, key=KEY) for _ in range(2))
    assert first.threshold == second.threshold
    np.testing.assert_array_equal(first.distance, second.distance)


def test_plants_are_of_different_slices_and_no_more_than_there_are():
    three = people([0, 1, 2])
    detector = CopyDetector.fit(describe(three, "images"), KEY)
    report, own = check_plants(detector, three, "exact", 100, KEY)
    assert sorted(report.nearest.tolist()) == list(range(3 * SLICES))
    assert own.all()


OTHER = LabelSchema("other", BRAIN9.tissues[:-1])


@pytest.mark.parametrize(
    ("made", "train", "what", "error", "message"),
    [
        (HOLDOUT, people([1]), "labels", RequestError, r"expected at least 2 .* got 1 \(a/s1\)"),
        (HOLDOUT, nameless(TRAIN), "labels", RequestError, "72 of 72 slices have no subject"),
        (HOLDOUT.take([]), TRAIN, "labels", RequestError, "holdout: no labels to search"),
        (
            from_arrays(TRAIN.pv([0]), BRAIN9),
            TRAIN,
            "images",
            RequestError,
            "arrays: no images to search",
        ),
        (replace(HOLDOUT, schema=OTHER), TRAIN, "labels", SchemaError, "holdout against train"),
        (replace(HOLDOUT, shape=(8, 8)), TRAIN, "labels", GeometryError, r"got \(8, 8\)"),
    ],
)
def test_what_cannot_be_searched_is_refused(made, train, what, error, message):
    with pytest.raises(error, match=message):
        find_copies(made, train, key=KEY, what=what)


def test_no_subject_at_all_is_refused():
    with pytest.raises(RequestError, match="x: expected at least 1 subjects, got 0;"):
        require_subjects((), "x", least=1)
