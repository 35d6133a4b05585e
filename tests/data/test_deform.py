"""Deformations of volumes: what they do to coordinates, and that nothing folds."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from synthgen.core.errors import RequestError
from synthgen.core.rng import SampleKey, Stream
from synthgen.data.deform import Warp, WarpRange, read_at

EXTENT = (60.0, 80.0, 50.0)
AXES = [np.linspace(-e / 2, e / 2, n) for e, n in zip(EXTENT, (31, 41, 26), strict=True)]


def rng(index):
    return SampleKey(3, index).numpy(Stream.AUGMENT)


def identity():
    return np.stack(np.meshgrid(*AXES, indexing="ij"))


def test_no_range_is_the_identity():
    points = Warp.draw(rng(0), WarpRange(), EXTENT).points(AXES).numpy()
    np.testing.assert_allclose(points, identity(), atol=1e-4)  # float32


def test_affine_part_is_the_matrix_and_the_shift():
    limits = WarpRange(rotate_deg=20, scale=0.2, shear=0.1, shift_mm=5, flip_probability=0.5)
    for index in range(6):
        warp = Warp.draw(rng(index), limits, EXTENT)
        wanted = np.einsum("ij,jxyz->ixyz", warp.matrix, identity())
        wanted += warp.shift_mm[:, None, None, None]
        np.testing.assert_allclose(warp.points(AXES).numpy(), wanted, atol=1e-3)
        assert np.abs(warp.shift_mm).max() <= 5
        # Two shears of 0.1 at most change a volume's size little.
        assert 0.8**3 * 0.9 < abs(np.linalg.det(warp.matrix)) < 1.2**3 * 1.1


def test_half_of_the_brains_are_mirrored():
    limits = WarpRange(flip_probability=0.5)
    signs = [np.sign(np.linalg.det(Warp.draw(rng(i), limits, EXTENT).matrix)) for i in range(60)]
    assert 18 < signs.count(-1) < 42


def test_equal_coefficients_move_everything_alike():
    """B-splines sum to 1 wherever four of them meet."""
    warp = Warp.draw(rng(0), WarpRange(elastic_mm=4, grid_mm=16), EXTENT)
    control = np.broadcast_to(np.array([1.0, -2.0, 3.0])[:, None, None, None], warp.control.shape)
    moved = Warp(np.eye(3), np.zeros(3), control.copy(), 16.0).points(AXES).numpy() - identity()
    for axis, wanted in enumerate((1.0, -2.0, 3.0)):
        np.testing.assert_allclose(moved[axis], wanted, atol=1e-4)


@pytest.mark.parametrize("index", range(4))
def test_the_strongest_splines_do_not_fold(index):
    limits = WarpRange(elastic_mm=0.4 * 16, grid_mm=16)
    warp = Warp.draw(rng(index), limits, EXTENT)
    full = Warp(warp.matrix, warp.shift_mm, np.sign(warp.control) * 0.4 * 16, 16.0)
    points = full.points(AXES).numpy().astype(np.float64)
    steps = [axis[1] - axis[0] for axis in AXES]
    jacobian = np.stack([np.stack(np.gradient(p, *steps)) for p in points])  # (3, 3, *S)
    determinant = np.linalg.det(np.moveaxis(jacobian.reshape(9, -1), -1, 0).reshape(-1, 3, 3))
    assert determinant.min() > 0


@pytest.mark.parametrize("limits", [{"elastic_mm": 13.0}, {"elastic_mm": -1.0}, {"scale": 1.0}])
def test_ranges_that_may_fold_are_refused(limits):
    with pytest.raises(RequestError, match=r"elastic_mm in \[0, 12.8\]"):
        WarpRange(**limits)


def test_read_at_is_linear_and_zero_outside():
    x, y, z = np.meshgrid(np.arange(5.0), np.arange(4.0), np.arange(6.0), indexing="ij")
    maps = torch.from_numpy(np.stack([x + 10 * y + 100 * z, np.ones_like(x)])).float()
    places = torch.tensor([[1.5, 0.25, 4.0, -2.0], [2.0, 1.75, 3.0, 1.0], [3.25, 0.5, 5.0, 1.0]])
    values, ones = read_at(maps, places.reshape(3, 4, 1, 1))[:, :, 0, 0]
    wanted = places[0] + 10 * places[1] + 100 * places[2]
    torch.testing.assert_close(values[:3], wanted[:3], rtol=1e-4, atol=1e-3)
    assert (values[3], ones[3]) == (0, 0)
    torch.testing.assert_close(ones[:3], torch.ones(3), rtol=1e-5, atol=1e-5)
