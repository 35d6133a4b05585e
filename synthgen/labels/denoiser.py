"""The denoiser of a label model, and what its trainings share."""

from __future__ import annotations

from abc import ABC, abstractmethod
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from synthgen.labels.optimise import build_ema, build_optimizer, build_schedule, descend
from synthgen.runtime import place

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    import numpy as np
    import numpy.typing as npt
    from accelerate import Accelerator
    from diffusers import UNet2DModel

    from synthgen.labels.diffusion import LabelDiffusionPipeline
    from synthgen.models.condition import ConditionEmbedding
    from synthgen.recipe.labels import TrainRecipe


class Denoiser(nn.Module):
    """U-Net and condition embedding behind one `forward`, so that accelerate can wrap both."""

    def __init__(self, unet: UNet2DModel, condition: ConditionEmbedding) -> None:
        super().__init__()
        self.unet = unet
        self.condition = condition

    def forward(
        self, x_t: torch.Tensor, t: torch.Tensor, values: torch.Tensor, keep: torch.Tensor
    ) -> torch.Tensor:
        """Predict the target `(B, Z, X, Y)`."""
        inputs = self.condition(x_t, values, keep)
        prediction: torch.Tensor = self.unet(
            inputs.sample, t, class_labels=inputs.class_labels
        ).sample
        return prediction


class DenoiserStep(ABC):
    """A `TrainStep`: one iteration of a pipeline's denoiser and its moving average.

    Args:
        pipeline: whose U-Net and condition embedding are trained.
        train: optimiser, schedule, moving average.
        accelerator: prepares the networks.
    """

    loss_name = "l2"
    """What the loss log calls the loss."""

    def __init__(
        self, pipeline: LabelDiffusionPipeline, train: TrainRecipe, accelerator: Accelerator
    ) -> None:
        self._pipeline, self._train, self._accelerator = pipeline, train, accelerator
        net = place(Denoiser(pipeline.unet, pipeline.condition_embedding), accelerator.device)
        optimizer = build_optimizer(train, net.parameters())
        self.ema = {"denoiser": build_ema(train, net)}
        self.schedulers = {"denoiser": build_schedule(train, optimizer)}
        self._net, self._optimizer = accelerator.prepare(net, optimizer)
        self.models: dict[str, nn.Module] = {"denoiser": self._net}
        self.optimizers: dict[str, Any] = {"denoiser": self._optimizer}

    def step(self, accelerator: Accelerator, step: int) -> Mapping[str, float | torch.Tensor]:
        """Make one iteration; see `TrainStep.step`."""
        total, norm = descend(
            accelerator,
            step,
            self._net,
            self._optimizer,
            self._train.clip_norm,
            lambda number: self._loss(step, number),
        )
        self.schedulers["denoiser"].step()
        self.ema["denoiser"].step(accelerator.unwrap_model(self._net).parameters())
        return {self.loss_name: total, "grad_norm": norm}

    @abstractmethod
    def _loss(self, step: int, number: int) -> torch.Tensor:
        """Return the loss of micro-batch `number`, which belongs to iteration `step`."""

    @abstractmethod
    def sheet(self, step: int) -> npt.NDArray[np.float32] | None:
        """Return a sample sheet; see `TrainStep.sheet`."""

    @contextmanager
    def averaged(self) -> Iterator[None]:
        """Put the moving average into the pipeline's networks for a while."""
        pipeline = self._pipeline
        parameters = [*pipeline.unet.parameters(), *pipeline.condition_embedding.parameters()]
        self.ema["denoiser"].store(parameters)
        self.ema["denoiser"].copy_to(parameters)
        try:
            yield
        finally:
            self.ema["denoiser"].restore(parameters)

    def finish(self) -> None:
        """Put the moving average into the pipeline's networks for good, on the CPU."""
        trained = self._accelerator.unwrap_model(self._net)
        self.ema["denoiser"].copy_to(trained.parameters())
        self._pipeline.to("cpu")

    def state(self) -> dict[str, Any]:
        """Return nothing: all state is in tensors."""
        return {}

    def load_state(self, state: Mapping[str, Any]) -> None:  # noqa: B027 - nothing, for all of them
        """Restore nothing."""
