"""Descriptors of label maps, distances between sets, and the labels' part of the report."""

from dataclasses import replace

import numpy as np
import pytest
from scipy import ndimage, stats

from synthgen.core.errors import GeometryError, RequestError, SchemaError
from synthgen.core.rng import SampleKey
from synthgen.core.schema import BRAIN9, LabelSchema, Tissue
from synthgen.evaluate.label_metrics import (
    binned,
    boundary_distance,
    describe_labels,
    fitting_slices,
    in_bins,
    mean_at,
    mean_wasserstein,
    position_bins,
    presence_right,
    rank_agreement,
    sliced_wasserstein,
)
from synthgen.evaluate.label_section import compare_labels, labels_section
from synthgen.evaluate.sets import from_arrays

SCHEMA = LabelSchema(
    "toy",
    (
        Tissue("background", 0),
        Tissue("gm", 1),
        Tissue("wm", 2),
        Tissue("wmh", 3, lesion=True),
        Tissue("tumour", 4, lesion=True),
    ),
)
KEY = SampleKey(3, 0)
SIZE = 40


def disc(radius, center=(20, 20)):
    x, y = np.ogrid[:SIZE, :SIZE]
    return (x - center[0]) ** 2 + (y - center[1]) ** 2 <= radius**2


def brain(radius=15.0, core=8.0, lesion=0, shift=0, blur=0.0, gap=0):
    """Return a PV map: grey disc, white core, a square lesion of `lesion` pixels a side."""
    channels = np.zeros((SIZE, SIZE), dtype=np.int64)
    channels[disc(radius, (20, 20 + shift))] = 1
    channels[disc(core, (20, 20 + shift))] = 2
    channels[18 : 18 + lesion, 16 : 16 + lesion] = 3
    channels[16 : 16 + gap, 19 : 19 + gap] = 0
    pv = np.moveaxis(np.eye(5, dtype=np.float32)[channels], -1, 0)
    if blur:
        pv = ndimage.gaussian_filter(pv, (0, blur, blur))
        pv /= pv.sum(axis=0)
    return pv


def dataset(count=160, *, seed=0, subjects=8, requested=None, **changes):
    """Return slices whose shares follow the position, with jitter of subjects and slices."""
    rng = np.random.default_rng(seed)
    position = (np.arange(count) + 0.5) / count
    subject = [f"sub-{i % subjects:02}" for i in range(count)]
    habit = rng.normal(0, 0.4, subjects)
    radius = 14 + 3 * np.sin(np.pi * position) + rng.normal(0, 0.2, count)
    core = 6 + habit[np.arange(count) % subjects] + 2 * position + rng.normal(0, 0.2, count)
    lesion = rng.integers(0, 6, count)
    maps = [
        brain(r, c, **{"lesion": side, **changes})
        for r, c, side in zip(radius, core, lesion, strict=True)
    ]
    return from_arrays(
        np.stack(maps), SCHEMA, subject=subject, position=position, requested=requested
    )


@pytest.fixture(scope="module")
def real():
    return dataset()


@pytest.fixture(scope="module")
def described(real):
    return describe_labels(real)


def numbers(section):
    return {metric.name: metric for metric in section.metrics}


def test_a_map_is_described_by_what_was_drawn():
    pv = np.stack([brain(15, 8, lesion=4), brain(15, 8, gap=5), brain(15, 0)])
    found = describe_labels(from_arrays(pv, SCHEMA))
    np.testing.assert_allclose(found.fractions[0], SCHEMA.fractions(pv[0]))
    np.testing.assert_allclose(
        found.fractions[0, 1:],
        [disc(15).sum() - disc(8).sum(), disc(8).sum() - 16, 16, 0] / disc(15).sum(),
    )
    assert found.pieces.tolist() == [1, 1, 1]
    assert found.holes.tolist() == [0, 1, 0]
    assert found.hole_share[1] == pytest.approx(25 / disc(15).sum())
    assert found.sharpness.tolist() == [1, 1, 1]
    assert found.lesions.slices.tolist() == [0]
    assert found.lesions.channel.tolist() == [3]
    assert found.lesions.area.tolist() == [16]
    # The brain's box is 5 to 35; the lesion covers 18 to 22 and 16 to 20.
    np.testing.assert_allclose(found.lesions.place, [[(20 - 5) / 31, (18 - 5) / 31]])
    np.testing.assert_allclose(found.realised, found.fractions[:, 3:])


