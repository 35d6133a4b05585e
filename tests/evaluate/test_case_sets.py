import csv
import json

import nibabel as nib
import numpy as np
import pytest
from PIL import Image

from synthgen.core.errors import GeometryError, RequestError, SchemaError, StoreError
from synthgen.evaluate.case_sets import MEASURES, evaluate_cases
from synthgen.evaluate.segmentation import mask_metrics

SHAPE = (24, 32)


def picture(path, labels):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.asarray(labels, np.uint8)).save(path)


def volume(path, labels, affine=None):
    path.parent.mkdir(parents=True, exist_ok=True)
    affine = np.diag([1.0, 2.0, 3.0, 1.0]) if affine is None else affine
    nib.save(nib.Nifti1Image(np.asarray(labels, np.uint8), affine), path)


def table(folder, **labels):
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "dataset.json").write_text(json.dumps({"labels": {"background": 0} | labels}))


def blocks(*values, shape=SHAPE):
    """Return a label map with a block of each value, one after the other along the last axis."""
    labels = np.zeros(shape, np.uint8)
    for place, value in enumerate(values):
        labels[4:18, ..., 2 + 8 * place : 9 + 8 * place] = value
    return labels


@pytest.fixture
def folders(tmp_path):
    return tmp_path / "predicted", tmp_path / "labelsTs"


def scores(folders, **options):
    found = evaluate_cases(*folders, **options)
    return {(row["case"], row["tissue"]): row for row in found.rows}, found


def test_rows_are_the_metrics_of_each_case_and_tissue(folders):
    for number in range(3):
        volume(folders[0] / f"c{number}.nii.gz", blocks(1, 2, shape=(24, 6, 32)))
        moved = np.roll(blocks(1, 2, shape=(24, 6, 32)), number, axis=0)
        volume(folders[1] / f"c{number}.nii.gz", moved)
    table(folders[1].parent, a=1, b=2)
    rows, found = scores(folders, tolerance=1.5)
    assert len(rows) == 6
    assert found.unit == "mm"
    labels = blocks(1, 2, shape=(24, 6, 32))
    expected = mask_metrics(
        labels == 2, np.roll(labels, 2, axis=0) == 2, spacing=(1, 2, 3), tolerance=1.5
    )
    row = rows["c2", "b"]
    assert {name: row[name] for name in MEASURES} == {name: expected[name] for name in MEASURES}
    assert row["n_ref"] == (labels == 2).sum()
    assert rows["c0", "a"]["dice"] == 1
    means = found.summary()["b"]
    dice = [rows[f"c{k}", "b"]["dice"] for k in range(3)]
    assert means["dice"] == {
        "mean": pytest.approx(np.mean(dice)), "sd": pytest.approx(np.std(dice, ddof=1)), "n": 3
    }  # fmt: skip


def test_a_slice_is_measured_in_its_plane(folders):
    thick = np.diag([1.0, 1.0, 999.0, 1.0])
    for folder, labels in zip(folders, (blocks(1), np.roll(blocks(1), 3, axis=0)), strict=True):
        volume(folder / "a.nii.gz", labels[..., None], thick)
    rows, _ = scores(folders)
    assert rows["a", "foreground"]["hd95"] == 3


def test_empty_masks_are_counted_and_never_dropped_in_silence(folders):
    shown = {"both": (1, 1), "missed": (0, 1), "invented": (1, 0), "absent": (0, 0)}
    for name, values in shown.items():
        for folder, value in zip(folders, values, strict=True):
            picture(folder / f"{name}.png", blocks(value))
    rows, found = scores(folders)
    summary = found.summary()["foreground"]
    assert {k: summary[k] for k in ("cases", "absent", "missed", "invented")} == {
        "cases": 4, "absent": 1, "missed": 1, "invented": 1
    }  # fmt: skip
    assert summary["dice"] == {"mean": pytest.approx(1 / 3), "sd": pytest.approx(3**-0.5), "n": 3}
    assert summary["hd95"]["n"] == 1
    assert rows["absent", "foreground"]["dice"] is None
    assert rows["missed", "foreground"]["nsd"] == 0


def test_each_folder_has_its_own_values_for_the_same_names(folders):
    picture(folders[0] / "a.png", blocks(255, 100))
    picture(folders[1] / "a.png", blocks(1, 2))
    table(folders[0], artery=255, vein=100)
    table(folders[1], vein=2, artery=1)
    rows, _ = scores(folders)
    assert [row["dice"] for row in rows.values()] == [1, 1]
    assert [*rows] == [("a", "vein"), ("a", "artery")]


def test_a_mask_of_any_value_shows_the_only_tissue(folders):
    picture(folders[0] / "a.png", blocks(1))
    picture(folders[1] / "a.png", blocks(255))
    assert scores(folders)[0]["a", "foreground"]["dice"] == 1
    table(folders[0], vessel=1)
    assert scores(folders)[0]["a", "vessel"]["dice"] == 1


def test_values_without_a_table_name_themselves(folders):
    for folder in folders:
        picture(folder / "a.png", blocks(1, 7))
    assert [tissue for _, tissue in scores(folders)[0]] == ["label 1", "label 7"]


def test_regions_overlap_and_ignored_pixels_are_not_judged(folders):
    labels = blocks(1, 2, 9)
    picture(folders[0] / "a.png", blocks(1, 2, 2))
    picture(folders[1] / "a.png", labels)
    table(folders[1], whole=[1, 2], core=[2], ignore=9)
    rows, _ = scores(folders)
    assert rows["a", "whole"]["dice"] == rows["a", "core"]["dice"] == 1
    assert rows["a", "whole"]["n_ref"] == ((labels == 1) | (labels == 2)).sum()


