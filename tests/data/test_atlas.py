"""Atlas-guided tissue maps on a made-up head whose truth is known."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import ndimage

from synthgen.core.errors import GeometryError
from synthgen.core.rng import SampleKey, Stream
from synthgen.data.atlas import align_prior, atlas_tissue_maps

SHAPE = (40, 48, 40)
MEANS = {"t1": (0.2, 0.6, 0.9), "t2": (0.9, 0.5, 0.35)}


def head(center=(20, 24, 20), size=1.0, shape=SHAPE):
    """Return truth `(3, X, Y, Z)`: white core, wavy grey shell, CSF around; and the brain."""
    x, y, z = (np.indices(shape) - np.reshape(center, (3, 1, 1, 1))) / size
    radius = np.sqrt(x**2 + (y / 1.2) ** 2 + z**2)
    wave = 1.2 * np.cos(5 * np.arctan2(y, x))
    core = np.clip(9 + wave - radius + 0.5, 0, 1)
    shell = np.clip(13 + wave - radius + 0.5, 0, 1) - core
    brain = radius < 16
    return np.stack([1 - core - shell, shell, core]) * brain, brain


def images(truth, brain, noise=0.05, modalities=("t1", "t2")):
    rng = SampleKey(9, 0).numpy(Stream.RENDER)
    return {
        m: brain * (np.tensordot(MEANS[m], truth, axes=1) + rng.normal(0, noise, brain.shape))
        for m in modalities
    }


def prior_of(truth):
    return np.stack([ndimage.gaussian_filter(t, 2.0) for t in truth]).astype(np.float32)


def dice(a, b):
    return 2 * (a & b).sum() / (a.sum() + b.sum())


@pytest.mark.parametrize("modalities", [("t1",), ("t1", "t2")])
def test_maps_follow_the_truth(modalities):
    truth, brain = head()
    maps = atlas_tissue_maps(images(truth, brain, modalities=modalities), brain, prior_of(truth))
    assert maps.dtype == np.float32
    assert np.abs(maps.sum(axis=0)[brain] - 1).max() < 1e-5
    assert (maps[:, ~brain] == 0).all()
    for k in range(3):
        assert dice((maps.argmax(0) == k) & brain, (truth.argmax(0) == k) & brain) > 0.9
    # Mixed voxels are told from pure ones: the maps beat their own hard version.
    hard = np.eye(3)[maps.argmax(axis=0)].transpose(3, 0, 1, 2)
    assert np.abs(maps - truth)[:, brain].mean() < np.abs(hard - truth)[:, brain].mean()


def test_neighbourhood_term_removes_speckles():
    truth, brain = head()
    noisy = images(truth, brain, noise=0.15, modalities=("t1",))
    without = atlas_tissue_maps(noisy, brain, prior_of(truth), coupling=0)
    with_it = atlas_tissue_maps(noisy, brain, prior_of(truth))
    expected = truth.argmax(axis=0)
    errors = [((m.argmax(axis=0) != expected) & brain).sum() for m in (without, with_it)]
    assert errors[1] < errors[0]


def test_maps_do_not_depend_on_units_and_are_deterministic():
    truth, brain = head()
    scans = images(truth, brain)
    prior = prior_of(truth)
    a = atlas_tissue_maps(scans, brain, prior)
    assert np.array_equal(a, atlas_tissue_maps(scans, brain, prior))
    b = atlas_tissue_maps({m: 300 * v for m, v in scans.items()}, brain, prior)
    assert np.abs(a - b).max() < 0.02


def test_voxels_beyond_the_atlas_get_a_tissue():
    truth, brain = head()
    prior = prior_of(truth)
    prior[:, :8] = 0
    maps = atlas_tissue_maps(images(truth, brain), brain, prior)
    assert np.abs(maps.sum(axis=0)[brain] - 1).max() < 1e-5


def test_bad_input_is_named():
    truth, brain = head()
    prior, scans = prior_of(truth), images(truth, brain)
    with pytest.raises(GeometryError, match="at least one image"):
        atlas_tissue_maps({}, brain, prior)
    with pytest.raises(GeometryError, match="empty"):
        atlas_tissue_maps(scans, np.zeros_like(brain), prior)
    with pytest.raises(GeometryError, match="t2: expected"):
        atlas_tissue_maps({"t1": scans["t1"], "t2": scans["t2"][1:]}, brain, prior)
    with pytest.raises(GeometryError, match="t1: NaN"):
        atlas_tissue_maps({"t1": np.where(brain, np.nan, 0)}, brain, prior)
    with pytest.raises(GeometryError, match="t1: constant"):
        atlas_tissue_maps({"t1": 0.5 * brain}, brain, prior)
    with pytest.raises(GeometryError, match="align_prior"):
        atlas_tissue_maps(scans, brain, prior[:, 1:])


def test_aligned_world_coordinates_are_enough():
    truth, brain = head()
    coarse = np.diag([2.0, 2.0, 2.0, 1.0])
    coarse[:3, 3] = 0.5
    half = truth.reshape(3, 20, 2, 24, 2, 20, 2).mean(axis=(2, 4, 6)).astype(np.float32)
    out = align_prior(half, coarse, brain, np.eye(4))
    assert out.shape == truth.shape
    plain = ndimage.affine_transform  # reading the atlas at the right place, by hand
    there = np.stack([plain(h, [0.5] * 3, -0.25, brain.shape, order=1) for h in half])
    loss = [np.abs(maps - truth)[:, brain].mean() for maps in (there, out)]
    assert loss[1] < loss[0] + 0.03  # the fit may turn a nearly round head a little


def test_moved_and_scaled_brain_is_found():
    truth, _ = head()
    moved, brain = head(center=(28, 18, 26), size=1.15, shape=(52, 52, 52))
    out = align_prior(truth.astype(np.float32), np.eye(4), brain, np.eye(4))
    assert dice(out.sum(axis=0) > 0.5, brain) > 0.9
    assert dice(out.argmax(0) * brain == 2, moved.argmax(0) * brain == 2) > 0.8


def test_atlas_of_something_else_is_refused():
    truth, _ = head()
    rod = np.zeros((60, 60, 60), dtype=bool)
    rod[29:31, 2:58, 29:31] = True
    with pytest.raises(GeometryError, match="overlaps the brain by a Dice"):
        align_prior(truth.astype(np.float32), np.eye(4), rod, np.eye(4))
    with pytest.raises(GeometryError, match="empty"):
        align_prior(truth.astype(np.float32), np.eye(4), np.zeros_like(rod), np.eye(4))