def test_an_empty_map_is_described():
    pv = np.zeros((1, 5, SIZE, SIZE), dtype=np.float32)
    pv[:, 0] = 1
    found = describe_labels(from_arrays(pv, SCHEMA))
    assert not found.fractions.any()
    assert (found.pieces, found.sharpness) == (0, 0)
    assert not found.neighbours.any()
    assert found.lesions.area.shape == (0,)
    assert found.lesions.place.shape == (0, 2)


def test_boundaries_include_the_outline_of_the_brain():
    pv = np.zeros((1, 5, SIZE, SIZE), dtype=np.float32)
    pv[0, 1] = disc(15)
    pv[0, 0] = 1 - pv[0, 1]
    found = describe_labels(from_arrays(pv, SCHEMA))
    perimeter = sum(np.abs(np.diff(disc(15).astype(int), axis=a)).sum() for a in (0, 1))
    assert found.neighbours.sum() == found.neighbours[0, 0] == perimeter


def test_descriptors_do_not_depend_on_the_chunks(monkeypatch):
    slices = dataset(10)
    whole = describe_labels(slices)
    monkeypatch.setattr("synthgen.evaluate.label_metrics._CHUNK", 3)
    chunked = describe_labels(slices)
    np.testing.assert_array_equal(whole.neighbours, chunked.neighbours)
    np.testing.assert_array_equal(whole.lesions.slices, chunked.lesions.slices)


def test_blur_lowers_the_sharpness():
    pv = np.stack([brain(blur=b) for b in (0, 0.5, 1, 2)])
    sharpness = describe_labels(from_arrays(pv, SCHEMA)).sharpness
    assert (np.diff(sharpness) < 0).all()


def test_maps_that_are_not_finite_are_refused():
    pv = np.stack([brain(), brain()])
    pv[1, 2, 3, 3] = np.nan
    with pytest.raises(SchemaError, match="mine: slice 1 has PV values that are not finite"):
        describe_labels(from_arrays(pv, SCHEMA, name="mine"))


def test_an_empty_set_is_refused(real):
    with pytest.raises(RequestError, match="no slices to describe"):
        describe_labels(real.take([]))


def test_bins_cover_the_common_positions():
    edges = position_bins(np.asarray([0.0, 0.8]), np.asarray([0.4, 1.0]), count=4)
    np.testing.assert_allclose(edges, [0.4, 0.5, 0.6, 0.7, 0.8])
    rows, inside = binned(np.asarray([0.3, 0.4, 0.55, 0.8, 0.9]), np.arange(5.0)[:, None], edges)
    assert inside.tolist() == [False, True, True, True, False]
    assert rows.tolist() == [[0, 1], [1, 2], [3, 3]]


def test_unknown_positions_give_one_bin():
    edges = position_bins(np.asarray([np.nan, 0.2]), np.asarray([0.4]))
    rows, inside = binned(np.asarray([np.nan, 0.2]), np.ones((2, 1)), edges)
    assert inside.all()
    assert rows[:, 0].tolist() == [0, 0]


def test_sets_of_one_common_position_have_one_bin():
    edges = position_bins(np.asarray([0.5, 0.5]), np.asarray([0.5, 0.7]))
    assert binned(np.asarray([0.5]), np.ones((1, 1)), edges)[0].tolist() == [[0, 1]]


def test_no_common_positions_are_refused():
    with pytest.raises(RequestError, match=r"0\.10 to 0\.20 against 0\.30 to 0\.40"):
        position_bins(np.asarray([0.1, 0.2]), np.asarray([0.3, 0.4]))


def test_matched_distance_is_the_weighted_mean_over_bins():
    first = np.asarray([[0, 1.0], [0, 1.0], [1, 5.0], [2, 9.0]])
    second = np.asarray([[0, 2.0], [0, 2.0], [0, 2.0], [1, 8.0]])
    # Two pairs differ by 1, one by 3; bin 2 stands alone.
    assert in_bins(mean_wasserstein)(first, second) == pytest.approx((2 * 1 + 1 * 3) / 3)


def test_matched_distance_ignores_where_the_slices_lie():
    """Two sets of one anatomy that is steep in the position, sampled low and sampled high."""
    rng = np.random.default_rng(0)
    low, high = rng.beta(2, 4, 4000), rng.beta(4, 2, 4000)
    edges = position_bins(low, high)
    rows = [binned(p, 10 * p[:, None], edges)[0] for p in (low, high)]
    plain = mean_wasserstein(*(r[:, 1:] for r in rows))
    assert in_bins(mean_wasserstein)(*rows) < 0.15 * plain


