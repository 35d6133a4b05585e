"""Volumes in, label maps out: orientation, grid and affine stay those of the file."""

import itertools

import nibabel as nib
import numpy as np
import pytest
from stub_segmenter import Brightness, use

from synthgen.core.errors import GeometryError, RequestError, StoreError
from synthgen.data.nifti import normalise, read_labels, write_labels_like
from synthgen.segment.masks import harden, label_table
from synthgen.segment.volumes import segment_volume

SHAPE = (9, 12, 7)
TURNED = [*itertools.permutations(range(3))]


def affine(order=(0, 1, 2), signs=(1, 1, 1), spacing=(1.0, 1.0, 1.0), oblique=0.0):
    """Return voxel axes that run along the world's in another order, turned a little."""
    matrix = np.zeros((4, 4))
    for column, row in enumerate(order):
        matrix[row, column] = signs[column] * spacing[column]
    cos, sin = np.cos(oblique), np.sin(oblique)
    matrix[:3] = np.array([[cos, -sin, 0], [sin, cos, 0], [0, 0, 1]]) @ matrix[:3]
    matrix[:, 3] = -31.0, 17.5, 4.25, 1.0
    return matrix


def write(path, data, matrix, **header):
    image = nib.Nifti1Image(data, matrix)
    image.set_sform(matrix, 1)
    image.set_qform(matrix, 1)
    image.header.set_xyzt_units("mm")
    for name, value in header.items():
        image.header[name] = value
    nib.save(image, path)
    return path


def volume(shape=SHAPE, seed=0):
    """Return int16 grey values, whole slices of which are dark along every axis."""
    data = np.random.default_rng(seed).integers(1, 1000, shape).astype(np.int16)
    data[0] = data[:, -1] = data[..., 0] = 0
    return data


@pytest.mark.parametrize("spatial_dims", [2, 3])
@pytest.mark.parametrize("order", TURNED)
def test_any_axes_come_back_with_exactly_the_thresholded_voxels(tmp_path, order, spatial_dims):
    signs = [1 if (axis + order[0]) % 2 else -1 for axis in range(3)]
    data, matrix = volume(), affine(order, signs, oblique=0.3)
    path = write(tmp_path / "a.nii.gz", data, matrix, descrip=b"scan", cal_max=900)
    found = segment_volume(Brightness(use(spatial_dims=spatial_dims)), [path])
    write_labels_like(tmp_path / "mask.nii.gz", found, path)
    mask, source = nib.load(tmp_path / "mask.nii.gz"), nib.load(path)
    assert np.array_equal(np.asarray(mask.dataobj), normalise(data) > 0.5)
    assert mask.shape == source.shape
    assert mask.get_data_dtype() == np.uint8
    assert np.array_equal(mask.affine, source.affine)
    for name in ("qform_code", "sform_code", "xyzt_units"):
        assert mask.header[name] == source.header[name]
    assert mask.header["cal_max"] == 0


def test_the_file_has_no_time_in_it_and_may_be_of_one_volume_in_four_dimensions(tmp_path):
    path = write(tmp_path / "a.nii.gz", volume()[..., None], affine())
    labels = segment_volume(Brightness(use()), [path])
    for name in ("x.nii.gz", "y.nii.gz"):
        write_labels_like(tmp_path / name, labels, path)
    assert (tmp_path / "x.nii.gz").read_bytes() == (tmp_path / "y.nii.gz").read_bytes()
    assert nib.load(tmp_path / "x.nii.gz").shape == (*SHAPE, 1)
    with pytest.raises(StoreError, match="could not be written"):
        write_labels_like(tmp_path / "nowhere/x.nii.gz", labels, path)


def test_slices_have_keys_of_their_own_and_blank_ones_are_background(tmp_path):
    path = write(tmp_path / "a.nii.gz", volume(), affine())
    segmenter = Brightness(use(spatial_dims=2), dark=True)
    labels = segment_volume(segmenter, [path], seed=7)
    assert segmenter.keys == [(7, z) for z in range(1, SHAPE[2])]
    assert {shape[1:] for shape in segmenter.shapes} == {(1, *SHAPE[:2])}
    assert not labels[..., 0].any()
    assert labels[0, :, 1:].all()


@pytest.mark.parametrize("axis", range(3))
def test_a_file_of_one_slice_is_that_slice(tmp_path, axis):
    grey = np.random.default_rng(0).integers(1, 1000, (9, 12, 1)).astype(np.int16)
    data = np.moveaxis(grey, 2, axis)
    spacing = np.ones(3)
    spacing[axis] = 999
    path = write(tmp_path / "a.nii.gz", data, affine(spacing=spacing))
    segmenter = Brightness(use(spatial_dims=2))
    labels = segment_volume(segmenter, [path])
    assert segmenter.shapes == [(1, 1, *(s for s in data.shape if s > 1))]
    assert np.array_equal(labels, normalise(data) > 0.5)


