"""Foreign datasets as slice sets: what is written comes back, what does not fit is refused."""

import json
from dataclasses import replace

import nibabel as nib
import numpy as np
import pytest
from PIL import Image

from synthgen.core.errors import GeometryError, RequestError, SchemaError, StoreError
from synthgen.core.schema import BRAIN9
from synthgen.evaluate.cases import Frame
from synthgen.evaluate.foreign import facts_of, from_nifti, from_nnunet, open_set
from synthgen.evaluate.sets import UNKNOWN

SHAPE = (24, 32)
FRAME = Frame(BRAIN9, SHAPE, 1.0, ("flair", "t1", "t2"))
NAMES = {"background": 0, "CSF": 1, "grey matter": 2, "wm": 3, "Lesion": 4}
CHANNEL = {0: 0, 1: 1, 2: 2, 3: 3, 4: BRAIN9.index("wmh")}


def labels(seed=0, shape=SHAPE):
    """An off-centre brain, so that a flip or a transposition is seen."""
    ids = np.zeros(shape, np.uint8)
    ids[4:18, 6:20] = 1
    ids[5:17, 7:19] = 2
    ids[8:14, 10:16] = 3
    ids[9:11, 11 + seed : 13 + seed] = 4
    return ids


def image(seed=0, shape=SHAPE):
    return np.random.default_rng(seed).uniform(0.1, 1, shape).astype(np.float32)


def describe(folder, **changes):
    about = {
        "channel_names": {"0": "FLAIR", "1": "T1"},
        "labels": NAMES,
        "numTraining": 3,
        "file_ending": ".png",
        "licence": "CC0",
    }
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "dataset.json").write_text(json.dumps(about | changes))


def save_png(path, array):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(array).save(path)


def save_nifti(path, array, matrix=None):
    path.parent.mkdir(parents=True, exist_ok=True)
    picture = nib.Nifti1Image(array, np.eye(4) if matrix is None else matrix)
    picture.header.set_xyzt_units("mm")
    picture.set_sform(picture.affine, 1)
    nib.save(picture, path)
    return path


@pytest.fixture
def nnunet(tmp_path):
    """Three PNG cases with two channels of 16 bits."""
    folder = tmp_path / "Dataset901_Synth"
    describe(folder)
    for case in range(3):
        save_png(folder / "labelsTr" / f"case{case}.png", labels(case))
        for channel in range(2):
            grey = np.rint(65535 * image(10 * case + channel)).astype(np.uint16)
            save_png(folder / "imagesTr" / f"case{case}_{channel:04d}.png", grey)
    return folder


def one_hot(ids):
    wanted = np.zeros((BRAIN9.channels, *ids.shape), np.float32)
    for label, channel in CHANNEL.items():
        wanted[channel] += ids == label
    return wanted


# nnU-Net


def test_png_cases_come_back(nnunet, untouched_rng):
    found = open_set(nnunet, FRAME)
    assert (len(found), found.name, found.shape) == (3, "Dataset901_Synth", SHAPE)
    assert found.modalities == ("flair", "t1")
    assert found.images.slices.tolist() == [0, 0, 1, 1, 2, 2]
    assert found.table.subject == (UNKNOWN,) * 3
    assert np.isnan(found.table.position).all()
    assert np.isnan(found.table.requested).all()
    for case in (2, 0, 1):
        pv = found.pv([case])[0]
        BRAIN9.check(pv)
        np.testing.assert_array_equal(pv, one_hot(labels(case)))
        read = found.image([2 * case, 2 * case + 1])
        for channel in range(2):
            wanted = np.where(labels(case) > 0, image(10 * case + channel), 0)
            np.testing.assert_allclose(read[channel, 0], wanted, atol=1e-5)


def test_eight_bits_and_one_channel(tmp_path):
    describe(tmp_path, channel_names={"0": "some contrast"})
    save_png(tmp_path / "labelsTr" / "a.png", labels())
    save_png(tmp_path / "imagesTr" / "a_0000.png", np.full(SHAPE, 51, np.uint8))
    found = from_nnunet(tmp_path, FRAME)
    assert (found.styles, found.modalities) == (("some-contrast",), ())
    assert found.image([0]).max() == np.float32(0.2)


