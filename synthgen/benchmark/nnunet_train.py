"""Real nnU-Net: the stock trainer in a private tree, exact resume, prediction of test volumes.

What is set on the trainer object, and no more: the numbers of the budget; the data of a stage; the
seed of each epoch, so that a killed training goes on exactly as it would have; checkpoints that are
whole or absent; bf16 on a CPU, where nnU-Net never autocasts (a third of the time, Dice equal
within 0.002 after 200 steps).
"""

from __future__ import annotations

import json
import math
import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from nnunetv2.inference.predict_from_raw_data import nnUNetPredictor
from nnunetv2.run.run_training import get_trainer_from_args

from synthgen.benchmark.nnunet_data import write_stage
from synthgen.benchmark.nnunet_plan import CONFIGURATION, DATASET, PLANS, dataset_json
from synthgen.core.errors import SynthgenError
from synthgen.core.manifest import write_atomic
from synthgen.core.rng import SampleKey, Stream

if TYPE_CHECKING:
    import numpy.typing as npt

    from synthgen.benchmark.arm_store import CaseStore, Volume
    from synthgen.benchmark.job import Job

_FOLD = "all"
_LATEST, _FINAL = "checkpoint_latest.pth", "checkpoint_final.pth"


def train(job: Job, plans: dict[str, Any]) -> dict[str, list[float]]:
    """Train from the last checkpoint, if there is one, to the end of the budget.

    Returns:
        nnU-Net's losses by name, one an epoch.

    Raises:
        SynthgenError: the loss is not finite any more.
    """
    _write_tree(job, plans)
    _seed(job.seed, 0, Stream.INIT)
    trainer = _trainer(job)
    folder = Path(trainer.output_folder)
    for name in (_LATEST, _FINAL):
        if (folder / name).is_file():
            trainer.load_checkpoint(str(folder / name))
            break
    last = len(job.arm.stages) - 1
    for number, stage in enumerate(job.arm.stages):
        trainer.num_epochs = max(1, round(stage.until * job.spec.budget.epochs))
        if trainer.current_epoch < trainer.num_epochs:
            trainer.preprocessed_dataset_folder = str(_stage_folder(number))
            trainer.run_training()
            if number < last:  # final of this stage only
                (folder / _FINAL).replace(folder / _LATEST)
    logs = trainer.logger.get_checkpoint()
    return {name: [float(v) for v in logs[name]] for name in ("train_losses", "val_losses")}


def _trainer(job: Job) -> Any:  # noqa: ANN401 - nnU-Net is not typed
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    trainer = get_trainer_from_args(
        DATASET, CONFIGURATION, _FOLD, "nnUNetTrainer", PLANS, device=device
    )
    budget = job.spec.budget
    trainer.num_epochs = budget.epochs
    trainer.num_iterations_per_epoch = budget.steps_per_epoch
    trainer.num_val_iterations_per_epoch = budget.validation_steps
    trainer.save_every = 1
    # The "best" checkpoint is the best on training cases: not written, not used.
    trainer._best_ema = math.inf
    trainer.preprocessed_dataset_folder = str(_stage_folder(0))
    trainer.initialize()
    if device.type == "cpu":
        _autocast(trainer.network)
    _hook(trainer, job)
    return trainer


def _hook(trainer: Any, job: Job) -> None:  # noqa: ANN401
    start, end, save = trainer.on_epoch_start, trainer.on_epoch_end, trainer.save_checkpoint
    steps = job.spec.budget.steps_per_epoch

    def on_epoch_start() -> None:
        _seed(job.seed, trainer.current_epoch, Stream.TRAIN)
        start()

    def on_epoch_end() -> None:
        loss = float(trainer.logger.get_value("train_losses", step=-1))
        if not math.isfinite(loss):
            raise SynthgenError(f"diverged: the loss of epoch {trainer.current_epoch} is {loss}")
        end()
        job.report(steps * trainer.current_epoch, job.spec.budget.steps)

    def save_checkpoint(filename: str) -> None:
        temporary = Path(f"{filename}.tmp")
        save(str(temporary))
        temporary.replace(filename)

    trainer.on_epoch_start, trainer.on_epoch_end = on_epoch_start, on_epoch_end
    trainer.save_checkpoint = save_checkpoint


def _autocast(network: Any) -> None:  # noqa: ANN401
    """Compute a network's layers in bf16, its logits and their loss in float32."""
    forward = network.forward

    def bf16_forward(x: torch.Tensor) -> torch.Tensor | list[torch.Tensor]:
        with torch.autocast("cpu", dtype=torch.bfloat16):
            logits = forward(x)
        return logits.float() if isinstance(logits, torch.Tensor) else [z.float() for z in logits]

    network.forward = bf16_forward


def _seed(seed: int, epoch: int, stream: Stream) -> None:
    """Seed the global generators: nnU-Net draws from them, in this process of its own."""
    value = SampleKey(seed, epoch).seed32(stream)
    torch.default_generator.manual_seed(value)
    for generator in torch.cuda.default_generators:
        generator.manual_seed(value)
    np.random.set_bit_generator(np.random.MT19937(value))  # type: ignore[attr-defined]


def _folder(name: str) -> Path:
    """Return one of nnU-Net's three folders; its parent process made them this training's own."""
    return Path(os.environ[f"nnUNet_{name}"]) / DATASET


def _stage_folder(number: int) -> Path:
    return _folder("preprocessed") / f"stage{number}"


def _write_tree(job: Job, plans: dict[str, Any]) -> None:
    base = _folder("preprocessed")
    for number, stage in enumerate(job.arm.stages):
        write_stage(_stage_folder(number), stage, job.out)
    bodies = {
        f"{PLANS}.json": plans,
        "dataset.json": dataset_json(job.spec.tissues, job.spec.sources["real"]["n"]),
        "dataset_fingerprint.json": {},
    }
    for name, body in bodies.items():
        write_atomic(base / name, json.dumps(body, indent=1).encode())


class Predictor:
    """Label volumes with a finished training."""

    def __init__(self, *, mirror: bool) -> None:
        device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        self._predictor = nnUNetPredictor(
            use_mirroring=mirror,
            perform_everything_on_device=device.type == "cuda",
            device=device,
            allow_tqdm=False,
        )
        folder = _folder("results") / f"nnUNetTrainer__{PLANS}__{CONFIGURATION}"
        self._predictor.initialize_from_trained_model_folder(str(folder), (_FOLD,), _FINAL)
        if device.type == "cpu":
            _autocast(self._predictor.network)

    def __call__(self, store: CaseStore, volume: Volume) -> npt.NDArray[np.uint8]:
        """Return the label map `(X, Y, Z)` of a volume."""
        image = np.stack([store.image(case) for case in volume.cases])[None]
        spacing = [volume.spacing_mm[2], *volume.spacing_mm[:2]]
        labels = self._predictor.predict_single_npy_array(image, {"spacing": spacing})
        return np.moveaxis(np.asarray(labels, dtype=np.uint8), 0, -1)
