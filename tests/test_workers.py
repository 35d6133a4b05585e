"""Workers of one dataset: whose shards they make, what they count, and who is refused."""

import json
from dataclasses import replace

import pytest
from file_digests import digests
from tiny_generators import TinyLabels

from synthgen.core.errors import RequestError, StoreError
from synthgen.core.lock import LOCK, folder_lock
from synthgen.core.manifest import Manifest
from synthgen.data.shards import shard_path
from synthgen.data.verify import verify
from synthgen.generate import GenerationSettings, generate_labels
from synthgen.labels import ConditionRange
from synthgen.runtime import worker

RANGES = ConditionRange({"wmh": (0.01, 0.05)}, (0.3, 0.7))
SETTINGS = GenerationSettings(batch_size=2, shard_size=4, threads=1)
N = 22
"""Six shards, the last of two samples."""
WHAT = f"labels, {N} samples"


def make(folder, number=1, count=1, n=N, progress=None, **change):
    settings = replace(SETTINGS, worker=number - 1, num_workers=count, **change)
    return generate_labels(TinyLabels(), RANGES, n, folder, settings, progress=progress)


@pytest.fixture(scope="module")
def one(tmp_path_factory):
    """Digests of what one worker makes."""
    folder = tmp_path_factory.mktemp("one")
    make(folder)
    return digests(folder)


def counts(outcome):
    return outcome.generated, outcome.kept, outcome.taken_over, outcome.elsewhere


def test_a_worker_makes_what_nobody_makes(one, tmp_path):
    seen = []
    outcome = make(tmp_path, 2, 3, progress=lambda *state: seen.append(state))
    # Shards 1 and 4 are its own: 8 samples.
    assert counts(outcome) == (22, 0, 14, 0)
    assert seen[0] == (2, 8)
    assert seen[-1] == (22, 22)
    assert all(done <= total for done, total in seen)
    assert digests(tmp_path) == one
    assert counts(make(tmp_path, 1, 3)) == (0, 8, 0, 0)
    assert counts(make(tmp_path, 3, 3)) == (0, 6, 0, 0)
    assert digests(tmp_path) == one


