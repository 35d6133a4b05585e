"""The coarse search and the fine distance, against their slow and obvious versions."""

import numpy as np
import pytest
from folded_heads import SLICES, people
from scipy import ndimage

from synthgen.evaluate.descriptors import BLOCK, Bank, describe, mirrored
from synthgen.evaluate.nearest import (
    ORIENTATIONS,
    OVERALL,
    SHIFT,
    by_subject,
    fine_distance,
    nearest,
)
from synthgen.evaluate.sets import from_arrays

NONE = np.zeros(1, np.int64)
ONE, OTHERS = people([0]), people([0, 1, 2])


def noise(seed, shape=(2, 2 * BLOCK, 3 * BLOCK), smooth=2.0):
    rng = np.random.default_rng(seed)
    return ndimage.gaussian_filter(rng.normal(size=shape), (0, smooth, smooth)).astype(np.float16)


def slow_distance(query, target, way):
    """Move each block of the query on its own to where it fits the target best."""
    query = query.astype(np.float64)
    turned = mirrored(target.astype(np.float64), ORIENTATIONS[way])
    padded = np.pad(query, ((0, 0), (SHIFT, SHIFT), (SHIFT, SHIFT)))
    total = spent = 0.0
    for x in range(0, query.shape[1], BLOCK):
        for y in range(0, query.shape[2], BLOCK):
            place = turned[:, x : x + BLOCK, y : y + BLOCK]
            moved = [
                padded[:, x + i : x + i + BLOCK, y + j : y + j + BLOCK]
                for i in range(2 * SHIFT + 1)
                for j in range(2 * SHIFT + 1)
            ]
            best = min(moved, key=lambda block: ((block - place) ** 2).sum())
            total, spent = total + (best * place).sum(), spent + (best**2).sum()
    return 1 - total / np.sqrt(spent * (turned**2).sum())


@pytest.mark.parametrize("way", range(4))
def test_the_fine_distance_is_that_of_its_slow_version(way):
    query, targets = noise(0), np.stack([noise(seed) for seed in (1, 2)])
    found = fine_distance(query, targets, np.full(2, way))
    np.testing.assert_allclose(found, [slow_distance(query, t, way) for t in targets], rtol=1e-4)


@pytest.mark.parametrize("way", range(4))
def test_a_structure_is_at_distance_zero_from_its_mirror_image(way):
    query = noise(0)
    target = mirrored(query, ORIENTATIONS[way])
    assert fine_distance(query, target[None], np.asarray([way]))[0] == pytest.approx(0, abs=1e-4)


def test_an_empty_structure_is_at_distance_one_from_everything():
    some, empty = noise(0), np.zeros_like(noise(0))
    both = fine_distance(some, np.stack([empty, some]), np.zeros(2, np.int64))
    np.testing.assert_allclose(both, [1, 0], atol=1e-4)
    assert fine_distance(empty, np.stack([empty, some]), np.zeros(2, np.int64)).tolist() == [1, 1]


@pytest.mark.parametrize("shift", [(1, 0), (0, -SHIFT), (SHIFT, SHIFT), (-3, 2)])
def test_shifts_up_to_the_limit_cost_nothing_inside(shift):
    large = noise(0, (2, 4 * BLOCK, 4 * BLOCK))
    large[:, :SHIFT] = large[:, -SHIFT:] = large[:, :, :SHIFT] = large[:, :, -SHIFT:] = 0
    moved = np.roll(large, shift, (1, 2))
    assert fine_distance(moved, large[None], NONE)[0] == pytest.approx(0, abs=1e-4)


def test_a_shift_beyond_the_limit_is_another_structure():
    large = noise(0, (2, 4 * BLOCK, 4 * BLOCK))
    moved = np.roll(large, (3 * SHIFT, 0), (1, 2))
    assert fine_distance(moved, large[None], NONE)[0] > 0.5


def test_each_block_may_move_for_itself():
    one, other = noise(1, (2, BLOCK, BLOCK)), noise(2, (2, BLOCK, BLOCK))
    for block in (one, other):
        block[:, :SHIFT] = block[:, -SHIFT:] = block[:, :, :SHIFT] = block[:, :, -SHIFT:] = 0
    target = np.concatenate([one, other], axis=2)
    apart = np.concatenate([np.roll(one, SHIFT, 1), np.roll(other, -SHIFT, 1)], axis=2)
    assert fine_distance(apart, target[None], NONE)[0] == pytest.approx(0, abs=1e-4)


def test_the_nearest_of_a_mirrored_slice_is_that_slice():
    for way, axes in enumerate(ORIENTATIONS):
        pv = np.ascontiguousarray(np.flip(ONE.pv([3, 8]), [axis + 2 for axis in axes]))
        flipped = from_arrays(pv, ONE.schema)
        found = nearest(describe(flipped, "labels"), describe(OTHERS, "labels"))
        assert found.index.tolist() == [3, 8]
        assert found.orientation.tolist() == [way, way]
        np.testing.assert_allclose(found.distance, 0, atol=2e-3)


