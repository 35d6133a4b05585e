"""Folders of volumes: nnU-Net's format, resumed, shared and extended without a change of bytes."""

from __future__ import annotations

import json

import nibabel as nib
import numpy as np
import phantoms
import pytest
from file_digests import digests

from synthgen.core.errors import RequestError, StoreError
from synthgen.core.lock import LOCK, folder_lock
from synthgen.core.manifest import sealed
from synthgen.core.schema import BRAIN9
from synthgen.data.anatomies import Anatomies
from synthgen.data.real_volumes import RealVolumes, VolumeLayout
from synthgen.export.tree import Tree
from synthgen.generate import VolumeSet
from synthgen.images.volumes import VolumeGenerator

LAYOUT = VolumeLayout(("csf", "gm", "wm", "wmh"), 4.0, crop=True)
COARSE = ("--spacing-mm", 4, "--crop")


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    root = tmp_path_factory.mktemp("source")
    for number in range(2):
        phantoms.save_labels(root / "labels", f"sub-{number}", spacing=2.0)
    for subject in ("sub-5", "sub-6"):
        phantoms.save_maps(root / "scans", subject, matrix=phantoms.affine(2.0))
    return root


@pytest.fixture(scope="module")
def volumes(source):
    return VolumeGenerator(Anatomies([str(source / "labels")], BRAIN9), ("t1", "flair"), LAYOUT)


@pytest.fixture(scope="module")
def quiet(volumes, tmp_path_factory):
    """The folder of one quiet run."""
    folder = tmp_path_factory.mktemp("quiet") / "set"
    outcome = VolumeSet(volumes, 5, folder).write()
    assert (outcome.generated, outcome.kept, outcome.complete) == (5, 0, True)
    return folder


def test_the_folder_is_nnunets(quiet, volumes):
    description = json.loads((quiet / "dataset.json").read_text())
    assert description["channel_names"] == {"0": "image"}
    assert description["labels"] == {"background": 0, "csf": 1, "gm": 2, "wm": 3, "wmh": 4}
    assert (description["numTraining"], description["file_ending"]) == (10, ".nii.gz")
    subjects = ["labels/sub-0", "labels/sub-1"]
    assert description["synthgen"] == sealed({"real": False, "subjects": subjects})
    assert len(description["dataset"]) == 10
    for case, files in description["dataset"].items():
        assert files["label"] == f"labelsTr/{case}.nii.gz"
        image, label = nib.load(quiet / files["images"][0]), nib.load(quiet / files["label"])
        assert np.array_equal(image.affine, label.affine)
        assert image.header.get_zooms() == (4, 4, 4)
        assert image.shape == label.shape
        assert set(np.unique(np.asarray(label.dataobj))) <= {0, 1, 2, 3, 4}
        middle = image.affine @ [*((n - 1) / 2 for n in image.shape), 1]
        np.testing.assert_allclose(middle[:3], 0, atol=1e-4)


def test_pixels_are_the_samples(quiet, volumes):
    made = volumes.sample(3)
    image = nib.load(quiet / "imagesTr" / "v00003_flair_0000.nii.gz").get_fdata()
    assert np.abs(image - made.images["flair"]).max() <= 1 / 2047
    assert np.array_equal(image > 0, made.images["flair"] > 0)
    label = np.asarray(nib.load(quiet / "labelsTr" / "v00003_t1.nii.gz").dataobj)
    assert np.array_equal(label, made.labels)


def test_metadata_and_folds_keep_a_brain_together(quiet):
    rows = [json.loads(line) for line in (quiet / "metadata.jsonl").read_text().splitlines()]
    assert [row["case"] for row in rows[:3]] == ["v00000_t1", "v00000_flair", "v00001_t1"]
    assert {row["subject"] for row in rows} == {""}
    groups = {row["case"]: row["group"] for row in rows}
    for fold in json.loads((quiet / "splits_final.json").read_text()):
        assert not {groups[c] for c in fold["train"]} & {groups[c] for c in fold["val"]}


