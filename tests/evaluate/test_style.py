"""Tissue contrast, style swaps, recognised styles and leakage probes."""

from dataclasses import replace

import numpy as np
import pytest
from scipy import ndimage, stats
from skimage.feature import match_template

from synthgen.core.errors import GeometryError, RequestError, SchemaError
from synthgen.core.rng import SampleKey
from synthgen.core.schema import BRAIN9, LabelSchema, Tissue
from synthgen.evaluate import style
from synthgen.evaluate.probes import probe_accuracy
from synthgen.evaluate.sets import from_arrays
from synthgen.evaluate.style import (
    BLOCK,
    MIN_PIXELS,
    REACH,
    accuracy_floor,
    describe_styles,
    edge_displacement,
    filled,
    own_mean,
    rows_of,
    tissue_intensities,
    wasserstein,
    with_gaps,
)
from synthgen.evaluate.style_section import StyleCodes, cnr_pairs, style_section

SCHEMA = LabelSchema(
    "toy",
    (Tissue("background", 0), Tissue("gm", 1), Tissue("wm", 2), Tissue("wmh", 3, lesion=True)),
)
KEY = SampleKey(5, 0)
SIZE = 72
# Intensities of background, gm, wm and wmh.
LOOKS = {"t1": (0.0, 0.5, 0.8, 0.3), "t2": (0.0, 0.6, 0.4, 0.9), "flair": (0.0, 0.9, 0.7, 1.0)}
DRAWN = ("t1", "t2", "flair")


def label(rng):
    """Return a brain `(C, X, Y)` with folds: smooth random patches of white matter."""
    x, y = np.ogrid[:SIZE, :SIZE]
    center = SIZE / 2
    brain = (x - center) ** 2 + (y - center) ** 2 < (SIZE * 0.42) ** 2
    patches = ndimage.gaussian_filter(rng.normal(size=(SIZE, SIZE)), 4)
    channels = np.where(brain, np.where(patches > 0, 2, 1), 0)
    channels[30:36, 30:36] = 3
    return np.moveaxis(np.eye(4, dtype=np.float32)[channels], -1, 0)


def render(pv, modality, rng, noise=0.03, shift=0):
    image = np.tensordot(LOOKS[modality], pv, axes=1)
    image = ndimage.gaussian_filter(image, 0.7) + rng.normal(0, noise, image.shape)
    image = np.where(pv[0] < 0.5, image, 0)
    return np.clip(np.roll(image, shift, axis=1), 0, 1).astype(np.float32)


def dataset(slices=48, *, seed=0, subjects=4, drawn=DRAWN, noise=0.03, shifts=(0, 0, 0)):
    """Return slices with one image of every modality; `drawn` is what each really looks like."""
    rng = np.random.default_rng(seed)
    pv = np.stack([label(rng) for _ in range(slices)])
    images = [
        render(p, look, rng, noise, shift)
        for p in pv
        for look, shift in zip(drawn, shifts, strict=True)
    ]
    return from_arrays(
        pv,
        SCHEMA,
        images=np.stack(images)[:, None],
        image_slices=np.repeat(np.arange(slices), 3),
        subject=[f"sub-{i % subjects}" for i in range(slices)],
        position=np.linspace(0, 1, slices),
        modality=DRAWN * slices,
        dataset=("clinic",) * (3 * slices),
    )


@pytest.fixture(scope="module")
def real():
    return dataset()


def classify(images):
    """Tell the modality by the nearest look, as a classifier would."""
    names = []
    for image in images[:, 0]:
        middle = np.median(image[image > 0.05])
        distance = {m: abs(middle - np.mean(look[1:3])) for m, look in LOOKS.items()}
        names.append(min(distance, key=distance.get))
    return names, ["clinic"] * len(images)


def numbers(section):
    return {metric.name: metric for metric in section.metrics}


def test_intensities_are_those_of_pure_pixels():
    pv = np.zeros((3, 4, 8), dtype=np.float32)
    pv[1, :2] = 0.9
    pv[2, 2:] = 0.7
    pv[0] = 1 - pv[1:].sum(axis=0)
    image = np.arange(32, dtype=np.float32).reshape(4, 8) / 32
    mean, spread = tissue_intensities(image, pv)
    assert mean[1] == pytest.approx(np.arange(16).mean() / 32)
    assert spread[1] == pytest.approx(np.arange(16).std() / 32)
    assert np.isnan([mean[0], mean[2], spread[0], spread[2]]).all()


