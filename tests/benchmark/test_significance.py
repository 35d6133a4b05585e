import math

import numpy as np
import pytest
from scipy import stats

from synthgen.benchmark.significance import (
    holm,
    joint_bootstrap,
    non_inferiority,
    paired_t,
    seed_spread,
    t_interval,
    unpaired_t,
    wilcoxon,
)
from synthgen.core.rng import SampleKey, Stream

# Student 1908: additional hours of sleep gained by ten patients with two drugs.
FIRST = np.array([0.7, -1.6, -0.2, -1.2, -0.1, 3.4, 3.7, 0.8, 0.0, 2.0])
SECOND = np.array([1.9, 0.8, 1.1, 0.1, -0.1, 4.4, 5.5, 1.6, 4.6, 3.4])


def rng(index=0):
    return SampleKey(3, index).numpy(Stream.EVALUATE)


def test_students_own_data():
    assert paired_t(FIRST, SECOND) == pytest.approx(0.002833, abs=1e-6)
    assert unpaired_t(FIRST, SECOND) == pytest.approx(0.07919, abs=1e-5)
    low, high = t_interval(FIRST - SECOND)
    assert (low, high) == pytest.approx((-2.4598858, -0.7001142), abs=1e-6)


def test_p_values_are_scipys():
    a, b = rng().normal(0.8, 0.02, 12), rng(1).normal(0.79, 0.02, 12)
    assert paired_t(a, b) == stats.ttest_rel(a, b).pvalue
    assert unpaired_t(a, b) == pytest.approx(stats.ttest_ind(a, b).pvalue)
    assert wilcoxon(a, b) == stats.wilcoxon(a, b).pvalue
    assert non_inferiority(a - b, 0.01) == pytest.approx(
        stats.ttest_rel(a + 0.01, b, alternative="greater").pvalue
    )
    interval = stats.ttest_rel(a, b).confidence_interval(0.95)
    assert t_interval(a - b) == pytest.approx((interval.low, interval.high))


def test_the_smallest_wilcoxon_p():
    """All of n subjects differ the same way: 2 / 2**n."""
    for n in (6, 8):
        assert wilcoxon(np.arange(1.0, n + 1), np.zeros(n)) == pytest.approx(2 / 2**n)
    assert wilcoxon(np.arange(1.0, 6), np.zeros(5)) is None


def test_subjects_without_a_difference():
    same = np.linspace(0.7, 0.9, 8)
    assert wilcoxon(same, same) == 1.0
    assert paired_t(same, same) is None
    assert t_interval(same - same) == (0.0, 0.0)
    # Five that differ cannot reach .05, whatever the other three do.
    first = same.copy()
    first[:5] += np.linspace(0.01, 0.02, 5)
    assert wilcoxon(first, same) is None


def test_scores_that_do_not_vary_have_no_t_test():
    ones, zeros = np.ones(5), np.zeros(5)
    assert paired_t(ones, zeros) is None
    assert unpaired_t(ones, zeros) is None
    assert non_inferiority(ones, 0.01) is None
    assert 0 < unpaired_t(np.linspace(0.8, 0.9, 5), np.full(5, 0.8)) < 0.05


@pytest.mark.parametrize("n", [0, 1])
def test_one_subject_has_no_interval(n):
    values = np.full(n, 0.8)
    assert all(math.isnan(end) for end in t_interval(values))
    assert paired_t(values, values) is None
    assert wilcoxon(values, values) is None


def test_holm_of_the_textbook():
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert holm([0.5, 0.9]) == [1.0, 1.0]
    assert holm([]) == []
    assert holm([None, 0.04, None, 0.01]) == [None, 0.04, None, 0.02]


def test_the_t_interval_covers_what_it_promises():
    """Share of 4000 intervals that hold the truth, within 3 standard errors of .95."""
    for n in (4, 6, 12):
        draws = rng(n).normal(0.005, 0.008, (4000, n))
        ends = np.array([t_interval(d) for d in draws])
        share = np.mean((ends[:, 0] <= 0.005) & (ends[:, 1] >= 0.005))
        assert share == pytest.approx(0.95, abs=3 * math.sqrt(0.95 * 0.05 / 4000))


def test_the_paired_test_finds_what_the_unpaired_misses():
    """The table of powers: 20 volumes, sd .02 between volumes, .008 of differences, truth .005."""
    draw = rng(9)
    found = np.zeros(2)
    for _ in range(300):
        volumes = draw.normal(0.85, 0.02, 20)
        arm = volumes + draw.normal(0.005, 0.008, 20)
        found += [paired_t(arm, volumes) < 0.05, unpaired_t(arm, volumes) < 0.05]
    paired, unpaired = found / 300
    assert paired == pytest.approx(0.75, abs=0.1)
    assert unpaired < 0.05


def test_the_bootstrap_covers_subjects_and_trainings():
    """With noise in both, at n = 40 and 5 trainings; trainings alone cover 0 to 5 % too little."""
    draw, held = rng(4), 0
    for _ in range(60):
        subjects = draw.normal(0, 0.02, (40, 1))
        arms = [
            subjects + draw.normal(0, 0.006, (1, 5)) + draw.normal(m, 0.008, (40, 5))
            for m in (0.84, 0.85)
        ]
        low, high = joint_bootstrap(*arms, draw)
        held += low <= -0.01 <= high
    assert held >= 49


def test_the_bootstrap_depends_on_its_generator_alone():
    a, b = rng(1).normal(0.8, 0.02, (30, 3)), rng(2).normal(0.8, 0.02, (30, 4))
    assert joint_bootstrap(a, b, rng(5)) == joint_bootstrap(a, b, rng(5))
    low, high = joint_bootstrap(a, b, rng(5))
    assert low < a.mean() - b.mean() < high


def test_seed_spread_is_between_trainings():
    values = np.array([[0.7, 0.8], [0.9, 1.0]])
    assert seed_spread(values) == pytest.approx(np.std([0.8, 0.9], ddof=1))
    assert math.isnan(seed_spread(values[:, :1]))
