"""Train ImgX and its supervised twin, score both, write the model folder.

Source: Fu et al. 2023, arXiv:2303.06040 and arXiv:2308.16355; settings are in `recipes/imgx.yaml`.
The twin is the comparison that those papers make: the same network, data and updates, without
mask and time. Their published difference is small, and so every model folder states it.
"""

from __future__ import annotations

import math
import time
from contextlib import ExitStack
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from synthgen.core.errors import RequestError
from synthgen.core.manifest import digest
from synthgen.core.rng import SampleKey
from synthgen.core.workspace import default_run_dir
from synthgen.runtime import build_accelerator
from synthgen.segment.card import write_card
from synthgen.segment.imgx import ImgXNetworks, ImgXSegmenter, save_imgx
from synthgen.segment.imgx_step import ImgxStep, build_network, inference_scheduler
from synthgen.segment.training_data import patches_of, require_fit, training_facts, use_of
from synthgen.segment.validation import chosen_cases, dice_of_steps, require_unseen
from synthgen.training.loop import LoopSettings, made_ahead, run

if TYPE_CHECKING:
    from pathlib import Path

    from accelerate import Accelerator
    from torch import Tensor

    from synthgen.data.labelled import LabelledData
    from synthgen.data.mixture import Mixture
    from synthgen.data.patches import Patches
    from synthgen.recipe import Recipe
    from synthgen.recipe.imgx import ImgxRecipe

_FORWARD, _UPDATE = 1, 3
"""Cost of a forward pass, and of one with its backward pass."""


def train_imgx(
    recipe: Recipe,
    data: Mixture,
    out: Path,
    run_dir: Path | None = None,
    *,
    validation: LabelledData | None = None,
    resume: bool = False,
    max_minutes: float | None = None,
) -> Path:
    """Train a denoiser of masks and, where the recipe asks for it, its twin.

    Args:
        recipe: needs a section `imgx`.
        data: labelled images with the tissues that the recipe names.
        out: model folder; replaced as a whole once training has ended.
        run_dir: checkpoints, losses, sheets of both, in `diffusion/` and `twin/`; beside
            `models/` by default (`runs/<name>`).
        validation: labelled images of other subjects, scored at the end.
        resume: continue a killed run of the same recipe and data.
        max_minutes: budget of this call, shared by both networks in the proportion of their
            work; the model is written as it is when time is up.

    Returns:
        `out`.

    Raises:
        RequestError: no `imgx` section, data of other tissues, or `run_dir` holds a run and
            `resume` is False, or a run of another recipe, rank or data.
        GeometryError: data of another rank than the recipe's patch.
        LeakageError: validation on a subject in the training data.
        StoreError: a damaged checkpoint, a full disk.
    """
    if recipe.imgx is None:
        raise RequestError(f"recipe '{recipe.name}' has no section 'imgx'")
    require_fit("imgx", recipe.imgx.data, data)
    if validation is not None:
        require_unseen(data, validation)
    run_dir = default_run_dir(out) if run_dir is None else run_dir
    _Trainer(recipe, recipe.imgx, data, run_dir).train(out, validation, resume, max_minutes)
    return out


def update_cost(strategy: str) -> int:
    """Return the cost of an update in forward passes; all but `standard` ask twice."""
    return _UPDATE if strategy == "standard" else _UPDATE + _FORWARD


def twin_steps(section: ImgxRecipe) -> int:
    """Return for how many steps the twin is trained; 0 without one."""
    steps = section.train.steps
    match section.twin:
        case "none":
            return 0
        case "equal_steps":
            return steps
        case "equal_compute":
            return math.ceil(steps * update_cost(section.strategy) / _UPDATE)


