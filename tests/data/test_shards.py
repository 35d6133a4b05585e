"""Shards: bytes, checksums, writer thread, reader, verify, contact sheet."""

import errno
import hashlib
import os
import pickle
import subprocess
import sys
import threading

import h5py
import numpy as np
import pytest
import torch
from matplotlib import image as mpl_image
from tiny_generators import SHAPE, TinyImages, TinyLabels

from synthgen.core.errors import SchemaError, StoreError
from synthgen.core.schema import BRAIN9, LabelSchema, Tissue
from synthgen.data.preview import caption, panels, tissue_colours, write_preview
from synthgen.data.shard_file import BLOCK, check_shard, open_shard, read_shard, write_shard
from synthgen.data.shards import Shards, ShardWriter, shard_path
from synthgen.data.verify import verify
from synthgen.generate import GenerationSettings, generate_images, generate_labels
from synthgen.labels import ConditionRange

RANGES = ConditionRange({"wmh": (0.01, 0.05)}, (0.3, 0.7))
SETTINGS = GenerationSettings(batch_size=2, shard_size=4, threads=1)


def some_arrays(seed=0, n=3):
    rng = np.random.default_rng(seed)
    return {
        "pv": rng.integers(0, 255, (n, 2, 5, 6), dtype=np.uint8),
        "images": rng.random((n, 1, 5, 6)).astype(np.float16),
        "index": np.arange(n),
    }


@pytest.fixture
def labels(tmp_path):
    generate_labels(TinyLabels(), RANGES, 6, tmp_path / "labels", SETTINGS)
    return tmp_path / "labels"


@pytest.fixture
def images(labels, tmp_path):
    folder = tmp_path / "images"
    generate_images(
        TinyImages(), Shards(labels), ["a_t1", "a_flair"], folder, SETTINGS, per_label=2
    )
    return folder


# the file


def test_equal_input_gives_equal_bytes(tmp_path):
    for name in ("a.h5", "b.h5"):
        write_shard(tmp_path / name, some_arrays(), {"kind": "labels", "shard": 0})
    first, second = ((tmp_path / name).read_bytes() for name in ("a.h5", "b.h5"))
    assert first == second
    assert first[:BLOCK].startswith(b"synthgen-shard/1\nsha256=")
    assert hashlib.sha256(first[BLOCK:]).hexdigest().encode() in first[:BLOCK]


def test_plain_h5py_reads_a_shard(tmp_path):
    arrays = some_arrays()
    write_shard(tmp_path / "a.h5", arrays, {"kind": "labels"})
    with h5py.File(tmp_path / "a.h5") as file:
        assert file["pv"].chunks == (1, 2, 5, 6)
        assert file["pv"].compression == "gzip"
        assert file.attrs["kind"] == "labels"
        for name, array in arrays.items():
            assert file[name].dtype == array.dtype
            assert np.array_equal(file[name][()], array)
    back = read_shard(tmp_path / "a.h5")
    assert all(np.array_equal(back[name], array) for name, array in arrays.items())


def test_every_flipped_bit_is_found(tmp_path):
    path = tmp_path / "a.h5"
    write_shard(path, some_arrays(), {"kind": "labels"})
    good = path.read_bytes()
    rng = np.random.default_rng(0)
    # Magic, digest, size, padding, HDF5 signature, body, last byte.
    places = [0, 25, 92, 200, BLOCK - 1, BLOCK, len(good) - 1]
    places += rng.integers(0, len(good), 60).tolist()
    for place in places:
        bad = bytearray(good)
        bad[place] ^= 1 << int(rng.integers(8))
        path.write_bytes(bad)
        with pytest.raises(StoreError, match=r"a\.h5: (damaged|truncated)"):
            check_shard(path)
    path.write_bytes(good)
    check_shard(path)


