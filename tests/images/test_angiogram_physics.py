from dataclasses import replace

import numpy as np
import pytest
from angiogram_trees import bars, part
from scipy import ndimage

from synthgen.core.errors import RequestError
from synthgen.core.rng import SampleKey
from synthgen.images.angiogram.backgrounds import Background
from synthgen.images.angiogram.camera import Camera, composite, expose
from synthgen.images.angiogram.distractors import InstrumentRanges, LesionRanges
from synthgen.images.angiogram.physics import CoronaryRanges, PhysicsRenderer, RetinaRanges
from synthgen.images.angiogram.randomise import Looks

PERFECT = Camera((0.0, 0.0), (0.0, 0.0), (0.0, 0.0), (1.0, 1.0))
BARE = InstrumentRanges(catheter=0, wire=0, sternum=0, clips=0, cables=0)
PLAIN = CoronaryRanges(
    attenuation=(0.05, 0.05),
    filling=(0.0, 0.0),
    fading=(0.0, 0.0),
    hidden=(0.5, 0.5),
    camera=PERFECT,
    instruments=BARE,
)
QUIET = LesionRanges(deposits=0, bleedings=0)
FIELD, DISC = (47.5, 47.5, 44.0), (40.0, 30.0, 7.0)
KEYS = [SampleKey(3, i) for i in range(2)]


def retina_maps(**options):
    return bars(field=FIELD, disc=DISC, **options)


def uniform(level=0.8, shape=(96, 96)):
    return Background(np.full(shape, level, np.float32), "plain.png")


@pytest.mark.parametrize("gamma", [1.0, 0.5])
def test_beer_lambert_on_a_uniform_background(gamma):
    maps = bars()
    hidden = np.roll(maps.path_length, 20, axis=2)
    maps = replace(maps, hidden_path_length=hidden)
    camera = replace(PERFECT, gamma=(gamma, gamma))
    ranges = replace(PLAIN, camera=camera)
    images = PhysicsRenderer("coronary", [uniform()], ranges=ranges).render(maps, KEYS)
    mu = 0.05 * 512 / 96  # stated for a frame of 512 pixels
    thin = np.minimum(hidden, 3 * 96 / 512)
    expected = 0.8 * np.exp(-mu * (maps.path_length + 0.5 * thin))
    np.testing.assert_allclose(images[:, 0], expected, atol=1e-3)
    level = np.full((8, 8), 0.8, np.float32)
    shown = expose(np.random.default_rng(0), level, np.full((8, 8), 0.7, np.float32), camera)
    np.testing.assert_allclose(shown, 0.8 * np.exp(-0.7), rtol=1e-5)


def test_retinal_contrast_saturates_from_beer_lambert():
    maps = bars()
    ranges = RetinaRanges(
        darkness=(0.6, 0.6),
        saturation=(5.0, 5.0),
        artery=(0.5, 0.5),
        reflex=(0.0, 0.0),
        filling=(0.0, 0.0),
        camera=PERFECT,
        lesions=QUIET,
    )
    images = PhysicsRenderer("retina", [uniform()], ranges=ranges).render(maps, KEYS)
    half = maps.path_length / 2  # half of it is a vein's
    rise = 1 - np.exp(-half / (5 * 96 / 512))
    np.testing.assert_allclose(images[:, 0], 0.8 * np.exp(-0.6 * 1.5 * rise), atol=1e-3)


def test_a_wide_artery_has_a_bright_core():
    shape = (256, 256)
    maps = bars(shape)
    maps = replace(maps, vein_path_length=np.zeros_like(maps.path_length))
    ranges = RetinaRanges(reflex=(0.8, 0.8), camera=PERFECT, lesions=QUIET, filling=(0.0, 0.0))
    image = PhysicsRenderer("retina", [uniform(shape=shape)], ranges=ranges).render(maps, KEYS)[
        0, 0
    ]
    row, path = image[150], maps.path_length[0, 150]
    core, flank = row[np.argmax(path)], row[(path > 4.5) & (path < 7)].min()
    assert flank < core < 0.8


