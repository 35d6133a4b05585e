import math

import numpy as np
import pytest
from scipy import ndimage

from synthgen.benchmark.metrics import agreement, volume_rows
from synthgen.core.errors import GeometryError

SPACING = (1.0, 1.0, 3.0)


def box(first, last, shape=(20, 20, 20)):
    mask = np.zeros(shape, bool)
    mask[tuple(slice(a, b) for a, b in zip(first, last, strict=True))] = True
    return mask


CUBE = box((5, 5, 5), (15, 15, 15))


def test_equal_masks_agree_perfectly():
    found = agreement(CUBE, CUBE, SPACING, 1.0)
    assert (found.dice, found.hd95_mm, found.nsd) == (1.0, 0.0, 1.0)
    assert (found.precision, found.recall, found.n_ref, found.n_pred) == (1.0, 1.0, 1000, 1000)


def test_overlap_follows_its_formulas():
    half = box((5, 5, 5), (10, 15, 15))
    found = agreement(half, CUBE, SPACING, 1.0)
    assert found.dice == pytest.approx(2 * 500 / 1500)
    assert (found.precision, found.recall) == (1.0, 0.5)


@pytest.mark.parametrize("axis", [0, 1, 2])
def test_distances_are_millimetres(axis):
    """A cube that is two voxels longer: the end face lies two voxels off."""
    longer = box((5, 5, 5), [17 if a == axis else 15 for a in range(3)])
    found = agreement(longer, CUBE, SPACING, 1.0)
    assert found.hd95_mm == pytest.approx(2 * SPACING[axis])


def edge(mask):
    return mask ^ ndimage.binary_erosion(mask)


def test_distances_equal_the_slow_way():
    rng = np.random.default_rng(0)
    a, b = (ndimage.gaussian_filter(rng.normal(size=(18, 16, 14)), 2) > 0.02 for _ in range(2))
    found = agreement(a, b, SPACING, 2.0)
    points = [np.argwhere(edge(m)) * SPACING for m in (a, b)]
    away = np.linalg.norm(points[0][:, None] - points[1][None], axis=-1)
    both = [away.min(1), away.min(0)]
    assert found.hd95_mm == pytest.approx(max(np.percentile(d, 95) for d in both), abs=1e-3)


def test_what_is_undefined_is_none():
    empty = np.zeros_like(CUBE)
    assert vars(agreement(empty, empty, SPACING, 1.0)) == {
        "dice": None, "hd95_mm": None, "nsd": None, "precision": None, "recall": None,
        "n_ref": 0, "n_pred": 0,
    }  # fmt: skip
    missed = agreement(empty, CUBE, SPACING, 1.0)
    assert (missed.dice, missed.hd95_mm, missed.nsd, missed.recall) == (0.0, None, 0.0, 0.0)
    assert missed.precision is None
    invented = agreement(CUBE, empty, SPACING, 1.0)
    assert (invented.dice, invented.precision, invented.recall) == (0.0, 0.0, None)


def test_a_mask_at_the_border_of_the_volume_has_a_surface_there():
    whole = np.ones((6, 6, 6), bool)
    found = agreement(whole, whole, SPACING, 1.0)
    assert (found.hd95_mm, found.nsd) == (0.0, 1.0)


def test_rows_name_tissues_and_skip_the_background():
    reference = np.where(CUBE, 2, 0)
    rows = volume_rows(reference, reference, ("background", "csf", "gm"), SPACING, 1.0)
    assert [row["tissue"] for row in rows] == ["csf", "gm"]
    assert rows[0]["dice"] is None
    assert rows[1]["dice"] == 1.0
    assert rows[1]["slices"] == 20
    assert all(v is None or not isinstance(v, float) or math.isfinite(v) for v in rows[0].values())


def test_other_shapes_are_refused():
    with pytest.raises(GeometryError, match=r"\(20, 20, 20\), got \(20, 20, 19\)"):
        agreement(CUBE[..., 1:], CUBE, SPACING, 1.0)
