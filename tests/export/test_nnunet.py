"""nnU-Net folders: nnU-Net itself and `datasets` read them, and what comes back is what went in."""

import json
from dataclasses import replace
from multiprocessing.pool import ThreadPool
from types import SimpleNamespace

import nibabel as nib
import numpy as np
import pytest
from exporting import load_rows
from nnunetv2.experiment_planning import verify_dataset_integrity
from PIL import Image

from synthgen.core.errors import RequestError
from synthgen.core.manifest import sealed
from synthgen.core.schema import BRAIN9
from synthgen.data.rows import Picture
from synthgen.data.shards import Shards
from synthgen.data.store import TrainingStore
from synthgen.evaluate.cases import Frame
from synthgen.evaluate.foreign import open_set
from synthgen.export import ExportOptions, export, open_source
from synthgen.export.cases import case_table
from synthgen.export.encode import to_grey

NAME = "Dataset901_Synthgen"


def make(source, out, *, splits=(), **options):
    outcome = export(open_source(source, splits=splits), "nnunet", out, ExportOptions(**options))
    folder = out / f"Dataset{options.get('dataset_id', 901)}_{options.get('name', 'Synthgen')}"
    return outcome, folder


def about(folder):
    return json.loads((folder / "dataset.json").read_text())


def lines(folder):
    return [json.loads(line) for line in (folder / "metadata.jsonl").read_text().splitlines()]


def picture(path):
    with Image.open(path) as opened:
        return np.asarray(opened)


def test_the_description_says_whom_images_descend_from(images, store, tmp_path):
    _, made = make(images, tmp_path)
    subjects = ["a/sub-01", "a/sub-02", "b/sub-07"]
    assert about(made)["synthgen"] == sealed({"real": False, "subjects": subjects})
    _, real = make(store, tmp_path, dataset_id=902)
    assert about(real)["synthgen"] == sealed({"real": True, "subjects": []})


def test_each_image_is_a_case(images, tmp_path):
    outcome, folder = make(images, tmp_path)
    assert (outcome.count, outcome.what, outcome.left_out) == (14, "cases", {})
    cases = [f"{i:06d}_{style}" for i in range(7) for style in ("a_t1", "a_flair")]
    assert sorted(p.name for p in (folder / "imagesTr").iterdir()) == sorted(
        f"{case}_0000.png" for case in cases
    )
    assert sorted(p.stem for p in (folder / "labelsTr").iterdir()) == sorted(cases)
    told = about(folder)
    assert told["channel_names"] == {"0": "image"}
    assert told["labels"] == {name: value for value, name in enumerate(BRAIN9.names)}
    assert (told["numTraining"], told["file_ending"]) == (14, ".png")
    assert told["dataset"][cases[1]] == {
        "images": [f"imagesTr/{cases[1]}_0000.png"],
        "label": f"labelsTr/{cases[1]}.png",
    }


def test_pixels_are_neither_turned_nor_shifted(images, tmp_path):
    _, folder = make(images, tmp_path, bits=16)
    for index, row in enumerate(Shards(images)):
        for k, style in enumerate(("a_t1", "a_flair")):
            labels = picture(folder / f"labelsTr/{index:06d}_{style}.png")
            grey = picture(folder / f"imagesTr/{index:06d}_{style}_0000.png")
            np.testing.assert_array_equal(labels, np.argmax(row.pv, axis=0))
            np.testing.assert_allclose(grey / 65535, row.images[k], atol=0.5 / 65535 + 1e-7)


@pytest.mark.parametrize("ending", [".png", ".nii.gz"])
def test_evaluation_reads_back_what_was_exported(images, tmp_path, ending):
    _, folder = make(images, tmp_path, channels=("t1", "flair"), file_ending=ending)
    shards = Shards(images)
    frame = Frame(BRAIN9, shards[0].pv.shape[1:], 1.0, ("t1", "flair"))
    back = open_set(folder, frame)
    assert (len(back), back.modalities) == (7, ("flair", "t1"))
    for index, row in enumerate(shards):
        hard = np.argmax(row.pv, axis=0)
        np.testing.assert_array_equal(np.argmax(back.pv([index])[0], axis=0), hard)
        # The reader calls 0 what the hard label calls background.
        wanted = np.where(hard > 0, row.images[1], 0)
        np.testing.assert_allclose(back.image([2 * index + 1])[0, 0], wanted, atol=0.51 / 255)