def ball(shape, spacing):
    """Return a bright ball of 20 mm on dark ground, sampled with a spacing, its edge soft."""
    axes = [(np.arange(n) - (n - 1) / 2) * s for n, s in zip(shape, spacing, strict=True)]
    radius = np.sqrt(sum(a**2 for a in np.meshgrid(*axes, indexing="ij")))
    return (100 + 900 * np.clip(10.5 - radius, 0, 1)).astype(np.float32), radius


@pytest.mark.parametrize("spatial_dims", [2, 3])
@pytest.mark.parametrize("wanted", [0.8, 2.0])
def test_another_voxel_size_is_resampled_there_and_back(tmp_path, wanted, spatial_dims):
    shape, spacing = (40, 32, 14), (1.0, 1.25, 2.5)
    data, radius = ball(shape, spacing)
    path = write(tmp_path / "a.nii.gz", data, affine(spacing=spacing))
    segmenter = Brightness(use(spatial_dims=spatial_dims, spacing_mm=(wanted,) * spatial_dims))
    labels = segment_volume(segmenter, [path])
    plane = tuple(round(n * s / wanted) for n, s in zip(shape, spacing, strict=True))
    assert segmenter.shapes[0][2:] == plane[:spatial_dims]
    assert labels.shape == shape
    truth = radius < 10
    assert 2 * (labels & truth).sum() / (labels.sum() + truth.sum()) > 0.93
    middle = [float(np.mean(index)) for index in np.nonzero(labels)]
    assert middle == pytest.approx([(n - 1) / 2 for n in shape], abs=0.05)


def test_channels_are_seen_together_and_must_share_a_grid(tmp_path):
    paths = [
        write(tmp_path / f"{name}.nii.gz", volume(seed=k), affine())
        for k, name in enumerate(("t1", "flair"))
    ]
    segmenter = Brightness(use(channels=("t1", "flair")))
    segment_volume(segmenter, paths)
    assert segmenter.shapes == [(1, 2, *SHAPE)]
    write(paths[1], volume(), affine(spacing=(1, 1, 2)))
    with pytest.raises(GeometryError, match=r"flair.nii.gz: its affine differs"):
        segment_volume(segmenter, paths)
    with pytest.raises(RequestError, match="with channels t1, flair"):
        segment_volume(segmenter, paths[:1])


def test_a_model_of_photographs_takes_no_volume(tmp_path):
    path = write(tmp_path / "a.nii.gz", volume(), affine())
    with pytest.raises(RequestError, match=r"a.nii.gz: the model was trained on photographs"):
        segment_volume(Brightness(use(spatial_dims=2, spacing_mm=())), [path])


# labels and their names


@pytest.mark.parametrize("overlapping", [False, True])
def test_names_and_values_of_label_maps_agree(overlapping):
    names = ("a", "b", "c")
    levels = (0.2, 0.5, 0.8)
    found = use(*names, overlapping=overlapping)
    image = np.linspace(0, 1, 11, dtype=np.float32)
    above = np.stack([image > level for level in levels])
    if overlapping:
        labels = harden(above.astype(np.float32), found)
    else:
        place = above.sum(axis=0)
        labels = harden((np.arange(4)[:, None] == place).astype(np.float32), found)
    table = label_table(found)
    assert table["background"] == 0
    for k, name in enumerate(names):
        wanted = above[k] if overlapping else above.sum(axis=0) == k + 1
        assert np.array_equal(np.isin(labels, table[name]), wanted)


def test_one_tissue_is_found_above_the_threshold():
    p = np.asarray([[0.9, 0.5, 0.2], [0.1, 0.5, 0.8]], np.float32)
    assert harden(p, use()).tolist() == [0, 0, 1]
    assert harden(p, use(), 0.05).tolist() == [1, 1, 1]
    assert label_table(use(), largest=255) == {"background": 0, "bright": 255}


def test_nine_regions_do_not_fit():
    found = use(*"abcdefghi", overlapping=True)
    with pytest.raises(RequestError, match="at most 8 overlapping regions, the model finds 9"):
        harden(np.zeros((9, 2, 2), np.float32), found)


def test_labels_of_the_written_file_are_read_back(tmp_path):
    path = write(tmp_path / "a.nii.gz", volume(), affine((2, 0, 1), (-1, 1, -1)))
    labels = segment_volume(Brightness(use("a", "b"), levels=(0.3, 0.6)), [path])
    write_labels_like(tmp_path / "m.nii.gz", labels, path)
    assert np.array_equal(read_labels(tmp_path / "m.nii.gz").data, labels)