def test_a_suffix_chooses_one_observer(folders):
    picture(folders[0] / "eye.png", blocks(1))
    picture(folders[1] / "eye_1stHO.png", blocks(1))
    picture(folders[1] / "eye_2ndHO.png", blocks(0, 1))
    rows, _ = scores(folders, suffix="_1stHO")
    assert rows["eye", "foreground"]["dice"] == 1


def test_scores_are_written_with_their_rule(folders, tmp_path):
    for folder in folders:
        picture(folder / "a.png", blocks(1, 2))
    found = evaluate_cases(*folders)
    found.write(tmp_path / "new/report", {"predictions": "p"})
    rows = list(csv.DictReader((tmp_path / "new/report/cases.csv").read_text().splitlines()))
    assert [row["tissue"] for row in rows] == ["label 1", "label 2"]
    body = json.loads((tmp_path / "new/report/metrics.json").read_text())
    assert body["unit"] == "px"
    assert "counted as missed or invented" in body["empty"]
    assert body["tissues"]["label 1"]["dice"]["mean"] == 1
    (tmp_path / "file").write_text("")
    with pytest.raises(StoreError, match="could not be written"):
        found.write(tmp_path / "file/report", {})


def test_other_cases_are_refused_by_name(folders):
    for name in ("a", "b", "c"):
        picture(folders[0] / f"{name}.png", blocks(1))
    for name in ("b", "d"):
        picture(folders[1] / f"{name}.png", blocks(1))
    with pytest.raises(RequestError, match=r"1 without a prediction \(d\) and 2 without a refer"):
        evaluate_cases(*folders)


def other_shape(predicted, reference):
    picture(predicted / "a.png", blocks(1))
    picture(reference / "a.png", blocks(1, shape=(32, 32)))


def other_grid(predicted, reference):
    volume(predicted / "a.nii.gz", blocks(1, shape=(24, 6, 32)))
    volume(reference / "a.nii.gz", blocks(1, shape=(24, 6, 32)), np.diag([1.0, 1.0, 3.0, 1.0]))


def other_kind(predicted, reference):
    volume(predicted / "a.nii.gz", blocks(1)[..., None], np.eye(4))
    picture(reference / "a.png", blocks(1))


def mixed(predicted, reference):
    for folder in (predicted, reference):
        picture(folder / "a.png", blocks(1))
        volume(folder / "b.nii.gz", blocks(1, shape=(24, 6, 32)))


def nameless(predicted, reference):
    picture(predicted / "a.png", blocks(1, 3))
    picture(reference / "a.png", blocks(1, 2))
    table(reference, a=1, b=2)


def other_tissues(predicted, reference):
    for folder, name in ((predicted, "x"), (reference, "y")):
        picture(folder / "a.png", blocks(1))
        table(folder, **{name: 1})


def several_values(predicted, reference):
    picture(predicted / "a.png", blocks(1))
    picture(reference / "a.png", blocks(1, 2))
    table(predicted, vessel=1)


def coloured(predicted, reference):
    picture(predicted / "a.png", blocks(1))
    reference.mkdir()
    Image.fromarray(np.stack([blocks(1), blocks(2), blocks(3)], -1)).save(reference / "a.png")


def twice(predicted, reference):
    picture(predicted / "a.png", blocks(1))
    picture(predicted / "a.tif", blocks(1))
    picture(reference / "a.png", blocks(1))


def empty(predicted, reference):
    picture(predicted / "a.png", blocks(1))
    reference.mkdir()


def damaged_table(predicted, reference):
    other_shape(predicted, reference)
    (reference / "dataset.json").write_text('{"labels": [1]}')


@pytest.mark.parametrize(
    ("make", "error", "message"),
    [
        (other_shape, GeometryError, r"a.png: expected the shape \(32, 32\)"),
        (other_grid, GeometryError, "its affine differs"),
        (other_kind, GeometryError, "one is a volume and one a picture"),
        (mixed, RequestError, "evaluate them apart"),
        (nameless, SchemaError, "a.png: label 3 has no name; those with names are 1, 2"),
        (other_tissues, SchemaError, "both need the same tissues"),
        (several_values, SchemaError, "expected a mask of one value beside 0, got 1, 2"),
        (coloured, StoreError, "got colour or a palette"),
        (twice, RequestError, "are both of case a; keep one"),
        (empty, RequestError, "no label maps; expected NAME.png or NAME.nii.gz"),
        (damaged_table, StoreError, "dataset.json: expected 'labels'"),
        (lambda *_: None, RequestError, "no such folder"),
    ],
)
def test_what_cannot_be_compared_is_refused(make, error, message, folders):
    make(*folders)
    with pytest.raises(error, match=message):
        evaluate_cases(*folders)


def test_a_fraction_is_no_label(folders):
    picture(folders[0] / "a.png", blocks(1))
    volume(folders[1] / "a.nii.gz", blocks(1)[..., None])
    half = nib.Nifti1Image(blocks(1)[..., None].astype(np.float32) / 2, np.eye(4))
    nib.save(half, folders[1] / "a.nii.gz")
    with pytest.raises(SchemaError, match=r"label ids must be integers, got 0\.5"):
        evaluate_cases(*folders)
