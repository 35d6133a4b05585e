"""One optimiser iteration of the SPADE VAE-GAN (Fernandez et al. 2022, arXiv:2209.08256).

Losses as in the journal version (Fernandez et al. 2024, doi:10.1016/j.media.2024.103278).
Deliberate deviations: contrastive terms act on mu, not on a sampled code, with one transform per
sample; outside the brain output and target are both exactly background; the discriminators see
every real and fake image once per iteration, before either optimiser steps. Optional: an L1
between the output and the image that matches the label (`paired_l1`), which small data sets need,
and which like the perceptual loss sees the output without its grain; grain as strong as what that
output misses, tissue by tissue (`texture`); a linear classifier on mu (`code_class`), without which
codes of modalities of the same mean brightness (T1 and FLAIR) separate late.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from diffusers.training_utils import EMAModel
from torch import Tensor, nn
from torch.nn import functional

from synthgen.core.rng import SampleKey, Stream
from synthgen.losses.adversarial import (
    feature_matching,
    hinge_discriminator,
    hinge_generator,
    scale_logits,
)
from synthgen.losses.reconstruction import kl_gaussian, perceptual, slice_consistency
from synthgen.losses.style import (
    code_consistency,
    modality_dataset_bce,
    random_affine,
    style_contrastive,
)
from synthgen.losses.texture import band_energy
from synthgen.models.spade import draw_noise
from synthgen.training.adversarial import Adams, LinearRate, LossSum, averaged, frozen

if TYPE_CHECKING:
    from collections.abc import Mapping
    from contextlib import AbstractContextManager

    import numpy as np
    import numpy.typing as npt
    from accelerate import Accelerator

    from synthgen.data.image_loader import ImageBatch
    from synthgen.data.loaders import Batches
    from synthgen.images.spade_sheet import SheetPlan
    from synthgen.models.classifier import ModalityDatasetClassifier
    from synthgen.models.discriminators import PyramidPatchDiscriminator
    from synthgen.models.spade import SPADEGenerator
    from synthgen.models.style_encoder import StyleCode, StyleEncoder
    from synthgen.recipe.images import ImageRecipe, LossWeights

# Attempts of a micro-batch's keys, away from those of the loader and the loop.
_CODE, _SECOND_CODE, _AFFINE, _GRAIN = 16, 17, 18, 19


@dataclass(frozen=True)
class SpadeNetworks:
    """The networks of the VAE-GAN; None for one that no loss asks for."""

    generator: SPADEGenerator
    style_encoder: StyleEncoder
    discriminator: PyramidPatchDiscriminator | None = None
    classifier: ModalityDatasetClassifier | None = None
    code_head: nn.Linear | None = None


@dataclass(frozen=True)
class _Fake:
    """Painted images `(B, 1, X, Y)` in float32, with and without grain, background -1."""

    image: Tensor
    plain: Tensor


class SpadeStep:
    """Train generator and style encoder against the discriminators; see `TrainStep`.

    Args:
        recipe: the `images` section.
        batches: training batches.
        networks: what is trained, and the frozen classifier.
        accelerator: prepares networks and optimisers.
        modalities: how many the batches tell apart.
        steps_per_unit: optimiser steps in one unit of `recipe.train.unit`.
        sheet: what the sample sheets show; None for no sheets.
    """

    def __init__(
        self,
        recipe: ImageRecipe,
        batches: Batches[ImageBatch],
        networks: SpadeNetworks,
        accelerator: Accelerator,
        *,
        modalities: int,
        steps_per_unit: int = 1,
        sheet: SheetPlan | None = None,
    ) -> None:
        self._recipe, self._batches, self._sheet = recipe, batches, sheet
        self._modalities = modalities
        self._consistency_from = recipe.losses.slice_consistency_from * steps_per_unit
        self._raw = networks
        trained: dict[str, nn.Module] = {
            "generator": networks.generator,
            "style_encoder": networks.style_encoder,
        }
        if networks.discriminator is not None:
            trained["discriminator"] = networks.discriminator
        if networks.code_head is not None:
            trained["code_head"] = networks.code_head
        # Convolutions in channels_last are several times faster in bfloat16.
        for model in trained.values():
            model.to(accelerator.device).to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        self._classifier = networks.classifier
        if self._classifier is not None:
            self._classifier.to(accelerator.device).eval().requires_grad_(False)
        train = recipe.train
        groups = {
            "generator": (("generator", "style_encoder", "code_head"), train.lr_generator),
            "discriminator": (("discriminator",), train.lr_discriminator),
        }
        self.models: Mapping[str, nn.Module] = {
            name: accelerator.prepare_model(model) for name, model in trained.items()
        }
        self.ema: Mapping[str, EMAModel] = {
            name: EMAModel(trained[name].parameters(), decay=train.ema_decay)
            for name in ("generator", "style_encoder")
        }
        decay = train.decay * steps_per_unit
        rate = LinearRate(train.constant * steps_per_unit + decay, decay=decay)
        sides = {
            name: ([trained[m] for m in members if m in trained], lr)
            for name, (members, lr) in groups.items()
        }
        self._adams = Adams.of(sides, train.betas, rate, accelerator)
        self.optimizers = self._adams.optimizers
        self.schedulers = self._adams.schedulers

    def step(self, accelerator: Accelerator, step: int) -> dict[str, float | Tensor]:
        """Make one step of every optimiser; see `TrainStep.step`."""
        accumulation = accelerator.gradient_accumulation_steps
        means: dict[str, float | Tensor] = {}
        for model in self.models.values():
            model.train()
        for part in range(accumulation):
            number = (step * accumulation + part) * accelerator.num_processes
            number += accelerator.process_index
            batch = self._batches.batch(number).to(accelerator.device)
            with accelerator.accumulate(*self.models.values()):
                losses = self._micro_batch(accelerator, batch, step, number)
            for name, value in losses.items():
                means[name] = means.get(name, 0.0) + value / accumulation
        for scheduler in self.schedulers.values():
            scheduler.step()
        for name, ema in self.ema.items():
            ema.step(getattr(self._raw, name).parameters())
        return means

    def sheet(self, step: int) -> npt.NDArray[np.float32] | None:
        """Paint the sheet's slices with the averaged weights."""
        if self._sheet is None:
            return None
        with self.averaged_weights():
            return self._sheet.paint(self._raw.generator, self._raw.style_encoder)

    def state(self) -> dict[str, Any]:
        """Nothing beyond the networks."""
        return {}

    def load_state(self, state: Mapping[str, Any]) -> None:
        """Nothing to restore."""

    def averaged_weights(self) -> AbstractContextManager[None]:
        """Put the moving averages into generator and style encoder for a while, in eval mode."""
        return averaged({name: getattr(self._raw, name) for name in self.ema}, self.ema)

    def _micro_batch(
        self, accelerator: Accelerator, batch: ImageBatch, step: int, number: int
    ) -> dict[str, Tensor]:
        """Forward and backward of both sides, then both optimisers (if gradients are due)."""
        keys = [SampleKey(self._recipe.train.seed, number * len(batch.pv) + i) for i in
                range(len(batch.pv))]  # fmt: skip
        losses = LossSum()
        with accelerator.autocast():
            code, fake = self._paint(batch, keys, losses, step)
            self._style_losses(batch, keys, code, losses)
            loss_d = self._adversarial_losses(batch, fake.image, losses)
            self._image_losses(batch, fake, losses)
        if loss_d is not None:
            accelerator.backward(loss_d)
            losses.values["discriminator"] = loss_d.detach()
        accelerator.backward(losses.total)
        self._adams.step(accelerator, self._recipe.train.clip_norm)
        return losses.values

    def _paint(
        self, batch: ImageBatch, keys: list[SampleKey], losses: LossSum, step: int
    ) -> tuple[StyleCode, _Fake]:
        """Encode the style image, paint the label; KL and slice consistency."""
        weights = self._weights
        code: StyleCode = self.models["style_encoder"](batch.style_image)
        fake = self._generate(batch, code, keys, _CODE)
        if weights.kl:
            losses.add("kl", weights.kl, kl_gaussian(code.mu, code.logvar))
        if weights.slice_consistency and step >= self._consistency_from:
            again = self._generate(batch, code, keys, _SECOND_CODE)
            value = slice_consistency(fake.image, again.image)
            losses.add("slice_consistency", weights.slice_consistency, value)
        return code, fake

    def _generate(
        self, batch: ImageBatch, code: StyleCode, keys: list[SampleKey], attempt: int
    ) -> _Fake:
        z, noise = code.sample(_generators(keys, attempt)), None
        if self._recipe.generator.grain_bands:
            size = (batch.pv.shape[-2], batch.pv.shape[-1])
            noise = draw_noise(_generators(keys, _GRAIN), size).to(batch.pv.device)
        outside = batch.pv[:, :1] > 0.5
        images = self.models["generator"](batch.pv, z, noise)
        return _Fake(*(image.float().masked_fill(outside, -1.0) for image in images))

    def _style_losses(
        self, batch: ImageBatch, keys: list[SampleKey], code: StyleCode, losses: LossSum
    ) -> None:
        weights = self._weights
        encoder = self.models["style_encoder"]
        codes = [code.mu]
        if weights.contrastive:
            turned = random_affine(batch.style_image, _generators(keys, _AFFINE))
            codes.append(encoder(turned).mu)
            losses.add("contrastive", weights.contrastive, style_contrastive(code.mu, codes[-1]))
        if weights.second_style:
            codes.append(encoder(batch.second_style_image).mu)
            losses.add("second_style", weights.second_style, code_consistency(code.mu, codes[-1]))
        if weights.code_class:
            told = [self.models["code_head"](mu) for mu in codes]
            value = torch.stack([self._code_class(logits, batch) for logits in told]).mean()
            losses.add("code_class", weights.code_class, value)

    def _code_class(self, logits: Tensor, batch: ImageBatch) -> Tensor:
        """Return the cross-entropy of modality and data set, told from the code alone."""
        split = self._modalities
        modality = functional.cross_entropy(logits[:, :split].float(), batch.modality)
        return modality + functional.cross_entropy(logits[:, split:].float(), batch.dataset)

    def _adversarial_losses(
        self, batch: ImageBatch, fake: Tensor, losses: LossSum
    ) -> Tensor | None:
        """Return the discriminators' loss; hinge and feature matching go to the generator."""
        if "discriminator" not in self.models:
            return None
        weights, critic = self._weights, self.models["discriminator"]
        planes = self._condition_planes(batch)
        pair = torch.cat([batch.image, fake.detach()])
        seen = critic(torch.cat([planes.repeat(2, 1, 1, 1), pair], dim=1))
        half = len(batch.image)
        real = [[f[:half] for f in scale] for scale in seen]
        detached = [[f[half:] for f in scale] for scale in seen]
        loss_d = hinge_discriminator(scale_logits(real), scale_logits(detached))
        with frozen(self._raw.discriminator):
            judged = critic(torch.cat([planes, fake], dim=1))
        if weights.adversarial:
            value = hinge_generator(scale_logits(judged))
            losses.add("adversarial", weights.adversarial, value)
        if weights.feature_matching:
            value = feature_matching(judged, real)
            losses.add("feature_matching", weights.feature_matching, value)
        return loss_d

    def _condition_planes(self, batch: ImageBatch) -> Tensor:
        """Return what the discriminators see beside the image: argmax one-hot and modality."""
        channels = batch.pv.shape[1]
        planes = [functional.one_hot(batch.pv.argmax(dim=1), channels).movedim(-1, 1).float()]
        if self._recipe.discriminator.modality_planes:
            modality = functional.one_hot(batch.modality, self._modalities).float()
            planes.append(modality[:, :, None, None].expand(-1, -1, *batch.pv.shape[2:]))
        return torch.cat(planes, dim=1)

    def _image_losses(self, batch: ImageBatch, fake: _Fake, losses: LossSum) -> None:
        """Add the losses that compare the output with the image that matches the label."""
        weights = self._weights
        if weights.paired_l1:
            inside = (batch.pv[:, :1] <= 0.5).float()
            error = (fake.plain - batch.image).abs() * inside
            value = error.sum() / inside.sum().clamp_min(1)
            losses.add("paired_l1", weights.paired_l1, value)
        if weights.texture:
            missed = batch.image - fake.plain.detach()
            value = band_energy(fake.image - fake.plain, missed, batch.pv)
            losses.add("texture", weights.texture, value)
        classifier = self._classifier
        if classifier is None:
            return
        if weights.perceptual:
            with torch.no_grad():
                real = classifier.features(batch.image)
            value = perceptual(classifier.features(fake.plain), real, perceptual_weights(len(real)))
            losses.add("perceptual", weights.perceptual, value)
        if weights.modality or weights.dataset:
            logits = classifier(fake.image)
            for name, alphas in (("modality", (1.0, 0.0)), ("dataset", (0.0, 1.0))):
                weight = getattr(weights, name)
                if weight:
                    value = modality_dataset_bce(
                        logits.modality,
                        logits.dataset,
                        batch.modality,
                        batch.dataset,
                        alpha_mod=alphas[0],
                        alpha_dat=alphas[1],
                    )
                    losses.add(name, weight, value)

    @property
    def _weights(self) -> LossWeights:
        return self._recipe.losses


def perceptual_weights(num_layers: int) -> list[float]:
    """Return the last of 1/32, 1/16, 1/8, 1/4, 1: the papers' weights, fine to coarse."""
    return [1 / 32, 1 / 16, 1 / 8, 1 / 4, 1.0][-num_layers:]


def _generators(keys: list[SampleKey], attempt: int) -> list[torch.Generator]:
    return [SampleKey(k.seed, k.index, attempt).torch(Stream.STYLE) for k in keys]
