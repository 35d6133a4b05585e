"""One iteration of HiDiff's alternate-collaborative training.

Chen et al. 2024, arXiv:2407.03548, section III. On one batch, first the refiner, then the
segmentor: (A) the segmentor's mask f is spoiled, the truth drifts towards it for t steps, and the
refiner learns which pixels flipped,

    L_Diff = w_bound L_VB + w_focal L_focal;

(B) the segmentor, with its own loss and w_diffusion L_Diff of a new t, learns to give masks and
feature maps that can be refined. Deliberate deviations: each network is frozen and in eval mode
while the other learns, so that its norms keep their statistics (the published code only leaves
its optimiser out); the refiner begins alone; w_diffusion grows from 0; f is spoiled in A; a share
of masks drifts from the refiner's own first guess in place of the truth, as those of inference do
(recycling, as in ImgX, arXiv:2308.16355); Dice may join L_Diff; the prior is detached in the target
of the bound (`synthgen.losses.bernoulli`); gradients of micro-batches are averaged, not summed.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from diffusers.training_utils import EMAModel

from synthgen.core.rng import SampleKey, Stream
from synthgen.diffusion.bernoulli import seeded_uniform
from synthgen.losses.bernoulli import bernoulli_terms
from synthgen.losses.segmentation import dice_loss
from synthgen.losses.vessels import ramp
from synthgen.runtime import place
from synthgen.segment.corruption import Corruption, corrupt
from synthgen.segment.hidiff_networks import refine
from synthgen.segment.optimise import build_adamw
from synthgen.segment.segmentor_step import segmentor_loss, segmentor_weights
from synthgen.segment.sheets import segmentation_sheet
from synthgen.training.adversarial import averaged, frozen

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from contextlib import AbstractContextManager

    import numpy as np
    import numpy.typing as npt
    from accelerate import Accelerator
    from torch import Tensor, nn

    from synthgen.recipe.hidiff import CollaborationRecipe, HidiffRecipe
    from synthgen.segment.hidiff_masks import MaskForm
    from synthgen.segment.hidiff_networks import HiDiffNetworks
    from synthgen.segment.imgx_step import Batches

_REFINER, _SEGMENTOR = 16, 17
"""Attempts of a sample's key in both halves of a step, away from those of loader and loop."""
_SHEET_ROWS = 4