def test_matched_distance_needs_a_common_bin():
    with pytest.raises(RequestError, match="no slice positions in common"):
        in_bins(mean_wasserstein)(np.zeros((1, 2)), np.ones((1, 2)))


def test_mean_at_weights_the_bins():
    rows = np.asarray([[0, 1.0], [0, 3.0], [1, 10.0]])
    mean = mean_at(np.asarray([0.25, 0.75]))
    assert mean(rows, rows) == pytest.approx(0.25 * 2 + 0.75 * 10)
    # A bin without rows leaves the others with all the weight.
    assert mean(rows[:2], rows) == pytest.approx(2)


def test_wasserstein_distances_of_shifted_samples_are_the_shift():
    sample = np.random.default_rng(0).normal(size=(50, 2))
    assert mean_wasserstein(sample, sample) == 0
    assert mean_wasserstein(sample, sample + np.asarray([1, 3])) == pytest.approx(2)
    along = [1, 0, 0.5**0.5, 0.5**0.5]
    assert sliced_wasserstein(sample, sample + np.asarray([1, 0])) == pytest.approx(np.mean(along))


def test_boundary_distance_is_the_share_that_lies_elsewhere():
    first, second = np.asarray([[2.0, 0, 2], [4, 0, 0]]), np.asarray([[1.0, 1, 2]])
    # 6/8, 0, 2/8 against 1/4, 1/4, 2/4.
    assert boundary_distance(first, second) == pytest.approx(0.5)
    assert boundary_distance(first, 7 * first) == 0
    assert boundary_distance(np.eye(3)[:1], np.eye(3)[1:2]) == 1


def test_rank_agreement_is_spearman():
    requested, realised = np.asarray([1.0, 2, 3, 4]), np.asarray([1.0, 8, 27, 20])
    assert rank_agreement(requested, realised) == pytest.approx(
        stats.spearmanr(requested, realised).statistic
    )
    assert rank_agreement(requested, realised**3) == rank_agreement(requested, realised)
    assert rank_agreement(requested, np.zeros(4)) == 0


def test_presence_is_right_where_both_or_neither_have_it():
    requested, realised = np.asarray([0, 0, 0.1, 0.1]), np.asarray([0, 0.1, 0, 0.02])
    assert presence_right(requested, realised) == 0.5


def test_the_fitting_slice_is_near_and_has_the_nearest_share():
    share, at = np.asarray([0.1, 0.2, 0.3]), np.asarray([0.5, 0.5, 0.9])
    chosen = fitting_slices(np.asarray([0.29, 0.29]), np.asarray([0.52, np.nan]), share, at)
    assert chosen.tolist() == [1, 2]


def compared(made, described):
    return numbers(compare_labels(describe_labels(made), described, key=KEY))


def test_real_against_real_of_other_subjects_is_good(real):
    section = labels_section(dataset(seed=1), real, key=KEY)
    found = numbers(section)
    assert {"labels/share/mean", "labels/share/wm", "labels/one_piece", "labels/sharpness"} <= {
        *found
    }
    assert {m.name for m in section.metrics if m.verdict == "poor"} == set()
    assert [f.name for f in section.figures] == ["shares"]
    assert all(f.png.startswith(b"\x89PNG") for f in section.figures)
    for metric in section.metrics:
        assert metric.low <= metric.reference <= metric.high


@pytest.mark.parametrize(
    ("changes", "poor"),
    [
        ({"blur": 1.5}, {"labels/sharpness"}),
        ({"gap": 5}, {"labels/no_holes", "labels/hole_area"}),
        ({"lesion": 12}, {"labels/share/wmh", "labels/lesion_size/wmh", "labels/boundaries"}),
    ],
)
def test_degraded_maps_are_poor(described, changes, poor):
    found = compared(dataset(seed=1, **changes), described)
    assert poor <= {name for name, metric in found.items() if metric.verdict == "poor"}


