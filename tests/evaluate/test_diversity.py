"""Variety of a generated set: likeness of pairs, and duplicates inside the set."""

import re
from dataclasses import replace

import numpy as np
import pytest
import torch
from monai.metrics.regression import compute_ms_ssim
from scipy import ndimage
from skimage.metrics import structural_similarity

from synthgen.core.errors import GeometryError, RequestError, SchemaError
from synthgen.core.rng import SampleKey
from synthgen.core.schema import BRAIN9, LabelSchema, Tissue
from synthgen.evaluate.diversity import diversity_section
from synthgen.evaluate.diversity_duplicates import alarm_floor, distinct, find_duplicates
from synthgen.evaluate.diversity_pairs import (
    AT_LEAST,
    GAP,
    PAIRS,
    Side,
    matched_pairs,
    ms_ssim,
    pair_interval,
    scale_weights,
    soft_dice,
)
from synthgen.evaluate.label_metrics import NEAR
from synthgen.evaluate.sets import from_arrays

SHAPE = (64, 80)
KEY = SampleKey(0, 0)
PLACES = 12


def head(*seed):
    """Return PV map and image of one slice: folds of its own, in an ellipse."""
    rng = np.random.default_rng(seed)
    x, y = np.meshgrid(*(np.linspace(-1, 1, n) for n in SHAPE), indexing="ij")
    brain = (x / 0.8) ** 2 + (y / 0.85) ** 2 < 1
    soft = 1 / (1 + np.exp(-40 * ndimage.gaussian_filter(rng.normal(size=SHAPE), 3)))
    pv = np.zeros((9, *SHAPE), np.float32)
    pv[0], pv[3], pv[2] = ~brain, brain * soft, brain * (1 - soft)
    return pv, (0.4 * pv[2] + 0.8 * pv[3]).astype(np.float32)


def brains(heads, position, subject=None, *, images=True, style="a_t1"):
    """Return a set of heads; its images are of modality t1."""
    styles = [style] * len(heads) if isinstance(style, str) else style
    drawn = {
        "images": np.stack([image[None] for _, image in heads]),
        "style": styles,
        "modality": ["t1"] * len(heads),
        "dataset": [s.removesuffix("_t1") for s in styles],
    }
    pv = np.stack([pv for pv, _ in heads])
    return from_arrays(pv, BRAIN9, subject=subject, position=position, **(drawn if images else {}))


def places(count):
    return [i % PLACES / PLACES for i in range(count)]