@pytest.mark.nnunet
@pytest.mark.parametrize("options", [{}, {"channels": ("t1", "flair"), "file_ending": ".nii.gz"}])
def test_nnunet_finds_the_folder_sound(images, tmp_path, monkeypatch, capsys, options):
    _, folder = make(images, tmp_path, **options)
    # The same checks, in threads: every spawned process would import nnU-Net again.
    threads = SimpleNamespace(get_context=lambda _: SimpleNamespace(Pool=ThreadPool))
    monkeypatch.setattr(verify_dataset_integrity, "multiprocessing", threads)
    verify_dataset_integrity.verify_dataset_integrity(str(folder), 1)
    said = capsys.readouterr().out
    assert "verify_dataset_integrity Done" in said
    assert "Error" not in said
    assert "Warning" not in said


@pytest.mark.nnunet
def test_nnunet_finds_a_label_that_is_none(images, tmp_path, monkeypatch):
    """The check above is not blind."""
    _, folder = make(images, tmp_path)
    bad = np.full(Shards(images)[0].pv.shape[1:], 9, np.uint8)
    Image.fromarray(bad).save(folder / "labelsTr/000000_a_t1.png")
    threads = SimpleNamespace(get_context=lambda _: SimpleNamespace(Pool=ThreadPool))
    monkeypatch.setattr(verify_dataset_integrity, "multiprocessing", threads)
    with pytest.raises(RuntimeError, match="unexpected labels"):
        verify_dataset_integrity.verify_dataset_integrity(str(folder), 1)


@pytest.mark.parametrize("generic", [True, False])
def test_datasets_reads_the_folder(images, tmp_path, offline, generic):
    _, folder = make(images, tmp_path)
    rows = load_rows(
        offline, "imagefolder" if generic else str(folder), folder if generic else None
    )
    assert len(rows) == 14
    row = next(r for r in rows if r["case"] == "000003_a_flair")
    assert (row["style"], row["modality"], row["group"]) == ("a_flair", "flair", "label-000003")
    sample = Shards(images)[3]
    np.testing.assert_array_equal(np.asarray(row["label"]), np.argmax(sample.pv, axis=0))
    np.testing.assert_array_equal(np.asarray(row["image"]), to_grey(sample.images[1], 8))
    assert row["lesion_wmh"] == pytest.approx(sample.realised["wmh"], abs=1e-6)
    assert row["position"] == pytest.approx(sample.condition["position"], abs=1e-6)


def test_channels_become_columns(images, tmp_path, offline):
    _, folder = make(images, tmp_path, channels=("a_flair", "t1"))
    assert about(folder)["channel_names"] == {"0": "a_flair", "1": "T1"}
    rows = load_rows(offline, "imagefolder", folder)
    assert {"a_flair", "t1", "label"} < {*rows.features}
    sample = Shards(images)[2]
    np.testing.assert_array_equal(np.asarray(rows[2]["t1"]), to_grey(sample.images[0], 8))
    assert rows[2]["style"] == "a_flair+a_t1"


def test_a_store_keeps_its_test_subjects_apart(store, tmp_path):
    outcome, folder = make(store, tmp_path / "out")
    told = about(folder)
    assert told["numTraining"] == 9
    assert outcome.count == 15
    assert sorted({p.name[:7] for p in (folder / "imagesTs").iterdir()}) == ["b_sub-1"]
    assert len(list((folder / "labelsTs").iterdir())) == 6
    assert not [case for case in told["dataset"] if case.startswith("b")]
    row = next(r for r in lines(folder) if r["case"] == "a_sub-2_z005_t1")
    assert (row["subject"], row["split"], row["z"], row["style"]) == ("a/sub-2", "val", 5, "a_t1")
    with TrainingStore.open(store) as opened:
        wanted = np.argmax(opened.pv(4), axis=0)
    np.testing.assert_array_equal(picture(folder / "labelsTr/a_sub-2_z005_t1.png"), wanted)


def test_folds_are_by_subject(store, tmp_path):
    _, folder = make(store, tmp_path / "out")
    (fold,) = json.loads((folder / "splits_final.json").read_text())
    assert {name[:7] for name in fold["train"]} == {"a_sub-1"}
    assert {name[:7] for name in fold["val"]} == {"a_sub-2"}
    assert len(fold["train"]) + len(fold["val"]) == about(folder)["numTraining"]


def test_folds_do_not_tear_a_label_map_apart(images, tmp_path):
    _, folder = make(images, tmp_path)
    splits = json.loads((folder / "splits_final.json").read_text())
    assert len(splits) == 5
    held = [name for fold in splits for name in fold["val"]]
    assert sorted(held) == sorted(about(folder)["dataset"])
    for fold in splits:
        assert not {n[:6] for n in fold["train"]} & {n[:6] for n in fold["val"]}
        assert len(fold["train"]) + len(fold["val"]) == 14


