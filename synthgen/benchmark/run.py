"""Run a benchmark: stores, plan, then each training in a process of its own.

Seeds are the outer loop, so that an interrupted benchmark has whole repeats of all arms. The same
command continues one: what is finished stays, a training that was killed goes on from its last
epoch, and one that crashed is tried again.
"""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import torch

from synthgen.benchmark.cases import CASE_BYTES, recordings, write_stores
from synthgen.benchmark.job import CASES, DONE, FAILED, LOG, PLAN, Job, tree_of, write_json
from synthgen.benchmark.spec import SPEC, Spec
from synthgen.benchmark.worker import PLANNING
from synthgen.core.errors import RequestError, StoreError
from synthgen.core.lock import folder_lock

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence
    from pathlib import Path

    from synthgen.benchmark.spec import Sources

    Progress = Callable[[int, int], None]

_POLL_S = 1.0
_GRACE_S = 20.0
_CHECKPOINT_BYTES = 16
"""Bytes a weight in a checkpoint, momentum included, and again while the next one is written."""
_WEIGHTS = 20_000
"""Weights of nnU-Net's 2D network at six stages, over the square of its first channels."""
_PREDICTION_BYTES = 1_000_000


@dataclass(frozen=True)
class Outcome:
    """What a benchmark did.

    Attributes:
        out: its folder.
        trained: names of the trainings that ran to the end.
        kept: names of those that were there already.
        failed: name of a training to the reason in one line.
        seconds: time of this call.
    """

    out: Path
    trained: tuple[str, ...]
    kept: tuple[str, ...]
    failed: Mapping[str, str]
    seconds: float


@dataclass
class _Totals:
    """Steps of all trainings that are to be made, for one progress line."""

    progress: Progress | None
    total: int
    before: int = 0
    trained: list[str] = field(default_factory=list)
    failed: dict[str, str] = field(default_factory=dict)

    def show(self, done: int) -> None:
        if self.progress is not None:
            self.progress(self.before + done, self.total)


def prepare_benchmark(
    spec: Spec, sources: Sources, out: Path, progress: Progress | None = None
) -> None:
    """Write `spec.json`, the stores of cases and nnU-Net's plan; what is there already stays.

    Args:
        spec: from `plan_benchmark`.
        sources: likewise.
        out: folder to fill.
        progress: called with (cases, cases in all).

    Raises:
        RequestError: `out` holds another benchmark, or another process writes there, or the
            budget needs a GPU.
        StoreError: too little disk, damaged data, or nnU-Net cannot plan.
    """
    if (out / SPEC).is_file():
        Spec.read(out).require_same(spec, out)
    _require_device(spec)
    made = recordings(spec, sources)
    _require_disk(out, sum(len(r.cases) for r in made.values()), _unfinished(spec, out))
    with folder_lock(out, "benchmark"):
        spec.write(out)
        write_stores(out, made, progress)
        if spec.trainer == "nnunet" and _unfinished(spec, out):
            _plan(out)


def train_benchmark(spec: Spec, out: Path, progress: Progress | None = None) -> Outcome:
    """Make the trainings of a prepared benchmark that are not finished.

    Args:
        spec: as prepared.
        out: its folder.
        progress: called with (optimiser steps, steps in all).

    Raises:
        RequestError: another process writes there.
        StoreError: every training failed.
    """
    started = time.monotonic()
    todo = _unfinished(spec, out)
    kept = tuple(job.name for job in _jobs(spec, out) if job not in todo)
    totals = _Totals(progress, spec.budget.steps * len(todo))
    with folder_lock(out, "benchmark"):
        for job in todo:
            _train(job, totals)
        write_json(out / FAILED, totals.failed)
    if not totals.trained and not kept:
        name, reason = next(iter(totals.failed.items()))
        raise StoreError(f"{out}: every training failed; {name}: {reason}")
    seconds = time.monotonic() - started
    return Outcome(out, tuple(totals.trained), kept, totals.failed, seconds)


def _jobs(spec: Spec, out: Path) -> list[Job]:
    return [Job(out, spec, arm, seed) for seed in spec.seeds for arm in spec.arms]