def test_own_shards_come_first_then_those_of_others_from_the_end(tmp_path):
    generator = TinyLabels()
    settings = replace(SETTINGS, worker=1, num_workers=3)
    generate_labels(generator, RANGES, N, tmp_path, settings)
    first = list(dict.fromkeys(batch[0] // 4 for batch in generator.batches))
    assert first == [1, 4, 5, 3, 2, 0]


def test_what_another_worker_is_making_is_left_to_it(one, tmp_path):
    with folder_lock(tmp_path, WHAT, worker=1, num_workers=3) as other:
        held = [other.claim("00004"), other.claim("00002")]
        outcome = make(tmp_path, 1, 3)
        assert counts(outcome) == (14, 0, 6, 8)
        (tmp_path / "shards" / ".00004.h5.77.tmp").write_bytes(b"half")
        assert counts(make(tmp_path, 3, 3)) == (0, 2, 0, 8)  # shard 2 is its own
        assert (tmp_path / "shards" / ".00004.h5.77.tmp").exists()
        for claim in held:
            claim.release()
    assert counts(make(tmp_path, 3, 3)) == (8, 2, 4, 0)
    assert digests(tmp_path) == one


def test_a_claim_that_becomes_free_meanwhile_is_taken(one, tmp_path):
    with folder_lock(tmp_path, WHAT, worker=1, num_workers=2) as other:
        held = [other.claim("00002")]

        def dies(done, _):
            if done == 20 - 2:
                held.pop().release()

        outcome = make(tmp_path, 1, 2, progress=dies)
    assert counts(outcome) == (22, 0, 10, 0)
    assert digests(tmp_path) == one


def test_shards_that_another_made_since_the_start_are_kept(one, tmp_path):
    def meanwhile(done, _):
        if done == 2:
            make(tmp_path, 2, 2)

    outcome = make(tmp_path, 1, 2, progress=meanwhile)
    # Shard 0 was under way; the other made 2 and 4 beside its own 1, 3 and 5.
    assert counts(outcome) == (4, 8, 0, 0)
    assert digests(tmp_path) == one


def test_a_dataset_grows_whoever_made_its_last_shard(one, tmp_path):
    make(tmp_path, n=10)
    outcome = make(tmp_path, 1, 2)
    # Shard 2 held two rows; 3 and 5 are the other's.
    assert counts(outcome) == (12, 6, 6, 0)
    assert digests(tmp_path) == one


def test_damaged_shards_of_others_are_named_or_made_again(one, tmp_path):
    make(tmp_path)
    shard_path(tmp_path, 1).write_bytes(shard_path(tmp_path, 1).read_bytes()[:700])
    with pytest.raises(StoreError, match=r"00001\.h5: truncated"):
        make(tmp_path, 1, 2)
    assert counts(make(tmp_path, 1, 2, repair=True)) == (4, 12, 4, 0)
    assert digests(tmp_path) == one


def test_temporary_files_and_locks_of_the_dead_are_swept(one, tmp_path):
    make(tmp_path)
    shard_path(tmp_path, 3).unlink()
    for name in ("shards/.00003.h5.42.tmp", ".manifest.json.7.tmp", f"{LOCK}.00003", LOCK):
        (tmp_path / name).write_bytes(b"half")
    (tmp_path / f"{LOCK}.5-of-9").touch()
    make(tmp_path, 1, 2)
    assert digests(tmp_path) == one


@pytest.mark.parametrize(
    ("there", "here", "said"),
    [
        ((1, 1), (1, 1), "wait until it ends, or choose another folder"),
        ((2, 3), (2, 3), "as worker 2 of 3; every worker of a run has another number"),
        ((2, 3), (2, 4), "as one of 3 workers, this is worker 2 of 4"),
        ((2, 3), (1, 1), "as one of 3 workers, this is one run alone"),
        ((1, 1), (2, 3), "as a run alone, this is worker 2 of 3"),
    ],
)
def test_runs_that_do_not_belong_together_are_refused(there, here, said, tmp_path):
    with folder_lock(tmp_path, WHAT, worker=there[0] - 1, num_workers=there[1]):
        before = digests(tmp_path)
        with pytest.raises(RequestError, match=said):
            make(tmp_path, *here)
        assert digests(tmp_path) == before


def test_workers_of_another_n_or_seed_are_refused(tmp_path):
    def meanwhile(done, _):
        if done == 2:
            with pytest.raises(RequestError, match=r"labels, 22 samples\) as one of 2 workers"):
                make(tmp_path, 2, 2, n=30)
            with pytest.raises(RequestError, match="seed: there 0, asked 1"):
                make(tmp_path, 2, 2, seed=1)

    make(tmp_path, 1, 2, progress=meanwhile)
    assert Manifest.read(tmp_path).n == N
    assert verify(tmp_path) == []


def test_without_locks_a_worker_makes_its_own_shards_alone(one, tmp_path, monkeypatch):
    monkeypatch.setattr("synthgen.core.lock.fcntl.flock", no_locks)
    assert counts(make(tmp_path, 2, 2)) == (10, 0, 0, 12)
    assert counts(make(tmp_path, 1, 2)) == (12, 0, 0, 0)
    assert digests(tmp_path) == one


def no_locks(*_):
    raise OSError(38, "Function not implemented")


@pytest.mark.parametrize("asked", ["1/1", "1/3", "3/3", "16/16"])
def test_workers_count_from_one(asked):
    number, count = map(int, asked.split("/"))
    assert worker(asked) == (number - 1, count)


@pytest.mark.parametrize("asked", ["0/3", "4/3", "3", "a/b", "1/0", "-1/3", "1/3/3", "/", ""])
def test_no_such_worker_is_refused(asked):
    with pytest.raises(RequestError, match=rf"such as 3/16, got '{asked}'"):
        worker(asked)


def test_worker_and_launcher_are_not_mixed(monkeypatch):
    monkeypatch.setenv("RANK", "0")
    monkeypatch.setenv("WORLD_SIZE", "2")
    assert worker() == (0, 2)
    with pytest.raises(RequestError, match=r"--worker 1/3: a launcher .* WORLD_SIZE=2"):
        worker("1/3")


def test_the_command_line_tells_what_was_taken_over(command_line, monkeypatch, tmp_path):
    monkeypatch.setattr("synthgen.cli.labels.label_generator", lambda *_: TinyLabels())
    ask = ("labels", "--shard-size", 4, "--batch-size", 2, "--n", 10, "--device", "cpu")
    out = ("--out", tmp_path / "set")
    code, said, _ = command_line(*ask, *out, "--worker", "3/3")
    assert code == 0
    assert f"labels [worker 3 of 3]: {tmp_path}/set holds 10 samples in all; made 10 (8 for" in said
    code, said, _ = command_line(*ask, *out, "--worker", "1/3", "--json")
    report = json.loads(said)
    assert (code, report["generated"], report["kept"], report["elsewhere"]) == (0, 0, 4, 0)
    with folder_lock(tmp_path / "two", "labels, 10 samples", worker=0, num_workers=3) as other:
        claim = other.claim("00001")
        _, said, _ = command_line(*ask, "--out", tmp_path / "two", "--worker", "2/3")
        claim.release()
        code, _, refused = command_line(*ask, "--out", tmp_path / "two", "--worker", "1/3")
    assert "holds 6 of 10 samples, 4 are in other workers' hands; made 6 (6 for other" in said
    assert (code, refused.count("\n")) == (2, 1)
    assert "as worker 1 of 3; every worker of a run has another number" in refused
    code, _, refused = command_line(*ask, *out, "--worker", "0/3")
    assert (code, refused.count("\n")) == (2, 1)
