"""Train the diffusion model in the latent of the label autoencoder."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import nn
from torch.nn import functional

from synthgen.core.rng import SampleKey, Stream
from synthgen.diffusion.targets import antithetic_times, noised
from synthgen.labels.optimise import build_ema, build_optimizer, build_schedule, descend
from synthgen.runtime import place
from synthgen.training.log import colour_argmax, colour_labels, stack_rows

if TYPE_CHECKING:
    from collections.abc import Mapping

    import numpy as np
    import numpy.typing as npt
    from accelerate import Accelerator
    from diffusers import UNet2DModel

    from synthgen.data.loaders import LabelBatch
    from synthgen.labels.condition import ConditionScale
    from synthgen.labels.diffusion import LabelDiffusionPipeline
    from synthgen.labels.latents import LatentBatches
    from synthgen.models.condition import ConditionEmbedding
    from synthgen.recipe.labels import DiffusionRecipe


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


class DiffusionStep:
    """A `TrainStep`: one iteration of the denoiser."""

    def __init__(
        self,
        pipeline: LabelDiffusionPipeline,
        recipe: DiffusionRecipe,
        batches: LatentBatches,
        scale: ConditionScale,
        preview: LabelBatch,
        accelerator: Accelerator,
    ) -> None:
        self._pipeline, self._recipe, self._batches = pipeline, recipe, batches
        self._scale, self._preview, self._accelerator = scale, preview, accelerator
        net = place(Denoiser(pipeline.unet, pipeline.condition_embedding), accelerator.device)
        optimizer = build_optimizer(recipe.train, net.parameters())
        self.ema = {"denoiser": build_ema(recipe.train, net)}
        self.schedulers = {"denoiser": build_schedule(recipe.train, optimizer)}
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
            self._recipe.train.clip_norm,
            lambda number: self._loss(accelerator, number),
        )
        self.schedulers["denoiser"].step()
        self.ema["denoiser"].step(accelerator.unwrap_model(self._net).parameters())
        return {self._recipe.loss: total, "grad_norm": norm}

    def _loss(self, accelerator: Accelerator, number: int) -> torch.Tensor:
        batch = self._batches.batch(number)
        x_start = batch.z.to(accelerator.device) * self._pipeline.vae.config.scaling_factor
        generator = SampleKey(self._recipe.train.seed, number).torch(Stream.TRAIN)
        count = x_start.shape[0]
        u = antithetic_times(count, generator).to(x_start.device)
        noise = torch.randn(x_start.shape, generator=generator).to(x_start.device)
        dropped = torch.rand(count, generator=generator) < self._recipe.condition.dropout
        values = self._scale.scale(batch.fractions, batch.position, batch.csf).to(x_start.device)
        pair = noised(self._pipeline.scheduler, x_start, noise, u)
        x_t = pair.x_t.contiguous(memory_format=torch.channels_last)
        prediction = self._net(x_t, pair.t, values, (~dropped).float().to(x_start.device))
        error = functional.l1_loss if self._recipe.loss == "l1" else functional.mse_loss
        return error(prediction.float(), pair.target.float())

    @torch.no_grad()
    def sheet(self, step: int) -> npt.NDArray[np.float32] | None:
        """Return four rows: real labels, generated ones of the same condition, both in colour."""
        parameters = list(self._pipeline.unet.parameters())
        parameters += list(self._pipeline.condition_embedding.parameters())
        self.ema["denoiser"].store(parameters)
        self.ema["denoiser"].copy_to(parameters)
        shown = self._preview
        values = self._scale.scale(shown.fractions, shown.position, shown.csf)
        generators = [SampleKey(0, i).torch(Stream.NOISE) for i in range(len(values))]
        with self._accelerator.autocast():
            fake = self._pipeline(values, generators).pv.numpy()
        self.ema["denoiser"].restore(parameters)
        real = self._preview.pv.numpy()
        return stack_rows(
            [colour_argmax(real), colour_argmax(fake), colour_labels(real), colour_labels(fake)]
        )

    def state(self) -> dict[str, Any]:
        """Return nothing: all state is in tensors."""
        return {}

    def load_state(self, state: Mapping[str, Any]) -> None:
        """Restore nothing."""
