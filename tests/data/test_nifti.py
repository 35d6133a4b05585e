import gzip

import nibabel as nib
import numpy as np
import pytest

from synthgen.core.errors import GeometryError, SchemaError, StoreError
from synthgen.data.nifti import read_image, read_labels, read_maps, read_mask


def test_slope_is_honoured(tmp_path, phantoms):
    stored = np.arange(24, dtype=np.int16).reshape(2, 3, 4)
    picture = nib.Nifti1Image(stored, phantoms.affine())
    picture.header.set_slope_inter(0.25, 1)
    nib.save(picture, tmp_path / "a.nii.gz")

    volume = read_image(tmp_path / "a.nii.gz")

    assert volume.data.dtype == np.float32
    np.testing.assert_array_equal(volume.data, stored * 0.25 + 1)


def test_any_orientation_becomes_ras(tmp_path, phantoms):
    ras = phantoms.image()
    flipped = phantoms.affine()
    flipped[0, 0], flipped[0, 3] = -1, flipped[0, 3] + ras.shape[0] - 1
    path = phantoms.save(tmp_path / "las.nii.gz", ras[::-1], flipped)

    volume = read_image(path)

    np.testing.assert_array_equal(volume.data, ras)
    np.testing.assert_allclose(volume.grid.matrix(), phantoms.affine())


def test_trailing_axis_of_one_is_a_3d_volume(tmp_path, phantoms):
    path = phantoms.save(tmp_path / "a.nii.gz", phantoms.image()[..., None])
    assert read_image(path).data.shape == phantoms.SHAPE


def test_maps_put_the_last_axis_first(tmp_path, phantoms):
    fine, _ = phantoms.maps()
    path = phantoms.save(tmp_path / "fine.nii.gz", np.moveaxis(fine, 0, -1))
    np.testing.assert_array_equal(read_maps(path).data, fine)


def test_4d_image_is_refused(tmp_path, phantoms):
    path = phantoms.save(tmp_path / "bold.nii.gz", np.ones((4, 5, 6, 3), np.float32))
    with pytest.raises(GeometryError, match=r"bold\.nii\.gz: expected a 3-D volume, got .*6, 3"):
        read_image(path)


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_nan_and_infinity_are_refused_with_the_voxel(tmp_path, bad, phantoms):
    data = phantoms.image()
    data[3, 4, 5] = bad
    path = phantoms.save(tmp_path / "a.nii.gz", data)
    with pytest.raises(StoreError, match=r"a\.nii\.gz: 1 voxels are NaN or infinite.*\(3, 4, 5\)"):
        read_image(path)


@pytest.mark.parametrize("value", [0, 7])
def test_constant_volume_is_refused(tmp_path, value, phantoms):
    path = phantoms.save(tmp_path / "a.nii.gz", np.full((4, 5, 6), value, np.float32))
    with pytest.raises(StoreError, match=rf"a\.nii\.gz: the volume is empty.*{value}"):
        read_image(path)


def test_empty_mask_is_allowed(tmp_path, phantoms):
    path = phantoms.save(tmp_path / "m.nii.gz", np.zeros((4, 5, 6), np.uint8))
    assert not read_mask(path).data.any()


def test_labels_must_be_integers(tmp_path, phantoms):
    path = phantoms.save(tmp_path / "dseg.nii.gz", phantoms.labels() * np.float32(0.3))
    with pytest.raises(SchemaError, match=r"dseg\.nii\.gz: label ids must be integers"):
        read_labels(path)


def test_truncated_file_is_refused(tmp_path, phantoms):
    path = phantoms.save(tmp_path / "a.nii.gz", phantoms.image())
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    with pytest.raises(StoreError, match=r"a\.nii\.gz: not a readable NIfTI"):
        read_image(path)


def test_truncated_uncompressed_file_is_refused(tmp_path, phantoms):
    path = phantoms.save(tmp_path / "a.nii", phantoms.image())
    path.write_bytes(path.read_bytes()[:5000])
    with pytest.raises(StoreError, match=r"a\.nii: not a readable NIfTI"):
        read_image(path)


def test_bit_flip_in_compressed_data_is_refused(tmp_path, phantoms):
    path = phantoms.save(tmp_path / "a.nii.gz", phantoms.image())
    raw = bytearray(path.read_bytes())
    raw[len(raw) // 2] ^= 0x10
    path.write_bytes(bytes(raw))
    with pytest.raises(StoreError, match=r"a\.nii\.gz"):
        read_image(path)


@pytest.mark.parametrize(
    "content",
    [b"", b"not an image", gzip.compress(b"nor this", mtime=0)],
    ids=["empty", "text", "gzip"],
)
def test_foreign_file_is_refused(tmp_path, content):
    path = tmp_path / "a.nii.gz"
    path.write_bytes(content)
    with pytest.raises(StoreError, match=r"a\.nii\.gz"):
        read_image(path)


def test_missing_file_is_named(tmp_path):
    with pytest.raises(StoreError, match=r"gone\.nii\.gz: no such file"):
        read_image(tmp_path / "gone.nii.gz")


def test_absurd_shape_is_refused_before_reading(tmp_path, phantoms):
    path = phantoms.save(tmp_path / "a.nii", np.ones((4, 5, 6), np.uint8))
    raw = bytearray(path.read_bytes())
    raw[42:48] = np.asarray([30000, 30000, 30000], np.int16).tobytes()  # dim[1..3]
    path.write_bytes(bytes(raw))
    with pytest.raises(GeometryError, match=r"a\.nii: its header says shape \(30000"):
        read_image(path)


@pytest.mark.parametrize("spacing", [50.0, 1e-5])
def test_absurd_voxel_size_is_refused(tmp_path, spacing, phantoms):
    path = phantoms.save(tmp_path / "a.nii.gz", phantoms.image(), phantoms.affine(spacing))
    with pytest.raises(GeometryError, match=r"a\.nii\.gz: its header says a voxel of"):
        read_image(path)


def test_singular_affine_is_refused(tmp_path, phantoms):
    matrix = phantoms.affine()
    matrix[:3, 1] = matrix[:3, 0]
    picture = nib.Nifti1Image(phantoms.image(), None)
    picture.header.set_sform(matrix, code=1)
    nib.save(nib.Nifti1Image(phantoms.image(), None, picture.header), tmp_path / "a.nii.gz")
    with pytest.raises(GeometryError, match=r"a\.nii\.gz"):
        read_image(tmp_path / "a.nii.gz")
