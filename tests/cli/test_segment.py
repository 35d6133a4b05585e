"""`synthgen segment`: label maps of pictures and volumes, and what is refused."""

import csv
import json

import nibabel as nib
import numpy as np
import pytest
from PIL import Image
from stub_segmenter import Brightness, use

from synthgen import segment as segmenters
from synthgen.data.nifti import normalise

PHOTOGRAPHS = use("vessel", spatial_dims=2, spacing_mm=(), channels=("grey",))


pytestmark = pytest.mark.usefixtures("nothing_is_shipped")


@pytest.fixture
def synthgen(tmp_path, command_line):
    """Run the command line in this process; returns (exit code, stdout, stderr)."""

    def call(*arguments):
        words = [*map(str, arguments), "--workspace", str(tmp_path / "work")]
        if words[0] == "segment":
            words += ["--device", "cpu"]
        return command_line(*words)

    return call


@pytest.fixture
def models(tmp_path, monkeypatch):
    """Models of all kinds in the workspace; returns how to choose what is loaded."""
    loaded = []
    for kind in ("angiograms", "imgx", "hidiff"):
        folder = tmp_path / "work/models" / kind
        folder.mkdir(parents=True)
        for name in ("model_index.json", "synthgen.json"):
            (folder / name).write_text("{}")

    def choose(segmenter):
        def load(folder, *, device, dtype):
            loaded.append((folder.name, device, dtype))
            return segmenter

        monkeypatch.setattr(segmenters, "load_segmenter", load)
        return loaded

    choose(Brightness(PHOTOGRAPHS, dark=True))
    return choose


def save(path, array):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(array).save(path)


@pytest.fixture
def pictures(tmp_path):
    """A grey PNG, a 16-bit TIFF and a colour JPEG, dark on the left, none of them square."""
    grey = np.full((40, 64), 220, np.uint8)
    grey[:20, :16] = 20
    folder = tmp_path / "pictures"
    save(folder / "one.png", grey)
    save(folder / "two.tif", grey.astype(np.uint16) * 257)
    save(folder / "three.jpg", np.stack([255 - grey, grey, np.zeros_like(grey)], axis=-1))
    return folder


@pytest.fixture
def heads(tmp_path):
    """Two volumes in LPS order, turned a little; returns their folder."""
    folder = tmp_path / "heads"
    folder.mkdir()
    matrix = np.diag([-1.0, -1.5, 2.0, 1.0])
    matrix[0, 1] = 0.2
    for seed, name in enumerate(("a", "b")):
        data = np.random.default_rng(seed).integers(0, 900, (9, 10, 6)).astype(np.int16)
        nib.save(nib.Nifti1Image(data, matrix), folder / f"{name}_0000.nii.gz")
    return folder


def listing(folder):
    return list(csv.DictReader((folder / "masks.csv").read_text().splitlines()))


# pictures


def test_masks_of_pictures_are_upright_and_listed(synthgen, models, pictures, tmp_path):
    out = tmp_path / "masks"
    code, told, err = synthgen("segment", "darl", pictures, "--out", out, "--probabilities")
    assert (code, err) == (0, "")
    assert f"{out}: 3 masks of 3 images, listed in masks.csv" in told
    for name in ("one", "two", "three"):
        mask = np.asarray(Image.open(out / f"{name}.png"))
        assert (mask.shape, mask.dtype, np.unique(mask).tolist()) == ((40, 64), np.uint8, [0, 255])
        assert (mask[:16, :12] == 255).all()
        assert not mask[24:].any()
        assert not mask[:, 24:].any()
        probability = np.asarray(Image.open(out / "probabilities" / f"{name}.png"))
        assert np.array_equal(probability > 127, mask > 0)
    rows = listing(out)
    assert [row["mask"] for row in rows] == ["one.png", "three.png", "two.png"]
    assert rows[0]["size"] == "40 x 64"
    assert float(rows[0]["vessel_share"]) == pytest.approx(20 * 16 / (40 * 64))
    table = json.loads((out / "dataset.json").read_text())
    assert table == {"labels": {"background": 0, "vessel": 255}, "file_ending": ".png"}


