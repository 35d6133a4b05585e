import json
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from accelerate import tracking
from accelerate.utils import LoggerType
from interrupted import losses, power_failure
from matplotlib import image
from recorder import Recorder
from safetensors.torch import load_file
from toy_training import ToyStep, toy_settings

from synthgen.core.errors import RequestError, StoreError
from synthgen.core.interrupt import Interrupted
from synthgen.core.lock import folder_lock
from synthgen.runtime import build_accelerator
from synthgen.training.log import read_losses
from synthgen.training.loop import _Stop, run

STEPS = 12
SCRIPT = Path(__file__).parent.parent / "toy_script.py"
SETTINGS = toy_settings(STEPS)


def train(run_dir, settings=SETTINGS, *, resume=False, step=None, accumulation=1):
    accelerator = build_accelerator("fp32", accumulation)
    step = step or ToyStep(accelerator)
    return step, run(step, settings, run_dir, accelerator, resume)


class Signalled(ToyStep):
    """Sends its own process a signal at one step, as a scheduler does."""

    def __init__(self, accelerator, at, number):
        super().__init__(accelerator)
        self.at, self.number = at, number

    def step(self, accelerator, step):
        if step == self.at:
            os.kill(os.getpid(), self.number)
        return super().step(accelerator, step)


@pytest.fixture(scope="module")
def straight(tmp_path_factory):
    """Return the run folder and the weights of a run that nobody interrupted."""
    run_dir = tmp_path_factory.mktemp("straight")
    step, finished = train(run_dir)
    assert finished == STEPS
    return run_dir, step


def assert_same_run(straight, run_dir, step):
    straight_dir, straight_step = straight
    assert losses(run_dir) == losses(straight_dir)
    assert [row["step"] for row in losses(run_dir)] == list(range(1, STEPS + 1))
    for name in ("generator", "critic"):
        ours, theirs = step.models[name].state_dict(), straight_step.models[name].state_dict()
        assert all(torch.equal(ours[k], theirs[k]) for k in theirs)
    ours, theirs = step.ema["generator"], straight_step.ema["generator"]
    shadows = zip(ours.shadow_params, theirs.shadow_params, strict=True)
    assert all(torch.equal(a, b) for a, b in shadows)
    assert step.extra == straight_step.extra


def test_the_toy_learns(straight):
    rows = losses(straight[0])
    assert rows[-1]["generator"] < rows[0]["generator"]


@pytest.mark.parametrize("at", [1, 5, 6, 11])
def test_a_crashed_run_continues_with_the_same_losses(straight, tmp_path, at):
    with power_failure(ToyStep, at):
        train(tmp_path)
    step, finished = train(tmp_path, resume=True)
    assert finished == STEPS
    assert_same_run(straight, tmp_path, step)


@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_a_signal_writes_a_checkpoint_and_interrupts(number, code, straight, tmp_path):
    accelerator = build_accelerator("fp32")
    before = signal.signal(number, signal.default_int_handler)  # not ignored, as in a background
    try:
        step = Signalled(accelerator, 7, number)
        with pytest.raises(Interrupted) as stop:
            train(tmp_path, step=step)
        assert signal.getsignal(number) is signal.default_int_handler
    finally:
        signal.signal(number, before)
    assert stop.value.code == code
    assert stop.value.note == (
        f"{tmp_path} holds a checkpoint at step 8 of 12; the same command with --resume "
        "continues there"
    )
    assert (tmp_path / "checkpoints" / "step_0000008").is_dir()
    step, _ = train(tmp_path, resume=True)
    assert_same_run(straight, tmp_path, step)


def test_a_spent_budget_ends_cleanly_and_can_be_resumed(straight, tmp_path):
    _, finished = train(tmp_path, replace(SETTINGS, max_minutes=0.0))
    assert finished == 0
    step, finished = train(tmp_path, resume=True)
    assert finished == STEPS
    assert_same_run(straight, tmp_path, step)