def test_killed_runs_are_continued_to_the_same_bytes(quiet, volumes, tmp_path, monkeypatch):
    folder, put = tmp_path / "set", Tree.put
    for number in (1, 4, 6, 13):  # in the middle of volumes, and between two

        def dying(self, name, data, left=[number]):  # noqa: B006 - one countdown for each run
            left[0] -= 1
            if left[0] < 0:
                (self.folder / "imagesTr").mkdir(exist_ok=True)
                (self.folder / "imagesTr" / ".v00002_t1_0000.nii.gz.123.tmp").write_bytes(b"half")
                raise KeyboardInterrupt
            put(self, name, data)

        monkeypatch.setattr(Tree, "put", dying)
        with pytest.raises(KeyboardInterrupt):
            VolumeSet(volumes, 5, folder).write()
        assert not list(folder.glob(f"{LOCK}*"))
    monkeypatch.undo()
    outcome = VolumeSet(volumes, 5, folder).write()
    assert 0 < outcome.generated < 5
    assert digests(folder) == digests(quiet)


def test_workers_share_a_folder(quiet, volumes, tmp_path):
    folder = tmp_path / "set"
    third, first, second = (
        VolumeSet(volumes, 5, folder, worker=w, num_workers=3) for w in (2, 0, 1)
    )
    with folder_lock(folder, "volumes, 5 in all", worker=1, num_workers=3) as lock:
        held = lock.claim("v00004")
        (folder / f"{LOCK}.v00001").touch()  # that of one who was killed
        outcome = third.write()
        assert (outcome.generated, outcome.kept, outcome.complete) == (4, 0, False)
        half = folder / "imagesTr" / ".v00004_t1_0000.nii.gz.9.tmp"
        half.write_bytes(b"being written")
        outcome = first.write()
        assert (outcome.generated, outcome.kept, outcome.complete) == (0, 2, False)
        assert half.exists()
        held.release()
    outcome = second.write()
    assert (outcome.generated, outcome.kept, outcome.complete) == (1, 1, True)
    assert digests(folder) == digests(quiet)


def test_a_folder_grows(quiet, volumes, tmp_path):
    folder = tmp_path / "set"
    VolumeSet(volumes, 2, folder).write()
    assert json.loads((folder / "dataset.json").read_text())["numTraining"] == 4
    outcome = VolumeSet(volumes, 5, folder).write()
    assert (outcome.generated, outcome.kept) == (3, 2)
    assert digests(folder) == digests(quiet)
    assert VolumeSet(volumes, 5, folder).write().generated == 0
    with pytest.raises(RequestError, match="already holds 5 volumes and --n is the total"):
        VolumeSet(volumes, 4, folder).write()


def test_another_dataset_is_not_continued(quiet, volumes, source):
    other = VolumeGenerator(
        Anatomies([str(source / "labels")], BRAIN9), ("t1", "flair"), LAYOUT, seed=8
    )
    before = digests(quiet)
    with pytest.raises(RequestError, match=r"seed: there 0, asked 8"):
        VolumeSet(other, 6, quiet).write()
    with pytest.raises(RequestError, match=r"stack: there False, asked True"):
        VolumeSet(volumes, 5, quiet, stack=True).write()
    with pytest.raises(RequestError, match="at least 1, got n=0"):
        VolumeSet(volumes, 0, quiet)
    assert digests(quiet) == before


def test_forecast_writes_nothing(volumes, tmp_path):
    expected = VolumeSet(volumes, 4, tmp_path / "set").forecast()
    assert (expected.generated, expected.files, expected.complete) == (4, 20, False)
    assert expected.bytes > 0
    assert not (tmp_path / "set").exists()