def test_each_problem_is_told_on_a_line_and_the_rest_is_done(synthgen, models, pictures, tmp_path):
    (pictures / "broken.png").write_bytes(b"\x89PNG no more")
    (pictures / "text.jpg").write_text("no picture")
    out = tmp_path / "masks"
    code, told, err = synthgen("segment", "darl", pictures, "--out", out)
    assert code == 3
    assert [line.partition(": ")[0] for line in err.splitlines()] == [
        str(pictures / "broken.png"),
        str(pictures / "text.jpg"),
    ]
    assert "3 masks of 5 images" in told
    assert len(listing(out)) == 3
    report = json.loads(synthgen("segment", "darl", pictures, "--out", out, "--json")[1])
    assert report["written"] == 3
    assert len(report["problems"]) == 2


def test_threshold_moves_the_mask(synthgen, models, pictures, tmp_path):
    one = pictures / "one.png"
    synthgen("segment", "darl", one, "--out", tmp_path / "all", "--threshold", 0.1)
    assert (np.asarray(Image.open(tmp_path / "all/one.png")) == 255).all()


def test_several_tissues_are_numbers(synthgen, models, pictures, tmp_path):
    models(Brightness(use("low", "high", spatial_dims=2), levels=(0.05, 0.5)))
    out = tmp_path / "masks"
    assert synthgen("segment", "imgx", pictures / "one.png", "--out", out)[0] == 0
    mask = np.asarray(Image.open(out / "one.png"))
    assert (mask[:16, :12] == 1).all()
    assert (mask[24:] == 2).all()
    table = json.loads((out / "dataset.json").read_text())
    assert table["labels"] == {"background": 0, "low": 1, "high": 2}
    assert [k for k in listing(out)[0] if k.endswith("_share")] == ["low_share", "high_share"]


def test_a_numbered_frame_keeps_its_name_and_channels_become_one(
    synthgen, models, pictures, tmp_path
):
    grey = np.asarray(Image.open(pictures / "one.png"))
    for name in ("a_0000", "a_0001", "b_0000", "b_0001"):
        save(tmp_path / f"frames/{name}.png", grey)
    out = tmp_path / "one"
    assert synthgen("segment", "darl", tmp_path / "frames", "--out", out)[0] == 0
    assert [row["mask"] for row in listing(out)][:2] == ["a_0000.png", "a_0001.png"]
    segmenter = Brightness(use(spatial_dims=2, channels=("t1", "t2")))
    models(segmenter)
    out = tmp_path / "two"
    assert synthgen("segment", "imgx", tmp_path / "frames", "--out", out, "--seed", 5)[0] == 0
    assert [row["mask"] for row in listing(out)] == ["a.png", "b.png"]
    assert segmenter.shapes == [(1, 2, 40, 64)] * 2
    assert segmenter.keys == [(5, 0)] * 2
    (tmp_path / "frames/b_0001.png").unlink()
    code, _, err = synthgen("segment", "imgx", tmp_path / "frames", "--out", tmp_path / "three")
    assert code == 2
    assert "the model needs 2 channels of b (t1, t2), numbered from 0000, got 0000" in err


# volumes


@pytest.mark.parametrize("kind", ["imgx", "hidiff"])
@pytest.mark.parametrize("spatial_dims", [2, 3])
def test_volumes_come_back_on_their_own_grid(kind, spatial_dims, synthgen, models, heads, tmp_path):
    spacing = nib.load(heads / "a_0000.nii.gz").header.get_zooms()
    segmenter = Brightness(use(spatial_dims=spatial_dims, spacing_mm=spacing[:spatial_dims]))
    loaded = models(segmenter)
    out = tmp_path / "masks"
    code, told, err = synthgen("segment", kind, heads, "--out", out, "--precision", "bf16")
    assert (code, err) == (0, "")
    assert "2 masks of 2 images" in told
    assert loaded == [(kind, "cpu", "bfloat16")]
    for name in ("a", "b"):
        source = nib.load(heads / f"{name}_0000.nii.gz")
        mask = nib.load(out / f"{name}.nii.gz")
        assert np.array_equal(mask.affine, source.affine)
        bright = normalise(np.asarray(source.dataobj)) > 0.5
        assert np.array_equal(np.asarray(mask.dataobj), bright)
    assert listing(out)[0]["size"] == "9 x 10 x 6"
    assert json.loads((out / "dataset.json").read_text())["labels"]["bright"] == 1


