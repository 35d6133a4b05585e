import sys

import numpy as np
import pytest
from scipy import ndimage

from synthgen.core.errors import RequestError
from synthgen.core.rng import SampleKey
from synthgen.core.schema import VESSEL
from synthgen.labels.vessels import EXTRAS, VesselGenerator, graph
from synthgen.labels.vessels.presets import PRESETS, Retina

KEYS = [SampleKey(3, i) for i in range(4)]
PRESET_SHAPES = [("coronary", (128, 128)), ("retina", (160, 150)), ("ssvs", (96, 128))]
TREES = PRESET_SHAPES[:2]
NAMES = ("coverage", "path_length", "hidden_path_length", "vein_path_length", "disc", "field")


def generator(preset, shape, accelerate=False):
    return VesselGenerator(preset, shape, accelerate)


@pytest.fixture(scope="module", params=["coronary", "retina"])
def full_size(request):
    shape = (512, 512) if request.param == "coronary" else (584, 565)
    made = VesselGenerator(request.param, shape)
    return made, made.draw([SampleKey(11, i) for i in range(12)])


@pytest.mark.parametrize(("preset", "shape"), PRESET_SHAPES)
def test_a_map_depends_on_its_key_alone(preset, shape):
    made = generator(preset, shape)
    together = made.draw(KEYS)
    backwards = made.draw(KEYS[::-1])
    alone = generator(preset, shape).draw(KEYS[2:3])
    for name in NAMES:
        array = getattr(together, name)
        np.testing.assert_array_equal(array, getattr(backwards, name)[::-1])
        np.testing.assert_array_equal(array[2:3], getattr(alone, name))
    assert (together.coverage[0] != together.coverage[1]).any()
    again = made.draw([SampleKey(3, 0, attempt=1)])
    assert (again.coverage[0] != together.coverage[0]).any()


@pytest.mark.parametrize(("preset", "shape"), PRESET_SHAPES)
def test_maps_have_their_shapes_types_and_ranges(preset, shape):
    made = generator(preset, shape)
    maps = made.draw(KEYS)
    assert made.shape == shape
    assert made.schema is VESSEL
    assert made.subjects == ()
    for name in NAMES[:4]:
        array = getattr(maps, name)
        assert array.shape == (4, *shape)
        assert array.dtype == np.float32
        assert array.min() >= 0
    whole = np.rint(maps.coverage * 255).astype(np.float32) / 255
    np.testing.assert_array_equal(maps.coverage, whole)
    assert maps.mask.any(axis=(1, 2)).all()
    assert (maps.path_length[maps.mask] > 0).mean() > 0.95
    assert (maps.vein_path_length <= maps.path_length).all()
    for pv in maps.pv:
        VESSEL.check(pv)


def test_only_the_retina_has_a_disc_a_field_and_veins():
    retina, coronary = (generator(*which).draw(KEYS) for which in (TREES[1], TREES[0]))
    for name in ("disc", "field", "vein_path_length"):
        assert not getattr(coronary, name).any()
        assert getattr(retina, name).any()
    x, y = np.ogrid[:160, :150]
    for mask, (row, column, radius) in zip(retina.mask, retina.field, strict=True):
        assert not mask[(x - row) ** 2 + (y - column) ** 2 > radius**2].any()
        assert (row, column) == (79.5, 74.5)


def test_discs_lie_where_photographs_show_them():
    maps = VesselGenerator("retina", (48, 48), False)
    trees = [maps.tree(SampleKey(5, i)) for i in range(40)]
    away = np.array([np.hypot(*(t.disc - t.field)[:2]) / t.field[2] for t in trees])
    near = away <= 0.2501
    assert (near | ((away > 0.549) & (away < 0.7201))).all()
    preset = PRESETS["retina"]
    assert isinstance(preset, Retina)
    assert abs(near.mean() - preset.nerve_share) < 0.25
    sides = {bool(t.disc[1] > t.field[1]) for t in trees}
    assert sides == {True, False}  # both eyes


@pytest.mark.parametrize(("preset", "shape"), TREES)
def test_numba_and_numpy_draw_the_same_bits(preset, shape):
    pytest.importorskip("numba")
    slow, fast = (generator(preset, shape, accelerate) for accelerate in (False, True))
    assert slow.identity == fast.identity
    for key in KEYS:
        one, other = graph(slow.tree(key)), graph(fast.tree(key))
        assert one.keys() == other.keys()
        for name in one:
            np.testing.assert_array_equal(one[name], other[name])
    one, other = slow.draw(KEYS), fast.draw(KEYS)
    for name in NAMES:
        np.testing.assert_array_equal(getattr(one, name), getattr(other, name))