def test_a_tissue_of_few_pixels_has_no_intensity():
    pv = np.zeros((2, 1, 2 * MIN_PIXELS), dtype=np.float32)
    pv[1, 0, : MIN_PIXELS - 1] = 1
    pv[0] = 1 - pv[1]
    assert np.isnan(tissue_intensities(pv[1], pv)).all()


def test_contrast_is_measured_per_image(real):
    table = describe_styles(real, KEY).contrast
    assert table.rows.tolist() == list(range(144))
    t2 = table.modality == "t2"
    np.testing.assert_allclose(np.nanmean(table.mean[t2, 1:3], axis=0), [0.6, 0.4], atol=0.03)
    gm_wm = np.nanmean(table.cnr(1, 2)[t2])
    noise = np.sqrt(np.nanmean(table.spread[t2, 1:3] ** 2))
    assert gm_wm == pytest.approx(0.2 / noise, rel=0.15)
    assert (table.cnr(2, 1)[t2] == -table.cnr(1, 2)[t2]).all()


def test_some_slices_give_all_of_their_images(real):
    rows = rows_of(real, KEY, 5)
    assert len(rows) == 15
    assert set(np.bincount(real.images.slices[rows])) == {0, 3}


@pytest.mark.parametrize("shift", [1, 2, 3])
def test_edges_are_followed_through_a_change_of_contrast(shift):
    rng = np.random.default_rng(shift)
    pv = label(rng)
    first = render(pv, "t1", rng)
    same, moved = render(pv, "t2", rng), render(pv, "t2", rng, shift=shift)
    brain = pv[0] < 0.5
    assert edge_displacement(first, first, brain) == 0
    assert edge_displacement(first, same, brain) < 0.25
    assert edge_displacement(first, moved, brain) == pytest.approx(shift, abs=0.25)
    assert edge_displacement(first, 1 - 0.5 * first**2, brain) < 0.25


def test_edges_of_an_empty_picture_cannot_be_followed():
    empty = np.zeros((SIZE, SIZE), dtype=np.float32)
    full = np.ones((SIZE, SIZE), dtype=bool)
    assert np.isnan(edge_displacement(empty, empty, full))
    assert np.isnan(edge_displacement(empty, empty, ~full))
    small = np.zeros((8, 8), dtype=np.float32)
    assert np.isnan(edge_displacement(small, small, np.ones((8, 8), dtype=bool)))


def test_block_correlations_are_those_of_scikit_image():
    rng = np.random.default_rng(0)
    block, area = rng.random((BLOCK, BLOCK)), rng.random((BLOCK + 2 * REACH,) * 2)
    np.testing.assert_allclose(
        style._correlations(block, area), match_template(area, block), atol=1e-9
    )
    assert not style._correlations(np.ones((BLOCK, BLOCK)), area).any()


def test_gaps_are_left_out_column_by_column():
    first = filled(np.asarray([[1.0, np.nan], [3.0, 5.0]]))
    second = filled(np.asarray([[2.0, np.nan], [np.nan, 9.0]]))
    assert with_gaps(own_mean)(first, second) == pytest.approx((2 + 5) / 2)
    expected = (stats.wasserstein_distance([1, 3], [2]) + 4) / 2
    assert with_gaps(wasserstein)(first, second) == pytest.approx(expected)
    with pytest.raises(RequestError, match="no tissue is pure enough"):
        with_gaps(own_mean)(first, filled(np.full((2, 2), np.nan)))


def test_accuracy_stands_beside_that_of_real_subjects():
    reference = np.asarray([True, True, False, True] * 10)
    subjects = ["a", "b", "c", "d"] * 10
    floor = accuracy_floor(np.asarray([True, False]), reference, subjects, KEY)
    assert (floor.value, floor.n) == (0.5, 2)
    assert floor.low <= floor.reference <= floor.high <= 1
    assert floor.reference == pytest.approx(0.75)


