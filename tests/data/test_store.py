import os
import pickle
import subprocess
import sys

import h5py
import numpy as np
import pytest

from synthgen.core.errors import LeakageError, RequestError, SchemaError, StoreError
from synthgen.core.schema import BRAIN9, LabelSchema, Tissue
from synthgen.data.store import StoreWriter, TrainingStore
from synthgen.data.tissue import quantize_pv

SHAPE = (12, 16)


def random_pv(n, seed=0):
    draws = np.random.default_rng(seed).dirichlet(np.ones(BRAIN9.channels), (n, *SHAPE))
    return np.stack([quantize_pv(np.moveaxis(one, -1, 0)) for one in draws])


def write(path, *, seed=0, subjects=(("a/sub-1", "a", "train"), ("b/sub-1", "b", "val"))):
    pvs, images = [], []
    with StoreWriter(path, BRAIN9, SHAPE) as writer:
        for number, (subject, dataset, split) in enumerate(subjects):
            pv = random_pv(3, seed + number)
            rows = writer.add_slices(
                subject, dataset=dataset, split=split, z=[4, 5, 6], position=[0, 0.5, 1], pv=pv
            )
            image = np.random.default_rng(seed + number).random((3, 1, *SHAPE))
            writer.add_image(rows, "flair" if number else "t1", image)
            pvs.append(pv)
            images.append(image)
        masks = np.full((2, *SHAPE), 51, np.uint8)
        writer.add_lesions("c/patient1", split="train", position=[0.25, 0.75], masks=masks)
        writer.commit()
    return np.concatenate(pvs), np.concatenate(images)


@pytest.fixture
def store(tmp_path):
    pvs, images = write(tmp_path / "store.h5")
    return TrainingStore.open(tmp_path), pvs, images


def test_round_trip(store):
    opened, pvs, images = store
    assert opened.schema == BRAIN9
    assert opened.shape == SHAPE
    assert opened.modalities == ("flair", "t1")
    assert opened.datasets == ("a", "b")
    for index, pv in enumerate(pvs):
        read = opened.pv(index)
        assert read.dtype == np.float32
        np.testing.assert_array_equal(np.rint(read * 255), pv)
        np.testing.assert_allclose(read.sum(axis=0), 1, atol=1e-6)
        np.testing.assert_allclose(opened.slices.fractions[index], BRAIN9.fractions(pv))
    for row, image in enumerate(images):
        np.testing.assert_array_equal(opened.image(row), image.astype(np.float16))
    np.testing.assert_allclose(opened.lesion(1), 0.2)
    assert opened.slices.subject == ["a/sub-1"] * 3 + ["b/sub-1"] * 3
    assert opened.slices.z.tolist() == [4, 5, 6, 4, 5, 6]
    assert opened.slices.position.tolist() == [0, 0.5, 1, 0, 0.5, 1]
    assert opened.lesion_position.tolist() == [0.25, 0.75]


def test_rows_are_chosen_by_split_modality_and_dataset(store):
    opened, _, _ = store
    assert opened.subjects("train") == ("a/sub-1", "c/patient1")
    assert opened.subjects("test") == ()
    assert opened.slice_indices("val").tolist() == [3, 4, 5]
    assert opened.image_rows("train").tolist() == [0, 1, 2]
    assert opened.image_rows("val", modality="flair", dataset="b").tolist() == [3, 4, 5]
    assert opened.image_rows("val", modality="t1").tolist() == []
    assert opened.image_pv_index.tolist() == [0, 1, 2, 3, 4, 5]


def test_same_content_same_fingerprint(tmp_path):
    for name, seed in (("one", 0), ("two", 0), ("three", 9)):
        write(tmp_path / name / "store.h5", seed=seed)
    one, two, three = (
        TrainingStore.open(tmp_path / name).fingerprint for name in ("one", "two", "three")
    )
    assert one == two != three


def test_pickled_store_reads_again(store):
    opened, pvs, _ = store
    opened.pv(0)
    again = pickle.loads(pickle.dumps(opened))  # noqa: S301 - what a worker process does
    np.testing.assert_array_equal(np.rint(again.pv(2) * 255), pvs[2])
    again.close()
    np.testing.assert_array_equal(np.rint(again.pv(1) * 255), pvs[1])


def test_index_out_of_range(store):
    with pytest.raises(RequestError, match=r"'pv' index must lie in 0 .. 5, got 6"):
        store[0].pv(6)


def test_unknown_split(store):
    with pytest.raises(RequestError, match="train, val, test, got 'dev'"):
        store[0].slice_indices("dev")


def test_subject_in_two_splits_is_refused(tmp_path):
    twice = (("a/sub-1", "a", "train"), ("a/sub-1", "a", "val"))
    with pytest.raises(LeakageError, match=r"'a/sub-1' stands in 'train' and in 'val'"):
        write(tmp_path / "store.h5", subjects=twice)
    assert list(tmp_path.iterdir()) == []


def test_pv_that_does_not_sum_to_255_is_refused(tmp_path):
    pv = random_pv(1)
    pv[0, 3, 2, 1] ^= 1
    with (
        StoreWriter(tmp_path / "store.h5", BRAIN9, SHAPE) as writer,
        pytest.raises(SchemaError, match=r"a/sub-1 slice z=8: .* voxel \(2, 1\)"),
    ):
        writer.add_slices("a/sub-1", dataset="a", split="train", z=[8], position=[0], pv=pv)


