"""Stores and generated datasets as labelled data."""

import numpy as np
import pytest
from exporting import write_store
from tiny_generators import TinyImages, TinyLabels
from tiny_vessels import Negative, Tubes

from synthgen.core.errors import LeakageError, RequestError, StoreError
from synthgen.data.labelled import open_labelled
from synthgen.data.shards import Shards
from synthgen.data.store import TrainingStore
from synthgen.generate import (
    AngiogramJob,
    GenerationSettings,
    generate_images,
    generate_labels,
    run,
)
from synthgen.labels import ConditionRange

SETTINGS = GenerationSettings(batch_size=2, shard_size=2)
TISSUES = ("csf", "gm", "wm", "wmh")


@pytest.fixture(scope="module")
def labels(tmp_path_factory):
    folder = tmp_path_factory.mktemp("made") / "labels"
    wanted = ConditionRange({"wmh": (0.01, 0.05)}, (0.3, 0.7))
    generate_labels(TinyLabels(), wanted, 3, folder, SETTINGS)
    return folder


@pytest.fixture(scope="module")
def images(labels, tmp_path_factory):
    folder = tmp_path_factory.mktemp("made") / "images"
    generate_images(TinyImages(), Shards(labels), ("a_t1", "a_flair"), folder, SETTINGS)
    return folder


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    return write_store(tmp_path_factory.mktemp("real") / "store")


def test_each_picture_of_a_store_is_a_case(store):
    data = open_labelled(store, tissues=TISSUES)
    assert [case.name for case in data.cases] == [
        f"a_sub-1_z{z:03d}_{m}" for z in (4, 5, 6) for m in ("t1", "flair")
    ]
    assert {case.subject for case in data.cases} == {"a/sub-1"}
    assert data.subjects == ("a/sub-1",)
    assert data.real
    assert data.tissues == ("background", *TISSUES)
    assert (data.channels, data.spatial_dims, data.spacing_mm) == (("image",), 2, (1.5, 1.5))
    read = TrainingStore.open(store)
    image, soft = data.load(3)  # FLAIR of the second slice
    (row,) = [r for r in read.image_rows("train", "flair") if read.image_pv_index[r] == 1]
    np.testing.assert_array_equal(image, read.image(row))
    pv = read.pv(1)
    np.testing.assert_allclose(soft[2], pv[2] + pv[4], atol=1e-6)  # grey matter and deep grey
    np.testing.assert_allclose(soft[3], pv[3] + pv[5] + pv[7] + pv[8], atol=1e-6)
    np.testing.assert_allclose(soft.sum(0), 1, atol=1e-6)
    assert image.dtype == soft.dtype == np.float32


def test_splits_and_modalities_of_a_store(store):
    held = open_labelled(store, tissues=TISSUES, split="val")
    assert [case.name for case in held.cases] == [f"a_sub-2_z{z:03d}_t1" for z in (4, 5, 6)]
    flair = open_labelled(store, tissues=TISSUES, modalities=["flair"])
    assert len(flair.cases) == 3
    identities = [open_labelled(store, tissues=TISSUES).identity, held.identity, flair.identity]
    assert len({str(identity) for identity in identities}) == 3


def test_generated_images_name_their_ancestors(images):
    data = open_labelled(images, tissues=TISSUES)
    assert [case.name for case in data.cases[:3]] == [
        "000000_a_t1",
        "000000_a_flair",
        "000001_a_t1",
    ]
    assert data.cases[0].group == data.cases[1].group != data.cases[2].group
    assert {case.subject for case in data.cases} == {""}
    assert not data.real
    assert "b/sub-07" in data.subjects
    row = Shards(images)[1]
    image, soft = data.load(3)
    np.testing.assert_array_equal(image[0], row.images[1])
    np.testing.assert_allclose(soft[4], row.pv[6], atol=1e-6)
    assert data.identity != open_labelled(images, tissues=TISSUES, modalities=["t1"]).identity


def test_generated_images_have_no_splits(images):
    whole = open_labelled(images, tissues=TISSUES)
    assert open_labelled(images, tissues=TISSUES, split="val").identity == whole.identity


def test_angiograms(tmp_path):
    run(AngiogramJob(Tubes(), Negative(subjects=("chase/01",)), None, SETTINGS), 2, tmp_path / "x")
    data = open_labelled(tmp_path / "x", tissues=("vessel",))
    image, soft = data.load(1)
    row = Shards(tmp_path / "x")[1]
    np.testing.assert_array_equal(image, row.images)
    np.testing.assert_allclose(soft, row.pv, atol=1e-6)
    assert (data.tissues, data.subjects) == (("background", "vessel"), ("chase/01",))


def test_subjects_are_left_out(tmp_path):
    two = (("a/sub-1", "train"), ("a/sub-2", "train"))
    store = write_store(tmp_path, subjects=two)
    data = open_labelled(store, tissues=TISSUES, exclude=["a/sub-1", "elsewhere/sub-9"])
    assert data.subjects == ("a/sub-2",)
    with pytest.raises(RequestError, match="no case is left"):
        open_labelled(store, tissues=TISSUES, exclude=["a/sub-1", "a/sub-2"])


def test_images_that_descend_from_an_excluded_subject_are_refused(images):
    with pytest.raises(LeakageError, match="b/sub-07"):
        open_labelled(images, tissues=TISSUES, exclude=["b/sub-07"])


@pytest.mark.parametrize(
    ("tissues", "message"),
    [
        (("csf", "wm", "wmh"), "'gm' of schema 'brain9' belongs to none of csf, wm, wmh; add gm"),
        (("csf", "gm", "wm", "liver"), "schema 'brain9' has no tissue 'liver'"),
    ],
)
def test_classes_must_fit_the_recipe(store, tissues, message):
    with pytest.raises(RequestError, match=message) as raised:
        open_labelled(store, tissues=tissues)
    assert str(store) in str(raised.value)
    assert "\n" not in str(raised.value)


def test_a_modality_that_is_not_there(images, store):
    for path in (images, store):
        with pytest.raises(RequestError, match="no pictures of modality 't9'; it has flair, t1"):
            open_labelled(path, tissues=TISSUES, modalities=["t1", "t9"])


def test_no_images_and_no_data(labels, tmp_path):
    with pytest.raises(RequestError, match="label maps without images"):
        open_labelled(labels, tissues=TISSUES)
    with pytest.raises(RequestError, match=r"no labelled images; expected .*dataset\.json"):
        open_labelled(tmp_path, tissues=TISSUES)


def test_a_damaged_store(tmp_path):
    (tmp_path / "store.h5").write_bytes(b"not HDF5")
    with pytest.raises(StoreError, match="not a readable training store"):
        open_labelled(tmp_path, tissues=TISSUES)