@pytest.mark.parametrize("subjects", [["a"] * 20, ["a", "b"] * 10])
def test_a_perfect_reference_still_allows_for_errors(subjects):
    floor = accuracy_floor(np.ones(5, bool), np.ones(20, bool), subjects, KEY)
    assert floor.low == pytest.approx(stats.beta.ppf(0.05, 20.5, 0.5))
    assert floor.reference == floor.high == 1


def test_accuracy_needs_images():
    with pytest.raises(RequestError, match="3 generated, 0 real"):
        accuracy_floor(np.ones(3, bool), np.ones(0, bool), [], KEY)


def test_a_probe_reads_what_is_in_the_codes():
    rng = np.random.default_rng(0)
    codes = rng.normal(size=(120, 6))
    names = np.where(codes[:, 0] > 0, "a", "b")
    read = probe_accuracy(codes, names, KEY)
    assert read.value > 0.9
    assert read.value > read.high
    assert read.reference == pytest.approx(0.5, abs=0.1)
    place = codes[:, 1] + 0.1 * rng.normal(size=120)
    read = probe_accuracy(codes, place, KEY)
    assert read.value > 0.95
    assert read.reference == pytest.approx(0, abs=0.15)


def test_a_probe_of_noise_is_at_chance():
    rng = np.random.default_rng(1)
    codes = rng.normal(size=(150, 6))
    for target in (rng.choice(["a", "b", "c"], 150), rng.random(150)):
        read = probe_accuracy(codes, target, KEY)
        assert abs(read.value - read.reference) < 0.15


def test_a_probe_with_groups_does_not_profit_from_known_subjects():
    """Codes tell the subject, and each subject has one position: new subjects stay unreadable."""
    rng = np.random.default_rng(2)
    subject = np.repeat(np.arange(20), 8)
    codes = np.eye(20)[subject] + 0.01 * rng.normal(size=(160, 20))
    place = rng.random(20)[subject] + 0.01 * rng.random(160)
    assert probe_accuracy(codes, place, KEY).value > 0.9
    groups = [f"sub-{s}" for s in subject]
    assert abs(probe_accuracy(codes, place, KEY, groups=groups).value) < 0.5


def test_probes_refuse_what_they_cannot_read():
    codes = np.zeros((6, 2))
    with pytest.raises(RequestError, match=r"2 classes or more.*got \[6\]"):
        probe_accuracy(codes, np.asarray(["a"] * 6), KEY)
    with pytest.raises(RequestError, match=r"got \[5, 1\]"):
        probe_accuracy(codes, np.asarray(["a"] * 5 + ["b"]), KEY)
    with pytest.raises(RequestError, match="at least 2 subjects"):
        probe_accuracy(codes, np.arange(6.0), KEY, groups=["a"] * 6)
    with pytest.raises(RequestError, match="not all finite"):
        probe_accuracy(np.full((6, 2), np.nan), np.arange(6.0), KEY)


def test_contrast_is_measured_against_white_matter():
    names = {(BRAIN9.names[a], BRAIN9.names[b]) for a, b in cnr_pairs(BRAIN9)}
    assert names >= {("csf", "wm"), ("gm", "wm"), ("wmh", "wm")}
    other = LabelSchema("o", (Tissue("background", 0), Tissue("a", 1), Tissue("b", 2)))
    assert cnr_pairs(other) == [(1, 2)]
    assert cnr_pairs(LabelSchema("o", (Tissue("background", 0),))) == []


def test_real_against_real_is_good(real):
    section = style_section(
        dataset(seed=1), real, key=KEY, classifier=classify, holdout=dataset(seed=2)
    )
    found = numbers(section)
    assert {m.name for m in section.metrics if m.verdict == "poor"} == set()
    assert {"style/modality/clinic_t1", "style/cnr/t2/gm-wm", "style/swap/edges"} <= {*found}
    assert found["style/modality/clinic_flair"].reference > 90
    assert section.refused == ("Leakage probes: no style codes given",)
    rows = {row[0]: row[1:] for row in section.tables[0].rows}
    assert set(rows) == {f"{m}, {t}" for m in DRAWN for t in ("gm", "wm", "wmh")}
    assert rows["t1, gm"][0].startswith("0.50")


