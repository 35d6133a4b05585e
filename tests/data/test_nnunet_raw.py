"""nnU-Net raw folders as labelled data: ranks, orientations, regions, splits, bad folders."""

import json

import nibabel as nib
import numpy as np
import pytest
from exporting import write_store
from PIL import Image
from raw_folders import LABELS, save, write_raw

from synthgen.core.errors import GeometryError, LeakageError, RequestError, SchemaError, StoreError
from synthgen.data.labelled import open_labelled
from synthgen.data.nifti import normalise
from synthgen.export import ExportOptions, export, open_source

TISSUES = ("csf", "wm")
BRAIN = ("csf", "gm", "wm", "wmh")
REGIONS = {"background": 0, "whole": [1, 2, 3], "core": [2, 3], "enhancing": 3}
SHAPE = (20, 16)
VOLUME = (12, 10, 8)


def case(shape, seed=0, channels=1, values=(0, 1, 5)):
    """Return channels of whole grey values and a label map."""
    rng = np.random.default_rng(seed)
    return rng.integers(1, 256, (channels, *shape)), rng.choice(values, shape)


def test_pictures(tmp_path):
    cases = {"a": case(SHAPE, 0), "b": case(SHAPE, 1)}
    data = open_labelled(write_raw(tmp_path / "Dataset001_X", cases), tissues=TISSUES)
    assert [c.name for c in data.cases] == ["a", "b"]
    assert data.subjects == ("Dataset001_X/a", "Dataset001_X/b")
    assert (data.spatial_dims, data.spacing_mm, data.channels) == (2, (1.0, 1.0), ("T1",))
    assert data.real
    assert not data.overlapping
    image, soft = data.load(1)
    np.testing.assert_allclose(image[0], cases["b"][0][0] / 255, atol=1e-6)
    expected = [cases["b"][1] == value for value in (0, 1, 5)]
    np.testing.assert_array_equal(soft, np.asarray(expected, np.float32))
    assert image.dtype == soft.dtype == np.float32


def test_volumes_are_turned_to_ras(tmp_path):
    """The file's axes are permuted and flipped; what is read is what was drawn in RAS."""
    (image, label) = case(VOLUME, channels=2)
    ras = np.diag([1.0, 2.0, 3.0, 1.0])
    stored = [
        nib.orientations.apply_orientation(a, [[2, -1], [0, 1], [1, -1]]) for a in (*image, label)
    ]
    affine = ras @ nib.orientations.inv_ornt_aff([[2, -1], [0, 1], [1, -1]], VOLUME)
    folder = write_raw(tmp_path, {"a": (stored[:2], stored[2])}, ending=".nii.gz", affine=affine)
    data = open_labelled(folder, tissues=TISSUES)
    assert (data.spatial_dims, data.spacing_mm) == (3, (1.0, 2.0, 3.0))
    read, soft = data.load(0)
    for channel in range(2):
        np.testing.assert_allclose(read[channel], normalise(image[channel]), atol=1e-6)
    np.testing.assert_array_equal(soft[2], label == 5)
    assert data.channels == ("T1", "FLAIR")


def test_one_slice_of_nifti_is_2d(tmp_path):
    made = case(SHAPE)
    folder = write_raw(
        tmp_path, {"a": made}, ending=".nii.gz", affine=np.diag([0.5, 0.7, 999.0, 1.0])
    )
    data = open_labelled(folder, tissues=TISSUES)
    assert (data.spatial_dims, data.spacing_mm) == (2, pytest.approx((0.5, 0.7)))
    image, soft = data.load(0)
    assert image.shape == (1, *SHAPE)
    np.testing.assert_array_equal(soft[1], made[1] == 1)


def test_channels_are_chosen_by_name_and_in_order(tmp_path):
    folder = write_raw(tmp_path, {"a": case(SHAPE, channels=3)})
    whole, _ = open_labelled(folder, tissues=TISSUES).load(0)
    two = open_labelled(folder, tissues=TISSUES, modalities=["t2", "t1"])
    assert two.channels == ("T2", "T1")
    np.testing.assert_array_equal(two.load(0)[0], whole[[2, 0]])
    with pytest.raises(RequestError, match="no channel 'pd'; it has T1, FLAIR, T2"):
        open_labelled(folder, tissues=TISSUES, modalities=["pd"])


def test_regions_overlap(tmp_path):
    image, label = case(SHAPE, values=(0, 1, 2, 3))
    folder = write_raw(tmp_path, {"a": (image, label)}, labels=REGIONS)
    data = open_labelled(folder, tissues=("core", "whole", "enhancing"))
    assert data.overlapping
    assert data.tissues == ("core", "whole", "enhancing")
    _, soft = data.load(0)
    np.testing.assert_array_equal(soft, np.stack([label >= 2, label >= 1, label == 3]))
    with pytest.raises(RequestError, match="regions are whole, core, enhancing, the wanted ones"):
        open_labelled(folder, tissues=("whole", "core"))


