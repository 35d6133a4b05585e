"""ImgX and HiDiff as trainers of a benchmark: what `train imgx|hidiff` makes of an arm's cases.

Patches, augmentation, networks and losses are those of the recipe; tissues, optimiser steps and
seed the benchmark's. Slices are scaled as the product scales images: to [0, 1] by percentiles of
the brain, 0 outside.
"""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from synthgen.benchmark.arm_store import CaseStore, store_path
from synthgen.benchmark.arms import REFERENCE, few_slices
from synthgen.core.rng import SampleKey
from synthgen.data.labelled import PICTURE, LabelledCase
from synthgen.data.mixture import Mixture
from synthgen.data.nifti import normalise
from synthgen.recipe import Recipe
from synthgen.segment import load_segmenter
from synthgen.training.log import read_losses

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    import numpy.typing as npt

    from synthgen.benchmark.arm_store import Volume
    from synthgen.benchmark.arms import Part
    from synthgen.benchmark.job import Job

    Floats = npt.NDArray[np.float32]

_LAST_STAGE = {"imgx": "diffusion", "hidiff": "hidiff"}
"""Folder of the run whose losses are shown."""
_TOGETHER = 4


class ArmData:
    """Cases of a store, see `synthgen.data.labelled.LabelledData`.

    Args:
        job: the training.
        part: which of its cases.
    """

    overlapping = False
    channels: tuple[str, ...] = (PICTURE,)
    spatial_dims = 2

    def __init__(self, job: Job, part: Part) -> None:
        self._store = store = CaseStore(store_path(job.out, part.store))
        numbers = (
            range(len(store)) if part.few is None else few_slices(store.slice, part.few).tolist()
        )
        self._numbers = tuple(numbers)
        self.name, self.real = part.store, part.store == REFERENCE
        self.tissues = store.tissues
        self.spacing_mm: tuple[float, ...] = (store.spacing_mm, store.spacing_mm)
        source = job.spec.sources[REFERENCE if self.real else "synthetic"]
        shown = {store.subject[number] for number in self._numbers} - {""}
        self.subjects = tuple(sorted(shown | {*source["ancestors"]}))
        self.identity: Mapping[str, Any] = {"run": job.hash, "store": part.store, "few": part.few}
        self.cases = tuple(
            LabelledCase(
                f"{store.slice[n]}_{store.modality[n]}",
                store.subject[n],
                store.subject[n] or store.slice[n],
                self.spacing_mm,
            )
            for n in self._numbers
        )

    def load(self, index: int) -> tuple[Floats, Floats]:
        """Return the image `(1, X, Y)` in [0, 1] and the soft labels `(G, X, Y)` of a case."""
        number = self._numbers[index]
        return _unit(self._store.image(number))[None], self._store.soft(number)


def train(job: Job, folder: Path) -> Path:
    """Train from the last checkpoint in `folder`, if there is one, to the end of the budget.

    Returns:
        The model folder.

    Raises:
        StoreError: a checkpoint is damaged or cannot be written.
    """
    (stage,) = job.arm.stages  # `plan_benchmark` refuses arms of several
    data = Mixture([(ArmData(job, part), part.share) for part in stage.parts])
    recipe, model, run_dir = recipe_of(job), folder / "model", folder / "run"
    if job.spec.trainer == "imgx":
        from synthgen.segment.train_imgx import train_imgx  # noqa: PLC0415 - takes seconds

        train_imgx(recipe, data, model, run_dir, resume=True)
    else:
        from synthgen.segment.train_hidiff import train_hidiff  # noqa: PLC0415

        train_hidiff(recipe, data, model, run_dir, resume=True)
    job.report(job.spec.budget.steps, job.spec.budget.steps)
    return model


def recipe_of(job: Job) -> Recipe:
    """Return the recipe of one training.

    Its optimiser steps are the budget's: of HiDiff the segmentor alone gets its share of them, as
    the recipe has it. ImgX trains no twin.
    """
    trainer, budget = job.spec.trainer, job.spec.budget
    section = json.loads(json.dumps(job.spec.settings))
    stages = [name for name in ("pretrain", "train") if name in section]
    total, left = sum(section[name]["steps"] for name in stages), budget.steps
    for name in stages:
        last = name == stages[-1]
        steps = left if last else max(1, round(budget.steps * section[name]["steps"] / total))
        left -= steps
        section[name] |= {
            "steps": max(1, steps),
            "seed": job.seed,
            "checkpoint_every": budget.steps_per_epoch,
            "sheet_every": budget.steps,
        }
    if trainer == "imgx":
        section["twin"] = "none"
    body = {"name": "benchmark", "schema": "brain9", trainer: section}
    return Recipe.model_validate_json(json.dumps(body))


def losses(job: Job, folder: Path) -> dict[str, list[float]]:
    """Return the losses that `train` logged: means of tenths of the training."""
    lines = read_losses(folder / "run" / _LAST_STAGE[job.spec.trainer] / "losses.jsonl")
    totals = [
        sum(value for name, value in line.items() if name not in {"step", "seconds"})
        for line in lines
    ]
    parts = np.array_split(totals, min(10, len(totals)))
    return {"train_losses": [float(part.mean()) for part in parts]}


class Predictor:
    """Label volumes with a trained model.

    Args:
        model: its folder.
        seed: of the noise that it draws.
        mirror: average over mirrored copies.
    """

    def __init__(self, model: Path, seed: int, *, mirror: bool) -> None:
        device = "cuda" if torch.cuda.is_available() else "cpu"
        self._segmenter = load_segmenter(model, device=device)
        self._seed, self._mirror = seed, mirror

    def __call__(self, store: CaseStore, volume: Volume) -> npt.NDArray[np.uint8]:
        """Return the label map `(X, Y, Z)` of a volume."""
        found = []
        for first in range(0, len(volume.cases), _TOGETHER):
            cases = volume.cases[first : first + _TOGETHER]
            keys = [SampleKey(self._seed, case) for case in cases]
            batch = torch.from_numpy(
                np.stack([_unit(store.image(case)) for case in cases])[:, None]
            )
            p = self._segmenter.predict(batch, keys)
            if self._mirror:
                p = p + self._segmenter.predict(batch.flip(2), keys).flip(2)
            found.append(p.argmax(dim=1).to(torch.uint8).numpy())
        labels: npt.NDArray[np.uint8] = np.moveaxis(np.concatenate(found), 0, -1)
        return labels


def _unit(image: Floats) -> Floats:
    """Return a z-scored slice `(X, Y)` in [0, 1], exactly 0 outside the brain as before."""
    scaled: Floats = np.where(image == 0, np.float32(0), normalise(image))
    return scaled