@pytest.mark.parametrize("value", [-0.1, 1.5, np.nan])
def test_image_outside_its_range_is_refused(tmp_path, value):
    with StoreWriter(tmp_path / "store.h5", BRAIN9, SHAPE) as writer:
        rows = writer.add_slices(
            "a/s", dataset="a", split="train", z=[0], position=[0], pv=random_pv(1)
        )
        with pytest.raises(SchemaError, match=r"t2: image values must lie in \[0, 1\]"):
            writer.add_image(rows, "t2", np.full((1, 1, *SHAPE), value))


def test_another_schema_is_refused(store):
    other = LabelSchema("two", (Tissue("background", 0), Tissue("brain", 1)))
    with pytest.raises(SchemaError, match=r"store\.h5: expected label schema 'two'.*'brain9'"):
        TrainingStore.open(store[0].path, other)


def test_another_format_is_refused(store):
    with h5py.File(store[0].path, "r+") as file:
        file.attrs["format"] = "synthgen-store/99"
    with pytest.raises(StoreError, match=r"expected format 'synthgen-store/1', got .*99"):
        TrainingStore.open(store[0].path)


def test_foreign_hdf5_is_refused(tmp_path):
    with h5py.File(tmp_path / "store.h5", "w") as file:
        file["x"] = 1
    with pytest.raises(StoreError, match=r"store\.h5: expected format"):
        TrainingStore.open(tmp_path)


def test_not_hdf5_is_refused(tmp_path):
    (tmp_path / "store.h5").write_text("no")
    with pytest.raises(StoreError, match=r"store\.h5: not a readable training store"):
        TrainingStore.open(tmp_path)


def test_truncated_store_is_refused(store):
    path = store[0].path
    path.write_bytes(path.read_bytes()[:-2000])
    with pytest.raises(StoreError, match=r"store\.h5: not a readable training store, truncated"):
        TrainingStore.open(path)


def test_flipped_bit_is_noticed_when_the_row_is_read(store):
    opened, _, _ = store
    with h5py.File(opened.path) as file:
        chunk = file["pv"].id.get_chunk_info(2)
    raw = bytearray(opened.path.read_bytes())
    raw[chunk.byte_offset + chunk.size // 2] ^= 1
    opened.path.write_bytes(bytes(raw))
    again = TrainingStore.open(opened.path)
    again.pv(1)
    with pytest.raises(StoreError, match=r"'pv' row 2 is damaged"):
        again.pv(2)


def test_missing_store_says_how_to_make_one(tmp_path):
    with pytest.raises(StoreError, match="synthgen prepare"):
        TrainingStore.open(tmp_path / "store.h5")


def test_an_unfinished_store_leaves_the_old_one(store, tmp_path):
    opened, _, _ = store
    before = opened.path.read_bytes()
    with StoreWriter(opened.path, BRAIN9, SHAPE) as writer:
        writer.add_slices(
            "a/s", dataset="a", split="train", z=[0], position=[0], pv=random_pv(1, 7)
        )
    assert opened.path.read_bytes() == before
    assert [p.name for p in tmp_path.iterdir()] == ["store.h5"]


def test_nothing_to_store_is_refused(tmp_path):
    with (
        StoreWriter(tmp_path / "store.h5", BRAIN9, SHAPE) as writer,
        pytest.raises(RequestError, match="no slice to store"),
    ):
        writer.commit()
    assert list(tmp_path.iterdir()) == []


_FULL_DISK = """
import resource, signal, sys
from pathlib import Path
import numpy as np
from synthgen.core.errors import StoreError
from synthgen.core.schema import BRAIN9
from synthgen.data.store import StoreWriter
# A limit on file sizes fails writes in the system call, as a full disk does.
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (int(sys.argv[2]), resource.RLIM_INFINITY))
rng = np.random.default_rng(0)
pv = np.zeros((20, 9, 64, 64), np.uint8)
pv[:, 1] = rng.integers(0, 256, pv[:, 1].shape)
pv[:, 0] = 255 - pv[:, 1]
try:
    with StoreWriter(Path(sys.argv[1]), BRAIN9, (64, 64)) as writer:
        writer.add_slices(
            "a/s", dataset="a", split="train", z=range(20), position=[0] * 20, pv=pv
        )
        writer.commit()
except StoreError as error:
    print(error)
    sys.exit(error.exit_code)
"""


@pytest.mark.skipif(os.name != "posix", reason="file size limits are POSIX")
@pytest.mark.parametrize("limit", [500, 40_000, 100_000])
def test_full_disk_leaves_the_old_store(store, tmp_path, limit):
    opened, _, _ = store
    before = opened.path.read_bytes()
    done = subprocess.run(  # noqa: S603 - this file's own text
        [sys.executable, "-c", _FULL_DISK, str(opened.path), str(limit)],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 3, done.stderr
    assert "store.h5: could not be written" in done.stdout
    assert len(done.stdout.splitlines()) == 1
    assert opened.path.read_bytes() == before
    assert [p.name for p in tmp_path.iterdir()] == ["store.h5"]