def test_a_folder_without_images_is_a_set_of_labels(tmp_path):
    describe(tmp_path)
    save_png(tmp_path / "labelsTr" / "a.png", labels())
    found = from_nnunet(tmp_path, FRAME)
    assert (len(found), len(found.images.slices)) == (1, 0)


def test_nifti_slices_of_nnunet(tmp_path):
    describe(tmp_path, file_ending=".nii.gz", channel_names={"0": "T2"})
    save_nifti(tmp_path / "labelsTr" / "a.nii.gz", labels()[..., None])
    save_nifti(tmp_path / "imagesTr" / "a_0000.nii.gz", 700 * image()[..., None])
    found = open_set(tmp_path, FRAME)
    np.testing.assert_array_equal(found.pv([0])[0], one_hot(labels()))
    read = found.image([0])[0, 0]
    assert read.max() == 1  # the robust maximum of the case
    assert (read[labels() == 0] == 0).all()
    inside = labels() > 0
    assert np.corrcoef(read[inside], image()[inside])[0, 1] > 0.99


def test_unknown_label_names_are_listed(nnunet):
    describe(nnunet, labels={"background": 0, "liver": 1, "spleen": 2})
    with pytest.raises(SchemaError, match=r"called 'liver', 'spleen'; use background, csf"):
        open_set(nnunet, FRAME)


def test_regions_are_refused(nnunet):
    describe(nnunet, labels={"background": 0, "whole": [1, 2]})
    with pytest.raises(SchemaError, match="regions"):
        open_set(nnunet, FRAME)


def test_an_id_without_a_name_is_refused(nnunet):
    describe(nnunet, labels={"background": 0, "csf": 1, "gm": 2, "wm": 3})
    with pytest.raises(SchemaError, match=r"case0\.png: label id 4 has no name.*0, 1, 2, 3"):
        open_set(nnunet, FRAME)


def test_a_missing_channel_is_named(nnunet):
    (nnunet / "imagesTr" / "case1_0001.png").unlink()
    with pytest.raises(StoreError, match=r"case1_0001\.png: no such file"):
        open_set(nnunet, FRAME)


def test_other_endings_and_empty_folders_are_refused(nnunet):
    describe(nnunet, file_ending=".tif")
    with pytest.raises(RequestError, match=r"expected the file_ending \.png.*got '\.tif'"):
        open_set(nnunet, FRAME)
    describe(nnunet, file_ending=".nii.gz")
    with pytest.raises(RequestError, match=r"labelsTr: no \*\.nii\.gz file"):
        open_set(nnunet, FRAME)


@pytest.mark.parametrize("text", ["{", "[1]"])
def test_a_broken_description_is_named(nnunet, text):
    (nnunet / "dataset.json").write_text(text)
    with pytest.raises(StoreError, match=r"dataset\.json"):
        open_set(nnunet, FRAME)


def test_a_damaged_or_coloured_png_is_named(nnunet):
    found = open_set(nnunet, FRAME)
    (nnunet / "imagesTr" / "case2_0000.png").write_bytes(b"\x89PNG\r\n\x1a\nrubbish")
    with pytest.raises(StoreError, match=r"case2_0000\.png: not a picture; expected PNG"):
        found.image([4])
    save_png(nnunet / "imagesTr" / "case2_0000.png", np.zeros((*SHAPE, 3), np.uint8))
    with pytest.raises(StoreError, match="expected one grey channel, got mode RGB"):
        found.image([4])


def test_a_brain_that_does_not_fit_says_how_axes_run(nnunet):
    with pytest.raises(GeometryError, match=r"14 x 14 pixels.*12 x 12.*rows of a PNG are X"):
        open_set(nnunet, replace(FRAME, shape=(12, 12)))


def test_an_image_of_another_size_is_refused(nnunet):
    save_png(nnunet / "imagesTr" / "case0_0000.png", np.zeros((8, 8), np.uint8))
    with pytest.raises(GeometryError, match=r"case0_0000\.png: expected shape \(24, 32, 1\)"):
        open_set(nnunet, FRAME)


# NIfTI


def table(folder):
    rows = ["index\tname", *(f"{i}\t{name}" for name, i in NAMES.items())]
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "dseg.tsv").write_text("\n".join(rows) + "\n")


