"""Train HiDiff: the segmentor alone, then refiner and segmentor by turns; scores; model folder.

Source: Chen et al. 2024, arXiv:2407.03548; settings are in `recipes/hidiff.yaml`.
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, TypeVar

import torch

from synthgen.core.errors import LeakageError, RequestError
from synthgen.core.manifest import digest
from synthgen.core.rng import SampleKey
from synthgen.core.workspace import default_run_dir
from synthgen.runtime import build_accelerator
from synthgen.segment.borrowed_segmentor import borrow_segmentor
from synthgen.segment.card import write_card
from synthgen.segment.hidiff import HiDiffSegmenter, save_hidiff
from synthgen.segment.hidiff_masks import MaskForm
from synthgen.segment.hidiff_networks import (
    HiDiffNetworks,
    build_refiner,
    build_scheduler,
    build_segmentor,
)
from synthgen.segment.hidiff_step import HiDiffStep, segmentor_steps
from synthgen.segment.segmentor_step import SegmentorStep
from synthgen.segment.training_data import patches_of, require_fit, training_facts, use_of
from synthgen.segment.validation import chosen_cases, dice_of_steps, require_unseen
from synthgen.training.checkpoint import CheckpointFolder
from synthgen.training.loop import LoopSettings, made_ahead, run

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from pathlib import Path

    from accelerate import Accelerator
    from torch import Tensor, nn

    from synthgen.data.labelled import LabelledData
    from synthgen.data.mixture import Mixture
    from synthgen.recipe import Recipe
    from synthgen.recipe.hidiff import HidiffRecipe
    from synthgen.recipe.segmentation import SegmenterTrainRecipe
    from synthgen.segment.borrowed_segmentor import Borrowed
    from synthgen.segment.imgx_step import Batches
    from synthgen.segment.use import SegmenterUse

    Step = TypeVar("Step", SegmentorStep, HiDiffStep)

Stage = Literal["segmentor", "hidiff"]

_ALONE_READS = ("data", "segmentor", "schedule", "segmentor_losses", "pretrain")
"""What of a recipe decides the segmentor alone; of the schedule, its kernel."""
_ALONE = 0.3
"""Share of the time budget that the segmentor alone may take."""


def train_hidiff(
    recipe: Recipe,
    data: Mixture,
    out: Path,
    run_dir: Path | None = None,
    *,
    validation: LabelledData | None = None,
    segmentor: Path | None = None,
    resume: bool = False,
    max_minutes: float | None = None,
) -> Path:
    """Train a segmentor and its refiner, and write their model folder.

    Args:
        recipe: needs a section `hidiff`.
        data: labelled images with the tissues that the recipe names.
        out: model folder; replaced as a whole once training has ended.
        run_dir: checkpoints, losses, sheets, in `segmentor/` and `hidiff/`; beside `models/` by
            default (`runs/<name>`).
        validation: labelled images of other subjects, scored at the end.
        segmentor: a model folder of `train hidiff`, or of `train imgx` with a twin, whose
            segmentor is taken in place of training one alone.
        resume: continue a killed run of the same recipe and data.
        max_minutes: budget of this call; the segmentor alone gets at most its share, and the
            model is written as it is when time is up.

    Returns:
        `out`.

    Raises:
        RequestError: no `hidiff` section, data of other tissues, a segmentor of other levels, or
            `run_dir` holds a run and `resume` is False, or a run of another recipe, rank or data.
        SchemaError: a segmentor of another schema.
        GeometryError: data or a segmentor of another rank than the recipe's patch.
        LeakageError: validation on a subject in the training data, or that the segmentor saw.
        StoreError: a damaged checkpoint or segmentor, a full disk.
    """
    if recipe.hidiff is None:
        raise RequestError(f"recipe '{recipe.name}' has no section 'hidiff'")
    section = recipe.hidiff
    require_fit("hidiff", section.data, data)
    scheduler = build_scheduler(section.schedule)
    if data.overlapping and scheduler.exclusive:
        raise RequestError(
            f"recipe '{recipe.name}': the categorical kernel needs tissues that exclude one "
            "another, but those of the data overlap; set hidiff.schedule.kernel=bernoulli"
        )
    form = MaskForm(len(data.tissues), data.overlapping, scheduler.exclusive)
    run_dir = default_run_dir(out) if run_dir is None else run_dir
    use = use_of(section, data)
    borrowed = None
    if segmentor is not None:
        empty = build_segmentor(section, len(data.channels), form)
        borrowed = borrow_segmentor(segmentor, empty, use)
    if validation is not None:
        require_unseen(data, validation)
        _require_not_borrowed(validation, borrowed)
    trainer = _Trainer(recipe, section, data, run_dir, use, form, borrowed)
    trainer.train(out, validation, resume, max_minutes)
    return out


def _require_not_borrowed(validation: LabelledData, borrowed: Borrowed | None) -> None:
    if borrowed is None or not validation.real:
        return
    seen = sorted({*borrowed.subjects} & {*validation.subjects})
    if seen:
        raise LeakageError(
            f"{validation.name}: the segmentor was trained on '{seen[0]}'; validate on other "
            "subjects"
        )


@dataclass(frozen=True)
class _Trainer:
    recipe: Recipe
    section: HidiffRecipe
    data: Mixture
    run_dir: Path
    use: SegmenterUse
    form: MaskForm
    borrowed: Borrowed | None

    def train(
        self,
        out: Path,
        validation: LabelledData | None,
        resume: bool,
        max_minutes: float | None,
    ) -> None:
        """Train the segmentor, then both, then write the folder."""
        started, channels = time.monotonic(), len(self.data.channels)
        done: dict[str, int] = {}
        if self.borrowed is None:
            segmentor = build_segmentor(self.section, channels, self.form)
            # Once both are in training, the segmentor is that of their checkpoint.
            if not (resume and self._latest("hidiff")):
                minutes = None if max_minutes is None else _ALONE * max_minutes
                segmentor.load_state_dict(self._train_alone(resume, minutes))
            done["segmentor"] = self._latest("segmentor")
        else:
            segmentor = self.borrowed.network
        networks = HiDiffNetworks(
            segmentor,
            build_refiner(self.section, channels, self.form),
            build_scheduler(self.section.schedule),
            self.section.features,
        )
        if max_minutes is not None:
            max_minutes = max(0.0, max_minutes - (time.monotonic() - started) / 60)
        train = self.section.train
        accelerator = build_accelerator(
            train.precision, train.accumulation, train.trackers, self.run_dir / "hidiff"
        )

        def build(batches: Batches) -> HiDiffStep:
            return HiDiffStep(self.section, batches, networks, self.form, accelerator)

        settings = self._settings("hidiff", max_minutes)
        step, done["hidiff"] = self._run("hidiff", settings, accelerator, resume, build)
        if accelerator.is_main_process:
            with step.averaged_weights():
                self._save(out, networks, done, accelerator, validation)
        accelerator.wait_for_everyone()

    def _train_alone(self, resume: bool, minutes: float | None) -> Mapping[str, Tensor]:
        """Train a segmentor and return its weights, moving averages where there are."""
        train = self.section.pretrain
        # accelerate prepares a network once only, so that the next training needs another one.
        segmentor = build_segmentor(self.section, len(self.data.channels), self.form)
        accelerator = build_accelerator(
            train.precision, train.accumulation, train.trackers, self.run_dir / "segmentor"
        )

        def build(batches: Batches) -> SegmentorStep:
            return SegmentorStep(self.section, batches, segmentor, self.form, accelerator)

        settings = self._settings("segmentor", minutes)
        step, _ = self._run("segmentor", settings, accelerator, resume, build)
        if "segmentor" in step.ema:
            step.ema["segmentor"].copy_to(segmentor.parameters())
        weights: Mapping[str, Tensor] = segmentor.state_dict()
        return weights

    def _run(
        self,
        stage: Stage,
        settings: LoopSettings,
        accelerator: Accelerator,
        resume: bool,
        build: Callable[[Batches], Step],
    ) -> tuple[Step, int]:
        """Run one training; return its step and how many were made."""
        batches = patches_of(self.section.data, self._train(stage), self.data)
        folder = self.run_dir / stage
        with made_ahead(batches, folder, accelerator, resume=resume) as ahead:
            step = build(ahead)
            return step, run(step, settings, folder, accelerator, resume)

    def _train(self, stage: Stage) -> SegmenterTrainRecipe:
        return self.section.pretrain if stage == "segmentor" else self.section.train

    def _latest(self, stage: Stage) -> int:
        """Return the step of a stage's last checkpoint, 0 without one."""
        return CheckpointFolder(self.run_dir / stage / "checkpoints").latest() or 0

    def _settings(self, stage: Stage, minutes: float | None) -> LoopSettings:
        train, section = self._train(stage), self.section
        free: dict[str, Any] = {"pretrain": {"trackers"}, "train": {"trackers"}}
        facts = section.model_dump(
            mode="json", exclude=free | {"validation_cases": True, "window": True}
        )
        if stage == "segmentor":
            facts = {name: facts[name] for name in _ALONE_READS}
        facts["batches"] = patches_of(section.data, train, self.data).identity
        if self.borrowed is not None:
            facts["borrowed"] = self.borrowed.digest
        return LoopSettings.of(train, train.steps, identity=digest(facts)[:16], max_minutes=minutes)

    def _save(
        self,
        out: Path,
        networks: HiDiffNetworks,
        done: Mapping[str, int],
        accelerator: Accelerator,
        validation: LabelledData | None,
    ) -> None:
        """Score the segmentor and every step, and write the folder."""
        section, data = self.section, self.data
        parts: dict[str, nn.Module] = {"segmentor": networks.segmentor, "refiner": networks.refiner}
        for network in parts.values():
            accelerator.unwrap_model(network, keep_fp32_wrapper=False)
        subjects = data.subjects
        training: dict[str, Any] = {
            "recipe": self.recipe.name,
            "recipe_fingerprint": self.recipe.fingerprint,
            "steps": dict(done),
            "segmentor_steps_beside_the_refiner": segmentor_steps(section),
            **training_facts(parts, data, section.train.seed),
        }
        if self.borrowed is not None:
            training["borrowed_segmentor"] = self.borrowed.digest
            subjects = tuple(sorted({*subjects, *self.borrowed.subjects}))
        if validation is not None:
            segmenter = HiDiffSegmenter(networks, self.use)
            training["validation"] = self._scores(segmenter, validation)
        card = write_card("hidiff", self.use, training, subjects)
        save_hidiff(out, networks, self.use, subjects=subjects, training=training, card=card)

    def _scores(self, segmenter: HiDiffSegmenter, validation: LabelledData) -> dict[str, Any]:
        """Return the Dice of the segmentor alone, and of every step."""
        cases = chosen_cases(validation, self.section.validation_cases)
        seed = self.section.train.seed

        def by_steps(image: Tensor, index: int) -> Tensor:
            steps = segmenter.steps(image, [SampleKey(seed, index)])[:, 0]
            return torch.cat([segmenter.prior(image), steps])

        alone, *refined = dice_of_steps(by_steps, validation, cases, self.use.spacing_mm)
        return {
            "data": validation.name,
            "real": validation.real,
            "cases": len(cases),
            "segmentor_dice": alone,
            "dice": refined,
        }
