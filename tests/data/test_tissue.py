"""PV maps from labels, their storage, trimming and scaling."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import ndimage

from synthgen.core.errors import GeometryError, SchemaError
from synthgen.core.rng import SampleKey, Stream
from synthgen.data.tissue import (
    labels_to_pv,
    quantize_batch,
    quantize_pv,
    resample_image,
    resample_pv,
    robust_scale,
    trim_csf,
)

MM = (1.0, 1.0, 1.0)


def rng(index=0):
    return SampleKey(5, index).numpy(Stream.AUGMENT)


def random_pv(channels=9, shape=(7, 8, 9), index=0):
    return rng(index).dirichlet(np.full(channels, 0.3), shape).transpose(3, 0, 1, 2)


def ball(shape, center, radius):
    grid = np.indices(shape) - np.reshape(center, (3, 1, 1, 1))
    return (grid**2).sum(axis=0) <= radius**2


# quantize_pv


@pytest.mark.parametrize("channels", [2, 3, 9])
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_stored_maps_sum_to_255_within_one_step(channels, dtype):
    for index in range(5):
        pv = random_pv(channels, index=index).astype(dtype)
        stored = quantize_pv(pv)
        assert stored.dtype == np.uint8
        assert (stored.astype(int).sum(axis=0) == 255).all()
        assert np.abs(stored / 255 - pv).max() <= 1 / 255 + 1e-6


def test_largest_remainder_by_hand():
    # 255 * (0.5, 0.3, 0.2) = 127.5, 76.5, 51.0: one is missing; the first of the ties gets it.
    assert quantize_pv(np.array([[0.5], [0.3], [0.2]]))[:, 0].tolist() == [128, 76, 51]
    # 254.4, 0.6: the larger remainder wins although its share is small.
    pv = np.array([[254.4], [0.6]]) / 255
    assert quantize_pv(pv)[:, 0].tolist() == [254, 1]


def test_stored_maps_are_a_fixed_point():
    stored = quantize_pv(random_pv())
    assert (quantize_pv(stored / np.float32(255)) == stored).all()


def test_quantization_against_a_slow_oracle():
    pv = random_pv(5, (4, 4, 4))
    stored = quantize_pv(pv)
    for voxel in np.ndindex(4, 4, 4):
        exact = pv[(slice(None), *voxel)] * 255
        expected = np.floor(exact).astype(int)
        for c in sorted(range(5), key=lambda c: expected[c] - exact[c])[: 255 - expected.sum()]:
            expected[c] += 1
        assert stored[(slice(None), *voxel)].tolist() == expected.tolist()


def test_a_batch_is_stored_map_by_map():
    pv = np.stack([random_pv(4, index=index) for index in range(3)])
    stored = quantize_batch(pv)
    assert stored.flags.c_contiguous
    np.testing.assert_array_equal(stored, np.stack([quantize_pv(one) for one in pv]))


@pytest.mark.parametrize("bad", [np.nan, -0.2, 1.3])
def test_quantization_refuses_what_is_no_partial_volume(bad):
    pv = np.zeros((2, 3, 4))
    pv[0] = 1
    pv[:, 1, 2] = bad, 1 - bad if bad > 1 else 0.5
    with pytest.raises(SchemaError, match=r"voxel \(1, 2\)"):
        quantize_pv(pv)


# labels_to_pv


def test_labels_become_maps_that_sum_to_one():
    labels = rng().integers(0, 4, (12, 13, 14)) * 10
    pv = labels_to_pv(labels, {0: 0, 10: 1, 20: 2, 30: 1}, 4, spacing_mm=MM)
    assert pv.dtype == np.float32
    assert np.abs(pv.sum(axis=0) - 1).max() < 1e-6
    assert pv.min() >= 0
    assert pv[3].max() == 0


def test_each_channel_is_its_filtered_indicator():
    labels = rng().integers(0, 3, (10, 11, 12))
    spacing = (1.0, 0.8, 3.0)
    pv = labels_to_pv(labels, {0: 0, 1: 1, 2: 2}, 3, spacing_mm=spacing, sigma_mm=0.7)
    for c in range(3):
        oracle = ndimage.gaussian_filter(
            (labels == c).astype(np.float64), [0.7 / s for s in spacing], mode="nearest"
        )
        assert np.allclose(pv[c], oracle, atol=1e-6)


def test_a_flat_border_is_antisymmetric_and_soft():
    labels = np.zeros((20, 3, 3), dtype=int)
    labels[10:] = 1
    profile = labels_to_pv(labels, {0: 0, 1: 1}, 2, spacing_mm=MM)[1, :, 1, 1]
    assert np.allclose(profile + profile[::-1], 1, atol=1e-6)
    assert 0.1 < profile[9] < 0.35
    assert profile[6] < 1e-3


def test_without_a_filter_maps_are_one_hot():
    labels = rng().integers(0, 3, (5, 5, 5))
    pv = labels_to_pv(labels, {0: 0, 1: 1, 2: 2}, 3, spacing_mm=MM, sigma_mm=0)
    assert (pv == (labels == np.arange(3)[:, None, None, None])).all()


def test_labels_without_an_entry_are_named_and_counted():
    labels = np.zeros((4, 4, 4), dtype=int)
    labels[0, 0, :3], labels[1, 1, 1] = 77, 99
    with pytest.raises(SchemaError, match=r"77 \(3 voxels\), 99 \(1 voxels\)"):
        labels_to_pv(labels, {0: 0, 1: 1}, 2, spacing_mm=MM)


def test_channel_out_of_range_is_refused():
    with pytest.raises(SchemaError, match="channel 5"):
        labels_to_pv(np.ones((2, 2, 2), dtype=int), {1: 5}, 3, spacing_mm=MM)
    with pytest.raises(GeometryError, match="3 positive voxel sizes"):
        labels_to_pv(np.zeros((2, 2, 2), dtype=int), {0: 0}, 2, spacing_mm=(1, 1))


# trim_csf


def head():
    """A ball of tissue with a ventricle, CSF around it, a CSF tail and an island of tissue."""
    shape = (64, 64, 80)
    labels = np.zeros(shape, dtype=int)
    labels[30:35, 30:35, :25] = 1  # spinal canal
    labels[ball(shape, (32, 32, 44), 27)] = 1  # CSF far around
    labels[ball(shape, (32, 32, 44), 18)] = 2
    labels[ball(shape, (32, 32, 44), 5)] = 1  # ventricle
    labels[2:4, 2:4, 2:4] = 2  # stray tissue
    labels[60, 60, 10:20] = 1  # stray CSF
    labels[32:34, 32:34, 52:54] = 0  # a vessel counts as background
    return labels


def trimmed(**settings):
    pv = labels_to_pv(head(), {0: 0, 1: 1, 2: 2}, 3, spacing_mm=MM)
    return pv, trim_csf(pv, MM, **settings)


def test_trimming_keeps_the_brain_and_a_rim():
    pv, out = trimmed(reach_mm=2.5)
    assert np.abs(out.sum(axis=0) - 1).max() < 1e-6
    assert out.min() >= 0
    near = ball(pv.shape[1:], (32, 32, 44), 19)
    near[31:35, 31:35, 51:55] = False
    assert np.allclose(out[:, near], pv[:, near], atol=1e-6)
    far = ~ball(pv.shape[1:], (32, 32, 44), 18 + 2.5 + 2)
    assert np.abs(out[0][far] - 1).max() < 1e-6


def test_small_gaps_in_the_brain_become_fluid():
    pv, out = trimmed()
    assert pv[0, 32, 32, 52] > 0.5
    assert out[0, 32, 32, 52] == 0
    assert out[1, 32, 32, 52] > 0.5


def test_trimming_does_not_change_its_argument_and_is_stable():
    pv, out = trimmed()
    again = trim_csf(out, MM)
    # Only the soft rim is cut a second time: x (1 - x) is at most 1/4.
    assert np.abs(again - out).max() <= 0.25
    assert np.abs(again - out)[2].max() < 1e-3
    assert pv[1, 32, 32, 3] > 0.5


def test_trimming_an_empty_head_is_refused():
    pv = np.zeros((3, 8, 8, 8), dtype=np.float32)
    pv[0] = 1
    with pytest.raises(GeometryError, match="no brain tissue"):
        trim_csf(pv, MM)


# robust_scale


def test_robust_maximum_becomes_one():
    brain = np.zeros((20, 20, 20), dtype=bool)
    brain[5:15, 5:15, 5:15] = True
    image = np.full(brain.shape, 1e6)
    image[brain] = np.arange(1000)
    scaled, scale = robust_scale(image, brain)
    assert scale == pytest.approx(999 * 0.995, rel=1e-6)
    assert scaled.dtype == np.float32
    assert scaled.max() == 1
    assert (scaled[~brain] == 0).all()
    assert np.allclose(scaled[brain], np.minimum(np.arange(1000) / scale, 1), atol=1e-6)


def test_scaling_ignores_units_and_negative_values_vanish():
    brain = np.ones((6, 6, 6), dtype=bool)
    image = rng().normal(2, 1, brain.shape)
    a, _ = robust_scale(image, brain)
    b, _ = robust_scale(image * 250, brain)
    assert np.allclose(a, b, atol=1e-6)
    assert a.min() == 0


@pytest.mark.parametrize(
    ("value", "message"), [(np.nan, "NaN"), (0.0, "positive"), (-3.0, "positive")]
)
def test_unusable_intensities_are_refused(value, message):
    brain = np.ones((3, 3, 3), dtype=bool)
    with pytest.raises(GeometryError, match=rf"t1\.nii: .*{message}"):
        robust_scale(np.full((3, 3, 3), value), brain, where="t1.nii")


def test_empty_mask_and_foreign_shape_are_refused():
    with pytest.raises(GeometryError, match="empty"):
        robust_scale(np.ones((3, 3, 3)), np.zeros((3, 3, 3), dtype=bool))
    with pytest.raises(GeometryError, match=r"\(3, 3, 3\).*\(3, 3, 2\)"):
        robust_scale(np.ones((3, 3, 2)), np.ones((3, 3, 3), dtype=bool))


# resampling


def test_resampling_to_the_same_spacing_is_the_identity():
    pv, affine = random_pv().astype(np.float32), np.eye(4)
    same, where = resample_pv(pv, affine)
    assert same is pv
    assert where is affine


def test_resampled_maps_sum_to_one_at_the_right_place():
    pv = random_pv(4, (6, 7, 5)).astype(np.float32)
    affine = np.diag([2.0, 1.0, 3.0, 1.0])
    affine[:3, 3] = 10, -20, 5
    out, where = resample_pv(pv, affine)
    assert out.shape == (4, 12, 7, 15)
    assert np.abs(out.sum(axis=0) - 1).max() < 1e-6
    assert np.allclose(np.linalg.norm(where[:3, :3], axis=0), 1)
    old = affine @ [*(np.asarray(pv.shape[1:]) - 1) / 2, 1]
    new = where @ [*(np.asarray(out.shape[1:]) - 1) / 2, 1]
    assert np.allclose(old, new)  # the field of view keeps its centre


def test_a_linear_ramp_survives_resampling():
    affine = np.diag([2.0, 2.0, 2.0, 1.0])
    affine[:3, 3] = -7
    world = 2.0 * np.indices((10, 10, 10))[0] - 7
    out, where = resample_image(world.astype(np.float32), affine)
    expected = np.indices(out.shape)[0] + where[0, 3]
    inner = (slice(4, -4),) * 3
    assert np.abs(out - expected)[inner].max() < 0.05  # cubic splines near a flat edge


def test_resampling_does_not_overshoot():
    image = (rng().random((8, 8, 8)) > 0.5).astype(np.float32)
    out, _ = resample_image(image, np.diag([1.7, 1.7, 1.7, 1.0]))
    assert out.min() >= 0
    assert out.max() <= 1


def test_unusable_affine_is_refused():
    with pytest.raises(GeometryError, match="affine"):
        resample_image(np.ones((3, 3, 3), dtype=np.float32), np.diag([1.0, 0.0, 1.0, 1.0]))