@pytest.mark.parametrize("flat", [True, False])
def test_flat_nifti_comes_back(tmp_path, flat):
    table(tmp_path)
    for number in range(2):
        ids = labels(number) if flat else labels(number)[..., None]
        grey = image(number) if flat else image(number)[..., None]
        save_nifti(tmp_path / f"sub-{number}_dseg.nii.gz", ids)
        save_nifti(tmp_path / f"sub-{number}_T1w.nii.gz", grey)
    found = open_set(tmp_path, FRAME)
    assert (found.styles, found.modalities, len(found)) == (("t1",), ("t1",), 2)
    assert np.isnan(found.table.position).all()
    for number in (1, 0):
        np.testing.assert_array_equal(found.pv([number])[0], one_hot(labels(number)))
        wanted = np.where(labels(number) > 0, image(number), 0)
        np.testing.assert_array_equal(found.image([number])[0, 0], wanted)


def test_volumes_give_their_axial_slices_in_ras(tmp_path):
    table(tmp_path)
    ids = np.zeros((20, 28, 6), np.uint8)
    ids[..., 1:5] = labels(shape=(20, 28))[..., None]
    ids[5:17, 7:19, 2] = 3
    grey = np.where(ids > 0, image(1, (20, 28, 6)), 0)
    turned = np.diag([-1.0, 1.0, 1.0, 1.0])  # stored from right to left
    turned[0, 3] = 19
    save_nifti(tmp_path / "sub-1_dseg.nii.gz", ids[::-1], turned)
    save_nifti(tmp_path / "sub-1_FLAIR.nii.gz", grey[::-1], turned)
    found = from_nifti(tmp_path, FRAME)
    assert len(found) == 4
    np.testing.assert_allclose(found.table.position, [0, 1 / 3, 2 / 3, 1])
    # The middle of the brain's box, (11, 13), moves to the middle of the slice, (12, 16).
    np.testing.assert_array_equal(
        found.pv([1])[0][:, 1:21, 3:31], one_hot(ids[..., 2]).astype(np.float32)
    )
    np.testing.assert_array_equal(found.image([1])[0, 0, 1:21, 3:31], grey[..., 2])
    assert found.subjects == ()


def test_labels_without_a_table_are_refused(tmp_path):
    save_nifti(tmp_path / "sub-1_dseg.nii.gz", labels()[..., None])
    with pytest.raises(SchemaError, match=r"no table says what its ids are; put a dseg\.tsv"):
        open_set(tmp_path, FRAME)


def test_a_subject_without_labels_is_named(tmp_path):
    table(tmp_path)
    save_nifti(tmp_path / "sub-7_T1w.nii.gz", image()[..., None])
    with pytest.raises(RequestError, match=r"sub-7 has no label map; expected sub-7_dseg"):
        open_set(tmp_path, FRAME)


def test_another_voxel_size_is_refused(tmp_path):
    table(tmp_path)
    matrix = np.diag([1.5, 1.5, 1.0, 1.0])
    save_nifti(tmp_path / "sub-1_dseg.nii.gz", labels()[..., None], matrix)
    with pytest.raises(GeometryError, match=r"in-plane voxels of 1 mm.*got 1\.5 x 1\.5 mm"):
        open_set(tmp_path, FRAME)


def test_a_truncated_file_is_named(tmp_path):
    table(tmp_path)
    path = save_nifti(tmp_path / "sub-1_dseg.nii", labels())
    path.write_bytes(path.read_bytes()[:400])
    with pytest.raises(StoreError, match=r"sub-1_dseg\.nii: not a readable NIfTI"):
        open_set(tmp_path, FRAME)


def test_a_volume_of_background_is_refused(tmp_path):
    table(tmp_path)
    ids = np.zeros((*SHAPE, 4), np.uint8)
    ids[3, 3, 1] = 1
    save_nifti(tmp_path / "sub-1_dseg.nii.gz", ids)
    with pytest.raises(GeometryError, match="no axial slice has 31 voxels of brain"):
        open_set(tmp_path, FRAME)


# which of them


def test_other_folders_are_refused(tmp_path):
    with pytest.raises(RequestError, match="no such folder"):
        open_set(tmp_path / "nowhere", FRAME)
    with pytest.raises(RequestError, match=r"not a dataset; expected manifest\.json"):
        open_set(tmp_path, FRAME)


def test_facts_tell_the_licence(nnunet, tmp_path):
    assert dict(facts_of(nnunet))["licence"] == "CC0"
    assert dict(facts_of(tmp_path))["licence"] == "not stated by the dataset"