@pytest.mark.parametrize("size", [0, 10, BLOCK - 1, BLOCK, BLOCK + 1, -1])
def test_truncated_and_overlong_files_are_found(tmp_path, size):
    path = tmp_path / "a.h5"
    write_shard(path, some_arrays(), {})
    good = path.read_bytes()
    path.write_bytes(good[:size])
    for check in (check_shard, open_shard):
        with pytest.raises(StoreError, match=r"a\.h5: truncated.*--repair"):
            check(path)
    path.write_bytes(good + b"\0")
    with pytest.raises(StoreError, match="truncated or damaged"):
        check_shard(path)


def test_missing_and_foreign_files_are_named(tmp_path):
    with pytest.raises(StoreError, match="no such shard"):
        check_shard(tmp_path / "a.h5")
    (tmp_path / "b.h5").write_bytes(b"x" * 2000)
    with pytest.raises(StoreError, match="foreign"):
        open_shard(tmp_path / "b.h5")


def full_disk(*_):
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def test_full_disk_leaves_nothing_behind(tmp_path, monkeypatch):
    write_shard(tmp_path / "a.h5", some_arrays(), {})
    before = (tmp_path / "a.h5").read_bytes()
    monkeypatch.setattr(os, "fsync", full_disk)
    with pytest.raises(StoreError, match=r"No space left on device.*free space"):
        write_shard(tmp_path / "a.h5", some_arrays(seed=1), {})
    assert [path.name for path in tmp_path.iterdir()] == ["a.h5"]
    assert (tmp_path / "a.h5").read_bytes() == before


def test_a_write_that_the_system_cuts_short_leaves_nothing_behind(tmp_path):
    # A limit on the file size makes write() itself fail, as on a full disk.
    code = (
        "import resource, sys, numpy as np, pathlib\n"
        "from synthgen.core.errors import StoreError\n"
        "from synthgen.data.shard_file import write_shard\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (4096, 4096))\n"
        "rng = np.random.default_rng(0)\n"
        "try:\n"
        "    write_shard(pathlib.Path(sys.argv[1]), {'x': rng.random((4, 2, 60, 60))}, {})\n"
        "except StoreError as error:\n"
        "    sys.exit(str(error))\n"
    )
    path = tmp_path / "a.h5"
    done = subprocess.run(  # noqa: S603 - our own code
        [sys.executable, "-c", code, str(path)], capture_output=True, text=True, check=False
    )
    assert done.returncode == 1
    assert "a.h5: could not be written (File too large)" in done.stderr
    assert not list(tmp_path.iterdir())


# the writer


def test_writer_raises_what_its_thread_met_and_keeps_finished_shards(tmp_path):
    writer = ShardWriter()
    with pytest.raises(StoreError, match="no/such"), writer:  # noqa: PT012 - as in use
        writer.put(tmp_path / "0.h5", some_arrays(), {})
        writer.put(tmp_path / "no/such/1.h5", some_arrays(), {})
    check_shard(tmp_path / "0.h5")
    assert writer.written == 1


def test_writer_finishes_what_it_has_when_the_caller_is_interrupted(tmp_path):
    with pytest.raises(KeyboardInterrupt), ShardWriter() as writer:  # noqa: PT012 - as in use
        writer.put(tmp_path / "0.h5", some_arrays(), {})
        writer.put(tmp_path / "1.h5", some_arrays(), {})
        raise KeyboardInterrupt
    check_shard(tmp_path / "0.h5")
    check_shard(tmp_path / "1.h5")
    assert not [t for t in threading.enumerate() if t.name.startswith("synthgen-writer")]


def test_writer_holds_at_most_two_shards(tmp_path, monkeypatch):
    gate, outstanding = threading.Event(), []
    monkeypatch.setattr(
        "synthgen.data.shards.write_shard",
        lambda path, *_: (gate.wait(10), path.write_bytes(b"x")),
    )
    with ShardWriter() as writer:
        opener = threading.Timer(0.2, gate.set)
        opener.start()
        for number in range(4):
            writer.put(tmp_path / f"{number}.h5", {}, {})
            outstanding.append(number + 1 - writer.written)
    opener.join()
    assert max(outstanding) == 2
    assert writer.written == 4


# the reader


