import time

import numpy as np
import pytest
import torch

from synthgen.core.errors import StoreError
from synthgen.core.rng import SampleKey
from synthgen.core.schema import BRAIN9
from synthgen.data.augment import PvAugment
from synthgen.data.loaders import LabelBatches, brain_shares, draw_shuffled, prefetch
from synthgen.data.store import StoreWriter, TrainingStore

SHAPE = (24, 32)
AUGMENT = PvAugment(
    rotate_deg=10, scale=0.1, shear=0.05, shift_px=2, elastic_px=1, elastic_grid=4,
    flip_probability=0.5, lesion_paste_probability=0.5,
)  # fmt: skip


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    labels = np.zeros(SHAPE, dtype=np.int64)
    labels[4:-4, 4:-4] = 3
    with_lesion = labels.copy()
    with_lesion[8:11, 8:11] = 6
    maps = [labels, labels, labels, with_lesion]
    pv = np.stack([(np.arange(9)[:, None, None] == m).astype(np.uint8) * 255 for m in maps])
    path = tmp_path_factory.mktemp("store") / "store.h5"
    with StoreWriter(path, BRAIN9, SHAPE) as writer:
        for subject, split in (("a/s1", "train"), ("a/s2", "train"), ("a/s3", "val")):
            writer.add_slices(
                subject, dataset="a", split=split, z=range(4), position=[0, 0.3, 0.6, 0.9], pv=pv
            )
        masks = np.zeros((2, *SHAPE), dtype=np.uint8)
        masks[:, 12:16, 12:18] = 255
        writer.add_lesions("b/p1", split="train", position=[0.3, 0.6], masks=masks)
        writer.commit()
    with TrainingStore.open(path) as opened:
        yield opened


def test_a_batch_is_a_function_of_seed_and_step(store, untouched_rng):
    one = LabelBatches(store, "train", 4, 7, AUGMENT)
    two = LabelBatches(store, "train", 4, 7, AUGMENT)
    late = two.batch(5)
    for step in range(6):
        batch = one.batch(step)
    for field in ("pv", "fractions", "position"):
        assert torch.equal(getattr(batch, field), getattr(late, field))
    assert not torch.equal(LabelBatches(store, "train", 4, 8, AUGMENT).batch(5).pv, late.pv)


def test_augmented_maps_stay_partial_volumes(store):
    batches = LabelBatches(store, "train", 8, 0, AUGMENT)
    for step in range(3):
        batch = batches.batch(step)
        assert batch.pv.shape == (8, 9, *SHAPE)
        assert batch.pv.dtype == torch.float32
        assert batch.pv.min() >= 0
        assert (batch.pv.sum(dim=1) - 1).abs().max() < 1e-5
        torch.testing.assert_close(batch.fractions, brain_shares(batch.pv)[:, 6:])
        assert ((batch.position >= 0) & (batch.position <= 1)).all()


def test_each_slice_is_seen_once_an_epoch():
    indices = np.asarray([3, 5, 8, 13, 21])
    drawn = draw_shuffled(indices, 0, 0, 0, 15)
    for epoch in range(3):
        assert sorted(drawn[5 * epoch : 5 * epoch + 5]) == indices.tolist()
    assert drawn[3:9] == draw_shuffled(indices, 0, 0, 3, 6)


def test_lesion_share_fills_part_of_each_batch(store):
    batches = LabelBatches(store, "train", 4, 0, None, lesion_share=0.5)
    for step in range(4):
        assert (batches.batch(step).fractions[:, 0] > 0).sum() >= 2


def test_pasted_lesions_appear_at_a_near_position(store):
    always = PvAugment(lesion_paste_probability=1.0)
    batches = LabelBatches(store, "train", 4, 0, always)
    batch = batches.augmented([0, 1, 2, 4], [SampleKey(0, i) for i in range(4)])
    assert (batch.fractions[:, 0] > 0.01).all()
    assert (batch.pv[:, 6, 13:15, 13:17] > 0.4).all()
    never = LabelBatches(store, "train", 4, 0, PvAugment())
    assert (never.augmented([0, 1, 2, 4], [SampleKey(0, i) for i in range(4)]).fractions == 0).all()


def test_lesions_of_other_splits_are_not_pasted(store):
    batches = LabelBatches(store, "val", 4, 0, PvAugment(lesion_paste_probability=1.0))
    indices = [int(i) for i in store.slice_indices("val")[:3]]
    batch = batches.augmented(indices, [SampleKey(0, i) for i in range(3)])
    assert (batch.fractions == 0).all()


def test_a_split_without_slices_is_refused(store):
    with pytest.raises(StoreError, match="split 'test'"):
        LabelBatches(store, "test", 4, 0, None)


def test_fractions_of_an_empty_map_are_zero():
    pv = torch.zeros(1, 9, 4, 4)
    pv[:, 0] = 1
    assert brain_shares(pv)[:, 6:].tolist() == [[0, 0, 0]]


class Squares:
    def __init__(self, fail_at=None):
        self.fail_at = fail_at
        self.asked = []

    def batch(self, step):
        self.asked.append(step)
        if step == self.fail_at:
            raise StoreError("the disk is gone")
        return step * step


def test_prefetched_batches_equal_the_plain_ones():
    with prefetch(Squares(), 3) as ahead:
        assert [ahead.batch(step) for step in range(3, 20)] == [s * s for s in range(3, 20)]
        assert ahead.batch(2) == 4  # out of order: computed on the spot
        assert ahead.batch(20) == 400


def test_an_error_in_the_thread_reaches_the_caller():
    with prefetch(Squares(fail_at=2), 0) as ahead:
        assert ahead.batch(1 - 1) == 0
        assert ahead.batch(1) == 1
        with pytest.raises(StoreError, match="the disk is gone"):
            ahead.batch(2)


def test_leaving_early_ends_the_thread():
    squares = Squares()
    with prefetch(squares, 0, depth=2) as ahead:
        ahead.batch(0)
    count = len(squares.asked)
    time.sleep(0.05)
    assert len(squares.asked) == count
