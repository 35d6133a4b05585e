"""Angiograms and vessel trees in the formats of others: pixels as they lie, labels 0 and 1."""

import io
import json

import nibabel as nib
import numpy as np
import pytest
from exporting import load_rows
from PIL import Image
from tiny_vessels import SHAPE, Negative, Tubes

from synthgen.core.errors import RequestError
from synthgen.data.shards import Shards
from synthgen.export import ExportOptions, export, open_source
from synthgen.export.encode import png, to_grey
from synthgen.generate import AngiogramJob, GenerationSettings, VesselJob, run

SETTINGS = GenerationSettings(batch_size=2, shard_size=4)
BITS8 = 1 / 255


@pytest.fixture(scope="module")
def angiograms(tmp_path_factory):
    folder = tmp_path_factory.mktemp("made") / "angiograms"
    run(AngiogramJob(Tubes(), Negative(subjects=("chase/01",)), None, SETTINGS), 5, folder)
    return folder


@pytest.fixture(scope="module")
def vessels(tmp_path_factory):
    folder = tmp_path_factory.mktemp("made") / "vessels"
    run(VesselJob(Tubes(), ("graph",), SETTINGS), 5, folder)
    return folder


def test_nnunet_holds_pictures_and_binary_labels(angiograms, tmp_path):
    outcome = export(open_source(angiograms), "nnunet", tmp_path, ExportOptions())
    tree, shards = tmp_path / "Dataset901_Synthgen", Shards(angiograms)
    assert (outcome.count, outcome.left_out) == (5, {})
    for index in range(5):
        image = np.asarray(Image.open(tree / f"imagesTr/{index:06d}_angiogram_0000.png"))
        label = np.asarray(Image.open(tree / f"labelsTr/{index:06d}_angiogram.png"))
        row = shards[index]
        assert image.shape == label.shape == SHAPE
        assert np.abs(image * BITS8 - row.images[0]).max() <= BITS8
        assert np.array_equal(label, shards.raw([index])["pv"][0, 1] >= 128)
        # The background shows: it is no black frame.
        assert image[label == 0].min() > 0
    about = json.loads((tree / "dataset.json").read_text())
    assert about["labels"] == {"background": 0, "vessel": 1}
    assert about["channel_names"] == {"0": "angiogram"}
    line = json.loads((tree / "metadata.jsonl").read_text().splitlines()[0])
    assert not {"z", "position"} & line.keys()
    card = (tree / "README.md").read_text()
    assert "angiography" in card
    assert "brain" not in card
    assert "chase/01" in card


def test_huggingface_rows_hold_pictures_labels_and_coverage(angiograms, tmp_path, offline):
    export(open_source(angiograms), "hf", tmp_path / "hf", ExportOptions())
    rows = load_rows(offline, str(tmp_path / "hf"))
    shards = Shards(angiograms)
    assert len(rows) == 5
    for index, row in enumerate(rows):
        raw = shards.raw([index])
        assert np.array_equal(np.asarray(row["pv"], np.uint8), raw["pv"][0])
        assert np.array_equal(np.asarray(row["label"]), raw["pv"][0, 1] >= 128)
        image = np.asarray(row["image"]).astype(np.float64) / 65535
        assert np.abs(image - raw["images"][0, 0]).max() < 1e-4
    assert "position" not in rows.column_names


def test_nifti_holds_the_arrays_as_they_lie(angiograms, tmp_path):
    export(open_source(angiograms, spacing_mm=0.3), "nifti", tmp_path / "bids", ExportOptions())
    stem = tmp_path / "bids/sub-000003/anat/sub-000003"
    raw = Shards(angiograms).raw([3])
    label = nib.load(f"{stem}_dseg.nii.gz")
    assert np.array_equal(np.asarray(label.dataobj)[..., 0], raw["pv"][0, 1] >= 128)
    assert label.header.get_zooms()[:2] == pytest.approx((0.3, 0.3))
    coverage = nib.load(f"{stem}_label-VESSEL_probseg.nii.gz").get_fdata()[..., 0]
    assert np.abs(coverage - raw["pv"][0, 1] / 255).max() < 1e-6
    image = nib.load(f"{stem}_acq-angiogram_image.nii.gz").get_fdata()[..., 0]
    assert np.array_equal(image, raw["images"][0, 0].astype(np.float64))
    assert not (tmp_path / "bids/image.json").exists()
    table = (tmp_path / "bids/participants.tsv").read_text().splitlines()
    assert table[0] == "participant_id\tgroup"


def test_trees_alone_go_to_nifti_and_huggingface(vessels, tmp_path, offline):
    with pytest.raises(RequestError, match="label maps without images"):
        export(open_source(vessels), "nnunet", tmp_path, ExportOptions())
    export(open_source(vessels), "hf", tmp_path / "hf", ExportOptions())
    assert len(load_rows(offline, str(tmp_path / "hf"))) == 5
    assert export(open_source(vessels), "nifti", tmp_path / "bids", ExportOptions()).count == 5


def test_png_of_a_picture_stands_upright(angiograms):
    image = Shards(angiograms)[0].images[0]
    shown = np.asarray(Image.open(io.BytesIO(png(to_grey(image, 8)))))
    assert shown.shape == SHAPE
    dark = np.argwhere(shown < 100)
    # The tube runs down the whole picture, in its left half.
    assert np.ptp(dark[:, 0]) == SHAPE[0] - 1
    assert dark[:, 1].max() < SHAPE[1] / 2
