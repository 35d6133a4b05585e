"""Distances of feature vectors: golden values, slow obvious versions, and what must move them."""

from dataclasses import dataclass, field

import numpy as np
import pytest
import scipy.linalg
from scipy import ndimage

from synthgen.core.errors import RequestError
from synthgen.core.rng import SampleKey
from synthgen.core.schema import BRAIN9
from synthgen.evaluate.fidelity import (
    frechet_distance,
    kernel_distance,
    manifolds,
    median_bandwidth,
    rbf_mmd,
)
from synthgen.evaluate.fidelity_section import (
    AT_LEAST,
    DIMENSIONS,
    extract,
    fidelity_section,
    matched_positions,
)
from synthgen.evaluate.sets import from_arrays

KEY = SampleKey(0, 0)


def normal(seed, n=300, d=4, mean=0.0, scale=1.0):
    return mean + scale * np.random.default_rng(seed).standard_normal((n, d))


def whitened(rows, mean, covariance):
    """Return rows whose sample mean and covariance are exactly those given."""
    centred = rows - rows.mean(axis=0)
    root = np.linalg.cholesky(np.cov(centred, rowvar=False))
    return centred @ np.linalg.inv(root).T @ np.linalg.cholesky(covariance).T + mean


def test_the_frechet_distance_of_known_gaussians():
    """Diagonal covariances: |m1 - m2|^2 + sum of (sqrt(s1) - sqrt(s2))^2."""
    first = whitened(normal(0), np.zeros(4), np.diag([1.0, 4.0, 9.0, 1.0]))
    second = whitened(normal(1), np.asarray([1.0, 0, 0, 2.0]), np.diag([1.0, 1.0, 1.0, 16.0]))
    expected = (1 + 4) + (0 + 1 + 4 + 9)
    assert frechet_distance(first, second) == pytest.approx(expected)
    assert frechet_distance(second, first) == pytest.approx(expected)


def test_the_frechet_distance_agrees_with_a_matrix_root():
    rng = np.random.default_rng(3)
    a, b = normal(0) @ rng.normal(size=(4, 4)), normal(1, mean=0.5) @ rng.normal(size=(4, 4))
    s1, s2 = np.cov(a, rowvar=False), np.cov(b, rowvar=False)
    root = np.real(scipy.linalg.sqrtm(s1 @ s2))
    expected = np.sum((a.mean(0) - b.mean(0)) ** 2) + np.trace(s1 + s2 - 2 * root)
    assert frechet_distance(a, b) == pytest.approx(expected, rel=1e-6)


def test_the_frechet_distance_takes_a_single_feature():
    a, b = normal(0, d=1), normal(1, d=1, mean=2, scale=3)
    expected = (a.mean() - b.mean()) ** 2 + (a.std(ddof=1) - b.std(ddof=1)) ** 2
    assert frechet_distance(a, b) == pytest.approx(expected)


def mmd_by_loops(a, b, kernel):
    def within(rows):
        pairs = [(x, y) for i, x in enumerate(rows) for j, y in enumerate(rows) if i != j]
        return np.mean([kernel(x, y) for x, y in pairs])

    across = np.mean([kernel(x, y) for x in a for y in b])
    return within(a) + within(b) - 2 * across


def test_kernel_distances_agree_with_loops():
    a, b = normal(0, n=13), normal(1, n=9, mean=0.4)
    assert kernel_distance(a, b) == pytest.approx(
        mmd_by_loops(a, b, lambda x, y: (x @ y / 4 + 1) ** 3)
    )
    assert rbf_mmd(a, b, 1.7) == pytest.approx(
        mmd_by_loops(a, b, lambda x, y: np.exp(-np.sum((x - y) ** 2) / (2 * 1.7**2)))
    )


def test_kernel_distances_of_one_distribution_scatter_around_zero():
    values = [
        (kernel_distance(normal(2 * s), normal(2 * s + 1)), rbf_mmd(normal(s), normal(s + 99), 2))
        for s in range(20)
    ]
    mean, spread = np.mean(values, axis=0), np.std(values, axis=0)
    assert (np.abs(mean) < 3 * spread / np.sqrt(20)).all()


