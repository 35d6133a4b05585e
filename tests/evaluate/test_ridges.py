import numpy as np
import pytest
from scipy import ndimage

from synthgen.core.errors import GeometryError, RequestError
from synthgen.evaluate.ridges import frangi_mask, sato_mask
from synthgen.evaluate.segmentation import overlap

SIZE = 270
ROWS, COLUMNS = np.ogrid[:SIZE, :SIZE]
FIELD = np.hypot(ROWS - 135, COLUMNS - 135) <= 130
VESSELS = (abs(ROWS - COLUMNS) <= 2) | (abs(ROWS + COLUMNS - 240) <= 2) | (abs(ROWS - 180) <= 1)
VESSELS = VESSELS & FIELD


def photograph(noise=0.02):
    rng = np.random.default_rng(0)
    scene = np.where(FIELD, 0.6 - 0.25 * VESSELS, 0.0) + 0.1 * ROWS / SIZE
    return ndimage.gaussian_filter(scene, 0.7) + noise * rng.normal(size=scene.shape)


@pytest.mark.parametrize("ridges", [sato_mask, frangi_mask])
def test_dark_lines_are_found(ridges):
    found = ridges(photograph(), FIELD, float(VESSELS[FIELD].mean()))
    assert overlap(found, VESSELS).dice > 0.75


@pytest.mark.parametrize("share", [0.02, 0.1])
def test_the_share_is_that_of_the_field_and_the_rim_stays_out(share):
    found = sato_mask(photograph(), FIELD, share)
    assert found.sum() == round(share * FIELD.sum())
    rim = FIELD & (ndimage.distance_transform_edt(FIELD) <= 2)
    assert not found[rim | ~FIELD].any()


def test_the_whole_frame_is_a_field():
    image = photograph()
    whole = np.ones(image.shape, bool)
    for preset in ("coronary", "retina"):
        found = sato_mask(image, None, 0.05, preset)
        assert np.array_equal(found, sato_mask(image, whole, 0.05, preset))
    assert not np.array_equal(found, sato_mask(image, whole, 0.05, "coronary"))


def test_scales_grow_with_the_field():
    """A picture of twice the size shows the same vessels."""
    small = sato_mask(photograph(0), FIELD, 0.06)
    double = np.ones((2, 2))
    large = sato_mask(np.kron(photograph(0), double), np.kron(FIELD, double) > 0, 0.06)
    # Half a pixel of difference weighs on lines of 3 to 5 pixels.
    assert overlap(large[::2, ::2], small).dice > 0.8


def test_bright_lines_are_no_vessels():
    assert overlap(sato_mask(1 - photograph(), FIELD, 0.05), VESSELS).dice < 0.2


def test_bad_requests_are_refused():
    image = photograph()
    with pytest.raises(RequestError, match="12"):
        sato_mask(image, FIELD, 12.0)
    with pytest.raises(GeometryError, match=r"\(270, 270\).*\(5, 5\)"):
        sato_mask(image, FIELD[:5, :5], 0.1)
    line = np.zeros_like(FIELD)
    line[100] = True
    with pytest.raises(GeometryError, match="270 pixels is all rim"):
        sato_mask(image, line, 0.1)
