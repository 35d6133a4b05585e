import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from synthgen.core.errors import GeometryError
from synthgen.core.geometry import Grid, choose_slices, crop_or_pad, slice_position

SIZE = st.integers(1, 9)


@given(size=st.tuples(SIZE, SIZE), grow=st.tuples(st.integers(0, 6), st.integers(0, 6)))
def test_crop_undoes_pad(size, grow):
    array = np.arange(size[0] * size[1], dtype=np.float32).reshape(1, *size) + 1
    larger = tuple(s + g for s, g in zip(size, grow, strict=True))
    padded = crop_or_pad(array, larger)
    assert padded.shape == (1, *larger)
    assert padded.sum() == array.sum()
    assert np.array_equal(crop_or_pad(padded, size), array)


@given(size=SIZE, wanted=SIZE, middle=st.integers(0, 8))
def test_centre_moves_to_the_middle(size, wanted, middle):
    middle = min(middle, size - 1)
    array = np.arange(size) + 1
    out = crop_or_pad(array, (wanted,), center=(middle,))
    assert out[wanted // 2] == array[middle]


def test_padding_takes_the_fill_value_and_leaves_the_input():
    array = np.zeros((2, 2), dtype=np.int16)
    out = crop_or_pad(array, (4, 4), fill=7)
    assert out.dtype == np.int16
    assert (out == 7).sum() == 12
    assert not array.any()


def test_grid_from_affine_has_spacing_in_mm():
    affine = np.diag([2.0, -3.0, 0.5, 1.0])
    grid = Grid.from_affine((4, 5, 6), affine)
    assert grid.spacing_mm == (2.0, 3.0, 0.5)
    assert np.array_equal(grid.matrix(), affine)


def test_other_shape_or_affine_is_named():
    grid = Grid.from_affine((4, 5, 6), np.eye(4))
    grid.require_same(Grid.from_affine((4, 5, 6), np.eye(4) + 1e-4), "x.nii")
    with pytest.raises(GeometryError, match=r"x\.nii: expected shape \(4, 5, 6\), got \(4, 5, 7\)"):
        grid.require_same(Grid.from_affine((4, 5, 7), np.eye(4)), "x.nii")
    with pytest.raises(GeometryError, match=r"x\.nii: its affine differs .* by 1"):
        grid.require_same(Grid.from_affine((4, 5, 6), 2 * np.eye(4)), "x.nii")


def test_slices_with_enough_brain_are_chosen():
    brain = np.zeros((10, 10, 6), dtype=bool)
    brain[:, :, 2:5] = True
    brain[0, 0, 1] = True
    slices, extent = choose_slices(brain, min_area=50)
    assert slices == [2, 3, 4]
    assert extent == (1, 4)
    assert choose_slices(brain, step=2, min_area=50)[0] == [2, 4]
    assert [slice_position(z, *extent) for z in (1, 4)] == [0.0, 1.0]


def test_empty_brain_is_refused():
    with pytest.raises(GeometryError, match="brain mask is empty"):
        choose_slices(np.zeros((4, 4, 4), dtype=bool))
