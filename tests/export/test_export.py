"""What all formats share: same bytes, resume after a kill, refusals, blanks, damage."""

import errno
import json
import os
import signal
import subprocess
import sys
import tracemalloc
from dataclasses import replace

import numpy as np
import pytest
from exporting import write_store
from file_digests import digests
from tiny_generators import TinyLabels

from synthgen.core.errors import RequestError, StoreError
from synthgen.core.schema import BRAIN9
from synthgen.data.shards import Shards
from synthgen.data.store import StoreWriter
from synthgen.export import FORMATS, ExportOptions, export, forecast, open_source
from synthgen.export.tree import MARKER, Tree
from synthgen.generate import GenerationSettings, generate_labels
from synthgen.labels import ConditionRange

NONE = ExportOptions()
SETTINGS = GenerationSettings(batch_size=2, shard_size=4)
KILLED = """
import os, signal, sys
from pathlib import Path
from synthgen.core import manifest
from synthgen.export import ExportOptions, export, open_source

left = int(sys.argv[4])
sync = os.fsync

def fsync(handle):
    global left
    left -= 1
    if not left:
        os.kill(os.getpid(), signal.SIGKILL)
    sync(handle)

manifest.os.fsync = fsync
export(open_source(Path(sys.argv[1])), sys.argv[2], Path(sys.argv[3]), ExportOptions())
"""


@pytest.fixture(autouse=True)
def no_waiting_for_the_disk(monkeypatch):
    """Leave files to the system: thousands of tiny ones are slow to sync."""
    monkeypatch.setattr(os, "fsync", lambda _: None)


def test_position_is_found_where_the_csf_rank_stands_too(tmp_path):
    wanted = ConditionRange({"wmh": (0.01, 0.05)}, (0.3, 0.7), (0.0, 1.0))
    generate_labels(TinyLabels(), wanted, 4, tmp_path / "labels", SETTINGS)
    shards = Shards(tmp_path / "labels")
    assert shards.condition_names[-2:] == ("position", "csf")
    for entry in open_source(tmp_path / "labels").entries:
        assert entry.position == pytest.approx(shards[entry.index].condition["position"])


@pytest.mark.parametrize("to", FORMATS)
def test_same_input_gives_same_bytes(images, tmp_path, to, untouched_rng):
    for name in ("one", "two"):
        export(open_source(images), to, tmp_path / name, NONE)
    first = digests(tmp_path / "one")
    assert first == digests(tmp_path / "two")
    assert any(name.endswith(MARKER) for name in first)


@pytest.mark.parametrize(("to", "at"), [("nnunet", 20), ("nifti", 23), ("hf", 2)])
def test_a_killed_export_is_completed_to_the_same_bytes(images, tmp_path, to, at):
    arguments = [str(images), to, str(tmp_path / "killed"), str(at)]
    done = subprocess.run(  # noqa: S603 - our own interpreter
        [sys.executable, "-c", KILLED, *arguments], capture_output=True, check=False
    )
    assert done.returncode == -signal.SIGKILL, done.stderr
    half = digests(tmp_path / "killed")
    assert any(name.endswith(".tmp") for name in half)
    (marker,) = (tmp_path / "killed").rglob(MARKER)
    assert json.loads(marker.read_text())["complete"] is False
    export(open_source(images), to, tmp_path / "killed", NONE)
    export(open_source(images), to, tmp_path / "whole", NONE)
    assert digests(tmp_path / "killed") == digests(tmp_path / "whole")
    assert json.loads(marker.read_text())["complete"] is True


@pytest.mark.parametrize("to", FORMATS)
def test_a_complete_export_writes_nothing_again(images, tmp_path, to):
    first = export(open_source(images), to, tmp_path, NONE)
    again = export(open_source(images), to, tmp_path, NONE)
    assert (again.written, again.count, again.files) == (0, first.count, first.files)
    assert first.files == len(digests(tmp_path))
    assert first.bytes == sum(p.stat().st_size for p in tmp_path.rglob("*") if p.is_file())