def test_a_finished_run_stays_as_it_is(straight, tmp_path):
    shutil.copytree(straight[0], tmp_path / "copy")
    step, finished = train(tmp_path / "copy", resume=True)
    assert finished == STEPS
    assert_same_run(straight, tmp_path / "copy", step)


def test_a_run_folder_is_never_overwritten_by_accident(straight):
    with pytest.raises(RequestError, match=rf"at step {STEPS}.*--resume"):
        train(straight[0])


def test_two_trainings_cannot_share_a_run_folder(tmp_path):
    with (
        folder_lock(tmp_path, "training"),
        pytest.raises(RequestError, match=r"writes there \(training\); wait until it ends"),
    ):
        train(tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_a_run_of_another_recipe_is_not_resumed(straight):
    with pytest.raises(RequestError, match="another recipe or other data"):
        train(straight[0], replace(SETTINGS, identity="other"), resume=True)


def test_only_the_last_checkpoints_stay(straight):
    names = sorted(p.name for p in (straight[0] / "checkpoints").iterdir())
    assert names == ["step_0000010", "step_0000012"]


def test_checkpoints_hold_no_pickle(straight):
    files = {p.suffix for p in (straight[0] / "checkpoints").rglob("*") if p.is_file()}
    assert files == {".json", ".safetensors"}


@pytest.mark.parametrize(
    "name", ["state.json", "model.critic.safetensors", "ema.generator.safetensors"]
)
@pytest.mark.parametrize("damage", ["truncate", "remove"])
def test_a_damaged_checkpoint_is_named(straight, tmp_path, name, damage):
    shutil.copytree(straight[0], tmp_path / "copy")
    path = tmp_path / "copy" / "checkpoints" / "step_0000012" / name
    if damage == "remove":
        path.unlink()
    else:
        path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    with pytest.raises(StoreError, match=name):
        train(tmp_path / "copy", resume=True)


def test_a_full_disk_leaves_earlier_checkpoints(straight, tmp_path, monkeypatch):
    shutil.copytree(straight[0], tmp_path / "copy")

    def full(*_args, **_kwargs):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("synthgen.training.checkpoint.save_file", full)
    with pytest.raises(StoreError, match=r"step_0000014.*No space left"):
        train(tmp_path / "copy", replace(SETTINGS, steps=14), resume=True)
    left = sorted(p.name for p in (tmp_path / "copy" / "checkpoints").iterdir())
    assert left == ["step_0000010", "step_0000012"]


def test_a_resumed_run_clears_what_a_killed_one_left(straight, tmp_path):
    copy = tmp_path / "copy"
    shutil.copytree(straight[0], copy)
    (copy / "sheets").mkdir(exist_ok=True)
    for name in (".losses.jsonl.7.tmp", "sheets/.step_0000012.png.7.tmp"):
        (copy / name).write_bytes(b"half")
    (copy / "checkpoints" / ".step_0000014.7.tmp").mkdir()
    train(copy, resume=True)
    assert not list(copy.rglob("*.tmp"))


def test_a_checkpoint_that_is_being_deleted_is_none(tmp_path, monkeypatch):
    # As in a run that is killed whenever it begins to delete.
    monkeypatch.setattr("synthgen.training.checkpoint.shutil.rmtree", lambda *_a, **_k: None)
    train(tmp_path)
    left = sorted(p.name for p in (tmp_path / "checkpoints").glob("step_*"))
    assert left == ["step_0000010", "step_0000012"]


class Worker:
    """One of two workers, for `_Stop`; `meanwhile` happens while their flags are exchanged."""

    num_processes, is_main_process, device = 2, False, torch.device("cpu")

    def __init__(self, other=(0.0, 0.0), meanwhile=lambda: None):
        self._other, self._meanwhile = torch.tensor(other), meanwhile

    def reduce(self, flags, how):
        assert how == "sum"
        self._meanwhile()
        return flags + self._other


def test_a_signal_during_the_exchange_of_flags_waits_for_the_next_one():
    stop = _Stop(None)
    worker = Worker(meanwhile=lambda: stop.hear(signal.SIGINT))
    assert not stop.is_due(worker)
    assert stop.is_due(worker)
    assert stop.signum == signal.SIGINT


@pytest.mark.parametrize(("other", "number"), [((1.0, 0.0), signal.SIGTERM), ((0.0, 1.0), None)])
def test_a_worker_stops_with_the_others(other, number):
    stop = _Stop(None)
    assert not stop.is_due(Worker())
    assert stop.is_due(Worker(other))
    assert stop.signum == number


def test_each_optimiser_steps_once_an_iteration_with_accumulation(tmp_path):
    accelerator = build_accelerator("fp32", 3)
    step = ToyStep(accelerator)
    train(tmp_path, replace(SETTINGS, steps=4), step=step, accumulation=3)
    assert step.optimizer_steps == {"generator": 4, "critic": 4}
    assert step.micro_batches == 12


def test_accumulated_micro_batches_equal_one_large_batch(tmp_path):
    weights = []
    for accumulation in (1, 2):
        accelerator = build_accelerator("fp32", accumulation)
        step = ToyStep(accelerator, batch_size=4 // accumulation, dropout=0.0)
        settings = replace(SETTINGS, steps=3)
        train(tmp_path / str(accumulation), settings, step=step, accumulation=accumulation)
        weights.append(step.models["generator"].weight.detach())
    torch.testing.assert_close(weights[0], weights[1])


@pytest.fixture
def toy():
    return ToyStep(build_accelerator("fp32"))  # draws initial weights globally, as libraries do


def test_training_leaves_the_global_generators_alone(tmp_path, toy, untouched_rng):
    train(tmp_path, replace(SETTINGS, steps=3), step=toy)


def test_training_works_outside_the_main_thread(straight, tmp_path):
    done = []
    thread = threading.Thread(target=lambda: done.append(train(tmp_path)))
    thread.start()
    thread.join()
    assert_same_run(straight, tmp_path, done[0][0])


def test_sheets_are_written_upright(tmp_path):
    train(tmp_path, replace(SETTINGS, steps=4, sheet_every=2))
    picture = image.imread(tmp_path / "sheets" / "step_0000004.png")
    # Two columns of slices with X = 3, Y = 5; the toy marks x = 0 and the largest y.
    assert picture.shape == (5, 6, 4)
    assert picture[0, 0, :3].tolist() == [1, 1, 1]
    assert np.count_nonzero(picture[..., 0]) == 2


def test_autocast_really_computes_in_bfloat16_on_a_cpu():
    accelerator = build_accelerator("bf16")
    model = accelerator.prepare(torch.nn.Conv2d(1, 1, 1))
    seen = []
    model.register_forward_hook(lambda *args: seen.append(args[-1].dtype))
    inner = torch.nn.Conv2d(1, 1, 1)
    with accelerator.autocast():
        assert inner(torch.zeros(1, 1, 2, 2)).dtype == torch.bfloat16
    assert model(torch.zeros(1, 1, 2, 2)).dtype == torch.float32  # handed out for the losses
    assert build_accelerator("fp32").mixed_precision == "no"


@pytest.mark.skipif(torch.cuda.is_available(), reason="needs a machine without a GPU")
def test_fp16_without_a_gpu_is_refused():
    with pytest.raises(RequestError, match="fp16"):
        build_accelerator("fp16")


def test_trackers_get_every_window_of_losses(tmp_path):
    tracker = Recorder()
    accelerator = build_accelerator("fp32", 1, [tracker], tmp_path)
    for name, start in (("one", 0), ("two", 4)):  # one accelerator serves several runs
        run(ToyStep(accelerator), SETTINGS, tmp_path / name, accelerator)
        rows = read_losses(tmp_path / name / "losses.jsonl")
        assert [row["step"] for row in tracker.rows[start:]] == [3, 6, 9, 12]
        last = [row["critic"] for row in rows[-3:]]
        assert tracker.rows[-1]["critic"] == pytest.approx(np.mean(last))
        assert tracker.configs[-1]["run"] == str(tmp_path / name)
    assert tracker.finished == 2


def test_trackers_are_finished_when_training_fails(tmp_path):
    tracker = Recorder()
    accelerator = build_accelerator("fp32", 1, [tracker], tmp_path)
    with power_failure(ToyStep, 4):
        run(ToyStep(accelerator), SETTINGS, tmp_path / "run", accelerator)
    assert [row["step"] for row in tracker.rows] == [3]
    assert tracker.finished == 1


def test_a_tracker_that_is_not_installed_is_refused(monkeypatch):
    monkeypatch.setattr(tracking, "_available_trackers", [LoggerType.TENSORBOARD])
    with pytest.raises(RequestError, match=r"tracker 'wandb'.*pip install wandb"):
        build_accelerator("fp32", 1, ["tensorboard", "wandb"], None)


@pytest.mark.slow
@pytest.mark.multiprocess
def test_a_killed_process_resumes_with_the_same_losses(straight, tmp_path):
    """SIGKILL at several moments; checkpoints half written must never be read."""
    for delay in (0.0, 0.15, 0.3, 0.45):
        process = subprocess.Popen(  # noqa: S603 - our own script
            [sys.executable, str(SCRIPT), str(tmp_path), str(STEPS)], stdout=subprocess.PIPE
        )
        process.stdout.readline()  # the first step is done
        time.sleep(delay)
        process.kill()
        process.wait()
        process.stdout.close()
    step, finished = train(tmp_path, resume=True)
    assert finished == STEPS
    assert_same_run(straight, tmp_path, step)


@pytest.mark.slow
@pytest.mark.multiprocess
def test_two_processes_train_like_two_micro_batches_of_one(tmp_path):
    """Through SIGTERM to the launcher, a resume, and DistributedDataParallel over gloo."""
    step = ToyStep(build_accelerator("fp32", 2), dropout=0.0)
    train(tmp_path / "one", step=step, accumulation=2)
    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
    command = [*launch, str(SCRIPT), str(tmp_path / "two"), str(STEPS), "0"]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)  # noqa: S603
    process.stdout.readline()  # the first step is done
    process.terminate()
    said = [line for line in process.communicate()[0].splitlines() if "143:" in line]
    assert len(said) == 2
    assert all("holds a checkpoint at step" in line for line in said)
    (stopped,) = (tmp_path / "two" / "checkpoints").iterdir()
    assert 0 < int(stopped.name.removeprefix("step_")) < STEPS
    done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)  # noqa: S603
    # A thread of gloo that lets go of a tensor while Python ends would abort the process.
    left = [line for line in done.stdout.splitlines() if line.startswith("threads:")]
    assert len(left) == 2
    assert not any("gloo" in line for line in left)
    last = "checkpoints/step_0000012/model.generator.safetensors"
    one, two = (load_file(tmp_path / name / last) for name in ("one", "two"))
    torch.testing.assert_close(two, one)
    assert [row["step"] for row in losses(tmp_path / "two")] == list(range(1, STEPS + 1))


def test_a_log_cut_by_a_crash_is_readable(tmp_path):
    path = tmp_path / "losses.jsonl"
    path.write_text(json.dumps({"step": 1}) + "\n" + '{"step": 2, "los')
    assert read_losses(path) == [{"step": 1}]
    path.write_text('{"step": 2, "los\n' + json.dumps({"step": 1}) + "\n")
    with pytest.raises(StoreError, match="line 1 is not JSON"):
        read_losses(path)
