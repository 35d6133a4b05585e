"""Parquet folders: `load_dataset` gives images, labels and partial volumes back."""

import datasets
import numpy as np
from exporting import load_rows
from pyarrow import parquet

from synthgen.data.shards import Shards
from synthgen.data.store import TrainingStore
from synthgen.export import ExportOptions, export, open_source
from synthgen.export import hf as module


def make(source, out, **options):
    return export(open_source(source), "hf", out, ExportOptions(**options))


def test_rows_come_back_with_their_partial_volumes(images, tmp_path, offline):
    assert make(images, tmp_path / "out").count == 14
    rows = load_rows(offline, str(tmp_path / "out"))
    assert len(rows) == 14
    assert rows.features["pv"] == datasets.Array3D((9, 24, 32), "uint8")
    for row in rows.with_format("numpy"):
        sample = Shards(images)[int(row["index"])]
        picture = ("a_t1", "a_flair").index(row["style"])
        np.testing.assert_array_equal(row["pv"], np.rint(255 * sample.pv))
        np.testing.assert_array_equal(row["label"], np.argmax(sample.pv, axis=0))
        np.testing.assert_allclose(row["image"] / 65535, sample.images[picture], atol=1e-5)


def test_samples_are_dealt_to_files(images, tmp_path, offline, monkeypatch):
    monkeypatch.setattr(module, "ROWS_PER_FILE", 6)
    make(images, tmp_path / "out")
    files = sorted((tmp_path / "out/data").iterdir())
    assert [p.name for p in files] == [f"train-{k:05d}-of-00003.parquet" for k in range(3)]
    assert [parquet.read_metadata(p).num_rows for p in files] == [6, 6, 2]
    assert load_rows(offline, str(tmp_path / "out"))["index"][:] == [i // 2 for i in range(14)]


def test_splits_of_a_store_are_splits(store, tmp_path, offline):
    make(store, tmp_path / "out", channels=("t1",))
    found = {
        split: {*load_rows(offline, str(tmp_path / "out"), split=split)["subject"]}
        for split in ("train", "validation", "test")
    }
    assert found == {"train": {"a/sub-1"}, "validation": {"a/sub-2"}, "test": {"b/sub-1"}}


def test_channels_are_columns(store, tmp_path, offline):
    make(store, tmp_path / "out", channels=("t1", "flair"))
    row = load_rows(offline, str(tmp_path / "out"))[1]
    with TrainingStore.open(store) as opened:
        for name, index in (("t1", 1), ("flair", 4)):
            np.testing.assert_allclose(
                np.asarray(row[name]) / 65535, opened.image(index)[0], atol=1e-5
            )


def test_labels_need_no_image(labels, tmp_path, offline):
    assert make(labels, tmp_path / "out").count == 7
    rows = load_rows(offline, str(tmp_path / "out"))
    assert "image" not in rows.features
    np.testing.assert_array_equal(
        np.asarray(rows[6]["label"]), np.argmax(Shards(labels)[6].pv, axis=0)
    )


def test_other_readers_see_plain_lists(images, tmp_path):
    make(images, tmp_path / "out")
    (path,) = (tmp_path / "out/data").iterdir()
    schema = parquet.ParquetFile(path).schema
    assert schema.column(schema.names.index("element")).physical_type == "INT32"