@pytest.mark.parametrize("to", FORMATS)
def test_the_forecast_is_close_and_writes_nothing(images, tmp_path, to):
    expected = forecast(open_source(images), to, tmp_path / "out", NONE)
    assert not (tmp_path / "out").exists()
    made = export(open_source(images), to, tmp_path / "out", NONE)
    assert expected.count == made.count
    closing = 6
    assert made.files - closing <= expected.files + 1 <= made.files + 1


def test_another_export_is_refused(images, store, tmp_path):
    export(open_source(images), "hf", tmp_path / "out", NONE)
    with pytest.raises(RequestError, match=r"holds another export .*channels: there .*; choose"):
        export(open_source(images), "hf", tmp_path / "out", ExportOptions(channels=("t1",)))
    with pytest.raises(RequestError, match="holds another export"):
        export(open_source(store), "hf", tmp_path / "out", NONE)
    with pytest.raises(RequestError, match="to: there 'hf', asked 'nifti'"):
        export(open_source(images), "nifti", tmp_path / "out", NONE)


@pytest.mark.parametrize("dry", [True, False])
def test_something_else_is_refused(images, tmp_path, dry):
    run = forecast if dry else export
    (tmp_path / "thesis.tex").write_text("x")
    with pytest.raises(RequestError, match="holds something else; choose another --out"):
        run(open_source(images), "hf", tmp_path, NONE)
    with pytest.raises(RequestError, match="is a file; choose another --out"):
        run(open_source(images), "hf", tmp_path / "thesis.tex", NONE)
    assert [p.name for p in tmp_path.iterdir()] == ["thesis.tex"]


def test_a_damaged_marker_is_named(images, tmp_path):
    (tmp_path / MARKER).write_text("{")
    with pytest.raises(StoreError, match=r"\.synthgen-export\.json: not readable as JSON"):
        export(open_source(images), "hf", tmp_path, NONE)


def test_a_full_disk_is_one_line_and_the_next_run_completes(images, tmp_path, monkeypatch):
    calls = []

    def full(handle):
        calls.append(handle)
        if len(calls) > 9:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(StoreError, match=r"\.png: could not be written \(No space left") as error:
        export(open_source(images), "nnunet", tmp_path, NONE)
    assert "\n" not in str(error.value)
    assert not list(tmp_path.rglob(".*.tmp"))
    monkeypatch.setattr(os, "fsync", lambda _: None)
    assert export(open_source(images), "nnunet", tmp_path, NONE).count == 14


def test_options_of_another_format_are_refused(images, tmp_path):
    with pytest.raises(RequestError, match="--file-ending means nothing to --to hf"):
        export(open_source(images), "hf", tmp_path, ExportOptions(file_ending=".png"))
    with pytest.raises(RequestError, match="--channels means nothing to --to nifti"):
        export(open_source(images), "nifti", tmp_path, ExportOptions(channels=("t1",)))
    with pytest.raises(RequestError, match="--to: expected one of nnunet, nifti, hf, got 'png'"):
        export(open_source(images), "png", tmp_path, NONE)


def test_what_is_no_source_is_refused(images, store, tmp_path):
    with pytest.raises(RequestError, match="nothing to export; expected a dataset"):
        open_source(tmp_path / "absent")
    with pytest.raises(RequestError, match=r"--split: .* has no splits"):
        open_source(images, splits=("train",))
    with pytest.raises(RequestError, match=r"--spacing-mm: .* states its own"):
        open_source(store, spacing_mm=1.0)
    with pytest.raises(RequestError, match="split must be one of train, val, test, got 'dev'"):
        open_source(store, splits=("dev",))
    write_store(tmp_path / "few", subjects=(("a/sub-1", "train"),))
    with pytest.raises(RequestError, match="no slices in split val or test"):
        open_source(tmp_path / "few", splits=("val", "test"))