class HiDiffStep:
    """Train refiner and segmentor; see `synthgen.training.loop.TrainStep`.

    Args:
        recipe: the `hidiff` section.
        batches: what they learn from.
        networks: are trained.
        form: of their masks.
        accelerator: from `runtime.build_accelerator`.
    """

    def __init__(
        self,
        recipe: HidiffRecipe,
        batches: Batches,
        networks: HiDiffNetworks,
        form: MaskForm,
        accelerator: Accelerator,
    ) -> None:
        self._recipe, self._batches, self._networks, self._form = recipe, batches, networks, form
        self._corruption = Corruption(**recipe.corruption.model_dump())
        self._weights = segmentor_weights(recipe)
        train = recipe.train
        self._raw: dict[str, nn.Module] = {
            "refiner": networks.refiner,
            "segmentor": networks.segmentor,
        }
        steps = {"refiner": train.steps, "segmentor": segmentor_steps(recipe)}
        models, optimizers, schedulers = {}, {}, {}
        for name, network in self._raw.items():
            place(network, accelerator.device)
            adam, rate = build_adamw(train, network.parameters(), max(1, steps[name]))
            models[name] = accelerator.prepare_model(network)
            optimizers[name] = accelerator.prepare_optimizer(adam)
            schedulers[name] = rate
        self.models: Mapping[str, nn.Module] = models
        self.optimizers: Mapping[str, Any] = optimizers
        self.schedulers: Mapping[str, Any] = schedulers
        self.ema: Mapping[str, EMAModel] = {
            name: EMAModel(network.parameters(), decay=train.ema_decay)
            for name, network in self._raw.items()
            if train.ema_decay
        }

    def step(self, accelerator: Accelerator, step: int) -> dict[str, float | Tensor]:
        """Make one step of the refiner and, where it is its turn, of the segmentor."""
        accumulation = accelerator.gradient_accumulation_steps
        turns = ["refiner"]
        if segmentor_learns(self._recipe.collaboration, step):
            turns.append("segmentor")
        means: dict[str, float | Tensor] = {}
        for part in range(accumulation):
            number = (step * accumulation + part) * accelerator.num_processes
            number += accelerator.process_index
            batch = self._batches.batch(number)
            images, soft = (array.to(accelerator.device) for array in batch)
            with accelerator.accumulate(*self.models.values()):
                losses = self._refiner_turn(accelerator, images, soft, number)
                if "segmentor" in turns:
                    losses |= self._segmentor_turn(accelerator, images, soft, number, step)
            for name, value in losses.items():
                means[name] = means.get(name, 0.0) + value / accumulation
        for name in turns:
            self.schedulers[name].step()
            if name in self.ema:
                self.ema[name].step(self._raw[name].parameters())
        return means

    @torch.no_grad()
    def sheet(self, step: int) -> npt.NDArray[np.float32]:
        """Show rows of image, truth, the segmentor's mask and what each step finds."""
        images, soft = (part[:_SHEET_ROWS] for part in self._batches.batch(0))
        networks, form = self._networks, self._form
        shown = images.to(networks.refiner.device)
        generators = [key.torch(Stream.EVALUATE) for key in self._keys(0, len(images), _REFINER)]
        with self.averaged_weights():
            logits, maps = networks.segmentor(shown)
            prior = form.prior(logits)
            trunks = networks.refiner.prepare([maps[i] for i in networks.features], shown.shape[2:])

            def predict(mask: Tensor, t: Tensor) -> Tensor:
                return networks.refiner.refine(shown, mask, prior, t, trunks)

            found = refine(networks.scheduler, predict, prior, generators)
        masks = [form.probabilities(mask).cpu() for mask in (prior, *found)]
        return segmentation_sheet(images, [soft, *masks], overlapping=form.overlapping)

    def state(self) -> dict[str, Any]:
        """Nothing beyond the networks."""
        return {}

    def load_state(self, state: Mapping[str, Any]) -> None:
        """Nothing to restore."""

    def averaged_weights(self) -> AbstractContextManager[None]:
        """Put the networks into eval mode for a while, with moving averages where there are."""
        return averaged(self._raw, self.ema)

    def _refiner_turn(
        self, accelerator: Accelerator, images: Tensor, soft: Tensor, number: int
    ) -> dict[str, Tensor]:
        """Step A: the segmentor is only asked."""
        self.models["refiner"].train()
        self.models["segmentor"].eval()
        keys = self._keys(number, len(images), _REFINER)
        with accelerator.autocast():
            with torch.no_grad():
                logits, maps = self.models["segmentor"](images)
                generators = [key.torch(Stream.AUGMENT) for key in keys]
                prior = self._form.prior(logits)
                prior = corrupt(prior, self._corruption, generators, exclusive=self._form.exclusive)
            terms = self._diffuse(images, soft, prior, maps, keys)
        self._update(accelerator, "refiner", self._diffusion_loss(terms))
        return {name: term.detach() for name, term in terms.items()}

    def _segmentor_turn(
        self, accelerator: Accelerator, images: Tensor, soft: Tensor, number: int, step: int
    ) -> dict[str, Tensor]:
        """Step B: gradients pass through the refiner, which stays as it is."""
        self.models["refiner"].eval()
        self.models["segmentor"].train()
        recipe = self._recipe.collaboration
        weight = recipe.diffusion * ramp(step, recipe.warmup, recipe.ramp)
        with accelerator.autocast(), frozen(self._raw["refiner"]):
            logits, maps = self.models["segmentor"](images)
            loss = segmentor_loss(logits, soft, self._form, self._weights)
            losses = {"segmentor": loss.detach()}
            if weight:
                keys = self._keys(number, len(images), _SEGMENTOR)
                prior = self._form.prior(logits)
                terms = self._diffuse(images, soft, prior, maps, keys)
                loss = loss + weight * self._diffusion_loss(terms)
        self._update(accelerator, "segmentor", loss)
        return losses

    def _diffuse(
        self,
        images: Tensor,
        soft: Tensor,
        prior: Tensor,
        maps: Sequence[Tensor],
        keys: Sequence[SampleKey],
    ) -> dict[str, Tensor]:
        """Return the terms of L_Diff at a t of each sample's own."""
        scheduler, truth = self._networks.scheduler, self._form.hard(soft)
        generators = [key.torch(Stream.NOISE) for key in keys]
        t = torch.cat([torch.randint(len(scheduler), (1,), generator=g) for g in generators])
        t = t.to(images.device)
        noise = seeded_uniform(generators, truth.shape[1:], images.device)
        start = self._start(images, truth, prior.detach(), maps, generators)
        noisy = scheduler.add_noise(start, prior.detach(), t, noise)
        output = self.models["refiner"](images, noisy, prior, t, self._seen(maps))
        gamma = self._recipe.refiner_losses.gamma
        terms = bernoulli_terms(scheduler, output, noisy, truth, prior, t, gamma=gamma)
        losses = {name: term.mean() for name, term in terms._asdict().items()}
        if self._recipe.refiner_losses.dice:
            found = scheduler.calibrate(scheduler.complete(output, prior), noisy)
            tissues = slice(1 if self._form.exclusive else 0, None)
            labels = self._form.labels(soft)
            losses["dice"] = dice_loss(found[:, tissues], labels[:, tissues]).mean()
        return losses

    @torch.no_grad()
    def _start(
        self,
        images: Tensor,
        truth: Tensor,
        prior: Tensor,
        maps: Sequence[Tensor],
        generators: Sequence[torch.Generator],
    ) -> Tensor:
        """Return the masks that drift: the truth, or what the chain finds in its first step."""
        share = self._recipe.recycle
        if not share:
            return truth
        scheduler, refiner = self._networks.scheduler, self.models["refiner"]
        chance = torch.cat([torch.rand(1, generator=g) for g in generators])

        def noise() -> Tensor:
            return seeded_uniform(generators, truth.shape[1:], images.device)

        last = torch.full((len(images),), len(scheduler) - 1, device=images.device)
        first, learning = scheduler.initial(prior, noise()), refiner.training
        refiner.eval()
        output = refiner(images, first, prior, last, self._seen(maps))
        refiner.train(learning)
        found = scheduler.calibrate(scheduler.complete(output, prior), first)
        own = (chance < share).to(images.device).reshape(-1, *(1,) * (truth.ndim - 1))
        return torch.where(own, scheduler.settle(found, noise()), truth)

    def _seen(self, maps: Sequence[Tensor]) -> list[Tensor]:
        """Return the segmentor's maps that the refiner sees."""
        return [maps[i] for i in self._networks.features]

    def _diffusion_loss(self, terms: Mapping[str, Tensor]) -> Tensor:
        weights = self._recipe.refiner_losses
        return sum(
            (getattr(weights, name) * term for name, term in terms.items()),
            start=torch.zeros_like(terms["bound"]),
        )

    def _update(self, accelerator: Accelerator, name: str, loss: Tensor) -> None:
        optimizer, clip_norm = self.optimizers[name], self._recipe.train.clip_norm
        accelerator.backward(loss)
        if clip_norm and accelerator.sync_gradients:
            accelerator.clip_grad_norm_(self.models[name].parameters(), clip_norm)
        optimizer.step()
        optimizer.zero_grad()

    def _keys(self, number: int, count: int, attempt: int) -> list[SampleKey]:
        seed = self._recipe.train.seed
        return [SampleKey(seed, number * count + i, attempt) for i in range(count)]


def segmentor_learns(recipe: CollaborationRecipe, step: int) -> bool:
    """Tell whether step B is made at a step.

    Examples:
        >>> from types import SimpleNamespace
        >>> recipe = SimpleNamespace(warmup=2, every=3)
        >>> [step for step in range(9) if segmentor_learns(recipe, step)]
        [2, 5, 8]
    """
    return step >= recipe.warmup and (step - recipe.warmup) % recipe.every == 0


def segmentor_steps(recipe: HidiffRecipe) -> int:
    """Return how often step B is made in all."""
    collaboration = recipe.collaboration
    return len(range(collaboration.warmup, recipe.train.steps, collaboration.every))
