"""One optimiser iteration of ImgX, and of its supervised twin.

Fu et al. 2023, arXiv:2303.06040 and arXiv:2308.16355: predict the clean mask, with segmentation
losses on it alone, whatever the noisy mask was made of.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any, Protocol

import torch
from diffusers.training_utils import EMAModel
from torch import Tensor, nn

from synthgen.core.rng import SampleKey, Stream
from synthgen.diffusion.resample import imgx_scheduler
from synthgen.losses.segmentation import SegmentationWeights, segmentation_loss
from synthgen.models.imgx import ImgXUNet
from synthgen.runtime import place, seeded_init
from synthgen.segment.optimise import build_adamw
from synthgen.segment.sheets import segmentation_sheet
from synthgen.segment.strategies import Draws, MaskProcess, noisy_input, sample_masks
from synthgen.training.adversarial import averaged

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from contextlib import AbstractContextManager

    import numpy as np
    import numpy.typing as npt
    from accelerate import Accelerator
    from diffusers import SchedulerMixin

    from synthgen.recipe.imgx import ImgxRecipe

_DRAWS = 16
"""Attempt of a sample's key for noise and t, away from those of the loader and the loop."""
_SHEET_ROWS = 4


class Batches(Protocol):
    """What a segmenter learns from; `synthgen.data.patches.Patches` is one."""

    def batch(self, number: int) -> tuple[Tensor, Tensor]:
        """Return batch `number`, a pure function of it.

        Returns:
            Images `(B, Ci, *S)` in [0, 1] and soft labels `(B, G, *S)` in [0, 1].
        """