def test_a_missing_shard_is_named(images, tmp_path):
    broken = tmp_path / "broken"
    (broken / "shards").mkdir(parents=True)
    (broken / "manifest.json").write_bytes((images / "manifest.json").read_bytes())
    with pytest.raises(StoreError, match=r"2 of 2 shards are missing .*first: 00000"):
        open_source(broken)


def test_names_that_two_slices_share_are_refused(tmp_path):
    write_store(tmp_path / "s", subjects=(("a/b_sub-1", "train"), ("a/b/sub-1", "train")))
    with pytest.raises(StoreError, match="two slices would be called 'a_b_sub-1_z004'"):
        open_source(tmp_path / "s")


def changed(source, image):
    return replace(
        source, read_image=lambda entry, _: image if entry.index == 3 else np.zeros_like(image)
    )


@pytest.mark.parametrize(
    ("to", "value"), [("nnunet", np.nan), ("nnunet", np.inf), ("nifti", -0.1), ("hf", 1.5)]
)
def test_bad_pixels_are_named(images, tmp_path, to, value):
    source = open_source(images)
    bad = np.full(source.shape, value, np.float32)
    with pytest.raises(StoreError, match="000003 a_t1: image values must be finite and lie in"):
        export(changed(source, bad), to, tmp_path, NONE)


def test_a_background_that_is_not_zero_is_refused(store, tmp_path):
    source = open_source(store)
    stray = np.full(source.shape, 0.25, np.float32)
    with pytest.raises(StoreError, match=r"is 0.25 at voxel \(0, 0\), which is all background"):
        export(replace(source, read_image=lambda *_: stray), "nnunet", tmp_path, NONE)


@pytest.mark.parametrize("to", FORMATS)
def test_blank_samples_are_left_out_and_counted(tmp_path, to):
    pv = np.zeros((2, 9, 12, 16), np.uint8)
    pv[:, 0] = 255
    pv[1, 0, 4:8], pv[1, 2, 4:8] = 0, 255
    with StoreWriter(tmp_path / "store" / "store.h5", BRAIN9, (12, 16)) as writer:
        for name, maps in (("a/sub-1", pv[:1]), ("a/sub-2", pv[1:])):
            rows = writer.add_slices(
                name, dataset="a", split="train", z=[4], position=[0.5], pv=maps
            )
            writer.add_image(rows, "t1", (0.5 * (maps[:, :1] == 0)).astype(np.float16))
        writer.commit()
    outcome = export(open_source(tmp_path / "store"), to, tmp_path / "out", NONE)
    assert outcome.count == 1
    assert outcome.left_out == {f"blank {outcome.what}": 1}


def test_nothing_but_blanks_is_an_error(images, tmp_path):
    source = open_source(images)
    nothing = replace(source, read_image=lambda *_: np.zeros(source.shape, np.float32))
    with pytest.raises(StoreError, match="every sample is blank; nothing to export"):
        export(nothing, "nnunet", tmp_path, NONE)


def test_memory_does_not_grow_with_the_number_of_samples(images, tmp_path):
    source = open_source(images)

    def peak(times):
        entries = tuple(
            replace(e, name=f"{e.name}-{k}") for k in range(times) for e in source.entries
        )
        tracemalloc.start()
        done = export(replace(source, entries=entries), "nnunet", tmp_path / str(times), NONE)
        most = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        assert done.count == 2 * len(entries)
        return most

    peak(1)
    # One more sample costs its lines in the tables, a few kilobytes, and no pixels (13 kB).
    assert (peak(6) - peak(2)) / (4 * len(source.entries)) < 6000


def test_progress_counts_units(images, tmp_path):
    seen = []
    export(open_source(images), "nifti", tmp_path, NONE, progress=lambda *at: seen.append(at))
    assert seen == [(k, 7) for k in range(1, 8)]


def test_a_folder_that_cannot_be_made_is_named(tmp_path):
    (tmp_path / "file").write_text("x")
    with pytest.raises(StoreError, match=r"file/tree: could not be made \(Not a directory\)"):
        Tree(tmp_path / "file" / "tree", {}).claim()