def manifolds_by_loops(generated, real, k):
    def radius(rows, i):
        return sorted(np.linalg.norm(rows[i] - r) for r in rows)[k]

    in_real = [
        [np.linalg.norm(g - r) < radius(real, i) for i, r in enumerate(real)] for g in generated
    ]
    in_made = [
        [np.linalg.norm(g - r) < radius(generated, i) for i, g in enumerate(generated)]
        for r in real
    ]
    return (
        np.mean([any(row) for row in in_real]),
        np.mean([any(row) for row in in_made]),
        np.mean([sum(row) / k for row in in_real]),
        np.mean(np.any(in_real, axis=0)),
    )


def test_precision_recall_density_and_coverage_agree_with_loops():
    generated, real = normal(0, n=25, d=2, mean=0.5), normal(1, n=30, d=2)
    assert manifolds(generated, real, 3) == pytest.approx(manifolds_by_loops(generated, real, 3))


def test_the_same_sample_covers_itself_and_a_far_one_nothing():
    rows = normal(0)
    assert manifolds(rows, rows)[:2] == (1.0, 1.0)
    assert manifolds(rows, rows).coverage == 1
    assert manifolds(rows + 100, rows) == (0.0, 0.0, 0.0, 0.0)


def test_a_lost_mode_costs_recall_and_coverage_but_no_precision():
    real = np.concatenate([normal(0, n=150), normal(1, n=150, mean=10)])
    half = normal(2, n=150)
    both = np.concatenate([half, normal(3, n=150, mean=10)])
    assert manifolds(half, real).precision == pytest.approx(
        manifolds(both, real).precision, abs=0.05
    )
    assert manifolds(half, real).recall < 0.6 < manifolds(both, real).recall
    assert manifolds(half, real).coverage < 0.6 < manifolds(both, real).coverage


@pytest.mark.parametrize("measure", [frechet_distance, kernel_distance])
def test_distances_grow_with_the_gap_and_with_noise(measure):
    real = normal(0)
    gaps = [measure(normal(1, mean=m), real) for m in (0, 0.5, 1, 2)]
    noises = [measure(normal(1, scale=s), real) for s in (1, 1.5, 2.5, 5)]
    assert gaps == sorted(gaps)
    assert noises == sorted(noises)


@pytest.mark.parametrize(
    ("measure", "generated", "real", "message"),
    [
        (frechet_distance, normal(0, n=7), normal(0), "generated features: needs at least 8 rows"),
        (kernel_distance, normal(0), normal(0, n=1), "real features: needs at least 2 rows, got 1"),
        (manifolds, normal(0, n=5), normal(0), "needs at least 6 rows, got 5"),
        (kernel_distance, normal(0) * np.nan, normal(0), "generated features: expected finite"),
        (kernel_distance, normal(0, d=3), normal(0), r"expected \(n, 4\), got \(300, 3\)"),
    ],
)
def test_what_cannot_be_measured_is_refused(measure, generated, real, message):
    with pytest.raises(RequestError, match=message):
        measure(generated, real)


def test_the_bandwidth_is_the_median_distance():
    assert median_bandwidth(np.asarray([[0.0], [1.0], [3.0]])) == 2
    with pytest.raises(RequestError, match="more than half"):
        median_bandwidth(np.ones((9, 2)))


def test_positions_are_matched():
    rng = np.random.default_rng(0)
    generated, real = rng.uniform(0, 1, 4000), rng.beta(4, 2, 500)
    made, true = matched_positions(generated, real, rng)
    assert len(made) > 400
    assert len(true) == 500
    shares = [np.histogram(p, 10, (0, 1))[0] / len(p) for p in (generated[made], real)]
    np.testing.assert_allclose(shares[0], shares[1], atol=0.03)
    assert (np.diff(made) > 0).all()


