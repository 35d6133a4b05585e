"""The training loop of every stage: seeded steps, logs, sheets, checkpoints, exact resume.

A stage hands over a `TrainStep`. Batches and draws are functions of (seed, step), never of a
running generator, so a checkpoint holds weights, optimiser and EMA tensors only, and a killed
run that is resumed computes the same losses as one that was left alone.
"""

from __future__ import annotations

import logging
import signal
import time
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol, Self

import torch
from torch import nn

from synthgen.core.errors import RequestError
from synthgen.core.interrupt import Interrupted, on_signals
from synthgen.core.lock import folder_lock
from synthgen.core.manifest import sweep
from synthgen.core.rng import SampleKey, Stream
from synthgen.data.loaders import Batch_co, prefetch
from synthgen.training.checkpoint import CheckpointFolder
from synthgen.training.log import LossLog, Progress, tracked, write_sheet

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping
    from pathlib import Path

    import numpy as np
    import numpy.typing as npt
    from accelerate import Accelerator
    from diffusers.training_utils import EMAModel

    from synthgen.data.loaders import Batches
    from synthgen.recipe.training import TrainingRecipe

logger = logging.getLogger(__name__)


class TrainStep(Protocol):
    """What a stage trains. Everything that must survive a kill hangs on these attributes."""

    @property
    def models(self) -> Mapping[str, nn.Module]:
        """Trainable and frozen networks by name, as `accelerator.prepare` returned them."""

    @property
    def optimizers(self) -> Mapping[str, Any]:
        """Optimisers by name, prepared."""

    @property
    def schedulers(self) -> Mapping[str, Any]:
        """Learning-rate schedulers by name, not prepared; `step` advances them."""

    @property
    def ema(self) -> Mapping[str, EMAModel]:
        """Moving averages by name."""

    def step(self, accelerator: Accelerator, step: int) -> Mapping[str, float | torch.Tensor]:
        """Make optimiser iteration `step` and return its losses, detached.

        One iteration is one step of every optimiser. It loops over its
        `accelerator.gradient_accumulation_steps` micro-batches (number
        `step * accumulation + m`), each under ONE joint `accelerator.accumulate(*models)`.
        All draws come from `SampleKey(seed, ...)`; library dropout is seeded by the loop.
        """

    def sheet(self, step: int) -> npt.NDArray[np.float32] | None:
        """Return a sample sheet: `(rows, columns, X, Y)` grey or `(..., 3)` RGB in [0, 1]."""

    def state(self) -> dict[str, Any]:
        """Return further JSON-able state (running means and the like), `{}` if none."""

    def load_state(self, state: Mapping[str, Any]) -> None:
        """Restore what `state` returned."""


@dataclass(frozen=True)
class LoopSettings:
    """How long to train and how often to report.

    Attributes:
        steps: optimiser iterations in all.
        log_every: iterations between writes of the loss log and to the trackers.
        sheet_every: iterations between sample sheets, of which the last step has one; 0 for none.
        checkpoint_every: iterations between checkpoints.
        keep: how many of the last checkpoints stay.
        seed: seed of every draw.
        max_minutes: wall-clock budget of this call; training then ends early but cleanly.
        identity: digest of recipe and data; a run of another identity is not resumed.
    """

    steps: int
    log_every: int = 10
    sheet_every: int = 0
    checkpoint_every: int = 500
    keep: int = 2
    seed: int = 0
    max_minutes: float | None = None
    identity: str = ""

    @classmethod
    def of(
        cls, train: TrainingRecipe, steps: int, *, identity: str, max_minutes: float | None
    ) -> Self:
        """Return the settings of a recipe's `train` section, for a training of so many steps."""
        return cls(
            steps=steps,
            log_every=train.log_every,
            sheet_every=train.sheet_every,
            checkpoint_every=train.checkpoint_every,
            keep=train.keep,
            seed=train.seed,
            max_minutes=max_minutes,
            identity=identity,
        )

    def has_sheet(self, step: int) -> bool:
        """Tell whether a sample sheet is drawn after so many steps."""
        return bool(self.sheet_every) and (step % self.sheet_every == 0 or step == self.steps)


@contextmanager
def made_ahead(
    batches: Batches[Batch_co], run_dir: Path, accelerator: Accelerator, *, resume: bool
) -> Iterator[Batches[Batch_co]]:
    """Make the batches of a run in a thread, from its last checkpoint on if it is resumed.

    A worker of several asks for every n-th batch only: nothing is made ahead for it.
    """
    if accelerator.num_processes > 1:
        yield batches
        return
    latest = CheckpointFolder(run_dir / "checkpoints").latest() if resume else None
    with prefetch(batches, (latest or 0) * accelerator.gradient_accumulation_steps) as ahead:
        yield ahead