def test_one_subject_makes_no_fold(store, tmp_path):
    _, folder = make(store, tmp_path / "out", splits=("train",))
    assert not (folder / "splits_final.json").exists()
    assert "splits_final" not in (folder / "README.md").read_text()


def test_slices_that_lack_a_channel_are_counted(store, tmp_path):
    outcome, _ = make(store, tmp_path / "out", channels=("t1", "flair"))
    assert outcome.count == 6
    assert outcome.left_out == {"samples without every channel": 3}


def test_the_card_names_ancestors_and_labels(images, tmp_path):
    _, folder = make(images, tmp_path)
    text = (folder / "README.md").read_text()
    assert text.startswith("---\nlicense: other\n")
    assert '"synthetic"' in text
    assert "| 6 | wmh | yes |" in text
    assert "any model behind the data saw: a/sub-01, a/sub-02, b/sub-07" in text
    assert "- generator model: tiny-images-0" in text


def test_the_card_of_scans_names_only_those_exported(store, tmp_path):
    _, folder = make(store, tmp_path / "out", channels=("flair",))
    assert "real subjects shown: a/sub-1, b/sub-1\n" in (folder / "README.md").read_text()


def test_nifti_slices_lie_in_ras_and_point_nnunet_at_the_plane(store, tmp_path):
    _, folder = make(store, tmp_path / "out", file_ending=".nii.gz", channels=("t1",))
    opened = nib.load(folder / "imagesTr/a_sub-1_z004_0000.nii.gz")
    assert opened.shape == (12, 16, 1)
    assert [float(s) for s in opened.header.get_zooms()] == [1.5, 1.5, 999]
    assert nib.aff2axcodes(opened.affine) == ("R", "A", "S")
    with TrainingStore.open(store) as source:
        np.testing.assert_array_equal(opened.get_fdata()[..., 0], source.image(0)[0])


@pytest.mark.parametrize("bits", [8, 16])
def test_only_zero_becomes_zero(bits):
    top = 2**bits - 1
    image = np.array([[0, 1e-7, 0.5, 1]], np.float32)
    grey = to_grey(image, bits)
    np.testing.assert_array_equal(grey, [[0, 1, np.rint(top / 2), top]])
    assert grey.dtype == (np.uint8 if bits == 8 else np.uint16)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"dataset_id": 0}, "--dataset-id: expected 1 to 999, got 0"),
        ({"dataset_id": 1000}, "expected 1 to 999, got 1000"),
        ({"name": "../x"}, r"--name: expected letters.*'\.\./x'"),
        ({"name": ""}, "--name"),
        ({"file_ending": ".jpg"}, r"--file-ending: expected \.png or \.nii\.gz, got \.jpg"),
        ({"bits": 12}, "--bits: expected 8 or 16, got 12"),
        ({"bits": 16, "file_ending": ".nii.gz"}, "NIfTI holds float32"),
        ({"channels": ("t2",)}, "no style or modality 't2'; it has a_flair, a_t1, flair, t1"),
        ({"channels": ("t1", "t1")}, "stands twice in t1,t1"),
    ],
)
def test_bad_requests_write_nothing(images, tmp_path, options, message):
    with pytest.raises(RequestError, match=message):
        make(images, tmp_path / "out", **options)
    assert not (tmp_path / "out").exists()


def test_an_ambiguous_channel_is_refused(images):
    source = open_source(images)
    twins = (Picture("a_t1", "t1"), Picture("b_t1", "t1"))
    source = replace(source, entries=tuple(replace(e, pictures=twins) for e in source.entries))
    with pytest.raises(RequestError, match="'t1' stands for a_t1 and for b_t1; name one"):
        case_table(source, ("t1",))
    table = case_table(source, ("b_t1", "a_t1"))
    assert table.cases[0][1][0].pictures == (1, 0)


def test_labels_without_images_are_refused(labels, tmp_path):
    with pytest.raises(RequestError, match=r"label maps without images; `synthgen images`"):
        make(labels, tmp_path)


def test_test_subjects_alone_are_refused(store, tmp_path):
    with pytest.raises(RequestError, match="only test cases"):
        make(store, tmp_path / "out", splits=("test",))


def test_an_id_serves_one_dataset(images, tmp_path):
    make(images, tmp_path)
    with pytest.raises(RequestError, match=f"id 901 is taken by {NAME}; choose another"):
        make(images, tmp_path, name="Other")
    assert make(images, tmp_path, name="Other", dataset_id=902)[0].count == 14