def test_the_nearest_person_and_the_next_are_two():
    bank = describe(OTHERS, "labels")
    found = nearest(bank, bank)
    subject = np.asarray(bank.subject)
    assert found.index.tolist() == list(range(len(bank)))
    for record in (0, SLICES + 5):
        theirs = bank.take(np.flatnonzero(subject != subject[record]))
        alone = nearest(bank.take(np.asarray([record])), theirs)
        assert found.other[record] == pytest.approx(alone.distance[0], rel=0.05)  # fewer candidates


def test_apart_leaves_out_the_own_person():
    bank = describe(OTHERS, "labels")
    found = nearest(bank, bank, apart=True)
    subject = np.asarray(bank.subject)
    assert (subject[found.index] != subject).all()
    assert (found.distance > 0.1).all()
    assert (found.other >= found.distance).all()
    alone = bank.take(np.arange(SLICES))
    nobody = nearest(alone, alone, apart=True)
    assert (nobody.index == -1).all()
    assert (nobody.distance == 1).all()
    assert (nobody.other == 1).all()


def test_no_queries_have_no_nearest():
    bank = describe(ONE, "labels")
    assert nearest(bank.take(np.asarray([], np.int64)), bank).index.shape == (0,)


def test_a_person_with_many_lookalikes_hides_nobody():
    # Coarsely, all records of the first person are nearer than the copy, which is another's.
    rng = np.random.default_rng(0)
    unit = rng.normal(size=(2, 4, 6))
    unit /= np.linalg.norm(unit)
    crowd = OVERALL + 5
    coarse = np.stack([unit] * crowd + [0.5 * unit]).astype(np.float32)
    fine = np.stack([noise(seed) for seed in range(crowd)] + [noise(99)])
    names = ("crowd",) * crowd + ("copied",)
    content, rows = np.ones(crowd + 1), np.arange(crowd + 1)
    targets = Bank("labels", coarse, fine, content, rows, rows, names)
    query = Bank("labels", coarse[:1], fine[-1:], np.ones(1), NONE, NONE, ("",))
    found = nearest(query, targets)
    assert found.index.tolist() == [crowd]
    assert found.distance[0] == pytest.approx(0, abs=1e-4)


@pytest.mark.parametrize("apart", [False, True])
def test_nearest_by_subject_is_that_of_its_slow_version(apart):
    targets, queries = describe(OTHERS, "images"), describe(people([1, 5]), "images")
    found = by_subject(queries, targets, apart=apart)
    assert found.subjects == ("a/s0", "a/s1", "a/s2")
    for q in (0, 7, SLICES + 3):
        for g, name in enumerate(found.subjects):
            theirs = [i for i, s in enumerate(targets.subject) if s == name]
            turned = [mirrored(queries.coarse[q], axes) for axes in ORIENTATIONS]
            slow = [min(1 - float((t * targets.coarse[i]).sum()) for t in turned) for i in theirs]
            if apart and queries.subject[q] == name:
                assert found.distance[q, g] == np.inf
                continue
            assert found.distance[q, g] == pytest.approx(min(slow), abs=1e-5)
            assert found.index[q, g] == theirs[int(np.argmin(slow))]
    np.testing.assert_array_equal(found.of(["a/s0", "a/s2"]), found.distance[:, [0, 2]].min(axis=1))


def test_chunks_change_nothing(monkeypatch):
    bank = describe(OTHERS, "labels")
    whole, groups = nearest(bank, bank, apart=True), by_subject(bank, bank)
    monkeypatch.setattr("synthgen.evaluate.nearest._CHUNK", 7)
    parts = nearest(bank, bank, apart=True)
    np.testing.assert_array_equal(parts.index, whole.index)
    np.testing.assert_allclose(parts.distance, whole.distance, atol=1e-6)
    np.testing.assert_allclose(by_subject(bank, bank).distance, groups.distance, atol=1e-5)


def test_a_symmetric_slice_is_tried_in_both_orientations():
    # Coarsely, the copy is a little nearer to the mirror image; only the fine structure can tell.
    unit = np.random.default_rng(0).normal(size=(2, 4, 6)).astype(np.float32)
    even = unit + mirrored(unit, (0,))
    even /= np.linalg.norm(even)
    odd = unit - mirrored(unit, (0,))
    odd *= 0.1 / np.linalg.norm(odd)
    names, row = ("a/s0",), np.zeros(1, np.int64)
    fine = noise(0)[None]
    target = Bank("labels", (even + odd)[None], fine, np.ones(1), row, row, names)
    query = Bank("labels", (even - 0.2 * odd)[None], fine, np.ones(1), row, row, ("",))
    found = nearest(query, target)
    assert found.orientation.tolist() == [0]
    assert found.distance[0] == pytest.approx(0, abs=1e-4)