def test_heights_that_were_not_generated_are_left_out_on_both_sides():
    generated, real = np.linspace(0.31, 0.69, 400), np.linspace(0, 1, 101)
    made, true = matched_positions(generated, real, np.random.default_rng(0))
    assert len(made) > 350
    assert 0.3 <= real[true].min() < real[true].max() < 0.7
    nothing = matched_positions(np.full(3, 0.1), np.full(3, 0.9), np.random.default_rng(0))
    assert [rows.size for rows in nothing] == [0, 0]


def test_unknown_positions_are_left_alone():
    found = matched_positions(np.full(5, np.nan), np.zeros(3), np.random.default_rng(0))
    assert found.generated.tolist() == [0, 1, 2, 3, 4]
    assert found.real.tolist() == [0, 1, 2]


@dataclass(frozen=True)
class Pooled:
    """Mean grey values of 4 x 4 cells."""

    name: str = "pooled"
    title: str = "pooled grey values"
    what: str = "images"
    facts: dict = field(default_factory=lambda: {"encoder": "none"})

    def __call__(self, batch):
        n, c, x, y = batch.shape
        return batch.reshape(n, c, 4, x // 4, 4, y // 4).mean(axis=(3, 5)).reshape(n, -1) * 1.0


def pictures(seed, people, n, blur=0.0, *, owned=True):
    """Return a set of blobs; each person has an own contrast."""
    rng = np.random.default_rng(seed)
    count = people * n
    image = ndimage.gaussian_filter(rng.random((count, 1, 16, 16)), (0, 0, 2, 2))
    image += 0.02 * rng.random((people, 1, 1, 1)).repeat(n, axis=0)
    image = ndimage.gaussian_filter(image, (0, 0, blur, blur)).astype(np.float32)
    pv = np.zeros((count, 9, 16, 16), np.float32)
    pv[:, 1] = 1
    return from_arrays(
        pv,
        BRAIN9,
        images=image,
        subject=[f"a/s{i // n}" for i in range(count)] if owned else None,
        position=rng.random(count),
        modality=["t1", "flair"] * (count // 2),
        dataset=["a"] * count,
    )


REAL = pictures(0, 6, 80)


def test_every_number_has_its_floor_and_its_facts():
    section = fidelity_section(pictures(1, 1, 600, owned=False), REAL, spaces=[Pooled()], key=KEY)
    names = {metric.name for metric in section.metrics}
    assert {"fidelity/frechet/pooled/t1", "fidelity/coverage/pooled/flair"} <= names
    assert len(names) == 14
    for metric in section.metrics:
        assert metric.low <= metric.reference <= metric.high
        assert metric.n >= AT_LEAST
        assert metric.provenance["encoder"] == "none"
        assert f"{DIMENSIONS} main axes of 240 real rows" in metric.provenance["dimensions"]
    assert not section.refused
    assert [figure.name for figure in section.figures] == ["fidelity-pooled"]


def value_of(blur, name):
    section = fidelity_section(
        pictures(1, 1, 600, blur, owned=False), REAL, spaces=[Pooled()], key=KEY
    )
    return next(metric for metric in section.metrics if metric.name == name)


def test_blur_is_seen_and_real_data_pass():
    same, blurred = (value_of(blur, "fidelity/frechet/pooled/t1") for blur in (0, 3))
    assert same.verdict == "good"
    assert blurred.value > 3 * same.value
    assert blurred.verdict != "good"


def test_too_few_slices_are_refused_with_a_reason():
    few = pictures(1, 1, 40, owned=False)
    section = fidelity_section(few, REAL, spaces=[Pooled()], key=KEY)
    assert not section.metrics
    assert len(section.refused) == 2
    for line in section.refused:
        assert "needs at least 64 slices a side at the same heights of the brain, got" in line


def test_equal_keys_give_equal_numbers():
    made = pictures(1, 1, 200, owned=False)
    first, second = (
        fidelity_section(made, REAL, spaces=[Pooled()], key=KEY).metrics for _ in range(2)
    )
    assert first == second


def test_features_are_extracted_in_batches():
    rows = np.arange(70)
    np.testing.assert_array_equal(extract(Pooled(), REAL, rows), Pooled()(REAL.image(rows)))
