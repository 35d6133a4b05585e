"""Maps that miss their lesion request are drawn again, and stay a function of (seed, index)."""

import numpy as np
import pytest
import torch

from synthgen.core.errors import RequestError
from synthgen.core.rng import SampleKey, Stream
from synthgen.core.schema import BRAIN9
from synthgen.data.shards import Shards
from synthgen.generate import (
    Acceptance,
    GenerationSettings,
    generate_labels,
    replay,
    replay_labels,
)
from synthgen.labels import ConditionRange

SHAPE = (20, 25)
WMH = BRAIN9.names.index("wmh")
RANGES = ConditionRange({"wmh": (0.02, 0.08)}, (0.3, 0.7))
SETTINGS = GenerationSettings(batch_size=4, shard_size=8)


class CarelessLabels:
    """White matter with a lesion of the share asked for, times a factor drawn from the key."""

    schema, shape, subjects = BRAIN9, SHAPE, ("a/s1",)
    conditions = RANGES

    def __init__(self, factors=(0.0, 0.4, 1.0, 1.1, 2.5)):
        self.identity = {"model": "careless"}
        self._factors = factors
        self.draws = 0

    def factor(self, key):
        return self._factors[key.numpy(Stream.NOISE).integers(len(self._factors))]

    def sample(self, keys, conditions):
        self.draws += 1
        pv = torch.zeros(len(keys), BRAIN9.channels, *SHAPE)
        for row, key, condition in zip(pv, keys, conditions, strict=True):
            share = condition.lesions.get("wmh", 0.0) * self.factor(key)
            pixels = round(share * SHAPE[0] * SHAPE[1])
            row[3] = 1
            row[3].view(-1)[:pixels] = 0
            row[WMH].view(-1)[:pixels] = 1
        return pv


@pytest.mark.parametrize(
    ("wanted", "realised", "meets"),
    [
        (0.03, 0.03, True),
        (0.03, 0.03 * 1.5 + 0.0019, True),
        (0.03, 0.03 * 1.5 + 0.0021, False),
        (0.03, 0.03 / 1.5 - 0.0021, False),
        (0.001, 0.0, False),  # asked for and absent, though within the slack
        (0.0, 0.0, True),
        (0.0, 0.001, False),  # not asked for and there
    ],
)
def test_a_map_meets_its_request_within_factor_and_slack(wanted, realised, meets):
    acceptance = Acceptance(factor=1.5, slack=0.002)
    assert acceptance.meets(np.asarray([[wanted]]), np.asarray([[realised]])).tolist() == [meets]


def test_every_lesion_must_fit():
    wanted = np.asarray([[0.02, 0.0], [0.02, 0.0]])
    realised = np.asarray([[0.02, 0.0], [0.02, 0.05]])
    assert Acceptance().meets(wanted, realised).tolist() == [True, False]


@pytest.mark.parametrize("keywords", [{"max_attempts": 0}, {"factor": 0.5}, {"slack": -0.5}])
def test_settings_that_accept_nothing_are_refused(keywords):
    with pytest.raises(RequestError, match=str(next(iter(keywords.values())))):
        Acceptance(**keywords)


def test_the_first_draw_that_meets_the_request_is_kept(tmp_path):
    generator, acceptance = CarelessLabels(), Acceptance(max_attempts=12)
    generate_labels(generator, RANGES, 32, tmp_path, SETTINGS, acceptance=acceptance)
    shards = Shards(tmp_path)
    attempts = [row.attempt for row in shards]
    assert max(attempts) > 0
    for row in shards:
        asked, made = row.condition["wmh"], row.realised["wmh"]
        assert acceptance.meets(np.asarray([[asked]]), np.asarray([[made]])).all()
        # An oracle: the factors of this sample's keys, one attempt after the other.
        keys = [generator.factor(_key(row.index, attempt)) for attempt in range(12)]
        assert row.attempt == next(a for a, factor in enumerate(keys) if factor in (1.0, 1.1))


def test_without_a_fitting_draw_the_nearest_is_kept(tmp_path):
    generator = CarelessLabels(factors=(0.0, 2.0, 6.0))
    generate_labels(generator, RANGES, 16, tmp_path, SETTINGS, acceptance=Acceptance(3))
    for row in Shards(tmp_path):
        drawn = [generator.factor(_key(row.index, attempt)) for attempt in range(3)]
        nearest = min(drawn, key=lambda f: abs(np.log((f * 0.05 + 0.002) / 0.052)))
        assert row.realised["wmh"] == pytest.approx(row.condition["wmh"] * nearest, abs=0.0025)


def test_lesions_that_the_generator_never_saw_do_not_count(tmp_path):
    generator = CarelessLabels(factors=(0.0,))
    generator.conditions = ConditionRange({"tumour": (0.0, 0.1)}, (0.3, 0.7))
    generate_labels(generator, RANGES, 8, tmp_path, SETTINGS)  # draws wmh; tumour is absent
    assert generator.draws == 2
    generator.conditions = ConditionRange({}, (0.3, 0.7))
    nothing = ConditionRange({}, (0.3, 0.7))
    generate_labels(generator, nothing, 8, tmp_path / "healthy", SETTINGS)
    assert generator.draws == 4


def test_one_attempt_keeps_each_first_draw(tmp_path):
    generator = CarelessLabels()
    generate_labels(generator, RANGES, 16, tmp_path, SETTINGS, acceptance=Acceptance(1))
    assert generator.draws == 4
    assert all(row.attempt == 0 for row in Shards(tmp_path))


def test_a_redrawn_sample_does_not_depend_on_n_and_replays(tmp_path):
    for n in (5, 24):
        generate_labels(CarelessLabels(), RANGES, n, tmp_path / str(n), SETTINGS)
    few, many = Shards(tmp_path / "5"), Shards(tmp_path / "24")
    for index in range(5):
        assert few[index].attempt == many[index].attempt
        np.testing.assert_array_equal(few[index].pv, many[index].pv)
    job = replay_labels(many, CarelessLabels())
    assert all(replay(job, many, index) == [] for index in range(24))


def test_another_acceptance_is_another_dataset(tmp_path):
    generate_labels(CarelessLabels(), RANGES, 4, tmp_path, SETTINGS)
    with pytest.raises(RequestError, match="acceptance"):
        generate_labels(CarelessLabels(), RANGES, 8, tmp_path, SETTINGS, acceptance=Acceptance(9))


def _key(index, attempt):
    return SampleKey(SETTINGS.seed, index, attempt)
