import numpy as np
import pytest

from synthgen.benchmark.arms import Part, build_arms, draws, few_slices
from synthgen.core.errors import RequestError


def names(*kinds, ratios=(1.0,), few=20):
    return [arm.name for arm in build_arms(kinds, ratios, few)]


def test_real_is_always_there_and_first():
    assert names("synthetic") == ["real", "synthetic"]
    assert names("contrast", "real", "contrast") == ["real", "contrast"]


def test_an_arm_is_called_by_its_settings():
    assert names("hybrid", "few", ratios=(0.5, 1, 2), few=7) == [
        "real", "hybrid-0.5", "hybrid", "hybrid-2", "few-7",
    ]  # fmt: skip


def test_pretraining_takes_half_the_steps():
    first, then = build_arms(["pretrain"], (1,), 1)[1].stages
    assert (first.until, first.parts[0].store) == (0.5, "synthetic")
    assert (then.until, then.parts[0].store) == (1.0, "real")


@pytest.mark.parametrize("ratio", [0.5, 1, 2, 5])
@pytest.mark.parametrize("sizes", [(7, 100), (100, 7), (30, 30)])
def test_a_hybrid_is_drawn_in_its_ratio_and_evenly(ratio, sizes):
    parts = build_arms(["hybrid"], (ratio,), 1)[1].stages[0].parts
    slices = {"real": [str(i) for i in range(sizes[0])], "synthetic": ["s"] * sizes[1]}
    counts = np.bincount(draws(parts, slices), minlength=sum(sizes))
    real, made = counts[: sizes[0]], counts[sizes[0] :]
    assert made.sum() / real.sum() == pytest.approx(ratio, rel=0.02)
    for part in (real, made):
        assert part.min() >= 10
        assert part.max() - part.min() <= 1


def test_one_part_is_drawn_as_it_is():
    assert draws([Part("real")], {"real": ["a"] * 4}).tolist() == [0, 1, 2, 3]


def test_few_slices_are_spread_and_keep_all_their_modalities():
    slices = [f"{z:02d}" for z in range(11) for _ in ("t1", "t2")]
    assert few_slices(slices, 3).tolist() == [0, 1, 10, 11, 20, 21]
    assert len(few_slices(slices, 99)) == len(slices)
    assert draws([Part("real", few=3)], {"real": slices}).tolist() == [0, 1, 10, 11, 20, 21]


@pytest.mark.parametrize(
    ("kinds", "ratios", "few", "what"),
    [
        (["reel"], (1,), 1, "no arm 'reel'"),
        (["hybrid"], (0,), 1, "--ratio 0"),
        (["hybrid"], (float("nan"),), 1, "--ratio nan"),
        (["few"], (1,), 0, "--few 0"),
    ],
)
def test_wrong_arms_are_refused(kinds, ratios, few, what):
    with pytest.raises(RequestError, match=what):
        build_arms(kinds, ratios, few)