def test_missing_lesions_are_found_unless_none_were_requested(real, described):
    def without(i):
        pv = real.read_pv(i)
        return np.stack([*pv[:2], pv[2] + pv[3], np.zeros_like(pv[3]), pv[4]])

    healthy = describe_labels(replace(real, read_pv=without))
    section = compare_labels(healthy, described, key=KEY)
    assert numbers(section)["labels/lesion_slices/wmh"].value == 0
    assert numbers(section)["labels/lesion_slices/wmh"].verdict == "poor"
    assert any("Sizes of single wmh" in line and "got 0" in line for line in section.refused)
    asked = compare_labels(replace(healthy, requested=np.zeros((160, 2))), described, key=KEY)
    assert "labels/lesion_slices/wmh" not in numbers(asked)


def test_shuffled_tissues_are_poor(real, described):
    found = compared(replace(real, read_pv=lambda i: real.read_pv(i)[[0, 2, 1, 3, 4]]), described)
    assert found["labels/share/mean"].verdict == "poor"
    assert found["labels/boundaries"].verdict == "poor"


def test_slices_at_wrong_positions_are_found(described):
    upside = replace(described, position=1 - described.position)
    found = numbers(compare_labels(upside, described, key=KEY))
    assert found["labels/share/wm"].verdict == "poor"


def test_requests_that_are_met_are_good(described):
    followed = replace(described, requested=described.realised)
    found = numbers(compare_labels(followed, described, key=KEY))
    rank, error, right = (found[f"labels/request/wmh/{n}"] for n in ("rank", "error", "presence"))
    assert (rank.value, error.value, right.value) == (pytest.approx(1), 0, 100)
    assert {rank.verdict, error.verdict, right.verdict} == {"good"}
    assert right.n == 160
    assert rank.n == error.n == (described.realised[:, 0] > 0).sum()


def test_requests_that_are_ignored_are_not_good(described):
    wrong = np.random.default_rng(0).permutation(described.realised)
    found = numbers(compare_labels(replace(described, requested=wrong), described, key=KEY))
    assert found["labels/request/wmh/rank"].verdict == "poor"
    assert found["labels/request/wmh/error"].verdict == "poor"
    assert found["labels/request/wmh/presence"].verdict != "good"


def test_too_few_requests_are_refused(described):
    requested = np.full((160, 2), np.nan)
    requested[:5, 0] = 0.1
    section = compare_labels(replace(described, requested=requested), described, key=KEY)
    assert any("at least 20 slices with a request, got 5" in line for line in section.refused)


def test_what_cannot_be_measured_is_refused_with_the_reason(real):
    requested = np.zeros((160, 2))
    requested[:, 0] = 0.02
    asked = replace(real, table=replace(real.table, requested=requested))
    section = labels_section(asked, real, key=KEY)
    assert "Requested tumour: no slice was asked to have any" in section.refused
    assert (
        "Rank correlation of requested and realised wmh: every request is the same share"
        in section.refused
    )
    assert "Share of tumour, Sizes and places of tumour: neither set has any" in section.refused
    assert [f.name for f in section.figures] == ["shares", "requests"]


def test_real_data_of_one_subject_give_no_numbers(described):
    one = replace(described, subject=("sub-00",) * 160)
    section = compare_labels(described, one, key=KEY)
    assert section.metrics == ()
    assert any("at least 2 subjects, got 1 (sub-00)" in line for line in section.refused)


def test_few_slices_give_no_numbers(real, described):
    few = describe_labels(real.take(range(0, 160, 8)))
    section = compare_labels(few, described, key=KEY)
    assert not any(m.name.startswith("labels/share") for m in section.metrics)
    assert any("at least 50 samples a side, got 20" in line for line in section.refused)


def test_unknown_positions_are_said(real):
    nowhere = replace(real, table=replace(real.table, position=np.full(160, np.nan)))
    section = labels_section(nowhere, real, key=KEY)
    assert "labels/share/mean" in numbers(section)
    assert any("does not state its slice positions" in line for line in section.refused)
    assert section.figures == ()


def test_other_schemas_and_sizes_are_refused(real):
    pv = np.zeros((1, 9, SIZE, SIZE), np.float32)
    with pytest.raises(SchemaError, match="brain9"):
        labels_section(from_arrays(pv, BRAIN9), real, key=KEY)
    small = from_arrays(np.zeros((1, 5, 8, 8), np.float32), SCHEMA, name="small")
    with pytest.raises(GeometryError, match=r"small: expected slices of \(40, 40\)"):
        labels_section(small, real, key=KEY)


def test_sections_are_the_same_every_time(real, untouched_rng):
    made = dataset(seed=1)
    first, again = (labels_section(made, real, key=KEY) for _ in range(2))
    assert first.metrics == again.metrics
