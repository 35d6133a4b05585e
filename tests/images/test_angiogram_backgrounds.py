from dataclasses import replace

import numpy as np
import pytest
from scipy import ndimage

from synthgen.core.errors import RequestError
from synthgen.images.angiogram.backgrounds import Background, chest_from, fundus_from
from synthgen.images.angiogram.distractors import tip, tube
from synthgen.images.angiogram.fields import cloud, enlarge, inside
from synthgen.images.angiogram.fundus import FundusRanges, fundus
from synthgen.images.angiogram.inpaint import (
    find_disc,
    find_vessels,
    fundus_background,
    vessel_free,
)
from synthgen.images.angiogram.randomise import Looks, compress, randomise
from synthgen.images.angiogram.xray import ChestRanges, chest

FIELD = (127.5, 127.5, 120.0)


def photograph(rng, *, vessels=True):
    """A grainy fundus with a disc, and the drawn tubes."""
    x, y = np.ogrid[:256, :256]
    level = 0.35 - 0.1 * np.hypot(x - 120, y - 120) / 180
    level = level + 0.3 * (np.hypot(x - 130, y - 80) < 18)
    path = np.zeros((256, 256), np.float32)
    if vessels:
        for slope, radius in ((0.3, 1.2), (-0.5, 2.5), (0.9, 1.8)):
            axis = np.array([[130.0, 80.0], [130 + 150 * slope, 230.0]])
            path = np.maximum(path, tube(axis, radius, (256, 256)))
    image = level * np.exp(-0.12 * path) + 0.008 * rng.standard_normal((256, 256))
    return (np.clip(image, 0, 1) * inside(FIELD, (256, 256))).astype(np.float32), path


def test_tube_is_the_chord_of_a_cylinder():
    chord = tube(np.array([[-9.0, 20.0], [60.0, 20.0]]), 5.0, (40, 40))
    offset = np.abs(np.arange(40) - 20)
    expected = 2 * np.sqrt(np.maximum(25 - offset**2, 0))
    np.testing.assert_allclose(chord[20], expected, atol=1e-5)
    assert not tube(np.array([[-30.0, -30.0], [-20.0, 90.0]]), 4.0, (40, 40)).any()


def test_tip_is_the_outer_end_of_the_widest_vessel():
    path = tube(np.array([[10.0, 60.0], [50.0, 60.0]]), 5.0, (128, 128))
    path = np.maximum(path, tube(np.array([[50.0, 60.0], [110.0, 90.0]]), 2.0, (128, 128)))
    place, outward = tip(path)
    assert np.hypot(*(place - [10, 60])) < 8
    assert outward[0] < -0.9
    assert tip(np.zeros((32, 32), np.float32)) is None


def test_clouds_have_unit_spread_and_enlarging_keeps_constants():
    rng = np.random.default_rng(0)
    spreads = [cloud(rng, (90, 120), 1.5, 0.1).std() for _ in range(8)]
    assert np.mean(spreads) == pytest.approx(1, rel=0.1)
    np.testing.assert_allclose(enlarge(np.full((5, 4), 3, np.float32), (31, 47)), 3, rtol=1e-5)


def test_scenes_are_drawn_anew_and_in_range():
    rng = np.random.default_rng(0)
    scenes = [chest(rng, (128, 96), ChestRanges()) for _ in range(6)]
    eyes = [fundus(rng, (128, 96), (64, 48, 45), (60, 30, 8), FundusRanges()) for _ in range(6)]
    for scene in scenes + eyes:
        assert scene.shape == (128, 96)
        assert scene.dtype == np.float32
        assert scene.min() >= 0
        assert scene.max() <= 1
    assert np.mean([s.std() > 0.02 for s in scenes]) > 0.8
    # The disc is the brightest thing of its size.
    x, y = np.ogrid[:128, :96]
    disc = np.hypot(x - 60, y - 30) < 6
    assert all(eye[disc].mean() > eye[~disc].mean() * 1.15 for eye in eyes)


def test_a_photograph_is_moved_so_that_field_and_disc_fit_the_tree():
    x, y = np.ogrid[:200, :220]
    image = np.exp(-((x - 110) ** 2 + (y - 130) ** 2) / 200).astype(np.float32)
    own = Background(image, "a.png", field=(100, 110, 95), disc=(110, 130, 15))
    for mirrored in (False, True):
        disc = (50.0, 90.0, 8.0)
        moved = fundus_from(own, (128, 128), (64, 64, 60), disc, turn=1.0, mirrored=mirrored)
        peak = np.unravel_index(np.argmax(moved), moved.shape)
        assert np.hypot(peak[0] - disc[0], peak[1] - disc[1]) < 2
    # The field's rim stays the field's rim.
    ring = replace(own, image=(np.hypot(x - 100, y - 110) < 90).astype(np.float32))
    moved = fundus_from(ring, (128, 128), (64, 64, 60), disc, turn=0.0, mirrored=False)
    u, v = np.ogrid[:128, :128]
    assert not moved[np.hypot(u - 64, v - 64) > 59].any()
    assert moved[np.hypot(u - 64, v - 64) < 50].all()


