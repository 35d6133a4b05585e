"""Distil a label model: a student learns to draw its teacher's maps with fewer network calls.

What a student learns is told in `students.py`, after which the recipe's `distil.kind` is named.
"""

from __future__ import annotations

import copy
import logging
from typing import TYPE_CHECKING

from synthgen.core.errors import RecipeError, RequestError
from synthgen.core.manifest import digest
from synthgen.core.model_folder import read_record
from synthgen.core.workspace import default_run_dir
from synthgen.diffusion.few_step import FewStepScheduler
from synthgen.diffusion.schedule import build_sampler, target_of
from synthgen.labels.diffusion import LabelDiffusionPipeline
from synthgen.labels.folder import write_model
from synthgen.labels.generator import DiffusionLabelGenerator
from synthgen.labels.students import GuidanceStep, JumpStep
from synthgen.labels.train import report
from synthgen.labels.trajectories import Trajectories, teacher_trajectories
from synthgen.runtime import build_accelerator
from synthgen.training.loop import LoopSettings, run

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from diffusers import SchedulerMixin

    from synthgen.recipe import Recipe

logger = logging.getLogger(__name__)


def few_step_scheduler(pipeline: LabelDiffusionPipeline, knots: Sequence[int]) -> FewStepScheduler:
    """Return the scheduler of a student that jumps between `knots` of a teacher's steps.

    Raises:
        RequestError: the teacher does not predict v, or its sampler has no noise levels.
        RecipeError: the knots do not end at the teacher's last step.
    """
    config, training = pipeline.config, pipeline.scheduler
    if isinstance(training, FewStepScheduler):
        raise RequestError("the teacher is distilled already; take the model that it came from")
    if target_of(training) != "v" or config.sampler not in ("dpm", "unipc"):
        raise RequestError(
            "expected a teacher that predicts v and samples with dpm or unipc, got one that "
            f"predicts '{target_of(training)}' and samples with '{config.sampler}'"
        )
    if knots[-1] != config.num_inference_steps:
        raise RecipeError(
            f"distil.knots: expected to end at the teacher's {config.num_inference_steps} steps, "
            f"got {list(knots)}"
        )
    sampler = build_sampler(config.sampler, training)
    sampler.set_timesteps(config.num_inference_steps)
    student: FewStepScheduler = FewStepScheduler(
        sigmas=tuple(float(sampler.sigmas[knot]) for knot in knots),
        times=tuple(int(sampler.timesteps[knot]) for knot in knots[:-1]),
        num_train_timesteps=training.config.num_train_timesteps,
    )
    return student


def jumping_student(
    teacher: LabelDiffusionPipeline, knots: Sequence[int]
) -> LabelDiffusionPipeline:
    """Return a copy of the teacher that jumps between `knots` of its steps, untrained.

    Raises:
        RequestError: see `few_step_scheduler`.
        RecipeError: see `few_step_scheduler`.
    """
    return _student(
        teacher,
        few_step_scheduler(teacher, knots),
        sampler="distilled",
        num_inference_steps=len(knots) - 1,
        guidance=1.0,
        folded_guidance=1.0,
    )


def folded_student(teacher: LabelDiffusionPipeline) -> LabelDiffusionPipeline:
    """Return a copy of the teacher whose own prediction shall be the guided one, untrained.

    Raises:
        RequestError: the teacher samples without a second network call already.
    """
    if isinstance(teacher.scheduler, FewStepScheduler) or teacher.strength() == 1:
        raise RequestError(
            "expected a teacher with guidance that takes a second network call, got one that "
            "takes one call a step; there is nothing to fold in"
        )
    return _student(teacher, teacher.scheduler, folded_guidance=teacher.config.guidance)


def _student(
    teacher: LabelDiffusionPipeline, scheduler: SchedulerMixin, **changes: float | str
) -> LabelDiffusionPipeline:
    own = {key: value for key, value in teacher.config.items() if not key.startswith("_")}
    networks = {
        "vae": teacher.vae,
        "unet": copy.deepcopy(teacher.unet),
        "condition_embedding": copy.deepcopy(teacher.condition_embedding),
        "scheduler": scheduler,
    }
    return LabelDiffusionPipeline(**own | networks | changes)


def distil_labels(
    recipe: Recipe,
    teacher: Path,
    out: Path,
    run_dir: Path | None = None,
    *,
    resume: bool = False,
    max_minutes: float | None = None,
) -> None:
    """Distil a label model and write the student's model folder.

    Args:
        recipe: needs a `distil` section.
        teacher: a label model; its own sampler, steps and guidance are what is learnt.
        out: the model folder; an older model there is replaced at the end.
        run_dir: trajectories, checkpoints, logs and sheets; beside the models by default.
        resume: continue an interrupted run.
        max_minutes: wall-clock budget of this call, once the teacher has drawn.

    Raises:
        RecipeError: no `distil` section, or knots that do not fit the teacher.
        RequestError: a teacher that cannot be one, or the run folder holds a run, and `resume` is
            False.
        SchemaError: the teacher has another label schema than the recipe.
        StoreError: the teacher is unusable, or something cannot be written.
    """
    section = recipe.distil
    if section is None:
        raise RecipeError(f"recipe '{recipe.name}' has no section 'distil'")
    train, run_dir = section.train, run_dir or default_run_dir(out)
    accelerator = build_accelerator(
        train.precision, train.accumulation, train.trackers, run_dir / "distil"
    )
    learnt = DiffusionLabelGenerator.load(teacher)
    recipe.label_schema.require_same(learnt.schema, str(teacher))
    drawing = DiffusionLabelGenerator.load(
        teacher,
        device=str(accelerator.device),
        dtype="fp32" if train.precision == "fp32" else "bf16",
    )
    facts = section.model_dump(mode="json", exclude={"train": {"trackers"}})

    def draws(knots: Sequence[int]) -> Trajectories:
        drawn = {"knots": list(knots), "lesion_free": section.lesion_free, "seed": train.seed}
        known = digest(drawn | drawing.identity)[:16]
        with accelerator.main_process_first():
            return teacher_trajectories(drawing, section, knots, run_dir / "trajectories", known)

    step: JumpStep | GuidanceStep
    if section.kind == "steps":
        student = jumping_student(learnt.pipeline, section.knots)
        step = JumpStep(student, drawing, section, draws(section.knots), accelerator)
    else:
        student = folded_student(learnt.pipeline)
        clean = (learnt.pipeline.config.num_inference_steps,)
        step = GuidanceStep(student, drawing, section, draws(clean), accelerator)
    identity = digest(facts | {"teacher": learnt.identity})[:16]
    settings = LoopSettings.of(train, train.steps, identity=identity, max_minutes=max_minutes)
    run(step, settings, run_dir / "distil", accelerator, resume)
    step.finish()
    if not accelerator.is_main_process:
        return
    training = dict(read_record(teacher)["training"]) | {
        "recipe": recipe.model_dump(mode="json", by_alias=True, include={"name", "distil"}),
        "teacher": dict(learnt.identity),
        "distillation": report(run_dir / "distil", student.unet),
    }
    write_model(student, out, learnt.details, training=training)
    logger.info("%s: model written", out)