def people(count=5, first=0, **how):
    total = count * PLACES
    names = [f"a/s{first + i // PLACES}" for i in range(total)]
    heads = [head(first + i // PLACES, i % PLACES) for i in range(total)]
    return brains(heads, places(total), names, **how)


def generated(count=60, **how):
    return brains([head(100, i) for i in range(count)], places(count), **how)


REAL = people()
MADE = generated(72)


@pytest.fixture(scope="module")
def section():
    return diversity_section(MADE, REAL, key=KEY)


def numbers(section):
    return {metric.name: metric for metric in section.metrics}


def planted(change, count=6, **how):
    """Return a set whose first slices come again at its end, changed."""
    heads = [head(100, i) for i in range(54)]
    heads += [tuple(change(array) for array in pair) for pair in heads[:count]]
    return brains(heads, places(54) + places(count), **how)


def shifted(array):
    return np.roll(array, (3, -4), (-2, -1))


def test_equal_images_are_alike_to_1_and_unequal_ones_less():
    images = MADE.image([0, 1])
    np.testing.assert_allclose(ms_ssim(images, images), 1, atol=1e-5)
    assert (ms_ssim(images, images[::-1].copy()) < 0.9).all()


def test_ms_ssim_is_monais_of_halved_images():
    rng = np.random.default_rng(0)
    clean = ndimage.gaussian_filter(rng.random((2, 1, 256, 288)), (0, 0, 3, 3)).astype(np.float32)
    noisy = np.clip(clean + rng.normal(0, 0.05, clean.shape), 0, 1).astype(np.float32)
    halved = (
        torch.from_numpy(a.reshape(2, 1, 128, 2, 144, 2).mean((3, 5))) for a in (clean, noisy)
    )
    weights = np.array([0.2856, 0.3001, 0.2363, 0.1333])
    expected = compute_ms_ssim(*halved, spatial_dims=2, weights=tuple(weights / weights.sum()))
    np.testing.assert_allclose(ms_ssim(clean, noisy), expected[:, 0], rtol=1e-4)


def test_ms_ssim_of_one_scale_is_ssim():
    rng = np.random.default_rng(1)
    a, b = (ndimage.gaussian_filter(rng.random((40, 42)), 1).astype(np.float32) for _ in range(2))
    halved = [image.reshape(20, 2, 21, 2).mean((1, 3)) for image in (a, b)]
    expected = structural_similarity(
        *halved, gaussian_weights=True, sigma=1.5, use_sample_covariance=False, data_range=1.0
    )
    assert ms_ssim(a[None, None], b[None, None])[0] == pytest.approx(max(expected, 0), abs=1e-4)


@pytest.mark.parametrize(
    ("shape", "scales"), [((176, 256), 4), ((174, 256), 3), ((44, 44), 2), ((22, 90), 1)]
)
def test_there_are_as_many_scales_as_the_picture_has_room_for(shape, scales):
    weights = scale_weights(shape)
    assert len(weights) == scales
    assert weights.sum() == pytest.approx(1)


def test_soft_dice_is_the_mean_over_the_masks_that_are_there():
    a, b = np.zeros((3, 4, 4), np.float32), np.zeros((3, 4, 4), np.float32)
    a[0, :2], b[0, 1:3] = 1, 1  # 4 of 8 pixels shared
    a[1, 0], b[1, 0] = 0.5, 0.25  # sums 2 and 1, smaller values sum to 1
    assert soft_dice(a, b) == pytest.approx((2 * 4 / 16 + 2 * 1 / 3) / 2)
    assert soft_dice(a, a) == 1
    assert soft_dice(a[2:], b[2:]) == 1


@pytest.mark.parametrize("seed", range(3))
def test_pairs_are_of_two_brains_at_one_place(seed):
    made, real = (Side.of(s, np.arange(len(s)), "t1") for s in (MADE, REAL))
    pairs = matched_pairs(made, real, SampleKey(seed, 0))
    assert len({*map(frozenset, pairs.real.tolist())}) == len(pairs.real) == PAIRS
    assert len({*map(frozenset, pairs.made.tolist())}) == len(pairs.made) == PAIRS
    assert (pairs.people[:, 0] != pairs.people[:, 1]).all()
    assert len(np.unique(pairs.people)) == 5
    place, beside = REAL.table.position[pairs.real], MADE.table.position[pairs.made]
    assert np.abs(np.diff(place, axis=1)).max() <= GAP
    assert np.abs(np.diff(beside, axis=1)).max() <= GAP
    assert np.abs(place[:, 0] - beside[:, 0]).max() <= NEAR


def test_generated_pairs_have_the_styles_of_their_real_ones():
    real = people(style=[f"{'ab'[i // PLACES % 2]}_t1" for i in range(60)])
    made = generated(160, style=[f"{'ab'[i // PLACES % 2]}_t1" for i in range(160)])
    pairs = matched_pairs(*(Side.of(s, np.arange(len(s)), "t1") for s in (made, real)), KEY)
    assert not pairs.alike
    styles = [np.asarray(s.images.style)[p] for s, p in ((made, pairs.made), (real, pairs.real))]
    np.testing.assert_array_equal(*styles)
    assert (styles[0][:, 0] != styles[0][:, 1]).any()


def test_pairs_have_one_style_if_the_real_people_have_others():
    real = people(style=[f"{'ab'[i // PLACES % 2]}_t1" for i in range(60)])
    made = generated(style=[f"{'cd'[i // PLACES % 2]}_t1" for i in range(60)])
    pairs = matched_pairs(*(Side.of(s, np.arange(len(s)), "t1") for s in (made, real)), KEY)
    assert pairs.alike
    for subset, rows in ((made, pairs.made), (real, pairs.real)):
        styles = np.asarray(subset.images.style)[rows]
        assert (styles[:, 0] == styles[:, 1]).all()


def test_the_interval_holds_the_mean_and_widens_with_fewer_people():
    rng = np.random.default_rng(0)

    def interval(count):
        names = np.asarray([f"s{i}" for i in range(count)])
        couples = [(i, j) for i in range(count) for j in range(i)]
        chosen = np.asarray([couples[k % len(couples)] for k in range(120)])
        effect = rng.normal(0, 1, count)
        values = effect[chosen].sum(axis=1)
        low, high = pair_interval(values / effect.std(), names[chosen], KEY)
        assert low < values.mean() / effect.std() < high
        return high - low

    assert interval(4) > interval(15)


def test_different_people_pass(section):
    found = numbers(section)
    assert {*found} == {"diversity/ms_ssim/t1", "diversity/label_dice", "diversity/duplicates"}
    assert {m.verdict for m in found.values()} == {"good"}
    assert found["diversity/duplicates"].value == 0
    assert found["diversity/ms_ssim/t1"].n == PAIRS
    assert not section.refused
    assert [f.name for f in section.figures] == ["likeness", "alike"]
    assert all(f.png.startswith(b"\x89PNG") for f in section.figures)


def test_a_set_of_one_face_is_poor():
    rng = np.random.default_rng(0)
    pv, image = head(100, 0)
    heads = []
    for _ in range(60):
        noisy = np.clip(pv + rng.uniform(0, 0.02, pv.shape), 0, 1)
        noisy = (noisy / noisy.sum(axis=0)).astype(np.float32)
        grey = np.clip(image + rng.normal(0, 0.01, image.shape), 0, 1) * (image > 0)
        heads.append((noisy, grey.astype(np.float32)))
    found = numbers(diversity_section(brains(heads, places(60)), REAL, key=KEY))
    for name in ("ms_ssim/t1", "label_dice"):
        metric = found[f"diversity/{name}"]
        assert metric.value > metric.high
        assert metric.verdict == "poor"
    assert found["diversity/duplicates"].value == 100
    assert found["diversity/duplicates"].verdict == "poor"


@pytest.mark.parametrize(
    "change",
    [
        pytest.param(np.copy, id="exact"),
        pytest.param(lambda a: np.ascontiguousarray(a[..., ::-1, :]), id="flipped"),
        pytest.param(shifted, id="shifted"),
    ],
)
def test_planted_duplicates_are_found(change):
    found = find_duplicates(planted(change, images=False), REAL, key=KEY)
    expected = [*range(6), *range(54, 60)]
    assert np.flatnonzero(found.flags).tolist() == expected
    assert found.found.index[:6].tolist() == expected[6:]
    assert alarm_floor(found, KEY).value == pytest.approx(100 * 12 / 60)


def test_takes_of_a_label_are_no_duplicates():
    made = planted(np.copy)
    assert distinct(made, np.arange(60)).tolist() == list(range(54))
    assert not find_duplicates(made, REAL, key=KEY).flags.any()


def test_equal_maps_of_other_requests_are_duplicates_in_a_set_with_images():
    made = planted(np.copy)
    requested = made.table.requested.copy()
    requested[54:] = 0.1
    made = replace(made, table=replace(made.table, requested=requested))
    assert find_duplicates(made, REAL, key=KEY).flags.sum() == 12


def test_equal_maps_are_duplicates_in_a_set_of_labels():
    made = planted(np.copy, images=False)
    assert distinct(made, np.arange(60)).tolist() == list(range(60))


def test_slices_of_one_generated_brain_are_no_duplicates():
    made = planted(np.copy, images=False)
    names = tuple(f"g{i % 54}" for i in range(60))
    made = replace(made, table=replace(made.table, subject=names))
    assert not find_duplicates(made, REAL, key=KEY).flags.any()


@pytest.mark.usefixtures("untouched_rng")
def test_the_same_key_gives_the_same_section(section):
    assert diversity_section(MADE, REAL, key=KEY) == section


def test_the_key_decides_the_pairs():
    sides = [Side.of(s, np.arange(len(s))) for s in (MADE, REAL)]
    first, second = (matched_pairs(*sides, SampleKey(seed, 0)).real for seed in (0, 1))
    assert (first != second).any()


def test_sets_without_positions_are_compared_over_all_places():
    blind = replace(MADE, table=replace(MADE.table, position=np.full(len(MADE), np.nan)))
    section = diversity_section(blind, REAL, key=KEY)
    assert "does not state its slice positions" in section.refused[0]
    assert "from all places" in numbers(section)["diversity/label_dice"].provenance["pairs"]


def nameless(subset):
    return replace(subset, table=replace(subset.table, subject=("",) * len(subset)))


@pytest.mark.parametrize(
    ("made", "real", "lines"),
    [
        (MADE, people(2), [r"MS-SSIM.*at least 3 real subjects.*got 2 \(a/s0, a/s1\)"]),
        (MADE, people(2), [r"repeat.*at least 3 subjects, got 2 \(a/s0, a/s1\)"]),
        (MADE, nameless(REAL), [r"Dice.*got 0 \(none\)", r"repeat.*got 0 \(none\)"]),
        (generated(12), REAL, [rf"at least {AT_LEAST} pairs.*got 0", r"got 12 generated and 60"]),
        (MADE, people(images=False), [r"t1 images \(MS-SSIM\).*got 0 \(none\)"]),
    ],
)
def test_too_little_is_refused_with_a_line(made, real, lines):
    refused = "\n".join(diversity_section(made, real, key=KEY).refused)
    for line in lines:
        assert re.search(line, refused), refused


def test_pictures_with_no_room_for_a_window_are_refused_with_a_line():
    small = [
        from_arrays(
            subset.pv(range(60))[..., 20:41, 20:60],
            BRAIN9,
            images=subset.image(range(60))[..., 20:41, 20:60],
            subject=subset.table.subject[:60],
            position=places(60),
            modality=["t1"] * 60,
        )
        for subset in (MADE, REAL)
    ]
    refused = diversity_section(*small, key=KEY).refused
    assert refused == ("Likeness of two t1 images (MS-SSIM): needs 22 px a side, got 21 x 40",)


def test_a_set_of_one_generated_brain_is_refused():
    made = replace(MADE, table=replace(MADE.table, subject=("g",) * len(MADE)))
    with pytest.raises(RequestError, match="all label maps of arrays show g"):
        find_duplicates(made, REAL, key=KEY)


def test_values_that_are_not_finite_are_refused_with_a_line():
    pv, images = MADE.pv(range(60)), MADE.image(range(60))
    pv[:, 2, 30, 30], images[:, 0, 30, 30] = np.nan, np.nan
    broken = from_arrays(
        pv, BRAIN9, images=images, position=places(60), modality=["t1"] * 60, dataset=["a"] * 60
    )
    section = diversity_section(broken, REAL, key=KEY)
    assert not section.metrics
    assert sum("not finite" in line for line in section.refused) == 3


@pytest.mark.parametrize(
    ("made", "error", "message"),
    [
        (
            from_arrays(np.ones((1, 2, *SHAPE), np.float32), LabelSchema(
                "other", (Tissue("background", 0), Tissue("brain", 1)))),
            SchemaError,
            "brain",
        ),
        (
            from_arrays(np.ones((1, 9, 8, 8), np.float32), BRAIN9),
            GeometryError,
            r"\(64, 80\) pixels",
        ),
        (MADE.take([]), RequestError, "the set is empty"),
    ],
)  # fmt: skip
def test_sets_that_cannot_be_compared_are_refused(made, error, message):
    with pytest.raises(error, match=message):
        diversity_section(made, REAL, key=KEY)