@pytest.mark.parametrize("kind", ["coronary", "retina"])
def test_longer_paths_are_never_brighter(kind):
    maps = retina_maps()
    longer = replace(
        maps, path_length=1.5 * maps.path_length, vein_path_length=1.5 * maps.vein_path_length
    )
    ranges = (
        PLAIN
        if kind == "coronary"
        else RetinaRanges(camera=PERFECT, lesions=QUIET, reflex=(0.0, 0.0))
    )
    renderer = PhysicsRenderer(kind, ranges=ranges)
    short, long = renderer.render(maps, KEYS), renderer.render(longer, KEYS)
    assert (long <= short + 1e-6).all()
    inside = maps.mask[:, None] & (short > 0.05)
    assert (long < short)[inside].mean() > 0.9


@pytest.mark.parametrize("kind", ["coronary", "retina"])
@pytest.mark.parametrize("looks", [None, Looks()])
def test_a_sample_depends_on_its_key_alone(kind, looks):
    renderer = PhysicsRenderer(kind, looks=looks)
    maps = retina_maps(batch=3)
    keys = [SampleKey(5, i) for i in (4, 9, 2)]
    state = str(np.random.get_state())  # noqa: NPY002 - that it stays is what is tested
    together = renderer.render(maps, keys)
    assert str(np.random.get_state()) == state  # noqa: NPY002
    alone = PhysicsRenderer(kind, looks=looks).render(part(maps, slice(1, 2)), keys[1:2])
    np.testing.assert_array_equal(alone[0], together[1])
    assert np.abs(together[0] - together[1]).max() > 0.05


@pytest.mark.parametrize("kind", ["coronary", "retina"])
@pytest.mark.parametrize("shape", [(96, 96), (75, 110)])
@pytest.mark.parametrize("looks", [None, Looks()])
def test_range_and_shape_and_zero_outside_the_field(kind, shape, looks):
    centre = ((shape[0] - 1) / 2, (shape[1] - 1) / 2, 34.0)
    maps = bars(shape, batch=4, field=centre, disc=(35, 40, 6))
    images = PhysicsRenderer(kind, looks=looks).render(maps, [SampleKey(0, i) for i in range(4)])
    assert images.shape == (4, 1, *shape)
    assert images.dtype == np.float32
    assert images.min() >= 0
    assert images.max() <= 1
    x, y = np.ogrid[: shape[0], : shape[1]]
    distance = np.hypot(x - centre[0], y - centre[1])
    assert not images[..., distance > 34.5].any()
    assert (images[..., distance < 33] > 0).mean() > 0.95


def test_the_whole_frame_is_seen_without_a_field():
    images = PhysicsRenderer("retina").render(bars(), KEYS)
    assert (images > 0).mean() > 0.99


@pytest.mark.parametrize("kind", ["coronary", "retina"])
def test_distractors_are_drawn_and_leave_the_labels_alone(kind):
    maps = retina_maps()
    before = {n: getattr(maps, n).copy() for n in maps.__dataclass_fields__}
    if kind == "coronary":
        everything = InstrumentRanges(catheter=1, wire=1, sternum=1, clips=1, cables=1)
        rich, bare = replace(PLAIN, instruments=everything), PLAIN
    else:
        bare = RetinaRanges(camera=PERFECT, lesions=QUIET)
        rich = replace(bare, lesions=LesionRanges(deposits=1, bleedings=1))
    shown = [PhysicsRenderer(kind, ranges=r).render(maps, KEYS)[:, 0] for r in (bare, rich)]
    assert (np.abs(shown[0] - shown[1]) > 0.02)[~maps.mask].sum() > 20
    for name, array in before.items():
        np.testing.assert_array_equal(getattr(maps, name), array)


