"""Numbers made of distances: golden values, oracles, and their references."""

import numpy as np
import pytest
from folded_heads import SLICES, nameless, people
from sklearn.metrics import roc_auc_score

from synthgen.core.errors import RequestError
from synthgen.core.rng import SampleKey
from synthgen.evaluate.copies import Yardstick
from synthgen.evaluate.descriptors import describe, joined
from synthgen.evaluate.metric import DRAWS
from synthgen.evaluate.nearest import BySubject
from synthgen.evaluate.plants import planted
from synthgen.evaluate.privacy_metrics import (
    People,
    auc,
    authentic_share,
    authenticity,
    balanced,
    dcr_floor,
    dcr_share,
    halves_floor,
    low_nndr,
    median_nndr,
    membership_floor,
    nndr,
)

KEY = SampleKey(0, 0)
TRAIN, HOLDOUT = people(range(4)), people(range(6, 10))


def measured(samples, train=TRAIN, holdout=HOLDOUT, what="labels"):
    real = joined([describe(train, what).light(), describe(holdout, what).light()])
    return People.measure(describe(samples, what).light(), real, {*holdout.subjects})


HONEST_SET = nameless(people(range(20, 24)))
HONEST = measured(HONEST_SET)
MEMORY = measured(planted(TRAIN, "warped", SampleKey(1, 0)))
LEAK = measured(nameless(TRAIN))


def test_the_dcr_share_counts_ties_half():
    to_train, to_holdout = np.asarray([1.0, 2.0, 3.0, 4.0]), np.asarray([2.0, 2.0, 1.0, 5.0])
    assert dcr_share(to_train, to_holdout) == (1 + 0.5 + 0 + 1) / 4
    assert dcr_share(to_train, to_holdout) + dcr_share(to_holdout, to_train) == 1


def test_nndr_is_nearest_over_second_nearest():
    distance = np.asarray([[4.0, 1.0, 2.0], [0.0, 0.0, 1.0], [3.0, 6.0, 3.0], [0.0, 2.0, 5.0]])
    assert nndr(distance).tolist() == [0.5, 1.0, 1.0, 0.0]
    assert median_nndr(distance, None, None) == 0.75
    assert low_nndr(distance, None, None) == pytest.approx(np.quantile([0, 0.5, 1, 1], 0.05))


def test_authenticity_is_the_share_farther_than_the_neighbours():
    assert authenticity(np.asarray([0.5, 1.5, 2.0]), np.asarray([1.0, 1.0, 3.0])) == 1 / 3
    assert authenticity(np.asarray([1.0]), np.asarray([1.0])) == 0


def test_authentic_share_asks_the_nearest_record_for_its_neighbour():
    # Two people; records 0 and 1 are the first one's, 2 the other's.
    among = BySubject(
        ("a", "b"),
        np.asarray([[0, 2], [0, 2], [1, 2]]),
        np.asarray([[np.inf, 0.6], [np.inf, 0.3], [0.3, np.inf]]),
    )
    distance = np.asarray([[0.5, 0.9], [0.5, 0.9], [0.8, 0.2], [0.9, 0.4]])
    index = np.asarray([[0, 2], [1, 2], [0, 2], [0, 2]])
    # 0.5 < 0.6; 0.5 > 0.3; 0.2 < 0.3; 0.4 > 0.3.
    assert authentic_share(distance, index, among) == 0.5


@pytest.mark.parametrize("seed", range(3))
def test_auc_agrees_with_sklearn(seed):
    rng = np.random.default_rng(seed)
    members, others = rng.integers(0, 9, 40) * 1.0, rng.integers(2, 12, 30) * 1.0
    expected = roc_auc_score([1] * 40 + [0] * 30, -np.concatenate([members, others]))
    assert auc(members, others) == pytest.approx(expected)
    assert auc(others, members) == pytest.approx(1 - expected)
    assert auc(members, members) == 0.5


def test_all_distances_are_measured():
    assert HONEST.train == ("a/s0", "a/s1", "a/s2", "a/s3")
    assert HONEST.holdout == ("a/s6", "a/s7", "a/s8", "a/s9")
    assert HONEST.everyone == (*HONEST.train, *HONEST.holdout)
    assert HONEST.samples.distance.shape == (4 * SLICES, 8)
    assert HONEST.rows_of(["a/s1", "a/s6"]).tolist() == [*range(12, 24), *range(48, 60)]
    own = [HONEST.everyone.index(name) for name in HONEST.subject]
    assert np.isinf(HONEST.real.distance[np.arange(96), own]).all()
    # Both sides see each other: the nearest sample of all is as near as the nearest record.
    assert HONEST.to_sample.min() == pytest.approx(HONEST.samples.distance.min(), abs=1e-5)
    np.testing.assert_allclose(LEAK.to_sample[: 4 * SLICES], 0, atol=1e-5)


def test_the_dcr_share_weighs_people():
    # 3 of 4 samples are nearer to training: as many as 3 of 4 people, so that nobody is preferred.
    to_train, to_holdout = np.asarray([1.0, 1.0, 1.0, 3.0]), np.full(4, 2.0)
    assert dcr_share(to_train, to_holdout) == 0.75
    assert dcr_share(to_train, to_holdout, (3, 1)) == pytest.approx(0.5)
    assert dcr_share(to_train, to_holdout, (1, 3)) == pytest.approx(0.9)
    assert dcr_share(to_train, to_train + 1, (17, 3)) == 1
    assert dcr_share(to_train + 1, to_train, (17, 3)) == 0