def test_what_segment_writes_evaluate_reads(synthgen, models, heads, tmp_path):
    regions = use("whole", "core", overlapping=True, spacing_mm=(1.0, 1.5, 2.0))
    models(Brightness(regions, levels=(0.3, 0.6)))
    for name in ("first", "second"):
        assert synthgen("segment", "imgx", heads, "--out", tmp_path / name)[0] == 0
    code, told, err = synthgen("evaluate", "segmentation", tmp_path / "first", tmp_path / "second")
    assert (code, err) == (0, "")
    lines = told.splitlines()
    assert lines[0].split() == [
        "tissue", "cases", "missed", "invented", "dice", "iou", "cldice", "hd95", "mm", "asd",
        "mm", "nsd",
    ]  # fmt: skip
    assert lines[1].split()[:5] == ["whole", "2", "0", "0", "1.000"]
    folder = tmp_path / "work/reports/first/segmentation"
    assert str(folder) in lines[-1]
    assert {p.name for p in folder.iterdir()} == {"cases.csv", "metrics.json"}
    (tmp_path / "second/b.nii.gz").unlink()
    code, out, err = synthgen(
        "evaluate", "segmentation", tmp_path / "first", tmp_path / "second", "--json"
    )
    assert (code, out, err.count("\n")) == (2, "", 1)
    assert "1 without a reference (b)" in err


# refusals


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (("nowhere.png",), 2, "nowhere.png: no such file or folder"),
        (("{}/empty",), 3, "holds no images"),
        (("{}/one.png", "{}/other/one.jpg"), 2, "would share the mask of one"),
        (("{}", "--out", "{}"), 2, "one.png would overwrite an image"),
        (("{}", "--threshold", "1"), 2, "--threshold: expected 0 or more and less than 1, got 1"),
        (("{}/../heads",), 2, "the model was trained on photographs"),
        (("{}", "{}/../heads"), 2, "segment them into folders of their own"),
        (("{}", "--out", "{}/../raw"), 2, "dataset.json names other labels"),
    ],
)
def test_bad_requests_write_nothing(
    arguments, code, message, synthgen, models, pictures, heads, tmp_path
):
    (pictures / "empty").mkdir()
    save(pictures / "other/one.jpg", np.zeros((20, 20), np.uint8))
    (tmp_path / "raw").mkdir()
    (tmp_path / "raw/dataset.json").write_text('{"labels": {"background": 0, "vessel": 1}}')
    words = [word.format(pictures) for word in arguments]
    out = () if "--out" in words else ("--out", tmp_path / "masks")
    found, _, err = synthgen("segment", "darl", *words, *out)
    assert found == code
    assert message in err
    assert not (tmp_path / "masks").exists()


@pytest.mark.parametrize(
    ("found", "options", "message"),
    [
        (use(), (), "one.png: the model segments 3-D volumes (NIfTI), got a picture"),
        (
            use("a", "b", spatial_dims=2), ("--threshold", 0.3),
            "--threshold means nothing to a model that tells background, a, b apart",
        ),
        (
            use("a", "b", spatial_dims=2), ("--probabilities",),
            "--probabilities: for pictures, and models of one tissue",
        ),
    ],
)  # fmt: skip
def test_what_does_not_fit_the_model_is_refused(
    found, options, message, synthgen, models, pictures, tmp_path
):
    models(Brightness(found, levels=(0.3, 0.5)))
    out = tmp_path / "masks"
    code, _, err = synthgen("segment", "imgx", pictures / "one.png", "--out", out, *options)
    assert code == 2
    assert message in err


@pytest.mark.parametrize(
    ("model", "message"),
    [
        ("darl", "`synthgen train angiograms RECIPE` makes one"),
        ("imgx", "`synthgen train imgx RECIPE --data PATH` makes one"),
        ("nowhere", "nowhere: no model folder; expected darl, imgx, hidiff, or a folder"),
    ],
)
def test_without_a_model_it_says_what_to_do(model, message, synthgen, pictures, tmp_path):
    code, _, err = synthgen("segment", model, pictures, "--out", tmp_path / "masks")
    assert code == 3
    assert message in err
    assert err.count("\n") == 1


def test_a_model_that_paints_segments_nothing(synthgen, pictures, tmp_path):
    folder = tmp_path / "labels"
    folder.mkdir()
    files = {"model_index.json": "", "schema.json": ""}
    record = {"format": "synthgen-model/1", "kind": "labels", "files": files}
    (folder / "synthgen.json").write_text(json.dumps(record))
    code, _, err = synthgen("segment", folder, pictures, "--out", tmp_path / "masks")
    assert code == 3
    assert "a model of kind 'labels' segments nothing" in err