def test_an_unmoved_photograph_is_itself():
    image = np.random.default_rng(0).random((101, 101), dtype=np.float32)
    own = Background(image, "a.png", (50.0, 50.0, 50.0))
    still = {"turn": 0.0, "mirrored": False}
    moved = fundus_from(own, (101, 101), (50, 50, 49), (0, 0, 0), **still)
    x, y = np.ogrid[:101, :101]
    within = np.hypot(x - 50, y - 50) < 48
    np.testing.assert_allclose(moved[within], image[within], atol=1e-5)


def test_removed_vessels_no_longer_show_and_the_rest_stays():
    image, path = photograph(np.random.default_rng(1))
    free = vessel_free(image, FIELD)
    seen = inside((*FIELD[:2], FIELD[2] - 6), image.shape) >= 1
    x, y = np.ogrid[:256, :256]
    away = seen & (np.hypot(x - 130, y - 80) > 30)

    def darkness(picture):
        axis = (path > 0.8 * ndimage.maximum_filter(path, 7)) & (path > 1) & away
        near = ndimage.binary_dilation(path > 0, iterations=7)
        near &= ~ndimage.binary_dilation(path > 0, iterations=4) & away
        return float(picture[near].mean() - picture[axis].mean())

    assert darkness(image) > 0.05
    assert abs(darkness(free)) < 0.1 * darkness(image)
    untouched = free == image
    assert untouched[~ndimage.binary_dilation(path > 0, iterations=8) & away].mean() > 0.9
    np.testing.assert_array_equal(free[~seen & (image == 0)], 0)


def test_filled_gaps_carry_the_grain_of_their_surroundings():
    image, _ = photograph(np.random.default_rng(1))
    free = vessel_free(image, FIELD)
    changed = free != image
    detail = free - ndimage.gaussian_filter(free, 1.5)
    x, y = np.ogrid[:256, :256]
    calm = (np.hypot(x - 130, y - 80) > 30) & (np.hypot(x - 127.5, y - 127.5) < 105)
    ratio = detail[changed & calm].std() / detail[~changed & calm].std()
    assert 0.75 < ratio < 1.2


def test_no_vessel_is_found_at_a_plain_edge():
    step = np.where(np.arange(200)[:, None] < 100, -1.0, -0.5) * np.ones((1, 200))
    grainy = step + 0.02 * np.random.default_rng(0).standard_normal(step.shape)
    assert find_vessels(grainy.astype(np.float32), 100).mean() < 0.05


def test_the_disc_is_found_and_handed_on():
    image, _ = photograph(np.random.default_rng(2))
    x, y, _ = find_disc(image, FIELD)
    assert np.hypot(x - 130, y - 80) < 8
    background = fundus_background(image, FIELD, "eye.png", "sub-1")
    assert background.disc[:2] == (x, y)
    assert (background.name, background.subject, background.field) == ("eye.png", "sub-1", FIELD)


def test_backgrounds_that_do_not_fit_are_refused():
    with pytest.raises(RequestError, match=r"'rgb.png'.*\(8, 8, 3\); take the green"):
        Background(np.zeros((8, 8, 3), np.float32), "rgb.png")
    with pytest.raises(RequestError, match=r"'raw.png'.*0 .. 255; divide"):
        Background(np.array([[0, 255]], np.float32), "raw.png")
    with pytest.raises(RequestError, match=r"\(8, 8, 3\): take the green"):
        vessel_free(np.zeros((8, 8, 3), np.float32), FIELD)
    small = Background(np.zeros((8, 9), np.float32), "small.png")
    with pytest.raises(RequestError, match=r"'small.png' is 8 x 9 pixels .* 16 x 16"):
        chest_from(small, (16, 16), mirrored=False)


def test_looks_keep_dark_things_dark():
    level = np.tile(np.linspace(0.2, 0.8, 64, dtype=np.float32), (64, 1))
    level[:, 30:34] -= 0.1
    smooth = Looks(bias=0, blur=0, sharpen=0, noise=0, blocks=0, tone=1)
    for seed in range(10):
        shown = randomise(np.random.default_rng(seed), level, smooth)
        order = np.argsort(level[0])
        assert (np.diff(shown[0][order]) >= -1e-6).all()
    for seed in range(10):
        shown = randomise(np.random.default_rng(seed), level, Looks())
        assert shown.min() >= 0
        assert shown.max() <= 1


def test_compression_keeps_constants_and_loses_fine_detail():
    flat = np.full((20, 27), 0.5, np.float32)
    np.testing.assert_allclose(compress(flat, 0.01), flat, atol=0.01)
    noise = np.random.default_rng(0).normal(0.5, 0.01, (64, 64)).astype(np.float32)
    assert compress(noise, 0.1).std() < 0.5 * noise.std()
    np.testing.assert_allclose(compress(noise, 1e-4), noise, atol=1e-3)
