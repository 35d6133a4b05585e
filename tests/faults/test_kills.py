"""Random kills change nothing; `benchmarks/faults.py` is the long version."""

import numpy as np
import pytest

from faults import world
from faults.kills import DATASETS, TRAININGS, Killed

pytestmark = [pytest.mark.multiprocess]


def stages(makes, trains):
    return [
        *(pytest.param(stage, False, id=f"make-{stage}") for stage in makes),
        *(pytest.param(stage, True, id=f"train-{stage}") for stage in trains),
    ]


def require_unharmed(driver, root, tmp_path, stage, training, kills):
    killed = Killed(driver, root, stage, tmp_path, np.random.default_rng(1), training=training)
    killed.fall(kills)
    tally = killed.tally
    assert tally.clean, tally
    assert tally.kills.total() == kills


@pytest.mark.parametrize(("stage", "training"), stages(["labels", "vessels"], ["labels"]))
def test_a_killed_run_ends_in_the_bytes_of_a_quiet_one(driver, tiny, tmp_path, stage, training):
    require_unharmed(driver, tiny, tmp_path, stage, training, 3)


@pytest.mark.slow
@pytest.mark.parametrize(("stage", "training"), stages(DATASETS, TRAININGS))
def test_many_kills_end_in_the_bytes_of_a_quiet_one(driver, tiny, tmp_path, stage, training):
    require_unharmed(driver, tiny, tmp_path, stage, training, 8)


def test_of_two_writers_on_one_folder_the_second_is_refused(driver, tiny, tmp_path):
    argv = world.generate(tiny, "labels")
    quiet, out = tmp_path / "quiet", tmp_path / "out"
    driver.complete(*argv, "--n", 40, "--out", quiet)
    run = {"argv": (*argv, "--n", 40, "--out", out)}
    first, second = driver.together(run, run | {"after": out / "shards"})
    assert (first.code, second.code) == (0, 2), second.err
    assert len(second.err.splitlines()) == 1
    assert str(out) in second.err
    assert world.files(out) == world.files(quiet)


def test_the_folder_is_free_when_the_first_writer_was_killed(driver, tiny, tmp_path):
    argv = (*world.generate(tiny, "labels"), "--out", tmp_path / "out")
    killed = driver.kill(*argv, delay_s=0.0, watch=tmp_path / "out" / "shards")
    assert killed.code == -9
    driver.complete(*argv)