class ImgxStep:
    """Train the denoiser of masks, or its twin; see `synthgen.training.loop.TrainStep`.

    Args:
        recipe: the `imgx` section.
        batches: what it learns from.
        network: from `build_network`; one without mask channels is the twin.
        accelerator: from `runtime.build_accelerator`.
        overlapping: tissues do not exclude one another.
        steps: optimiser steps in all; None for the recipe's.
        on_step: called with the number of finished steps after each.
    """

    def __init__(
        self,
        recipe: ImgxRecipe,
        batches: Batches,
        network: ImgXUNet,
        accelerator: Accelerator,
        *,
        overlapping: bool = False,
        steps: int | None = None,
        on_step: Callable[[int], None] | None = None,
    ) -> None:
        self._recipe, self._batches, self._network = recipe, batches, network
        self._on_step = on_step
        chain = inference_scheduler(recipe, recipe.schedule.num_train_timesteps)
        self._process = MaskProcess(chain.alphas_cumprod, not overlapping, recipe.schedule.clip)
        self._supervised = network.mask_channels == 0
        self._weights = SegmentationWeights(**recipe.losses.model_dump())
        place(network, accelerator.device)
        train = recipe.train
        adam, rate = build_adamw(train, network.parameters(), steps or train.steps)
        self.models: Mapping[str, nn.Module] = {"network": accelerator.prepare_model(network)}
        self.optimizers: Mapping[str, Any] = {"network": accelerator.prepare_optimizer(adam)}
        self.schedulers: Mapping[str, Any] = {"network": rate}
        self.ema: Mapping[str, EMAModel] = {}
        if train.ema_decay:
            self.ema = {"network": EMAModel(network.parameters(), decay=train.ema_decay)}

    def step(self, accelerator: Accelerator, step: int) -> dict[str, float | Tensor]:
        """Make one optimiser step; see `TrainStep.step`."""
        accumulation = accelerator.gradient_accumulation_steps
        network, optimizer = self.models["network"].train(), self.optimizers["network"]
        total: float | Tensor = 0.0
        for part in range(accumulation):
            number = (step * accumulation + part) * accelerator.num_processes
            number += accelerator.process_index
            with accelerator.accumulate(network):
                loss = self._loss(accelerator, number)
                accelerator.backward(loss)
                if self._recipe.train.clip_norm and accelerator.sync_gradients:
                    accelerator.clip_grad_norm_(network.parameters(), self._recipe.train.clip_norm)
                optimizer.step()
                optimizer.zero_grad()
            total = total + loss.detach() / accumulation
        self.schedulers["network"].step()
        for ema in self.ema.values():
            ema.step(self._network.parameters())
        if self._on_step is not None:
            self._on_step(step + 1)
        return {"loss": total}

    @torch.no_grad()
    def sheet(self, step: int) -> npt.NDArray[np.float32]:
        """Show rows of image, truth, and what each step of the inference finds."""
        images, soft = (part[:_SHEET_ROWS] for part in self._batches.batch(0))
        device = next(self._network.parameters()).device
        with self.averaged_weights():
            found = self._found(images.to(device), soft.shape[1:])
        overlapping = not self._process.exclusive
        return segmentation_sheet(images, [soft, *found.cpu()], overlapping=overlapping)

    def state(self) -> dict[str, Any]:
        """Nothing beyond the network."""
        return {}

    def load_state(self, state: Mapping[str, Any]) -> None:
        """Nothing to restore."""

    def averaged_weights(self) -> AbstractContextManager[None]:
        """Put the network into eval mode for a while, with its moving average if there is one."""
        return averaged({"network": self._network}, self.ema)

    def _loss(self, accelerator: Accelerator, number: int) -> Tensor:
        """Return the loss of one micro-batch."""
        network = self.models["network"]
        images, soft = (part.to(accelerator.device) for part in self._batches.batch(number))
        with accelerator.autocast():
            if self._supervised:
                logits = network(images)
            else:
                draws = self._draw(number, soft)

                def denoise(mask: Tensor, t: Tensor) -> Tensor:
                    found: Tensor = network(images, mask, self._process.log_snr(t))
                    return found

                mask = noisy_input(self._recipe.strategy, self._process, denoise, soft, draws)
                logits = denoise(mask, draws.t)
        exclusive = self._process.exclusive
        return segmentation_loss(logits, soft, self._weights, exclusive=exclusive).mean()

    def _draw(self, number: int, soft: Tensor) -> Draws:
        seed, size = self._recipe.train.seed, len(soft)
        keys = [SampleKey(seed, number * size + i, _DRAWS) for i in range(size)]
        generators = [key.torch(Stream.NOISE) for key in keys]
        return Draws.of(generators, self._process.last + 1, soft.shape[1:]).to(soft.device)

    def _found(self, images: Tensor, shape: torch.Size) -> Tensor:
        """Return what each step of the inference finds in patches, `(K, B, G, *S)`."""
        network = self._network
        if self._supervised:
            return self._process.probabilities(network(images))[None]
        scheduler = inference_scheduler(self._recipe)
        process = replace(self._process, alphas_cumprod=scheduler.alphas_cumprod)

        def find(mask: Tensor, t: Tensor) -> Tensor:
            return process.probabilities(network(images, mask, process.log_snr(t)))

        keys = [SampleKey(self._recipe.train.seed, i, _DRAWS) for i in range(len(images))]
        return sample_masks(
            find,
            process,
            scheduler,
            [key.torch(Stream.EVALUATE) for key in keys],
            shape,
            device=images.device,
            self_conditioned=self._recipe.strategy == "self_condition",
        )


def inference_scheduler(recipe: ImgxRecipe, steps: int | None = None) -> SchedulerMixin:
    """Return the sampler of the recipe, over its own number of steps or another one."""
    schedule = recipe.schedule
    return imgx_scheduler(
        schedule.sampler,
        steps or schedule.num_inference_steps,
        base_steps=schedule.base_steps,
        beta_start=schedule.beta_start,
        beta_end=schedule.beta_end,
        variance=schedule.variance,
    )


def build_network(
    recipe: ImgxRecipe, in_channels: int, tissues: int, *, twin: bool = False
) -> ImgXUNet:
    """Build the denoiser of masks, or its supervised twin, with seeded weights.

    Args:
        recipe: the `imgx` section.
        in_channels: of the images.
        tissues: output channels.
        twin: the same network without mask and time.
    """
    settings = recipe.network
    masks = 0 if twin else tissues * (2 if recipe.strategy == "self_condition" else 1)
    with seeded_init(recipe.train.seed, 2 if twin else 1):
        network: ImgXUNet = ImgXUNet(
            spatial_dims=recipe.data.spatial_dims,
            in_channels=in_channels,
            out_channels=tissues,
            mask_channels=masks,
            channels=settings.channels,
            strides=settings.strides,
            num_blocks=settings.num_blocks,
            num_heads=settings.num_heads,
            head_dim=settings.head_dim,
            dropout=settings.dropout,
            time_conditioning="none" if twin else settings.time_conditioning,
        )
    return network
