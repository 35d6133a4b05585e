"""One optimiser iteration of a segmentor alone, before HiDiff refines it.

Loss: as the recipe weighs it; in Chen et al. 2024 (arXiv:2407.03548) cross-entropy plus Dice.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from diffusers.training_utils import EMAModel

from synthgen.losses.segmentation import SegmentationWeights, segmentation_loss
from synthgen.runtime import place
from synthgen.segment.optimise import build_adamw
from synthgen.segment.sheets import segmentation_sheet
from synthgen.training.adversarial import averaged

if TYPE_CHECKING:
    from collections.abc import Mapping
    from contextlib import AbstractContextManager

    import numpy as np
    import numpy.typing as npt
    from accelerate import Accelerator
    from torch import Tensor, nn

    from synthgen.models.segmentors import Segmentor
    from synthgen.recipe.hidiff import HidiffRecipe
    from synthgen.segment.hidiff_masks import MaskForm
    from synthgen.segment.imgx_step import Batches

_SHEET_ROWS = 4


class SegmentorStep:
    """Train a segmentor; see `synthgen.training.loop.TrainStep`.

    Args:
        recipe: the `hidiff` section.
        batches: what it learns from.
        segmentor: is trained.
        form: of its masks.
        accelerator: from `runtime.build_accelerator`.
    """

    def __init__(
        self,
        recipe: HidiffRecipe,
        batches: Batches,
        segmentor: Segmentor,
        form: MaskForm,
        accelerator: Accelerator,
    ) -> None:
        self._recipe, self._batches, self._form = recipe, batches, form
        self._segmentor, self._weights = segmentor, segmentor_weights(recipe)
        place(segmentor, accelerator.device)
        train = recipe.pretrain
        adam, rate = build_adamw(train, segmentor.parameters(), train.steps)
        self.models: Mapping[str, nn.Module] = {"segmentor": accelerator.prepare_model(segmentor)}
        self.optimizers: Mapping[str, Any] = {"segmentor": accelerator.prepare_optimizer(adam)}
        self.schedulers: Mapping[str, Any] = {"segmentor": rate}
        self.ema: Mapping[str, EMAModel] = {}
        if train.ema_decay:
            self.ema = {"segmentor": EMAModel(segmentor.parameters(), decay=train.ema_decay)}

    def step(self, accelerator: Accelerator, step: int) -> dict[str, float | Tensor]:
        """Make one optimiser step; see `TrainStep.step`."""
        train, accumulation = self._recipe.pretrain, accelerator.gradient_accumulation_steps
        network, optimizer = self.models["segmentor"].train(), self.optimizers["segmentor"]
        total: float | Tensor = 0.0
        for part in range(accumulation):
            number = (step * accumulation + part) * accelerator.num_processes
            number += accelerator.process_index
            images, soft = (a.to(accelerator.device) for a in self._batches.batch(number))
            with accelerator.accumulate(network):
                with accelerator.autocast():
                    logits = network(images).logits
                loss = segmentor_loss(logits, soft, self._form, self._weights)
                accelerator.backward(loss)
                if train.clip_norm and accelerator.sync_gradients:
                    accelerator.clip_grad_norm_(network.parameters(), train.clip_norm)
                optimizer.step()
                optimizer.zero_grad()
            total = total + loss.detach() / accumulation
        self.schedulers["segmentor"].step()
        for ema in self.ema.values():
            ema.step(self._segmentor.parameters())
        return {"loss": total}

    @torch.no_grad()
    def sheet(self, step: int) -> npt.NDArray[np.float32]:
        """Show rows of image, truth and mask."""
        images, soft = (part[:_SHEET_ROWS] for part in self._batches.batch(0))
        with self.averaged_weights():
            logits = self._segmentor(images.to(self._segmentor.device)).logits
        found = self._form.probabilities(self._form.prior(logits)).cpu()
        return segmentation_sheet(images, [soft, found], overlapping=self._form.overlapping)

    def state(self) -> dict[str, Any]:
        """Nothing beyond the network."""
        return {}

    def load_state(self, state: Mapping[str, Any]) -> None:
        """Nothing to restore."""

    def averaged_weights(self) -> AbstractContextManager[None]:
        """Put the network into eval mode for a while, with its moving average if there is one."""
        return averaged({"segmentor": self._segmentor}, self.ema)


def segmentor_loss(
    logits: Tensor, soft: Tensor, form: MaskForm, weights: SegmentationWeights
) -> Tensor:
    """Return the mean loss of a segmentor's logits against the data's soft labels."""
    labels = form.labels(soft)
    return segmentation_loss(logits, labels, weights, exclusive=form.exclusive).mean()


def segmentor_weights(recipe: HidiffRecipe) -> SegmentationWeights:
    """Return the weights of a segmentor's losses."""
    return SegmentationWeights(**recipe.segmentor_losses.model_dump())