def test_the_dcr_share_of_copies_is_one_and_of_strangers_near_a_half():
    leak, honest = dcr_floor(LEAK, KEY), dcr_floor(HONEST, KEY)
    assert leak.value == 1 > leak.high
    assert honest.low <= honest.value <= honest.high
    assert honest.low <= 0.5 <= honest.high
    assert 0.4 < honest.reference < 0.6
    assert dcr_floor(MEMORY, KEY).value > 0.7


@pytest.mark.parametrize(
    ("train", "held", "sides"), [(4, 4, (3, 3)), (6, 1, (4, 1)), (1, 5, (1, 3)), (2, 1, (1, 1))]
)
def test_the_reference_keeps_the_size_of_the_smaller_side(train, held, sides, monkeypatch):
    sizes = []

    def noted(to_train, to_holdout, people):
        sizes.append(people)
        return dcr_share(to_train, to_holdout, people)

    monkeypatch.setattr("synthgen.evaluate.privacy_metrics.dcr_share", noted)
    dcr_floor(measured(HONEST_SET, people(range(train)), people(range(6, 6 + held))), KEY)
    assert {*sizes[:-1]} == {sides}
    assert sizes[-1] == (train, held)


@pytest.mark.parametrize(("train", "held"), [((0, 1, 2, 3, 4, 5), (6,)), ((0,), (6, 7, 8, 9))])
def test_the_dcr_share_does_not_depend_on_who_is_many(train, held):
    sides = people(train), people(held)
    assert dcr_floor(measured(nameless(sides[0]), *sides), KEY).value > 0.9
    assert dcr_floor(measured(nameless(sides[1]), *sides), KEY).value < 0.1
    values = [
        dcr_floor(measured(nameless(people([k, k + 1])), *sides), KEY).value for k in (20, 30, 40)
    ]
    assert 0.25 < np.mean(values) < 0.75


@pytest.mark.parametrize("measure", [median_nndr, low_nndr, authentic_share])
def test_copies_are_below_their_reference_and_strangers_are_not(measure):
    copied, honest = (halves_floor(people, measure, KEY) for people in (LEAK, HONEST))
    assert copied.value < copied.low
    assert honest.value >= honest.low
    assert copied.low <= copied.reference <= copied.high


def test_halves_take_as_many_people_on_both_sides():
    seen = []

    def count(distance, index, among):
        seen.append((distance.shape, index.shape, among.subjects, among.distance.shape))
        return 0.0

    halves_floor(HONEST, count, KEY)
    assert len(seen) == 2 * DRAWS
    for distance, index, names, among in seen:
        assert distance == index == (4 * SLICES, 4)
        assert len(names) == 4
        assert among == (8 * SLICES, 4)
    assert all({*names} == {*HONEST.train} for _, _, names, _ in seen[1::2])


def test_the_membership_auc_is_that_of_all_records():
    floor, (low, high) = membership_floor(HONEST, KEY)
    usual = Yardstick.fit(HONEST.content, HONEST.real.distance.min(axis=1))
    score = usual.relative(HONEST.to_sample, HONEST.content)
    member = np.isin(np.asarray(HONEST.subject), list(HONEST.train))
    assert floor.value == pytest.approx(roc_auc_score(member, -score))
    assert low <= floor.value <= high
    assert floor.low <= 0.5 <= floor.high
    assert floor.n == 4 * SLICES


def test_a_membership_attack_on_copies_succeeds():
    floor, (low, _) = membership_floor(LEAK, KEY)
    assert floor.value > 0.95
    assert floor.value > floor.high
    assert low > 0.9
    assert membership_floor(MEMORY, KEY)[0].value > 0.65


def test_equal_keys_give_equal_floors(untouched_rng):
    for measure in (
        lambda key: dcr_floor(HONEST, key),
        lambda key: halves_floor(HONEST, median_nndr, key),
        lambda key: membership_floor(HONEST, key),
    ):
        assert measure(KEY) == measure(SampleKey(0, 0))
    other = halves_floor(HONEST, median_nndr, SampleKey(1, 0))
    assert other != halves_floor(HONEST, median_nndr, KEY)


def test_balanced_takes_as_many_records_of_everyone():
    bank = describe(TRAIN, "labels").take(np.arange(4 * SLICES - 9))
    few = balanced(bank, 5, KEY)
    assert [few.subject.count(name) for name in TRAIN.subjects] == [5, 5, 5, 3]
    assert few.rows.tolist() == sorted(few.rows.tolist())
    np.testing.assert_array_equal(few.rows, balanced(bank, 5, KEY).rows)


def test_too_few_people_are_refused():
    two = measured(nameless(people([20])), people([0]), people([6]))
    for measure in (dcr_floor, membership_floor):
        with pytest.raises(RequestError, match=r"at least 3 real people, .* got 2 \(a/s0, a/s6\)"):
            measure(two, KEY)
    three = measured(nameless(people([20])), people([0, 1]), people([6]))
    with pytest.raises(RequestError, match="at least 4 real people"):
        halves_floor(three, median_nndr, KEY)