@pytest.mark.parametrize(("preset", "shape"), TREES)
def test_trees_are_trees(preset, shape):
    for key in KEYS:
        tree = generator(preset, shape).tree(key)
        n = len(tree.parent)
        assert {len(a) for a in graph(tree).values()} == {n}
        assert (tree.parent < np.arange(n)).all()
        roots = tree.parent < 0
        assert roots.sum() == (8 if preset == "retina" else 1)
        inner = ~roots
        assert not (tree.visible[inner] & ~tree.visible[tree.parent[inner]]).any()
        assert (tree.vein[inner] == tree.vein[tree.parent[inner]]).all()
        assert (tree.branch[inner] >= tree.branch[tree.parent[inner]]).all()
        assert tree.visible.any()
        assert (tree.radius > 0).all()


def test_masks_hang_together(full_size):
    _, maps = full_size
    pieces = [ndimage.label(mask, np.ones((3, 3)))[1] for mask in maps.mask]
    assert np.mean(pieces) <= 5


def test_masks_cover_what_real_ones_do(full_size):
    made, maps = full_size
    shares = maps.mask.mean(axis=(1, 2))
    if made.preset == "retina":
        shares = maps.mask.sum(axis=(1, 2)) / (np.pi * maps.field[:, 2] ** 2)
    low, high = {"coronary": (0.042, 0.062), "retina": (0.11, 0.14)}[made.preset]
    assert low <= shares.mean() <= high


def test_thin_vessels_are_hidden_not_labelled(full_size):
    made, maps = full_size
    hidden = maps.hidden_path_length > 0
    assert hidden.any()
    assert (hidden & ~maps.mask).sum() > 0.5 * hidden.sum()
    trees = [made.tree(SampleKey(11, i)) for i in range(6)]
    radius, seen = (np.concatenate([getattr(t, n) for t in trees]) for n in ("radius", "visible"))
    assert radius[seen].mean() > 1.5 * radius[~seen].mean()


@pytest.mark.parametrize("preset", ["coronary", "retina"])
def test_trees_scale_with_the_smaller_side(preset):
    small = VesselGenerator(preset, (200, 200), False).tree(KEYS[0])
    large = VesselGenerator(preset, (400, 400), False).tree(KEYS[0])
    np.testing.assert_array_equal(small.parent, large.parent)
    np.testing.assert_allclose(2 * small.nodes + 0.5, large.nodes, atol=2)
    assert 1.8 < large.radius.max() / small.radius.max() < 2.2


@pytest.mark.parametrize("accelerate", [True, False])
def test_extras_agree_with_the_maps(accelerate):
    if accelerate:
        pytest.importorskip("numba")
    made = generator(*TREES[1], accelerate)
    maps, extras = made.draw(KEYS[:2]), made.extras(KEYS[:2], list(EXTRAS))
    assert {name: array.dtype for name, array in extras.items()} == EXTRAS
    np.testing.assert_array_equal(extras["branches"] > 0, maps.mask)
    np.testing.assert_array_equal(extras["radius"] > 0, maps.mask)
    expected = maps.path_length.astype(np.float16)
    np.testing.assert_array_equal(extras["path_length"], expected)
    centre = extras["centreline"] > 0
    assert maps.mask[centre].mean() > 0.95
    assert (centre | ~(extras["bifurcations"] > 0)).mean() > 0.999


def test_ssvs_masks_are_straight_bars_in_many_pieces():
    maps = VesselGenerator("ssvs").draw([SampleKey(0, i) for i in range(16)])
    shares = maps.mask.mean(axis=(1, 2))
    assert 0.03 < shares.mean() < 0.07
    pieces = [ndimage.label(mask, np.ones((3, 3)))[1] for mask in maps.mask]
    assert 3 < np.mean(pieces) < 40
    widest = maps.path_length.max(axis=(1, 2))
    assert (widest > 10).all()
    assert (widest < 20).all()


def test_identity_names_preset_numbers_and_shape():
    one = VesselGenerator("coronary", (64, 64), False).identity
    assert one["preset"] == "coronary"
    assert one["shape"] == [64, 64]
    assert one == VesselGenerator("coronary", (64, 64)).identity
    for other in (VesselGenerator("retina", (64, 64)), VesselGenerator("coronary", (64, 96))):
        assert other.identity != one


def test_bad_requests_say_what_is_wrong(monkeypatch):
    with pytest.raises(RequestError, match=r"one of coronary, retina, ssvs, got 'brain'"):
        VesselGenerator("brain")
    with pytest.raises(RequestError, match=r"at least 32, got \(16, 512\)"):
        VesselGenerator("coronary", (16, 512))
    ssvs = VesselGenerator("ssvs", (64, 64))
    with pytest.raises(RequestError, match="without a tree"):
        ssvs.tree(KEYS[0])
    with pytest.raises(RequestError, match="without a tree"):
        ssvs.extras(KEYS, ["radius"])
    with pytest.raises(RequestError, match="got 'depth'"):
        generator(*TREES[0]).extras(KEYS[:1], ["depth"])
    monkeypatch.setitem(sys.modules, "numba", None)
    with pytest.raises(RequestError, match="accelerate=True needs numba"):
        VesselGenerator("coronary", (64, 64), accelerate=True)
    VesselGenerator("coronary", (64, 64)).tree(KEYS[0])  # NumPy, without a word
