"""What students of a label model learn: jumps over its steps, or its guidance in one call.

Jumps: progressive distillation (Salimans and Ho 2022, arXiv:2202.00512, section 3; guidance folded
into the student as in Meng et al. 2023, arXiv:2210.03142, stage one). Deviations: one round from
many steps to few instead of halvings; the teacher's draws are cached, so that no training data is
needed; in the end the student learns on its own states, as it samples (Ross et al. 2011,
arXiv:1011.0686); the weights of the loss are 1 for each jump, on the clean latents.

Guidance: stage one of Meng et al. alone, for one guidance, on noised draws of the teacher instead
of data. A share of the predictions is without a condition, which keeps other guidance possible.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Generic, TypeVar

import numpy as np
import torch

from synthgen.core.rng import SampleKey, Stream
from synthgen.data.loaders import draw_shuffled
from synthgen.diffusion.targets import antithetic_times, noised
from synthgen.labels.denoiser import DenoiserStep
from synthgen.labels.train import PREVIEW
from synthgen.labels.trajectories import Trajectories, draw_values
from synthgen.recipe.distil import GuidanceRecipe, StepsRecipe, StudentRecipe
from synthgen.runtime import place
from synthgen.training.log import colour_argmax, colour_labels, stack_rows

if TYPE_CHECKING:
    from collections.abc import Sequence

    import numpy.typing as npt
    from accelerate import Accelerator

    from synthgen.diffusion.few_step import FewStepScheduler
    from synthgen.labels.diffusion import LabelDiffusionPipeline
    from synthgen.labels.generator import DiffusionLabelGenerator

RecipeT = TypeVar("RecipeT", bound=StudentRecipe)


class DistillationStep(DenoiserStep, Generic[RecipeT]):
    """A `TrainStep`: one iteration of a student on draws of its teacher."""

    def __init__(
        self,
        student: LabelDiffusionPipeline,
        teacher: DiffusionLabelGenerator,
        recipe: RecipeT,
        trajectories: Trajectories,
        accelerator: Accelerator,
    ) -> None:
        super().__init__(student, recipe.train, accelerator)
        place(student.vae, accelerator.device)
        self._teacher, self._recipe, self._trajectories = teacher, recipe, trajectories
        self._taught: npt.NDArray[np.float32] | None = None

    def _rows(self, number: int) -> tuple[torch.Tensor, torch.Tensor]:
        """Return conditions `(B, V)` and states `(B, K, Z, X, Y)` of a micro-batch."""
        known, device = self._trajectories, self._accelerator.device
        size, seed = self._train.batch_size, self._train.seed
        rows = draw_shuffled(np.arange(len(known.values)), seed, 0, number * size, size)
        return known.values[rows].to(device), known.states[rows].float().to(device)

    @torch.no_grad()
    def sheet(self, step: int) -> npt.NDArray[np.float32] | None:
        """Return four rows: maps of the teacher, the student's from the same noise, in colour."""
        # Beyond the trajectories: noise and conditions that the student never learnt from.
        first = len(self._trajectories.values)
        keys = [SampleKey(self._train.seed, first + i) for i in range(PREVIEW)]
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


class JumpStep(DistillationStep[StepsRecipe]):
    """One iteration of a student that jumps over its teacher's steps."""

    @property
    def _jumps(self) -> FewStepScheduler:
        scheduler: FewStepScheduler = self._pipeline.scheduler
        return scheduler

    def _loss(self, step: int, number: int) -> torch.Tensor:
        """Return the mean squared error of the clean latents that each jump implies."""
        own = step >= self._recipe.teacher_states
        values, states = self._rows(number)
        jumps = states.shape[1] - 1
        before = self._own_states(states[:, 0], values) if own else states[:, :-1]
        x_t = before.flatten(0, 1)
        jump = torch.arange(jumps, device=x_t.device).repeat(len(values))
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


class GuidanceStep(DistillationStep[GuidanceRecipe]):
    """One iteration of a student that predicts in one call what its teacher's guidance gives."""

    def _loss(self, step: int, number: int) -> torch.Tensor:
        """Return the mean squared error to the guided prediction, of some to the null one."""
        values, states = self._rows(number)
        x_start = states[:, -1]
        generator = SampleKey(self._train.seed, number).torch(Stream.TRAIN)
        u = antithetic_times(len(x_start), generator).to(x_start.device)
        noise = torch.randn(x_start.shape, generator=generator).to(x_start.device)
        null = torch.rand(len(x_start), generator=generator) < self._recipe.null_share
        keep = (~null).float().to(x_start.device)
        x_t, t, _ = noised(self._pipeline.scheduler, x_start, noise, u)
        wanted = self._taught_prediction(x_t, t, values, keep)
        x_in = x_t.contiguous(memory_format=torch.channels_last)
        got: torch.Tensor = self._net(x_in, t, values, keep).float()
        return (got - wanted).square().mean()

    @torch.no_grad()
    def _taught_prediction(
        self, x_t: torch.Tensor, t: torch.Tensor, values: torch.Tensor, keep: torch.Tensor
    ) -> torch.Tensor:
        """Return `null + w (conditional - null)` where `keep` is 1, the null prediction else."""
        pipeline = self._teacher.pipeline
        both = torch.cat([torch.ones_like(keep), torch.zeros_like(keep)])
        conditional, null = (
            pipeline.predictor(values)(torch.cat([x_t, x_t]), torch.cat([t, t]), both)
            .float()
            .chunk(2)
        )
        weight = (pipeline.strength() * keep).view(-1, 1, 1, 1)
        wanted: torch.Tensor = null + weight * (conditional - null)
        return wanted