def test_a_damaged_note_is_named(volumes, tmp_path):
    VolumeSet(volumes, 1, tmp_path).write()
    (tmp_path / ".cases" / "v00000.json").write_text("{")
    with pytest.raises(StoreError, match=r"v00000.json: not readable .*delete it"):
        VolumeSet(volumes, 1, tmp_path).write()


def test_stacked_styles_are_channels(volumes, tmp_path):
    VolumeSet(volumes, 1, tmp_path, stack=True).write()
    description = json.loads((tmp_path / "dataset.json").read_text())
    assert description["channel_names"] == {"0": "T1", "1": "FLAIR"}
    assert sorted(p.name for p in (tmp_path / "imagesTr").iterdir()) == [
        "v00000_0000.nii.gz",
        "v00000_0001.nii.gz",
    ]
    assert (tmp_path / "labelsTr" / "v00000.nii.gz").is_file()


def test_real_scans_have_a_split(source, tmp_path):
    anatomies = Anatomies([str(source / "scans")], BRAIN9)
    scans = RealVolumes(anatomies, ("t1", "flair"), LAYOUT)
    VolumeSet(scans, len(scans), tmp_path, held=[anatomies.find("sub-6")]).write()
    rows = [json.loads(line) for line in (tmp_path / "metadata.jsonl").read_text().splitlines()]
    assert [(r["case"], r["subject"], r["split"]) for r in rows[1:3]] == [
        ("scans-sub-5_flair", "scans/sub-5", "train"),
        ("scans-sub-6_t1", "scans/sub-6", "val"),
    ]
    description = json.loads((tmp_path / "dataset.json").read_text())
    assert description["synthgen"]["real"] is True
    (fold,) = json.loads((tmp_path / "splits_final.json").read_text())
    assert fold["val"] == ["scans-sub-6_t1", "scans-sub-6_flair"]


@pytest.fixture
def synthgen(tmp_path, command_line):
    """Run the command line in this process; returns (exit code, stdout, stderr)."""

    def call(*arguments):
        return command_line(*map(str, arguments), "--workspace", str(tmp_path / "work"))

    return call


def test_command(synthgen, source, tmp_path):
    ask = ("volumes", source / "labels", "--style", "t1", "--n", 2, *COARSE)
    code, out, _ = synthgen(*ask, "--dry-run")
    assert (code, (tmp_path / "work").exists()) == (0, False)
    assert "sources: 2 brains, 0 lesion masks" in out
    assert "2 of 2 volumes to make, 0 there; about 6 files" in out
    code, out, err = synthgen(*ask)
    assert (code, err) == (0, "")
    assert f"{tmp_path / 'work' / 'volumes'}: made 2 of 2 volumes" in out
    code, out, _ = synthgen(*ask, "--json")
    assert (code, json.loads(out)["kept"], json.loads(out)["complete"]) == (0, 2, True)


def test_worker_of_a_launcher(synthgen, source, monkeypatch, tmp_path):
    monkeypatch.setenv("RANK", "1")
    monkeypatch.setenv("WORLD_SIZE", "2")
    code, out, _ = synthgen("volumes", source / "labels", "--style", "t1", "--n", 3, *COARSE)
    assert code == 0
    # No other worker came.
    assert "made 3 of 3 volumes" in out
    assert (tmp_path / "work/volumes/labelsTr/v00001_t1.nii.gz").is_file()


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ((), "--n: how many volumes?"),
        (("--n", 2, "--real"), "--n means nothing to --real"),
        (("--n", 2, "--val", "sub-0"), "--val is for --real"),
        (("--n", 2, "--style", "ct"), "unknown style 'ct'"),
        (("--n", 0), "at least 1, got n=0"),
        (("--real",), "no scan has an image of t1, t2, flair; there are none, only labels"),
    ],
)
def test_wrong_requests_are_one_line(options, said, synthgen, source):
    code, _, err = synthgen("volumes", source / "labels", *options)
    assert (code, err.count("\n")) == (2, 1)
    assert said in err