def test_the_catheter_leads_from_the_edge_to_the_tree():
    maps = bars((128, 128))
    ranges = replace(PLAIN, instruments=replace(BARE, catheter=1, filling=(1.0, 1.0)))
    keys = [SampleKey(0, i) for i in range(6)]
    maps = part(maps, [0] * 6)
    backgrounds = [uniform(shape=(128, 128))]
    bare, rich = (
        PhysicsRenderer("coronary", backgrounds, ranges=r).render(maps, keys)[:, 0]
        for r in (PLAIN, ranges)
    )
    for image, tree in zip(bare - rich, maps.mask, strict=True):
        parts, _ = ndimage.label(image > 0.02, np.ones((3, 3)))
        touching = set(np.unique(parts[tree])) - {0}
        edge = np.concatenate([parts[0], parts[-1], parts[:, 0], parts[:, -1]])
        assert touching & set(edge)


def test_a_real_picture_stays_bit_for_bit_where_nothing_is_painted():
    picture = np.random.default_rng(0).uniform(0.2, 0.8, (96, 96)).astype(np.float32)
    maps = bars()
    renderer = PhysicsRenderer(
        "coronary",
        [Background(picture, "a.png")],
        ranges=replace(CoronaryRanges(), instruments=BARE),
    )
    images = renderer.render(maps, [SampleKey(0, i) for i in range(2)])[:, 0]
    far = ndimage.binary_dilation(maps.path_length[0] > 0, iterations=5)
    for image in images:
        same = [np.array_equal(image[~far], p[~far]) for p in (picture, picture[:, ::-1])]
        assert any(same)


def test_noise_under_a_vessel_keeps_its_strength_through_a_square_root_window():
    rng = np.random.default_rng(0)
    picture = (0.6 + 0.01 * rng.standard_normal((256, 256))).astype(np.float32)
    dense = np.full((256, 256), 1.0, np.float32)
    camera = Camera((0.5, 0.5), (0.0, 0.0), (0.0, 0.0), (0.5, 0.5))
    painted = composite(rng, picture, dense, camera)
    # The estimate of the noise rests on what a Gaussian of one pixel leaves: 16 of 17 parts.
    assert painted.std() == pytest.approx(0.01, rel=0.15)
    assert painted.mean() == pytest.approx(0.6 * np.exp(-1), rel=0.01)


def test_identity_names_what_decides_the_bytes():
    renderers = [
        PhysicsRenderer("coronary"),
        PhysicsRenderer("retina"),
        PhysicsRenderer("coronary", looks=Looks()),
        PhysicsRenderer("coronary", ranges=PLAIN),
        PhysicsRenderer("coronary", [uniform()]),
        PhysicsRenderer("coronary", [uniform(0.7)]),
    ]
    assert len({str(r.identity) for r in renderers}) == len(renderers)
    assert PhysicsRenderer("coronary").identity == PhysicsRenderer("coronary").identity


def test_subjects_are_those_of_the_backgrounds():
    pool = [replace(uniform(), subject=s) for s in ("b", "a", "b", "")]
    assert PhysicsRenderer("coronary", pool).subjects == ("a", "b")


def test_errors_say_what_to_do():
    with pytest.raises(RequestError, match=r"'plain.png' is 64 x 64 .* 96 x 96: resize"):
        PhysicsRenderer("coronary", [uniform(shape=(64, 64))]).render(bars(), KEYS)
    with pytest.raises(RequestError, match="1 keys but 2 vessel trees"):
        PhysicsRenderer("coronary").render(bars(), KEYS[:1])
    with pytest.raises(RequestError, match="pool of backgrounds is empty"):
        PhysicsRenderer("retina", [])
    with pytest.raises(
        RequestError, match="retina renderer needs RetinaRanges, got CoronaryRanges"
    ):
        PhysicsRenderer("retina", ranges=PLAIN)
