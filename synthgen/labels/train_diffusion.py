"""Train the diffusion model in the latent of the label autoencoder."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch.nn import functional

from synthgen.core.rng import SampleKey, Stream
from synthgen.diffusion.targets import antithetic_times, noised
from synthgen.labels.denoiser import DenoiserStep
from synthgen.training.log import colour_argmax, colour_labels, stack_rows

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt
    from accelerate import Accelerator

    from synthgen.data.loaders import LabelBatch
    from synthgen.labels.condition import ConditionScale
    from synthgen.labels.diffusion import LabelDiffusionPipeline
    from synthgen.labels.latents import LatentBatches
    from synthgen.recipe.labels import DiffusionRecipe


class DiffusionStep(DenoiserStep):
    """A `TrainStep`: one iteration of the denoiser on cached latents."""

    def __init__(
        self,
        pipeline: LabelDiffusionPipeline,
        recipe: DiffusionRecipe,
        batches: LatentBatches,
        scale: ConditionScale,
        preview: LabelBatch,
        accelerator: Accelerator,
    ) -> None:
        super().__init__(pipeline, recipe.train, accelerator)
        self._recipe, self._batches = recipe, batches
        self._scale, self._preview = scale, preview
        self.loss_name = recipe.loss

    def _loss(self, step: int, number: int) -> torch.Tensor:
        """Return the loss of the recipe between prediction and target."""
        batch = self._batches.batch(number)
        x_start = batch.z.to(self._accelerator.device) * self._pipeline.vae.config.scaling_factor
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
        shown = self._preview
        values = self._scale.scale(shown.fractions, shown.position, shown.csf)
        generators = [SampleKey(0, i).torch(Stream.NOISE) for i in range(len(values))]
        with self.averaged(), self._accelerator.autocast():
            fake = self._pipeline(values, generators).pv.numpy()
        real = self._preview.pv.numpy()
        return stack_rows(
            [colour_argmax(real), colour_argmax(fake), colour_labels(real), colour_labels(fake)]
        )
