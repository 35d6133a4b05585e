"""Image batches: style slices of the same volume, balance, one contrast, no leak, no state."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from synthgen.core.acquisition import Acquisition
from synthgen.core.errors import RequestError, StoreError
from synthgen.core.schema import BRAIN9
from synthgen.data.acquisition import AcquisitionAugment
from synthgen.data.augment import ImageAugment, PvAugment
from synthgen.data.image_loader import ImageBatches
from synthgen.data.store import StoreWriter, TrainingStore

WARP = PvAugment(rotate_deg=10, scale=0.1, shift_px=2, elastic_px=1, flip_probability=0.5)
CONTRAST = ImageAugment(bias=0.2, gamma_low=0.7, gamma_high=1.4, noise=0.01)


def write_store(path, subjects, *, modalities=("t1", "t2"), num_slices=4, shape=(32, 48)):
    rng = np.random.default_rng(0)
    with StoreWriter(path, BRAIN9, shape) as writer:
        for subject, split in subjects:
            labels = np.zeros((num_slices, *shape), dtype=int)
            labels[:, 8:24, 10:38] = 3
            labels[:, 12:20, 16:30] = 2
            labels[0, 14:18, 20:24] = 6  # one slice in num_slices has a lesion
            pv = (np.arange(9)[None, :, None, None] == labels[:, None]).astype(np.uint8) * 255
            indices = writer.add_slices(
                subject,
                dataset=subject.partition("/")[0],
                split=split,
                z=range(num_slices),
                position=np.linspace(0, 1, num_slices),
                pv=pv,
            )
            for modality in modalities:
                images = rng.uniform(0.2, 0.9, pv[:, :1].shape) * (labels > 0)[:, None]
                writer.add_image(indices, modality, images)
        writer.commit()
    return TrainingStore.open(path)


@pytest.fixture
def store(tmp_path):
    subjects = [("a/s1", "train"), ("a/s2", "train"), ("b/s3", "train"), ("b/s4", "val")]
    with write_store(tmp_path / "store.h5", subjects) as opened:
        yield opened


def make(store, split="train", batch_size=4, seed=3, warp=WARP, contrast=CONTRAST, lesions=0.5):
    return ImageBatches(store, split, batch_size, seed, warp, contrast, lesion_probability=lesions)


def origin(store, row):
    """Return (subject, modality, slice) of an image row."""
    p = int(store.image_pv_index[row])
    return store.slices.subject[p], store.image_modality[row], int(store.slices.z[p])


def test_style_slices_are_other_slices_of_the_same_volume(store):
    batches = make(store)
    for step in range(10):
        for content, style, second in batches.batch(step).rows.tolist():
            volumes = {origin(store, row)[:2] for row in (content, style, second)}
            assert len(volumes) == 1
            assert len({content, style, second}) == 3


def test_a_slice_that_is_alone_is_its_own_style(tmp_path):
    with write_store(tmp_path / "one.h5", [("a/s1", "train")], num_slices=1) as store:
        rows = make(store, batch_size=2).batch(0).rows
    assert (rows == rows[:, :1]).all()


def test_two_slices_of_a_volume_give_the_other_one_twice(tmp_path):
    with write_store(tmp_path / "two.h5", [("a/s1", "train")], num_slices=2) as store:
        rows = make(store, batch_size=4).batch(0).rows
    assert (rows[:, 1] != rows[:, 0]).all()
    assert (rows[:, 1] == rows[:, 2]).all()


def test_batches_hold_subjects_of_their_split_only(store):
    for split, expected in (("train", {"a/s1", "a/s2", "b/s3"}), ("val", {"b/s4"})):
        batches = make(store, split)
        rows = torch.cat([batches.batch(step).rows for step in range(12)]).flatten().tolist()
        assert {origin(store, row)[0] for row in rows} == expected
        assert set(batches.subjects) == expected


def test_batch_is_a_function_of_seed_and_step(store):
    first, second = make(store), make(store)
    second.batch(0)
    for name in ("pv", "image", "style_image", "second_style_image", "rows"):
        assert torch.equal(getattr(first.batch(5), name), getattr(second.batch(5), name))
    assert not torch.equal(first.batch(5).image, first.batch(6).image)
    assert not torch.equal(first.batch(5).image, make(store, seed=4).batch(5).image)


def test_modalities_take_turns(store):
    for step in range(3):
        assert make(store).batch(step).modality.tolist() == [0, 1, 0, 1]


@pytest.mark.parametrize(("probability", "expected"), [(1.0, 1.0), (0.0, 0.25)])
def test_lesions_are_drawn_as_often_as_asked(store, probability, expected):
    batches = make(store, lesions=probability, warp=None, contrast=None)
    shown = torch.cat([batches.batch(s).pv[:, 6].amax(dim=(1, 2)) > 0.5 for s in range(40)])
    # 160 draws: three standard deviations of a share of 1/4 are 0.1.
    assert abs(float(shown.float().mean()) - expected) < 0.11


def test_background_is_exactly_minus_one_and_pv_sums_to_one(store):
    for step in range(4):
        batch = make(store).batch(step)
        assert (batch.image[batch.pv[:, :1] > 0.5] == -1).all()
        assert batch.image.abs().max() <= 1
        assert batch.style_image.min() == -1
        assert torch.allclose(batch.pv.sum(dim=1), torch.ones(()), atol=1e-5)


def test_image_and_styles_share_one_contrast(tmp_path):
    # Constant images: after gamma, bias and noise with equal draws, equal slices stay equal.
    path = tmp_path / "flat.h5"
    with StoreWriter(path, BRAIN9, (32, 32)) as writer:
        pv = np.zeros((3, 9, 32, 32), dtype=np.uint8)
        pv[:, 3] = 255
        rows = writer.add_slices(
            "a/s", dataset="a", split="train", z=range(3), position=[0, 0.5, 1], pv=pv
        )
        writer.add_image(rows, "t1", np.full((3, 1, 32, 32), 0.5))
        writer.commit()
    with TrainingStore.open(path) as store:
        batch = make(store, batch_size=3, warp=None).batch(0)
    assert torch.equal(batch.image, batch.style_image)
    assert torch.equal(batch.image, batch.second_style_image)
    assert not torch.allclose(batch.image[0], batch.image[1])


def test_warps_of_image_and_style_are_independent(store):
    batches = make(store, contrast=None)
    fixed = batches.fixed(batches.batch(0).rows[:, 1].tolist())
    assert not torch.equal(batches.batch(0).style_image, fixed.image)
    pairs = batches.batch(0)
    assert not torch.equal(pairs.image > -1, pairs.style_image > -1)


def test_fixed_and_images_show_the_stored_slices(store):
    batches = make(store)
    rows = batches.rows_of("a", "t2")[:2].tolist()
    expected = 2 * torch.from_numpy(np.stack([store.image(r) for r in rows])) - 1
    assert torch.equal(batches.fixed(rows).image, expected)
    assert torch.equal(batches.images(rows), expected)
    assert batches.styles == (("a", "t1"), ("b", "t1"), ("a", "t2"), ("b", "t2"))


def test_a_split_without_images_is_refused(store):
    with pytest.raises(StoreError, match="no images in split 'test'"):
        make(store, "test")


def test_global_generators_stay_untouched(store, untouched_rng):
    make(store).batch(0)


SPIN, LONG = Acquisition("spin", 600, 15), Acquisition("spin", 4500, 100)
MOVES = AcquisitionAugment(
    known={("a", "t1"): SPIN}, protocols={"t1": (LONG,)}, probability=1.0, te=1.3
)


def make_moving(store, moves=MOVES):
    return ImageBatches(store, "train", 4, 3, None, None, moves)


def test_known_acquisitions_move_and_others_stay(store):
    moved, still = make_moving(store), make_moving(store, None)
    seen = set()
    for step in range(6):
        one, other = moved.batch(step), still.batch(step)
        assert torch.equal(one.rows, other.rows)
        assert torch.equal(one.image, make_moving(store).batch(step).image)
        for i, row in enumerate(one.rows[:, 0].tolist()):
            subject, modality, _ = origin(store, row)
            known = subject.startswith("a/") and modality == "t1"
            assert torch.equal(one.image[i], other.image[i]) is not known
            seen.add(known)
        assert (one.image[one.pv[:, :1] > 0.5] == -1).all()
    assert seen == {True, False}


def test_image_and_styles_move_together(tmp_path):
    path = tmp_path / "flat.h5"
    with StoreWriter(path, BRAIN9, (32, 32)) as writer:
        pv = np.zeros((3, 9, 32, 32), dtype=np.uint8)
        pv[:, 2, :16], pv[:, 3, 16:] = 255, 255
        rows = writer.add_slices(
            "a/s", dataset="a", split="train", z=range(3), position=[0, 0.5, 1], pv=pv
        )
        writer.add_image(rows, "t1", np.full((3, 1, 32, 32), 0.5))
        writer.commit()
    with TrainingStore.open(path) as store:
        batch = make_moving(store).batch(0)
    assert torch.equal(batch.image, batch.style_image)
    assert torch.equal(batch.image, batch.second_style_image)
    assert not torch.allclose(batch.image[0], batch.image[1])


def test_chosen_images_move_to_one_acquisition(store):
    batches = make_moving(store)
    assert batches.sources("t1") == ("a",)
    assert batches.sources("t2") == ()
    rows = batches.rows_of("a", "t1")[:2].tolist()
    assert torch.allclose(batches.moved_images(rows, SPIN), batches.images(rows), atol=1e-6)
    assert not torch.allclose(batches.moved_images(rows, LONG), batches.images(rows), atol=0.01)
    with pytest.raises(RequestError, match="the acquisition of 'b_t1' is not known"):
        batches.moved_images(batches.rows_of("b", "t1")[:1].tolist(), LONG)