def test_classes_that_the_recipe_does_not_know(tmp_path):
    folder = write_raw(tmp_path, {"a": case(SHAPE)}, labels={**LABELS, "liver": 7})
    with pytest.raises(RequestError, match=r"'liver' of schema .* belongs to none of csf, wm"):
        open_labelled(folder, tissues=TISSUES)
    with pytest.raises(RequestError, match="has no tissue 'spleen'"):
        open_labelled(folder, tissues=(*TISSUES, "spleen"))


def test_labels_are_grouped_as_those_of_stores_are(tmp_path):
    labels = {"background": 0, "gm": 1, "deep_gm": 2, "wm": 3, "brainstem": 4, "wmh": 9}
    image, label = case(SHAPE, values=(0, 1, 2, 3, 4, 9))
    folder = write_raw(tmp_path, {"a": (image, label)}, labels=labels)
    _, soft = open_labelled(folder, tissues=("gm", "wm")).load(0)
    np.testing.assert_array_equal(soft[1], np.isin(label, (1, 2)))
    np.testing.assert_array_equal(soft[2], np.isin(label, (3, 4, 9)))


def test_validation_cases_are_imagests(tmp_path):
    write_raw(tmp_path, {"b": case(SHAPE, 1)}, where="Ts")
    folder = write_raw(tmp_path, {"a": case(SHAPE)})
    assert [c.name for c in open_labelled(folder, tissues=TISSUES).cases] == ["a"]
    for split in ("val", "test"):
        held = open_labelled(folder, tissues=TISSUES, split=split)
        assert [c.name for c in held.cases] == ["b"]
    np.testing.assert_array_equal(held.load(0)[1][1], case(SHAPE, 1)[1] == 1)
    with pytest.raises(RequestError, match="split must be one of"):
        open_labelled(folder, tissues=TISSUES, split="tain")


def test_an_export_of_a_store_keeps_its_splits_and_subjects(tmp_path):
    subjects = (("a/sub-1", "train"), ("a/sub-2", "val"), ("b/sub-1", "test"))
    store = write_store(tmp_path / "store", subjects=subjects)
    export(open_source(store), "nnunet", tmp_path, ExportOptions(file_ending=".nii.gz"))
    folder = tmp_path / "Dataset901_Synthgen"
    for split, subject in (("train", "a/sub-1"), ("val", "a/sub-2"), ("test", "b/sub-1")):
        there = open_labelled(folder, tissues=BRAIN, split=split)
        mine = open_labelled(store, tissues=BRAIN, split=split)
        assert there.subjects == (subject,)
        assert sorted(c.name for c in there.cases) == sorted(c.name for c in mine.cases)
        assert {c.group for c in there.cases} == {subject}
        names = [c.name for c in mine.cases]
        for index, one in enumerate(there.cases):
            (image, soft), (whole, partial) = there.load(index), mine.load(names.index(one.name))
            np.testing.assert_allclose(image[0], normalise(whole[0]), atol=1e-6)
            assert image.shape == whole.shape
            assert soft.shape == partial.shape


def test_generated_folders_name_their_ancestors(tmp_path):
    origin = {"real": False, "subjects": ["x/sub-1"]}
    folder = write_raw(tmp_path, {"a": case(SHAPE)}, synthgen=origin)
    (folder / "metadata.jsonl").write_text(
        json.dumps({"case": "a", "subject": "", "group": "label-000000", "split": "train"}) + "\n"
    )
    data = open_labelled(folder, tissues=TISSUES)
    assert not data.real
    assert data.subjects == ("x/sub-1",)
    assert (data.cases[0].subject, data.cases[0].group) == ("", "label-000000")
    with pytest.raises(LeakageError, match="x/sub-1"):
        open_labelled(folder, tissues=TISSUES, exclude=["x/sub-1"])


def test_subjects_are_left_out(tmp_path):
    folder = write_raw(tmp_path / "D", {"a": case(SHAPE), "b": case(SHAPE, 1)})
    (case_left,) = open_labelled(folder, tissues=TISSUES, exclude=["D/a"]).cases
    assert case_left.name == "b"
    with pytest.raises(RequestError, match="no labelled case in split 'train'"):
        open_labelled(folder, tissues=TISSUES, exclude=["D/a", "D/b"])


def test_identity_follows_the_files(tmp_path):
    folder = write_raw(tmp_path, {"a": case(SHAPE)})
    first = open_labelled(folder, tissues=TISSUES).identity
    assert open_labelled(folder, tissues=TISSUES).identity == first
    assert open_labelled(folder, tissues=("wm", "csf")).identity != first
    save(folder / "imagesTr/a_0000.png", case(SHAPE, 9)[0][0])
    assert open_labelled(folder, tissues=TISSUES).identity != first


def test_empty_label_maps_are_cases(tmp_path):
    image, label = case(VOLUME)
    folder = write_raw(tmp_path, {"a": (image, 0 * label)}, ending=".nii.gz")
    assert open_labelled(folder, tissues=TISSUES).load(0)[1][1:].max() == 0


