"""The images that a style is fitted on."""

import numpy as np
import phantoms
import pytest

from synthgen.core.errors import GeometryError, RequestError, StoreError
from synthgen.data.prepare import PrepareSettings, prepare
from synthgen.data.store import TrainingStore
from synthgen.data.style_images import FULL_SLICE, find_images, read_slices

SHAPE = (64, 96)


def slices_of(path, modality="flair"):
    (scan,) = find_images([path], "mine", modality)
    return read_slices(scan, modality, SHAPE)


def test_folders_give_the_images_of_the_modality_and_files_are_taken_as_they_are(tmp_path):
    phantoms.save_maps(tmp_path / "set", "sub-01")
    phantoms.save_maps(tmp_path / "set", "sub-02", names=("T1w",))
    plain = phantoms.save(tmp_path / "scan.nii.gz", phantoms.image())
    flair = tmp_path / "set/sub-01/anat/sub-01_FLAIR.nii.gz"
    scans = find_images([plain, tmp_path / "set", flair], "mine", "flair")
    assert [scan.id for scan in scans] == ["mine/scan", "mine/sub-01"]
    assert scans[1].images["flair"] == flair
    assert scans[0].brain is None
    assert scans[1].brain.name == "sub-01_desc-brain_mask.nii.gz"
    assert [s.id for s in find_images([tmp_path / "set"], "mine", "t1")] == [
        "mine/sub-01",
        "mine/sub-02",
    ]


def test_a_brain_mask_beside_the_images_lets_a_skull_be(tmp_path):
    whole = np.where(phantoms.image() == 0, 300, phantoms.image())
    folder = tmp_path / "set"
    phantoms.save(folder / "sub-01_FLAIR.nii.gz", whole)
    with pytest.raises(StoreError, match=r"sub-01_FLAIR.*not skull-stripped.*strip the skull"):
        slices_of(folder)
    with pytest.raises(StoreError, match="not skull-stripped"):
        slices_of(folder / "sub-01_FLAIR.nii.gz")
    phantoms.save(folder / "sub-01_desc-brain_mask.nii.gz", phantoms.radius() < 1)
    bare = phantoms.save(tmp_path / "stripped_FLAIR.nii.gz", phantoms.image())
    np.testing.assert_array_equal(slices_of(folder), slices_of(bare))


def test_slices_are_those_that_training_sees(tmp_path):
    """The same images as the store's, where its slices show enough brain."""
    levels = (0.1, 0.7, 0.5)
    folder = tmp_path / "set"
    phantoms.save_labels(folder, "sub-01")
    phantoms.save(folder / "sub-01_FLAIR.nii.gz", phantoms.image(levels=levels))
    prepare([str(folder)], tmp_path / "store", PrepareSettings(shape=SHAPE, min_area=1))
    with TrainingStore.open(tmp_path / "store") as store:
        stored = np.stack([store.image(row) for row in range(len(store.image_pv_index))])
    area = (phantoms.image() > 0).sum(axis=(0, 1))
    enough = area[area > 0] >= FULL_SLICE * area.max()
    mine = (slices_of(folder / "sub-01_FLAIR.nii.gz") + 1) / 2
    assert mine.shape == (enough.sum(), 1, *SHAPE)
    theirs = stored[enough]
    both = (mine > 0) & (theirs > 0)
    assert both.sum() > 0.95 * (mine > 0).sum()
    # The store keeps float16, and its brain mask, from labels, is not quite the image's.
    assert np.abs(mine - theirs)[both].max() < 0.02


def test_range_and_background(tmp_path):
    slices = slices_of(phantoms.save(tmp_path / "x_FLAIR.nii", phantoms.image()))
    assert slices.dtype == np.float32
    assert slices.max() == 1
    assert (slices[:, :, 0] == -1).all()


@pytest.mark.parametrize("axis", [0, 1, 2])
def test_orientation_in_the_file_does_not_matter(tmp_path, axis):
    plain = phantoms.save(tmp_path / "a_FLAIR.nii", phantoms.image())
    flipped = phantoms.affine()
    flipped[:3, 3] += flipped[:3, axis] * (phantoms.SHAPE[axis] - 1)
    flipped[:3, axis] *= -1
    other = phantoms.save(tmp_path / "b_FLAIR.nii", np.flip(phantoms.image(), axis), flipped)
    np.testing.assert_array_equal(slices_of(plain), slices_of(other))


def test_a_thick_slice_is_one_slice(tmp_path):
    matrix = phantoms.affine()
    matrix[2, 2] = 5
    path = phantoms.save(tmp_path / "x_FLAIR.nii", phantoms.image()[:, :, 12:13], matrix)
    assert slices_of(path).shape == (1, 1, *SHAPE)


def test_coarse_voxels_are_resampled_to_1_mm(tmp_path):
    path = phantoms.save(tmp_path / "x_FLAIR.nii", phantoms.image(), phantoms.affine(2.0))
    with pytest.raises(GeometryError, match=r"x_FLAIR.*brain measures \d+ x \d+ voxels"):
        slices_of(path)
    small = phantoms.image((20, 24, 12))
    path = phantoms.save(tmp_path / "y_FLAIR.nii", small, phantoms.affine(2.0))
    area = (slices_of(path) > -1).sum(axis=(1, 2, 3)).max()
    assert area == pytest.approx(4 * (small > 0).sum(axis=(0, 1)).max(), rel=0.05)


def test_wrong_sources_are_named(tmp_path):
    t1 = phantoms.save(tmp_path / "set/sub-01_T1w.nii.gz", phantoms.image())
    with pytest.raises(RequestError, match=r"sub-01_T1w.nii.gz: its name says t1.*of flair"):
        find_images([t1], "mine", "flair")
    with pytest.raises(StoreError, match="set: no flair image; expected names like"):
        find_images([tmp_path / "set"], "mine", "flair")
    with pytest.raises(RequestError, match=r"absent.nii: no such file or folder"):
        find_images([tmp_path / "absent.nii"], "mine", "flair")
