"""Mixtures: shares, draws, and parts that do not go together."""

from pathlib import Path

import numpy as np
import pytest
from raw_folders import Held

from synthgen.core.errors import GeometryError, RequestError
from synthgen.data.mixture import Mixture, parse_data


def held(name, *, cases=3, channels=1, shape=(8, 8), groups=3, **more):
    pair = np.zeros((channels, *shape), np.float32), np.zeros((groups, *shape), np.float32)
    return Held([pair] * cases, name=name, **more)


@pytest.mark.parametrize(
    ("texts", "expected"),
    [
        (["a"], [("a", 1.0)]),
        (["a=0.25", "b=0.75"], [("a", 0.25), ("b", 0.75)]),
        (["a=0.25", "b"], [("a", 0.25), ("b", 0.75)]),
        (["a", "b"], [("a", 0.5), ("b", 0.5)]),
        (["a=x/b", "c=.5"], [("a=x/b", 0.5), ("c", 0.5)]),
        (["a=x=0.5", "b"], [("a=x", 0.5), ("b", 0.5)]),
    ],
)
def test_paths_and_shares(texts, expected):
    assert parse_data(texts) == [(Path(path), share) for path, share in expected]


@pytest.mark.parametrize(
    ("texts", "message"),
    [
        ([], "at least one PATH"),
        (["a=0.5"], "must sum to 1, got 0.5"),
        (["a=1", "b"], "leaves nothing"),
        (["a=1.5"], r"must lie in \(0, 1\], got 1.5"),
        (["a=0", "b"], r"must lie in \(0, 1\], got 0"),
        (["a=nan"], "must lie in"),
    ],
)
def test_shares_that_make_no_sense(texts, message):
    with pytest.raises(RequestError, match=message):
        parse_data(texts)


def test_draws_keep_the_shares_in_every_batch():
    mixture = Mixture([(held("real", cases=2), 1), (held("made", cases=5), 3)])
    assert mixture.shares == (0.25, 0.75)
    rng = np.random.default_rng(0)
    seen, firsts = set(), set()
    for _ in range(200):
        drawn = mixture.draw(rng, 8)
        assert [part for part, _ in drawn].count(0) == 2
        seen |= {*drawn}
        firsts.add(drawn[0][0])
    assert seen == {(0, k) for k in range(2)} | {(1, k) for k in range(5)}
    assert firsts == {0, 1}


def test_single_draws_have_the_right_mean():
    mixture = Mixture([(held("a"), 0.3), (held("b"), 0.7)])
    rng = np.random.default_rng(1)
    parts = [mixture.draw(rng, 1)[0][0] for _ in range(4000)]
    assert np.mean(parts) == pytest.approx(0.7, abs=4 * np.sqrt(0.21 / 4000))


def test_what_a_mixture_states():
    mixture = Mixture([(held("b", spacing_mm=(2.0, 1.0)), 1), (held("a"), 1)])
    assert mixture.spacing_mm == (2.0, 1.0)
    assert mixture.subjects == ("a/sub-1", "b/sub-1")
    assert [part["share"] for part in mixture.identity["parts"]] == [0.5, 0.5]


def test_mixed_ranks():
    with pytest.raises(GeometryError, match="mixed 2D and 3D data: flat is 2-D, deep is 3-D"):
        Mixture([(held("flat"), 1), (held("deep", shape=(8, 8, 8)), 1)])


@pytest.mark.parametrize(
    ("other", "message"),
    [
        ({"groups": 4}, r"b: expected the tissues of a \(background, csf, gm\), got .*wm"),
        ({"overlapping": True}, "overlapping"),
        ({"channels": 2}, r"b: expected the input channels of a \(c0\), got c0, c1"),
    ],
)
def test_parts_that_differ(other, message):
    with pytest.raises(RequestError, match=message):
        Mixture([(held("a"), 1), (held("b", **other), 1)])


def test_channels_in_another_order():
    first, second = held("a", channels=2), held("b", channels=2)
    second.channels = ("c1", "c0")
    with pytest.raises(RequestError, match="got c1, c0"):
        Mixture([(first, 1), (second, 1)])
    first.channels, second.channels = ("T1", "FLAIR"), ("t1", "flair")
    Mixture([(first, 1), (second, 1)])


def test_nothing_and_no_share():
    with pytest.raises(RequestError, match="at least one"):
        Mixture([])
    with pytest.raises(RequestError, match="a: a share must be above 0"):
        Mixture([(held("a"), 0)])
