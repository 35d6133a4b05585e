import numpy as np
import pytest
from scipy import ndimage

from synthgen.core.errors import GeometryError, RequestError
from synthgen.core.rng import SampleKey
from synthgen.evaluate import two_sample
from synthgen.evaluate.two_sample import two_sample_test

KEY = SampleKey(0, 0)


def textures(seed, sigma, count=24, size=140):
    rng = np.random.default_rng(seed)
    fields = ndimage.gaussian_filter(rng.normal(size=(count, size, size)), (0, *sigma))
    return [field > 0 for field in fields]


def test_different_sets_are_told_apart_and_equal_ones_are_not(untouched_rng, monkeypatch):
    monkeypatch.setattr(two_sample, "_STEPS", 50)
    fine = two_sample_test(textures(0, (2, 2)), textures(1, (5, 5)), KEY, trainings=1)
    assert fine.accuracy > 0.95
    alike = two_sample_test(textures(0, (4, 4)), textures(1, (4, 4)), KEY, trainings=1)
    assert abs(alike.accuracy - 0.5) < 0.2


def test_the_result_depends_on_the_key_alone(monkeypatch):
    monkeypatch.setattr(two_sample, "_STEPS", 30)
    monkeypatch.setattr(two_sample, "_TESTED", 32)
    sides = textures(0, (3, 3), 3), textures(1, (3.5, 3), 3)
    first = two_sample_test(*sides, KEY, trainings=2)
    assert two_sample_test(*sides, KEY, trainings=2) == first
    assert two_sample_test(*sides, SampleKey(1, 0), trainings=2) != first
    assert first.accuracy == pytest.approx(sum(first.trainings) / 2)
    assert first.spread == pytest.approx(np.std(first.trainings))


def test_bad_requests_are_refused():
    masks = textures(0, (3, 3), 2)
    with pytest.raises(RequestError, match="got 1 and 2"):
        two_sample_test(masks[:1], masks, KEY)
    with pytest.raises(RequestError, match="one training or more, got 0"):
        two_sample_test(masks, masks, KEY, trainings=0)
    with pytest.raises(RequestError, match="has none"):
        two_sample_test(masks, [masks[0], np.zeros((140, 140), bool)], KEY)
    with pytest.raises(GeometryError, match=r"128 x 128 pixels or more, got \(100, 140\)"):
        two_sample_test(masks, [m[:100] for m in masks], KEY)