def test_a_style_that_is_ignored_is_found(real):
    """Every style looks like t1: nothing changes, and two of three are not recognised."""
    one = dataset(seed=1, drawn=("t1", "t1", "t1"))
    found = numbers(style_section(one, real, key=KEY, classifier=classify, holdout=dataset(seed=2)))
    assert found["style/modality/clinic_t1"].verdict == "good"
    poor = {
        "style/modality/clinic_t2",
        "style/mean/t2",
        "style/cnr/t2/gm-wm",
        "style/swap/change",
    }
    assert poor <= {name for name, metric in found.items() if metric.verdict == "poor"}


def test_a_style_that_moves_boundaries_is_found(real):
    found = numbers(style_section(dataset(seed=1, shifts=(0, 2, -2)), real, key=KEY))
    assert found["style/swap/edges"].value > 2
    assert found["style/swap/edges"].verdict == "poor"


def test_noise_lowers_the_contrast_to_noise_ratio(real):
    found = numbers(style_section(dataset(seed=1, noise=0.09), real, key=KEY))
    assert found["style/spread/t1"].verdict == "poor"
    assert found["style/cnr/t1/gm-wm"].verdict == "poor"
    assert abs(found["style/cnr/t1/gm-wm"].value) < abs(found["style/cnr/t1/gm-wm"].reference)


def test_one_subject_gives_no_numbers(real):
    one = replace(real, table=replace(real.table, subject=("sub-0",) * 48))
    section = style_section(dataset(24, seed=1), one, key=KEY)
    assert section.metrics == ()
    assert any("at least 2 subjects, got 1 (sub-0)" in line for line in section.refused)


def test_sets_without_a_common_modality_have_no_contrast(real):
    images = replace(real.images, modality=("",) * 144, style=("a", "b", "c") * 48)
    section = style_section(
        replace(real, images=images), real, key=KEY, classifier=classify, holdout=real
    )
    assert {"/".join(name.split("/")[:2]) for name in numbers(section)} == {
        "style/swap",
        "style/dataset",
    }
    assert "Tissue contrast: the sets have no modality in common" in section.refused
    assert any("a: modality recognised" in line and "not known" in line for line in section.refused)
    assert section.tables == ()


def test_leaking_codes_are_found(real):
    rng = np.random.default_rng(0)
    subject = np.tile(["a", "b", "c"], 40)
    place = np.tile(np.linspace(0, 1, 40), (3, 1)).T.ravel()
    style_names = ["clinic_t1"] * 120
    clean = StyleCodes(rng.normal(size=(120, 4)), subject, place, style_names)
    leaking = replace(
        clean,
        codes=np.column_stack([clean.codes, place + 0.1 * clean.codes[:, 0], subject == "b"]),
    )
    few = real.take(range(24))
    found = numbers(style_section(few, few, key=KEY, codes=leaking))
    assert found["style/leak/subject/clinic_t1"].verdict == "poor"
    assert found["style/leak/position/clinic_t1"].verdict == "poor"
    found = numbers(style_section(few, few, key=KEY, codes=clean))
    assert found["style/leak/subject/clinic_t1"].verdict != "poor"
    assert found["style/leak/position/clinic_t1"].verdict != "poor"


def test_sets_that_cannot_be_compared_are_refused(real):
    empty = np.zeros((1, 9, SIZE, SIZE), np.float32)
    with pytest.raises(SchemaError, match="brain9"):
        style_section(from_arrays(empty, BRAIN9), real, key=KEY)
    with pytest.raises(GeometryError, match="expected slices of"):
        style_section(from_arrays(np.zeros((1, 4, 8, 8), np.float32), SCHEMA), real, key=KEY)
    labels = from_arrays(np.zeros((1, 4, SIZE, SIZE), np.float32), SCHEMA, name="mine")
    with pytest.raises(RequestError, match="mine: a set of labels has no images"):
        style_section(labels, real, key=KEY)


def test_sections_are_the_same_every_time(real, untouched_rng):
    few = real.take(range(24))
    first, again = (style_section(few, few, key=KEY) for _ in range(2))
    assert first == again