def run(
    train_step: TrainStep,
    settings: LoopSettings,
    run_dir: Path,
    accelerator: Accelerator,
    resume: bool = False,
) -> int:
    """Train until `settings.steps`, the time budget or a signal.

    Args:
        train_step: the stage's step.
        settings: lengths and intervals.
        run_dir: folder for `losses.jsonl`, `sheets/` and `checkpoints/`.
        accelerator: from `runtime.build_accelerator`.
        resume: continue from the last checkpoint, if there is one.

    Returns:
        The number of finished iterations (less than `settings.steps` when time ran out).

    Raises:
        RequestError: `run_dir` holds a run and `resume` is False, or a run of another identity,
            or another process trains there.
        StoreError: a checkpoint is damaged or cannot be written.
        Interrupted: SIGINT or SIGTERM came; a checkpoint was written first.
    """
    # The main worker writes, for all of them.
    alone = _alone(run_dir) if accelerator.is_main_process else nullcontext()
    with alone:
        return _run(train_step, settings, run_dir, accelerator, resume=resume)


@contextmanager
def _alone(run_dir: Path) -> Iterator[None]:
    """Keep a run folder for this process, cleared of what a killed run left half written."""
    with folder_lock(run_dir, "training"):
        CheckpointFolder(run_dir / "checkpoints").sweep()
        for folder in (run_dir, run_dir / "sheets"):
            sweep(folder, ".*.tmp")
        yield


def _run(
    train_step: TrainStep,
    settings: LoopSettings,
    run_dir: Path,
    accelerator: Accelerator,
    *,
    resume: bool,
) -> int:
    checkpoints = CheckpointFolder(run_dir / "checkpoints", settings.keep)
    latest = checkpoints.latest()
    if latest is not None and not resume:
        raise RequestError(
            f"{run_dir} holds a run at step {latest}; continue it with --resume, "
            "or choose another run folder"
        )
    first = 0
    if latest is not None:
        first = checkpoints.load(latest, train_step, accelerator, settings.identity)
        logger.info("%s: resumed at step %d of %d", run_dir.name, first, settings.steps)
    run_dir.mkdir(parents=True, exist_ok=True)
    main = accelerator.is_main_process
    log = LossLog(run_dir / "losses.jsonl", first, enabled=main)
    progress = Progress(run_dir.name, first, settings.steps, enabled=main)
    stop = _Stop(settings.max_minutes)
    step, saved = first, first
    facts = {"run": str(run_dir), "identity": settings.identity, "seed": settings.seed}
    with on_signals(stop.hear), log, progress, tracked(accelerator, run_dir.name, facts):
        while step < settings.steps and not stop.is_due(accelerator):
            losses = _seeded_step(train_step, accelerator, settings.seed, step)
            step += 1
            log.add(step, losses)
            if step % settings.log_every == 0 or step == settings.steps:
                window = log.means()
                progress.show(step, window)
                accelerator.log(window, step=step)
            if settings.has_sheet(step):
                _write_sheet(train_step, run_dir, step, accelerator)
            if step % settings.checkpoint_every == 0:
                log.flush()
                checkpoints.save(step, train_step, accelerator, settings.identity)
                saved = step
        log.flush()
        if step > saved:
            checkpoints.save(step, train_step, accelerator, settings.identity)
    # Asked anew, for a signal that came after the last step: all workers go on, or none.
    if stop.is_due(accelerator) and stop.signum is not None:
        raise Interrupted(
            stop.signum,
            f"{run_dir} holds a checkpoint at step {step} of {settings.steps}; the same command "
            "with --resume continues there",
        )
    return step


def _seeded_step(
    train_step: TrainStep, accelerator: Accelerator, seed: int, step: int
) -> Mapping[str, float | torch.Tensor]:
    """Run one step with the library's own draws (dropout) seeded, the caller's state kept."""
    cuda = [torch.cuda.current_device()] if accelerator.device.type == "cuda" else []
    seed32 = SampleKey(seed, step).seed32(Stream.TRAIN)
    with torch.random.fork_rng(devices=cuda):
        torch.default_generator.manual_seed(seed32)
        for device in cuda:
            torch.cuda.default_generators[device].manual_seed(seed32)
        return train_step.step(accelerator, step)


def _write_sheet(train_step: TrainStep, run_dir: Path, step: int, accelerator: Accelerator) -> None:
    if not accelerator.is_main_process:
        return
    sheet = train_step.sheet(step)
    if sheet is not None:
        write_sheet(run_dir / "sheets" / f"step_{step:07d}.png", sheet)


class _Stop:
    """Why training ends early: a signal to any worker, or the main worker's wall-clock budget.

    All workers stop at one step, so that none waits for another.

    Attributes:
        signum: the signal that came; None for none.
    """

    def __init__(self, max_minutes: float | None) -> None:
        self.signum: int | None = None
        self._deadline = None if max_minutes is None else time.monotonic() + 60 * max_minutes

    def hear(self, signum: int) -> None:
        """Remember a signal."""
        logger.warning("signal %d: finishing the step, then a checkpoint", signum)
        self.signum = signum

    def is_due(self, accelerator: Accelerator) -> bool:
        """Tell whether to stop before the next step."""
        over = self._deadline is not None and time.monotonic() >= self._deadline
        # Read once: of a signal that comes during the exchange the others know nothing, and would
        # wait for this worker.
        signalled = self.signum is not None
        if accelerator.num_processes > 1:
            own = [signalled, over and accelerator.is_main_process]
            flags = torch.tensor(own, dtype=torch.float32, device=accelerator.device)
            signalled, over = (accelerator.reduce(flags, "sum") > 0).tolist()
            if signalled and self.signum is None:
                self.signum = signal.SIGTERM
        return over or signalled