@dataclass(frozen=True)
class _Trainer:
    recipe: Recipe
    section: ImgxRecipe
    data: Mixture
    run_dir: Path

    def train(
        self,
        out: Path,
        validation: LabelledData | None,
        resume: bool,
        max_minutes: float | None,
    ) -> None:
        """Train both, then write the folder."""
        section, started = self.section, time.monotonic()
        train = section.train
        accelerator = build_accelerator(
            train.precision, train.accumulation, train.trackers, self.run_dir
        )
        plan = {"diffusion": train.steps}
        if section.twin != "none":
            plan["twin"] = twin_steps(section)
        work = {n: s * (_UPDATE if n == "twin" else self._cost) for n, s in plan.items()}
        done, steps = {}, {}
        for name, count in plan.items():
            left = None
            if max_minutes is not None:
                share = work[name] / sum(w for n, w in work.items() if n not in done)
                left = (max_minutes - (time.monotonic() - started) / 60) * share
            steps[name], done[name] = self._train_one(name, count, accelerator, resume, left)
        if accelerator.is_main_process:
            with ExitStack() as averages:
                for step in steps.values():
                    averages.enter_context(step.averaged_weights())
                self._save(out, steps, done, accelerator, validation)
        accelerator.wait_for_everyone()

    @property
    def _cost(self) -> int:
        return update_cost(self.section.strategy)

    def _train_one(
        self, name: str, count: int, accelerator: Accelerator, resume: bool, minutes: float | None
    ) -> tuple[ImgxStep, int]:
        """Train one of the two networks; return its step and how many were made."""
        section, data, folder = self.section, self.data, self.run_dir / name
        batches = patches_of(section.data, section.train, data)
        network = build_network(section, len(data.channels), len(data.tissues), twin=name == "twin")
        settings = self._settings(name, count, batches, minutes)
        with made_ahead(batches, folder, accelerator, resume=resume) as ahead:
            step = ImgxStep(
                section,
                ahead,
                network,
                accelerator,
                overlapping=data.overlapping,
                steps=count,
            )
            return step, run(step, settings, folder, accelerator, resume)

    def _settings(
        self, name: str, steps: int, batches: Patches, minutes: float | None
    ) -> LoopSettings:
        train = self.section.train
        section = self.section.model_dump(mode="json", exclude={"validation_cases", "window"})
        del section["train"]["trackers"]
        identity = {
            "network": name,
            "recipe": section,
            "data": batches.identity,
        }
        return LoopSettings.of(train, steps, identity=digest(identity)[:16], max_minutes=minutes)

    def _save(
        self,
        out: Path,
        steps: dict[str, ImgxStep],
        done: dict[str, int],
        accelerator: Accelerator,
        validation: LabelledData | None,
    ) -> None:
        """Score both networks and write the folder."""
        section, data = self.section, self.data
        networks = {
            name: accelerator.unwrap_model(step.models["network"], keep_fp32_wrapper=False)
            for name, step in steps.items()
        }
        parts = ImgXNetworks(
            networks["diffusion"],
            inference_scheduler(section),
            networks.get("twin"),
            section.schedule.clip,
        )
        use = use_of(section, data)
        training: dict[str, Any] = {
            "recipe": self.recipe.name,
            "recipe_fingerprint": self.recipe.fingerprint,
            "strategy": section.strategy,
            "steps": done,
            **training_facts(networks, data, section.train.seed),
        }
        if validation is not None:
            segmenter = ImgXSegmenter(parts, use)
            training["validation"] = self._scores(segmenter, validation)
        card = write_card("imgx", use, training, data.subjects)
        save_imgx(out, parts, use, subjects=data.subjects, training=training, card=card)

    def _scores(self, segmenter: ImgXSegmenter, validation: LabelledData) -> dict[str, Any]:
        """Return the Dice of every step, and of the twin."""
        cases = chosen_cases(validation, self.section.validation_cases)
        seed, spacing = self.section.train.seed, segmenter.use.spacing_mm

        def by_steps(image: Tensor, index: int) -> Tensor:
            return segmenter.steps(image, [SampleKey(seed, index)])[:, 0]

        scores: dict[str, Any] = {
            "data": validation.name,
            "real": validation.real,
            "cases": len(cases),
            "dice": dice_of_steps(by_steps, validation, cases, spacing),
        }
        if self.section.twin != "none":
            twin = segmenter.twin()
            (scores["twin_dice"],) = dice_of_steps(
                lambda image, _: twin.predict(image), validation, cases, spacing
            )
        return scores
