"""Stage 1: train the modality and dataset classifier on real slices.

Source: Fernandez et al. 2022, arXiv:2209.08256: binary cross-entropy on one-hot targets, both
heads summed, Adam with an exponentially falling learning rate.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.optim.lr_scheduler import ExponentialLR

from synthgen.losses.style import modality_dataset_bce

if TYPE_CHECKING:
    from collections.abc import Mapping

    from accelerate import Accelerator
    from diffusers.training_utils import EMAModel

    from synthgen.data.image_loader import ImageBatch
    from synthgen.data.loaders import Batches
    from synthgen.models.classifier import ModalityDatasetClassifier
    from synthgen.recipe.images import ClassifierRecipe


class ClassifierStep:
    """Train a classifier; see `TrainStep`. Each batch gives its images and style images.

    Args:
        recipe: the `images.classifier` section.
        batches: training batches.
        classifier: trained in place.
        accelerator: prepares it and its optimiser.
    """

    def __init__(
        self,
        recipe: ClassifierRecipe,
        batches: Batches[ImageBatch],
        classifier: ModalityDatasetClassifier,
        accelerator: Accelerator,
    ) -> None:
        self._batches = batches
        classifier.to(accelerator.device)
        adam = torch.optim.Adam(classifier.parameters(), lr=recipe.lr)
        rate = (recipe.lr_final / recipe.lr) ** (1 / max(1, recipe.steps))
        self.models: Mapping[str, torch.nn.Module] = {
            "classifier": accelerator.prepare_model(classifier)
        }
        self.optimizers: Mapping[str, Any] = {"classifier": accelerator.prepare_optimizer(adam)}
        self.schedulers: Mapping[str, Any] = {"classifier": ExponentialLR(adam, rate)}
        self.ema: Mapping[str, EMAModel] = {}

    def step(self, accelerator: Accelerator, step: int) -> dict[str, float | Tensor]:
        """Make one optimiser step; see `TrainStep.step`."""
        accumulation = accelerator.gradient_accumulation_steps
        model, optimizer = self.models["classifier"].train(), self.optimizers["classifier"]
        means: dict[str, float | Tensor] = {}
        for part in range(accumulation):
            number = (step * accumulation + part) * accelerator.num_processes
            batch = self._batches.batch(number + accelerator.process_index)
            batch = batch.to(accelerator.device)
            modality, dataset = batch.modality.repeat(2), batch.dataset.repeat(2)
            with accelerator.accumulate(model), accelerator.autocast():
                logits = model(torch.cat([batch.image, batch.style_image]))
                loss = modality_dataset_bce(
                    logits.modality, logits.dataset, modality, dataset, alpha_mod=1, alpha_dat=1
                )
                accelerator.backward(loss)
                optimizer.step()
                optimizer.zero_grad()
            values = {
                "bce": loss.detach(),
                "modality_accuracy": _accuracy(logits.modality, modality),
                "dataset_accuracy": _accuracy(logits.dataset, dataset),
            }
            for name, value in values.items():
                means[name] = means.get(name, 0.0) + value / accumulation
        self.schedulers["classifier"].step()
        return means

    def sheet(self, step: int) -> None:
        """No sheet."""

    def state(self) -> dict[str, Any]:
        """Nothing beyond the network."""
        return {}

    def load_state(self, state: Mapping[str, Any]) -> None:
        """Nothing to restore."""


def _accuracy(logits: Tensor, target: Tensor) -> Tensor:
    return (logits.detach().argmax(dim=1) == target).float().mean()