def test_mixed_ranks(tmp_path):
    write_raw(tmp_path, {"a": case(SHAPE)}, ending=".nii.gz")
    folder = write_raw(tmp_path, {"b": case(VOLUME)}, ending=".nii.gz")
    with pytest.raises(GeometryError, match=r"mixed 2D and 3D data: .*a\.nii\.gz is a slice"):
        open_labelled(folder, tissues=TISSUES)


def test_labels_that_dataset_json_does_not_state(tmp_path):
    folder = write_raw(tmp_path, {"a": case(SHAPE, values=(0, 1, 4))})
    with pytest.raises(SchemaError, match=r"a\.png: label 4 is not in dataset.json, .* 0, 1, 5"):
        open_labelled(folder, tissues=TISSUES).load(0)


def test_image_and_labels_on_different_grids(tmp_path):
    image, label = case(VOLUME)
    folder = write_raw(tmp_path, {"a": (image, label)}, ending=".nii.gz")
    save(folder / "imagesTr/a_0000.nii.gz", image[0], np.diag([2.0, 1, 1, 1]))
    with pytest.raises(GeometryError, match="a_0000"):
        open_labelled(folder, tissues=TISSUES).load(0)
    folder = write_raw(tmp_path / "flat", {"a": case(SHAPE)})
    save(folder / "imagesTr/a_0000.png", case((16, 16))[0][0])
    with pytest.raises(GeometryError, match=r"a_0000\.png: expected the size \(20, 16\)"):
        open_labelled(folder, tissues=TISSUES).load(0)


def test_missing_and_damaged_files(tmp_path):
    folder = write_raw(tmp_path / "D", {"a": case(VOLUME)}, ending=".nii.gz")
    image, label = folder / "imagesTr/a_0000.nii.gz", folder / "labelsTr/a.nii.gz"
    image.unlink()
    with pytest.raises(StoreError, match=r"a_0000\.nii\.gz: no such file"):
        open_labelled(folder, tissues=TISSUES)
    image.write_bytes(label.read_bytes()[:100])
    label.write_bytes(b"no")
    with pytest.raises(StoreError, match=r"a\.nii\.gz: not a readable NIfTI"):
        open_labelled(folder, tissues=TISSUES)


def test_palettes_are_refused(tmp_path):
    folder = write_raw(tmp_path, {"a": case(SHAPE)})
    picture = Image.fromarray(np.zeros(SHAPE, np.uint8)).convert("P")
    picture.putpalette([255, 0, 0, 0, 255, 0])
    picture.save(folder / "labelsTr/a.png")
    with pytest.raises(StoreError, match=r"a\.png: a label map is a grey picture"):
        open_labelled(folder, tissues=TISSUES).load(0)


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"channel_names": None}, StoreError, "not nnU-Net's"),
        ({"labels": [0, 1]}, StoreError, "not nnU-Net's"),
        ({"labels": {"csf": 1, "wm": 5}}, StoreError, "'background' with value 0"),
        ({"labels": {**LABELS, "ignore": 6}}, RequestError, "'ignore' label is not supported"),
        ({"file_ending": ".mha"}, RequestError, r"file_ending '\.mha' is not read"),
    ],
)
def test_bad_descriptions(tmp_path, change, error, message):
    folder = write_raw(tmp_path, {"a": case(SHAPE)}, **change)
    with pytest.raises(error, match=message) as raised:
        open_labelled(folder, tissues=TISSUES)
    assert "dataset.json" in str(raised.value)
    assert "\n" not in str(raised.value)


def test_bad_metadata(tmp_path):
    folder = write_raw(tmp_path, {"a": case(SHAPE)})
    (folder / "metadata.jsonl").write_text("[1]\n")
    with pytest.raises(StoreError, match=r"metadata\.jsonl: expected one JSON object"):
        open_labelled(folder, tissues=TISSUES)


def test_normalise_is_robust_and_keeps_zeros():
    rng = np.random.default_rng(0)
    image = np.zeros((20, 20, 20))
    image[5:15, 5:15, 5:15] = rng.uniform(100, 200, (10, 10, 10))
    hot = image.copy()
    hot[10, 10, 10] = 1e6
    made = normalise(hot)
    assert made.dtype == np.float32
    assert (made[0] == 0).all()
    np.testing.assert_allclose(made[hot < 1e5], normalise(image)[hot < 1e5], atol=0.01)
    low, high = np.percentile(image[image > 0] - 150, (0.5, 99.5))
    np.testing.assert_allclose(normalise(image), (image / (high + 150)).clip(0, 1), atol=1e-6)
    signed = np.where(image > 0, image - 150, 0)
    np.testing.assert_allclose(
        normalise(signed), ((signed - low) / (high - low)).clip(0, 1), atol=1e-6
    )
    # The amount of air around the head changes nothing, nor do units.
    np.testing.assert_allclose(normalise(np.pad(image, 5))[5:-5, 5:-5, 5:-5], normalise(image))
    np.testing.assert_allclose(normalise(image * 7), normalise(image), atol=1e-6)
    assert normalise(np.full((4, 4), 3.0)).max() == 0
    assert set(np.unique(normalise(np.eye(4)))) == {0, 1}