def test_reads_rows_with_their_conditions(labels):
    shards = Shards(labels)
    assert len(shards) == 6
    assert shards.schema == BRAIN9
    row = shards[5]
    assert row.index == 5
    assert row.pv.dtype == np.float32
    assert row.pv.shape == (9, *SHAPE)
    assert np.abs(row.pv.sum(axis=0) - 1).max() < 1e-6
    assert 0.01 <= row.condition["wmh"] <= 0.05
    assert row.condition["tumour"] == 0
    assert 0.3 <= row.condition["position"] <= 0.7
    fraction = row.pv[6].sum() / row.pv[1:].sum()
    assert row.realised["wmh"] == pytest.approx(fraction, rel=1e-4)
    assert row.images is None
    assert np.array_equal(shards[-1].pv, row.pv)
    for index in (6, -7):
        with pytest.raises(IndexError):
            shards[index]
    assert len(list(shards)) == 6


def test_image_rows_are_paired_with_a_copy_of_their_labels(labels, images):
    source, shards = Shards(labels), Shards(images)
    assert len(shards) == 12
    assert shards.styles == ("a_t1", "a_flair")
    assert shards.manifest.subjects == ["a/sub-01", "a/sub-02", "b/sub-07"]
    for row in shards:
        assert row.label_index == row.index // 2
        label = source[row.label_index]
        assert np.array_equal(row.pv, label.pv)
        assert row.condition == label.condition
        assert row.images.shape == (2, *SHAPE)
        assert (row.images[:, row.pv[0] > 0.5] == 0).all()
    assert not np.array_equal(shards[0].images, shards[1].images)


def test_is_picklable_and_works_with_a_data_loader(images):
    shards = Shards(images)
    shards[0]
    again = pickle.loads(pickle.dumps(shards))  # noqa: S301 - our own bytes
    assert np.array_equal(again[3].pv, shards[3].pv)
    loader = torch.utils.data.DataLoader(shards, batch_size=4, num_workers=2, collate_fn=list)
    rows = [row for batch in loader for row in batch]
    assert [row.index for row in rows] == list(range(12))
    assert np.array_equal(rows[7].images, shards[7].images)


def test_refuses_another_schema(labels):
    other = LabelSchema("two", (Tissue("background", 0), Tissue("brain", 1)))
    with pytest.raises(SchemaError, match="expected label schema 'two'"):
        Shards(labels, other)


def test_refuses_a_shard_of_another_place_or_dataset(labels, tmp_path):
    generate_labels(TinyLabels(1), RANGES, 6, tmp_path / "other", SETTINGS)
    mine = shard_path(labels, 1)
    for stray in (shard_path(labels, 0), shard_path(tmp_path / "other", 1)):
        mine.write_bytes(stray.read_bytes())
        with pytest.raises(StoreError, match=r"00001\.h5: belongs to another"):
            Shards(labels)[4]


def test_names_a_shard_that_is_missing(labels):
    shard_path(labels, 1).unlink()
    shards = Shards(labels)
    assert shards.missing() == [1]
    assert shards[3].index == 3
    with pytest.raises(StoreError, match=r"00001\.h5: no such shard"):
        shards[4]


# verify


def test_verify_finds_nothing_in_a_good_dataset(labels, images):
    seen = []
    assert verify(labels, progress=lambda *state: seen.append(state)) == []
    assert seen == [(4, 6), (6, 6)]
    assert verify(images, BRAIN9) == []


