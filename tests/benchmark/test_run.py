"""The whole driver: processes of their own, crashes, kills, and nnU-Net itself."""

import json
import re
import signal
import sys
import time
from types import SimpleNamespace

import nibabel as nib
import numpy as np
import pytest
from discs import tiny_recipe

from synthgen.benchmark import run
from synthgen.benchmark.arm_store import store_path
from synthgen.benchmark.job import Job, tree_of
from synthgen.benchmark.run import disk_bytes, prepare_benchmark, train_benchmark
from synthgen.core.errors import RequestError, StoreError


def rows_of(job):
    return json.loads((job.folder / "cases.json").read_text())


def test_too_little_disk_is_said_before_anything_is_written(plan, tmp_path, monkeypatch):
    free = SimpleNamespace(free=1_000_000)
    monkeypatch.setattr(run.shutil, "disk_usage", lambda _: free)
    spec, sources = plan("synthetic")
    with pytest.raises(StoreError, match=r"writes about 0\.0 GB, 0\.0 GB are free there"):
        prepare_benchmark(spec, sources, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_the_disk_estimate_counts_stores_checkpoints_and_predictions(plan, tmp_path):
    spec, _ = plan("synthetic")
    jobs = run._jobs(spec, tmp_path)
    assert disk_bytes(100, []) == 0
    assert disk_bytes(100, jobs) > disk_bytes(100, jobs[:1]) > 100 * 50_000


def test_nnunet_at_the_papers_budget_needs_a_gpu(plan, tmp_path, monkeypatch):
    monkeypatch.setattr(run.torch.cuda, "is_available", lambda: False)
    with pytest.raises(RequestError, match="--budget paper of nnU-Net would take weeks"):
        prepare_benchmark(*plan("real", budget="paper"), tmp_path)


def test_seeds_are_the_outer_loop(plan, tmp_path):
    jobs = run._jobs(plan("synthetic", repeats=2)[0], tmp_path)
    assert [j.name for j in jobs] == [
        "real seed 0", "synthetic seed 0", "real seed 1", "synthetic seed 1",
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("code", "log", "reason"),
    [
        (1, "Traceback\nValueError: no such thing\n\n", "ValueError: no such thing"),
        (-signal.SIGKILL, "", "killed by SIGKILL, perhaps out of memory"),
        (3, "", "exit code 3"),
    ],
)
def test_the_reason_of_a_crash_is_one_line(code, log, reason, tmp_path):
    (tmp_path / "log").write_text(log)
    assert run._reason(code, tmp_path / "log") == reason


def test_a_worker_ends_with_its_parent(tmp_path):
    code = "import time; from synthgen.benchmark import worker; worker._end_with_parent(); "
    process = run.subprocess.Popen(
        [sys.executable, "-c", code + "print('up', flush=True); time.sleep(60)"],
        stdin=run.subprocess.PIPE, stdout=run.subprocess.PIPE,
    )  # fmt: skip
    process.stdout.readline()
    process.stdin.close()
    assert process.wait(20) == 130
    process.stdout.close()


@pytest.mark.slow
def test_a_crashed_arm_does_not_take_the_others_along(plan, tmp_path):
    """And the same command, run again, tries it again and keeps what is finished."""
    spec, sources = plan("synthetic", trainer="proxy")
    prepare_benchmark(spec, sources, tmp_path)
    broken = store_path(tmp_path, "synthetic")
    whole = broken.read_bytes()
    broken.write_bytes(whole[:1000])
    shown = []
    outcome = train_benchmark(spec, tmp_path, lambda done, total: shown.append((done, total)))
    assert outcome.trained == ("real seed 0",)
    assert list(outcome.failed) == ["synthetic seed 0"]
    reason = outcome.failed["synthetic seed 0"]
    assert "StoreError" in reason
    assert "synthetic.h5: not readable" in reason
    assert json.loads((tmp_path / "failed.json").read_text()) == outcome.failed
    assert shown[-1] == (2 * spec.budget.steps, 2 * spec.budget.steps)
    broken.write_bytes(whole)
    again = train_benchmark(spec, tmp_path)
    assert (again.trained, again.kept) == (("synthetic seed 0",), ("real seed 0",))
    assert json.loads((tmp_path / "failed.json").read_text()) == {}


@pytest.mark.slow
@pytest.mark.nnunet
def test_nnunet_trains_two_arms_and_labels_the_test_volumes(plan, tmp_path):
    spec, sources = plan("hybrid", recipe=tiny_recipe(epochs=2, steps=4))
    prepare_benchmark(spec, sources, tmp_path)
    plans = json.loads((tmp_path / "plan.json").read_text())
    planned = plans["configurations"]["2d"]
    assert plans["transpose_forward"] == [0, 1, 2]
    assert planned["patch_size"] == [56, 56]  # the brains are 53 pixels wide
    assert planned["batch_size"] == 2
    assert planned["architecture"]["arch_kwargs"]["features_per_stage"][0] == 4
    outcome = train_benchmark(spec, tmp_path)
    assert not outcome.failed
    assert outcome.trained == ("real seed 0", "hybrid seed 0")
    for arm in spec.arms:
        job = Job(tmp_path, spec, arm, 0)
        assert len(rows_of(job)) == 2 * 2 * 3
        volume = nib.load(job.predictions / "a_sub-3_t1.nii.gz")
        assert volume.shape == (64, 64, 6)
        assert volume.header.get_zooms() == (1.5, 1.5, 1.5)
        done = json.loads((job.folder / "done.json").read_text())
        assert len(done["losses"]["train_losses"]) == 2
    kept = train_benchmark(spec, tmp_path)
    assert not kept.trained
    assert kept.kept == outcome.trained


@pytest.mark.slow
@pytest.mark.nnunet
def test_nnunet_learns_and_a_killed_training_goes_on_exactly(plan, tmp_path):
    recipe = tiny_recipe(epochs=6, steps=10)
    runs = []
    for name in ("whole", "killed"):
        spec, sources = plan("pretrain", recipe=recipe, modalities=("t1",))
        prepare_benchmark(spec, sources, tmp_path / name)
        runs.append(Job(tmp_path / name, spec, spec.arm("pretrain"), 0))
    whole, killed = runs
    environment = {**run.os.environ, **tree_of(killed.folder), "nnUNet_n_proc_DA": "0"}
    killed.folder.mkdir(parents=True)
    process = run._start([str(killed.out), "pretrain", "0"], environment, killed.folder / "log.txt")
    deadline = time.monotonic() + 200
    while killed.steps_done() < 40 and time.monotonic() < deadline:  # in the second stage
        time.sleep(0.05)
    process.kill()
    process.wait()
    process.stdin.close()
    assert 40 <= killed.steps_done() < 60
    totals = run._Totals(None, 0)
    for job in runs:
        run._train(job, totals)
    assert not totals.failed
    log = (killed.folder / "log.txt").read_text()
    assert [len(re.findall(rf": Epoch {epoch}\b", log)) for epoch in range(4)] == [1] * 4
    losses = [json.loads((j.folder / "done.json").read_text())["losses"] for j in runs]
    assert losses[0] == losses[1]
    assert losses[0]["train_losses"][-1] < losses[0]["train_losses"][0]
    assert rows_of(whole) == rows_of(killed)
    labels = [np.asarray(nib.load(j.predictions / "b_sub-1_t1.nii.gz").dataobj) for j in runs]
    assert np.array_equal(*labels)
