import pickle

import numpy as np
import pytest
from discs import SHAPE, write_disc_store

from synthgen.benchmark.arm_store import CaseStore, normalise, store_path, volumes
from synthgen.benchmark.cases import recordings, write_stores
from synthgen.core.errors import StoreError


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    return tmp_path_factory.mktemp("written")


@pytest.fixture
def stores(plan, written):
    spec, sources = plan("synthetic", "contrast")
    write_stores(written, recordings(spec, sources))
    return {n: CaseStore(store_path(written, n)) for n in ("real", "synthetic", "contrast", "test")}


def test_a_slice_is_normalised_inside_its_brain_holes_included():
    image = np.zeros((8, 8), np.float32)
    image[2:7, 2:7] = np.arange(1, 26).reshape(5, 5)
    image[4, 4] = 0  # a hole
    out, brain = normalise(image)
    assert brain.sum() == 25
    assert out[brain].mean() == pytest.approx(0, abs=1e-6)
    assert out[brain].std() == pytest.approx(1, abs=1e-5)
    assert not out[~brain].any()
    blank, nothing = normalise(np.zeros((8, 8), np.float32))
    assert not blank.any()
    assert not nothing.any()


def test_training_slices_hold_no_test_subject(stores):
    assert {*stores["real"].subject} == {"a/sub-1", "a/sub-2"}
    assert {*stores["test"].subject} == {"a/sub-3", "b/sub-1"}
    assert len(stores["real"]) == 2 * 6 * 2
    assert len(stores["synthetic"]) == 8 * 2


@pytest.mark.parametrize("name", ["real", "synthetic", "contrast", "test"])
def test_background_is_exactly_zero_and_labels_fit_the_soft_ones(stores, name):
    store = stores[name]
    for case in range(len(store)):
        image, labels, soft = store.image(case), store.labels(case), store.soft(case)
        assert image.shape == labels.shape == soft.shape[1:] == SHAPE
        assert not image[labels == -1].any()
        assert np.array_equal(labels.clip(0), soft.argmax(0))
        assert soft.sum(0) == pytest.approx(1, abs=1e-6)
        assert abs(image[image != 0].mean()) < 1e-2


def test_contrast_paints_the_same_maps_as_the_synthetic_arm(stores):
    first, second = stores["synthetic"], stores["contrast"]
    assert (first.slice, first.modality) == (second.slice, second.modality)
    assert np.array_equal(first.soft(3), second.soft(3))
    assert not np.array_equal(first.image(3), second.image(3))


def test_test_slices_are_restacked_in_order(stores):
    found = volumes(stores["test"])
    assert [v.name for v in found] == [
        "a_sub-3_flair", "a_sub-3_t1", "b_sub-1_flair", "b_sub-1_t1",
    ]  # fmt: skip
    z = stores["test"].z[list(found[0].cases)]
    assert z.tolist() == [4, 5, 6, 7, 8, 9]
    assert found[0].spacing_mm == (1.5, 1.5, 1.5)
    assert (found[0].affine @ [0, 0, 1, 1])[2] == 5 * 1.5


def test_the_test_volumes_are_kept_for_the_report(stores, written):
    with np.load(written / "test" / "a_sub-3_t1.npz") as volume:
        assert volume["image"].shape == volume["label"].shape == (6, *SHAPE)
        assert {*np.unique(volume["label"])} == {0, 1, 2, 3}


def test_a_store_that_is_there_is_kept_and_a_changed_one_made_again(plan, stores, written):
    path = store_path(written, "real")
    before = path.stat().st_mtime_ns
    spec, sources = plan("synthetic")
    write_stores(written, recordings(spec, sources))
    assert path.stat().st_mtime_ns == before
    spec, sources = plan("synthetic", modalities=("t1",))
    write_stores(written, recordings(spec, sources))
    assert {*CaseStore(path).modality} == {"t1"}


def test_a_store_survives_pickling(stores):
    store = stores["test"]
    store.image(0)
    copy = pickle.loads(pickle.dumps(store))  # noqa: S301 - our own
    assert np.array_equal(copy.image(1), store.image(1))


def test_a_blank_test_volume_is_refused(plan, tmp_path):
    real = write_disc_store(tmp_path / "blank", blank=("b/sub-1",))
    with pytest.raises(StoreError, match="blank test volumes: b_sub-1_flair, b_sub-1_t1"):
        write_stores(tmp_path, recordings(*plan("real", real=real)))


def test_a_damaged_store_is_one_line(tmp_path):
    path = tmp_path / "real.h5"
    path.write_bytes(b"no")
    with pytest.raises(StoreError, match=r"real\.h5: not readable .*; delete it and repeat"):
        CaseStore(path)


def test_the_box_of_a_brain_is_that_of_its_largest_slice(stores):
    boxes = stores["real"].boxes()
    assert len(boxes) == 2
    wide = [(stores["real"].labels(c) != -1).any(1).sum() for c in range(len(stores["real"]))]
    assert max(b[0] for b in boxes) >= max(wide)
    assert all(50 < x < 58 and 50 < y < 58 for x, y in boxes)