def test_verify_names_every_damaged_shard(images):
    for number in (0, 2):
        path = shard_path(images, number)
        data = bytearray(path.read_bytes())
        data[len(data) // 2] ^= 4
        path.write_bytes(data)
    shard_path(images, 1).unlink()
    problems = verify(images)
    assert [p.partition(":")[0][-8:] for p in problems] == ["00000.h5", "00001.h5", "00002.h5"]


def rewrite(folder, shard, change):
    """Store changed arrays with a right checksum."""
    path = shard_path(folder, shard)
    arrays = read_shard(path)
    with open_shard(path) as file:
        attrs = dict(file.attrs)
    change(arrays)
    write_shard(path, arrays, attrs)


def spoil_sum(arrays):
    arrays["pv"][1, 0, 2, 3] ^= 1


def spoil_index(arrays):
    arrays["index"][0] = 77


def spoil_nan(arrays):
    arrays["images"][0, 0, 0, 0] = np.nan


def spoil_range(arrays):
    arrays["images"][0, 0, 0, 0] = 1.5


def spoil_background(arrays):
    arrays["pv"][0, :, 0, 0] = [255] + [0] * 8
    arrays["images"][0, 1, 0, 0] = 0.5


def drop_a_row(arrays):
    for name in arrays:
        arrays[name] = arrays[name][:-1]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (spoil_sum, "sample 1: pv channels sum to"),
        (spoil_index, "expected the indices 0 .. 3"),
        (spoil_nan, "sample 0: image values must be finite"),
        (spoil_range, "sample 0: image values must be finite"),
        (spoil_background, "sample 0: image is not exactly 0 outside the brain"),
        (drop_a_row, "expected 4 rows"),
        (lambda arrays: arrays.pop("condition"), "expected arrays"),
    ],
)
def test_verify_looks_into_the_rows(images, change, message):
    rewrite(images, 0, change)
    problems = verify(images)
    assert problems
    assert any(message in problem for problem in problems)


def test_verify_reports_files_that_do_not_belong(labels):
    shard_path(labels, 7).write_bytes(b"x")
    assert "not part of this dataset" in verify(labels)[0]


def test_verify_of_no_dataset_is_one_problem(tmp_path):
    assert "not a synthgen dataset" in verify(tmp_path)[0]


# contact sheet


def test_panels_stand_anterior_up(labels, images):
    row = Shards(images)[0]
    pictures = panels(row, BRAIN9)
    assert len(pictures) == 2 + 3
    assert all(p.shape == (SHAPE[1], SHAPE[0], 3) for p in pictures)
    # Voxel (x, y): column x, y counted from the bottom.
    assert pictures[0][-1 - 5, 3, 0] == row.images[0][3, 5]
    flat = tissue_colours(BRAIN9)[np.argmax(row.pv[:, 3, 5])]
    assert np.array_equal(pictures[3][-1 - 5, 3], flat)
    assert len(panels(Shards(labels)[0], BRAIN9)) == 3


def test_lesion_outline_surrounds_the_lesion(images):
    row = Shards(images)[0]
    pv = np.zeros_like(row.pv)
    pv[3] = 1
    pv[3, 5:8, 10:12], pv[6, 5:8, 10:12] = 0, 1
    picture = panels(type(row)(**(vars(row) | {"pv": pv})), BRAIN9)[-1][::-1].transpose(1, 0, 2)
    red = (picture == np.float32([1.0, 0.15, 0.15])).all(axis=-1)
    assert red.sum() == 2 * 3 + 2 * 2
    assert not red[5:8, 10:12].any()


def test_writes_a_contact_sheet(labels, images, tmp_path):
    for folder, count, shown in ((labels, 4, 4), (images, 5, 5), (labels, 40, 6)):
        path = tmp_path / "sheet.png"
        assert write_preview(Shards(folder), count, path) == shown
        sheet = mpl_image.imread(path)
        assert sheet.shape[0] > 300
        assert sheet[..., :3].std() > 0.1
    assert caption(Shards(images)[3]).startswith("#3 (label 1): slice at 0.")
    assert "wmh asked" in caption(Shards(images)[3])


def test_contact_sheet_of_nothing_but_background_is_drawn(tmp_path):
    class Empty(TinyLabels):
        def sample(self, keys, conditions):
            return (torch.arange(9) == 0).float()[:, None, None].expand(len(keys), -1, *SHAPE)

    generate_labels(Empty(), RANGES, 2, tmp_path / "empty", SETTINGS)
    assert write_preview(Shards(tmp_path / "empty"), 2, tmp_path / "sheet.png") == 2
