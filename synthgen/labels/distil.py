"""Distil a label model: a student of few steps learns where its teacher's many steps lead.

Progressive distillation (Salimans and Ho 2022, arXiv:2202.00512, section 3; guidance folded into
the student as in Meng et al. 2023, arXiv:2210.03142, stage one). Deviations: one round from many
steps to few instead of halvings; the teacher's draws are cached, so that no training data is
needed; in the end the student learns on its own states, as it samples (Ross et al. 2011,
arXiv:1011.0686); the weights of the loss are 1 for each jump, on the clean latents.
"""

from __future__ import annotations

import copy
import logging
from typing import TYPE_CHECKING

import numpy as np
import torch

from synthgen.core.errors import RecipeError, RequestError
from synthgen.core.manifest import digest
from synthgen.core.model_folder import read_record
from synthgen.core.rng import SampleKey, Stream
from synthgen.core.workspace import default_run_dir
from synthgen.data.loaders import draw_shuffled
from synthgen.diffusion.few_step import FewStepScheduler
from synthgen.diffusion.schedule import build_sampler, target_of
from synthgen.labels.denoiser import DenoiserStep
from synthgen.labels.diffusion import LabelDiffusionPipeline
from synthgen.labels.folder import write_model
from synthgen.labels.generator import DiffusionLabelGenerator
from synthgen.labels.train import PREVIEW, report
from synthgen.labels.trajectories import Trajectories, draw_values, teacher_trajectories
from synthgen.runtime import build_accelerator, place
from synthgen.training.log import colour_argmax, colour_labels, stack_rows
from synthgen.training.loop import LoopSettings, run

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    import numpy.typing as npt
    from accelerate import Accelerator

    from synthgen.recipe import Recipe
    from synthgen.recipe.distil import DistilRecipe

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


def build_student(teacher: LabelDiffusionPipeline, knots: Sequence[int]) -> LabelDiffusionPipeline:
    """Return a copy of the teacher that jumps between `knots` of its steps, untrained.

    Raises:
        RequestError: see `few_step_scheduler`.
        RecipeError: see `few_step_scheduler`.
    """
    config = teacher.config
    kept = ("latent_size", "head", "background_threshold", "temperature", "warp")
    return LabelDiffusionPipeline(
        vae=teacher.vae,
        unet=copy.deepcopy(teacher.unet),
        condition_embedding=copy.deepcopy(teacher.condition_embedding),
        scheduler=few_step_scheduler(teacher, knots),
        sampler="distilled",
        num_inference_steps=len(knots) - 1,
        guidance=1.0,
        **{key: config[key] for key in kept},
    )


class DistillationStep(DenoiserStep):
    """A `TrainStep`: one iteration of the student."""

    def __init__(
        self,
        student: LabelDiffusionPipeline,
        teacher: DiffusionLabelGenerator,
        recipe: DistilRecipe,
        trajectories: Trajectories,
        accelerator: Accelerator,
    ) -> None:
        super().__init__(student, recipe.train, accelerator)
        self._teacher, self._recipe, self._trajectories = teacher, recipe, trajectories
        self._jumps: FewStepScheduler = student.scheduler
        place(student.vae, accelerator.device)
        self._taught: npt.NDArray[np.float32] | None = None

    def _loss(self, step: int, number: int) -> torch.Tensor:
        """Return the mean squared error of the clean latents that each jump implies."""
        own = step >= self._recipe.teacher_states
        size, known, device = (
            self._recipe.train.batch_size,
            self._trajectories,
            self._accelerator.device,
        )
        everything = np.arange(len(known.values))
        rows = draw_shuffled(everything, self._recipe.train.seed, 0, number * size, size)
        values, states = known.values[rows].to(device), known.states[rows].float().to(device)
        jumps = states.shape[1] - 1
        before = self._own_states(states[:, 0], values) if own else states[:, :-1]
        x_t, jump = before.flatten(0, 1), torch.arange(jumps, device=device).repeat(size)
        wanted = self._jumps.wanted_start(states[:, 1:].flatten(0, 1), x_t, jump)
        got = self._start(x_t, values.repeat_interleave(jumps, dim=0), jump)
        return (got - wanted).square().mean()

    def _start(self, x_t: torch.Tensor, values: torch.Tensor, jump: torch.Tensor) -> torch.Tensor:
        times = torch.as_tensor(self._jumps.config.times, device=x_t.device)
        x_in = x_t.contiguous(memory_format=torch.channels_last)
        keep = torch.ones(len(x_t), device=x_t.device)
        prediction = self._net(x_in, times[jump], values, keep).float()
        return self._jumps.start(prediction, x_t, jump)

    @torch.no_grad()
    def _own_states(self, noise: torch.Tensor, values: torch.Tensor) -> torch.Tensor:
        """Return the states `(B, K, Z, X, Y)` from which the student itself would jump."""
        visited = [noise]
        for number in range(len(self._jumps.config.times) - 1):
            jump = torch.full((len(noise),), number, device=noise.device)
            start = self._start(visited[-1], values, jump)
            visited.append(self._jumps.landing(start, visited[-1], jump))
        return torch.stack(visited, dim=1)

    @torch.no_grad()
    def sheet(self, step: int) -> npt.NDArray[np.float32] | None:
        """Return four rows: maps of the teacher, the student's from the same noise, in colour."""
        # Beyond the trajectories: noise and conditions that the student never learnt from.
        first = self._recipe.trajectories
        keys = [SampleKey(self._recipe.train.seed, first + i) for i in range(PREVIEW)]
        values = draw_values(self._teacher, keys, self._recipe.lesion_free)
        if self._taught is None:
            self._taught = self._drawn(self._teacher.pipeline, values, keys)
        with self.averaged(), self._accelerator.autocast():
            learnt = self._drawn(self._pipeline, values, keys)
        taught = self._taught
        return stack_rows(
            [
                colour_argmax(taught),
                colour_argmax(learnt),
                colour_labels(taught),
                colour_labels(learnt),
            ]
        )

    @staticmethod
    def _drawn(
        pipeline: LabelDiffusionPipeline, values: torch.Tensor, keys: Sequence[SampleKey]
    ) -> npt.NDArray[np.float32]:
        pv = pipeline(values, [key.torch(Stream.NOISE) for key in keys]).pv
        drawn: npt.NDArray[np.float32] = pv.numpy()
        return drawn


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
    student = build_student(learnt.pipeline, section.knots)
    drawing = DiffusionLabelGenerator.load(
        teacher,
        device=str(accelerator.device),
        dtype="fp32" if train.precision == "fp32" else "bf16",
    )
    facts = section.model_dump(mode="json", exclude={"train": {"trackers"}})
    drawn = {k: facts[k] for k in ("knots", "lesion_free")} | {"seed": train.seed}
    trajectories = teacher_trajectories(
        drawing, section, run_dir / "trajectories", digest(drawn | drawing.identity)[:16]
    )
    step = DistillationStep(student, drawing, section, trajectories, accelerator)
    identity = digest(facts | {"teacher": learnt.identity})[:16]
    settings = LoopSettings.of(train, train.steps, identity=identity, max_minutes=max_minutes)
    run(step, settings, run_dir / "distil", accelerator, resume)
    step.finish()
    training = dict(read_record(teacher)["training"]) | {
        "recipe": recipe.model_dump(mode="json", by_alias=True, include={"name", "distil"}),
        "teacher": dict(learnt.identity),
        "distillation": report(run_dir / "distil", student.unet),
    }
    write_model(student, out, learnt.details, training=training)
    logger.info("%s: model written", out)
