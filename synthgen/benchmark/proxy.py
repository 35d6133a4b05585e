"""The proxy trainer: a small 2D U-Net that learns from soft labels, minutes on a CPU.

The U-Net of `synthgen.segment.unet`, whose loss takes partial volumes, which nnU-Net cannot.
"""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch.nn import functional

from synthgen.benchmark.arm_store import CaseStore, store_path
from synthgen.benchmark.arms import draws
from synthgen.core.rng import SampleKey, Stream
from synthgen.runtime import build_accelerator, seeded_init
from synthgen.segment.unet import UNetStep, UNetTraining, build_network, forward
from synthgen.training.loop import LoopSettings, run

if TYPE_CHECKING:
    from pathlib import Path

    import numpy.typing as npt
    from torch import Tensor, nn

    from synthgen.benchmark.arm_store import Volume
    from synthgen.benchmark.job import Job
    from synthgen.recipe.benchmark import ProxyRecipe

_REPORT_EVERY = 10
_SLICES = 16


def augment(
    image: Tensor, soft: Tensor, recipe: ProxyRecipe, generator: torch.Generator
) -> tuple[Tensor, Tensor]:
    """Move a batch about and change its contrast.

    Args:
        image: `(B, 1, X, Y)`, exactly 0 outside the brain; stays so.
        soft: `(B, G, X, Y)`, sums to 1; stays so.
        recipe: how far.
        generator: of the draws.
    """
    count = len(image)

    def uniform(limit: float) -> Tensor:
        return limit * (2 * torch.rand(count, generator=generator) - 1)

    size = torch.tensor(image.shape[2:], dtype=torch.float32)
    angle, scale = uniform(float(np.deg2rad(recipe.rotate_deg))), 1 + uniform(recipe.scale)
    flip = 1 - 2 * (torch.rand(count, generator=generator) < recipe.flip_probability).float()
    shift = torch.stack([uniform(recipe.shift_px) * 2 / size[a] for a in (1, 0)], dim=1)
    cos, sin, ratio = torch.cos(angle) / scale, torch.sin(angle) / scale, size[0] / size[1]
    # Columns act on (y, x) in [-1, 1], as grid_sample has it; x, the rows, is left to right.
    rows = [torch.stack([cos, -sin * ratio * flip], 1), torch.stack([sin / ratio, cos * flip], 1)]
    matrix = torch.cat([torch.stack(rows, 1), shift[:, :, None]], dim=2)
    grid = functional.affine_grid(matrix, list(image.shape), align_corners=False)
    moved = functional.grid_sample(torch.cat([image, soft[:, 1:]], 1), grid, align_corners=False)
    image, tissue = moved[:, :1], moved[:, 1:]
    gain = (1 + uniform(recipe.gain)).reshape(-1, 1, 1, 1)
    level = (recipe.noise * torch.rand(count, generator=generator)).reshape(-1, 1, 1, 1)
    noise = level * torch.randn(image.shape, generator=generator)
    image = torch.where(image == 0, 0.0, gain * image + noise)
    return image, torch.cat([(1 - tissue.sum(1, keepdim=True)).clamp_min(0), tissue], 1)


class _Cases:
    """Batches of an arm; batch `step` is a function of (seed, step) alone."""

    def __init__(self, job: Job) -> None:
        self._job = job
        self._stores = {name: CaseStore(store_path(job.out, name)) for name in job.arm.stores}
        slices = {name: store.slice for name, store in self._stores.items()}
        self._draws = [draws(stage.parts, slices) for stage in job.arm.stages]

    def batch(self, step: int) -> tuple[Tensor, Tensor]:
        recipe, share = self._job.spec.proxy, step / self._job.spec.budget.steps
        place = next(i for i, stage in enumerate(self._job.arm.stages) if share < stage.until)
        key = SampleKey(self._job.seed, step)
        numbers = key.numpy(Stream.TRAIN).choice(self._draws[place], recipe.batch_size)
        pairs = [self._case(place, int(number)) for number in numbers]
        image, soft = (torch.stack(arrays) for arrays in zip(*pairs, strict=True))
        return augment(image, soft, recipe, key.torch(Stream.AUGMENT))

    def _case(self, place: int, number: int) -> tuple[Tensor, Tensor]:
        for part in self._job.arm.stages[place].parts:
            store = self._stores[part.store]
            if number < len(store):
                break
            number -= len(store)
        image, soft = store.image(number), store.soft(number)
        return torch.from_numpy(image[None]), torch.from_numpy(soft)


def train(job: Job, folder: Path) -> nn.Module:
    """Train from the last checkpoint in `folder`, if there is one, to the end of the budget.

    Returns:
        The network.

    Raises:
        StoreError: a checkpoint is damaged or cannot be written.
    """
    recipe, budget = job.spec.proxy, job.spec.budget

    def report(done: int) -> None:
        if done % _REPORT_EVERY == 0:
            job.report(done, budget.steps)

    accelerator = build_accelerator("bf16")
    with seeded_init(job.seed, 0):
        network = build_network(recipe.channels, len(job.spec.tissues))
    step = UNetStep(
        network.to(accelerator.device),
        len(recipe.channels) - 1,
        _Cases(job),
        UNetTraining(budget.steps, recipe.lr, recipe.weight_decay, recipe.clip_norm),
        accelerator=accelerator,
        on_step=report,
    )
    settings = LoopSettings(
        steps=budget.steps,
        checkpoint_every=budget.steps_per_epoch,
        keep=1,
        seed=job.seed,
        identity=job.spec.run_hash(job.arm, job.seed),
    )
    run(step, settings, folder, accelerator, resume=True)
    trained: nn.Module = accelerator.unwrap_model(step.models["network"])
    return trained


def losses(folder: Path) -> dict[str, list[float]]:
    """Return the losses that `train` logged: means of tenths of the training."""
    lines = (folder / "losses.jsonl").read_text().splitlines()
    parts = np.array_split([json.loads(line)["loss"] for line in lines], min(10, len(lines)))
    return {"train_losses": [float(part.mean()) for part in parts]}


class Predictor:
    """Label volumes with a trained network."""

    def __init__(self, network: nn.Module, recipe: ProxyRecipe, *, mirror: bool) -> None:
        self._network, self._mirror = network.eval(), mirror
        self._levels = len(recipe.channels) - 1
        self._device = next(network.parameters()).device

    def __call__(self, store: CaseStore, volume: Volume) -> npt.NDArray[np.uint8]:
        """Return the label map `(X, Y, Z)` of a volume."""
        found = [
            self._labels(torch.from_numpy(np.stack([store.image(case) for case in cases])))
            for first in range(0, len(volume.cases), _SLICES)
            for cases in [volume.cases[first : first + _SLICES]]
        ]
        return np.moveaxis(np.concatenate(found), 0, -1)

    @torch.inference_mode()
    def _labels(self, images: Tensor) -> npt.NDArray[np.uint8]:
        batch = images[:, None].to(self._device)
        p = self._probabilities(batch)
        if self._mirror:
            p = p + self._probabilities(batch.flip(2)).flip(2)
        return p.argmax(1).to("cpu", torch.uint8).numpy()

    def _probabilities(self, batch: Tensor) -> Tensor:
        with torch.autocast(self._device.type, dtype=torch.bfloat16):
            logits = forward(self._network, batch, self._levels)
        return torch.softmax(logits.float(), 1)