def _unfinished(spec: Spec, out: Path) -> list[Job]:
    return [job for job in _jobs(spec, out) if not job.is_done()]


def _require_device(spec: Spec) -> None:
    if spec.trainer == "nnunet" and spec.budget.needs_gpu and not torch.cuda.is_available():
        raise RequestError(
            f"--budget {spec.budget_name} of nnU-Net would take weeks for each training on a CPU; "
            "run it on a machine with a GPU, or take --budget short or --trainer proxy"
        )


def disk_bytes(cases: int, todo: Sequence[Job]) -> int:
    """Return about how many bytes a benchmark writes, all stores and trainings counted."""
    if not todo:
        return 0
    spec = todo[0].spec
    weights = _WEIGHTS * spec.budget.features**2 if spec.trainer == "nnunet" else 1_000_000
    volumes = _PREDICTION_BYTES * len(spec.test) * len(spec.modalities)
    return CASE_BYTES * cases + len(todo) * (_CHECKPOINT_BYTES * weights + volumes)


def _require_disk(out: Path, cases: int, todo: Sequence[Job]) -> None:
    needed = disk_bytes(cases, todo)
    place = next(folder for folder in (out, *out.absolute().parents) if folder.exists())
    free = shutil.disk_usage(place).free
    if needed > free:
        raise StoreError(
            f"{out}: the benchmark writes about {needed / 1e9:.1f} GB, {free / 1e9:.1f} GB are "
            "free there; free space or choose another --out"
        )


def _plan(out: Path) -> None:
    log = out / "plan" / LOG
    log.parent.mkdir(exist_ok=True)
    # 0 processes, right for training, crash nnU-Net's planner.
    environment = {**os.environ, **tree_of(log.parent), "nnUNet_n_proc_DA": "1"}
    code = _wait(_start([str(out), PLANNING], environment, log), lambda: None)
    if code or not (out / PLAN).is_file():
        raise StoreError(f"nnU-Net made no plan ({_reason(code, log)}); see {log}")


def _train(job: Job, totals: _Totals) -> None:
    """Train in a process; what went wrong is kept for the report."""
    if job.is_of_other_settings():
        shutil.rmtree(job.folder)
    for name in (CASES, DONE):
        (job.folder / name).unlink(missing_ok=True)
    log = job.folder / LOG
    log.parent.mkdir(parents=True, exist_ok=True)
    environment = {**os.environ, **tree_of(job.folder)}
    if not torch.cuda.is_available():
        # Augmentation in the training process itself: cheap beside a step, and reproducible.
        environment["nnUNet_n_proc_DA"] = "0"
    process = _start([str(job.out), job.arm.name, str(job.seed)], environment, log)
    code = _wait(process, lambda: totals.show(job.steps_done()))
    if code or not job.is_done():
        totals.failed[job.name] = f"{_reason(code, log)}; see {log}"
    else:
        totals.trained.append(job.name)
    totals.before += job.spec.budget.steps
    totals.show(0)


def _start(
    arguments: Sequence[str], environment: Mapping[str, str], log: Path
) -> subprocess.Popen[bytes]:
    command = [sys.executable, "-m", "synthgen.benchmark.worker", *arguments]
    with log.open("ab") as stream:
        return subprocess.Popen(  # noqa: S603 - our own module
            command, stdin=subprocess.PIPE, stdout=stream, stderr=stream, env=dict(environment)
        )


def _wait(process: subprocess.Popen[bytes], poll: Callable[[], None]) -> int:
    """Wait for a worker; end it if this process is interrupted."""
    try:
        while True:
            try:
                return process.wait(_POLL_S)
            except subprocess.TimeoutExpired:
                poll()
    finally:
        if process.poll() is None:
            process.terminate()
            try:
                process.wait(_GRACE_S)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
        if process.stdin is not None:
            process.stdin.close()


def _reason(code: int, log: Path) -> str:
    """Return why a worker ended, in one line."""
    if code < 0:
        name = signal.Signals(-code).name
        return f"killed by {name}{', perhaps out of memory' if name == 'SIGKILL' else ''}"
    lines = log.read_text(errors="replace").splitlines()
    return next((line.strip() for line in reversed(lines) if line.strip()), f"exit code {code}")
