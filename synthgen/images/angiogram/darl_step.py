"""One optimiser iteration of DARL (Kim et al. 2023, arXiv:2209.14566).

Path A finds a mask in an angiogram, path B paints a drawn mask on a background, the cycle finds
that mask again. One optimiser trains noise predictor and generator with

    L = w_diff MSE(eps, eps_B) + w_adv [(D_s(A) - 1)^2 + (D_a(B) - 1)^2] + w_cyc L1(cycle, mask),

another the two patch discriminators with half of (D(real) - 1)^2 + D(fake)^2, fakes coming from a
history. Deliberate deviations: the three pools are drawn independently and the mask of SPADE, of
D_s and of the cycle is the same binary one (data and networks see to both); D is judged with the
weights of the last iteration, as its fakes are. Beyond the paper, and off in the faithful recipe:
soft Dice and clDice on the cycle, L1 to the background away from vessels, weighted by the share
abar_t of the background that survived the noise, path A on angiograms painted without training,
noise of its own for each path, a moving average of the weights.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from diffusers.training_utils import EMAModel
from torch import Tensor, nn
from torch.nn import functional

from synthgen.core.rng import SampleKey, Stream
from synthgen.images.angiogram.darl_parts import check_batch
from synthgen.losses.adversarial import lsgan_discriminator, lsgan_generator, scale_logits
from synthgen.losses.reconstruction import l1
from synthgen.losses.vessels import background_preservation, centreline_dice, ramp, soft_dice
from synthgen.models.darl_networks import DarlNetworks
from synthgen.runtime import place
from synthgen.training.adversarial import Adams, LinearRate, LossSum, averaged, frozen

if TYPE_CHECKING:
    from collections.abc import Mapping
    from contextlib import AbstractContextManager

    import numpy.typing as npt
    from accelerate import Accelerator

    from synthgen.images.angiogram.darl_parts import DarlParts, Pairs, Pools
    from synthgen.recipe.angiograms import AngiogramRecipe

# Attempts of a micro-batch's keys, away from those of the loader and the loop.
_SHARED, _PATH_A, _PATH_B, _CYCLE, _PAIRS, _POOLS = range(16, 22)
_SHEET_ROWS = 4


@dataclass(frozen=True)
class _Draws:
    """Steps `(B,)` and noise `(B, 1, X, Y)` of one micro-batch."""

    t_a: Tensor
    t_b: Tensor
    noise_a: Tensor
    noise_b: Tensor
    noise_cycle: Tensor
    noise_pairs: Tensor


class DarlStep:
    """Train noise predictor and generator against the discriminators; see `TrainStep`.

    Args:
        recipe: the `angiograms` section.
        pools: training batches.
        parts: what is trained.
        accelerator: prepares networks and optimisers.
        pairs: angiograms with masks; needed where `losses.pairs` is above 0.
    """

    def __init__(
        self,
        recipe: AngiogramRecipe,
        pools: Pools,
        parts: DarlParts,
        accelerator: Accelerator,
        *,
        pairs: Pairs | None = None,
    ) -> None:
        self._recipe, self._pools, self._parts, self._pairs = recipe, pools, parts, pairs
        critics: dict[str, nn.Module] = {
            f"{name}_critic": c.network for name, c in parts.critics.items()
        }
        raw = {**parts.painters, **critics}
        for network in raw.values():
            place(network, accelerator.device)
        prepared = {name: accelerator.prepare_model(network) for name, network in raw.items()}
        histories = {f"{n}_pool": c.pool.to(accelerator.device) for n, c in parts.critics.items()}
        self.models: Mapping[str, nn.Module] = {**prepared, **histories}
        self._trained = prepared
        self._networks = DarlNetworks(
            scheduler=parts.networks.scheduler, **{n: prepared[n] for n in parts.painters}
        )
        train = recipe.train
        self.ema: Mapping[str, EMAModel] = {
            name: EMAModel(network.parameters(), decay=train.ema_decay)
            for name, network in parts.painters.items()
            if train.ema_decay
        }
        sides = {
            "generator": (list(parts.painters.values()), train.lr_generator),
            "discriminator": (list(critics.values()), train.lr_discriminator),
        }
        rate = LinearRate(train.steps, warmup=train.warmup, decay=train.decay)
        self._adams = Adams.of(sides, train.betas, rate, accelerator)
        self.optimizers = self._adams.optimizers
        self.schedulers = self._adams.schedulers

    def step(self, accelerator: Accelerator, step: int) -> dict[str, float | Tensor]:
        """Make one step of both optimisers; see `TrainStep.step`."""
        accumulation = accelerator.gradient_accumulation_steps
        means: dict[str, float | Tensor] = {}
        for model in self.models.values():
            model.train()
        for part in range(accumulation):
            number = (step * accumulation + part) * accelerator.num_processes
            number += accelerator.process_index
            with accelerator.accumulate(*self._trained.values()):
                losses = self._micro_batch(accelerator, step, number)
            for name, value in losses.items():
                means[name] = means.get(name, 0.0) + value / accumulation
        for scheduler in self.schedulers.values():
            scheduler.step()
        for name, ema in self.ema.items():
            ema.step(self._parts.painters[name].parameters())
        return means

    @torch.no_grad()
    def sheet(self, step: int) -> npt.NDArray[np.float32]:
        """Show rows of angiogram, its mask, background, drawn mask, painted, cycle, all at t = 0.

        Columns are turned so that `write_sheet`, made for slices of a body, shows them upright.
        """
        device = next(self._parts.networks.generator.parameters()).device
        batch = check_batch(self._pools.batch(0), 0)
        images, grounds, masks = (
            part[:_SHEET_ROWS].to(device)
            for part in (batch.angiograms, batch.backgrounds, batch.masks)
        )
        t = torch.zeros(len(images), dtype=torch.long, device=device)
        with self.averaged_weights():
            networks = self._parts.networks
            found = networks.segment(images, t)
            painted, _ = networks.paint(grounds, masks, t)
            again = networks.segment(painted, t)
        columns = [images, found, grounds, masks, painted, again]
        rows = torch.cat([c.float().cpu() for c in columns], dim=1)  # (rows, columns, X, Y)
        grey = ((rows + 1) / 2).clamp(0, 1).numpy()
        return np.swapaxes(np.flip(grey, axis=2), 2, 3)

    def state(self) -> dict[str, Any]:
        """Nothing beyond the networks."""
        return {}

    def load_state(self, state: Mapping[str, Any]) -> None:
        """Nothing to restore."""

    def averaged_weights(self) -> AbstractContextManager[None]:
        """Put the networks into eval mode for a while, with moving averages where there are."""
        return averaged(self._parts.painters, self.ema)

    def _micro_batch(self, accelerator: Accelerator, step: int, number: int) -> dict[str, Tensor]:
        """Forward and backward of both sides, then both optimisers (if gradients are due)."""
        device = accelerator.device
        batch = check_batch(self._pools.batch(number), number)
        images, grounds, masks = (
            part.to(device) for part in (batch.angiograms, batch.backgrounds, batch.masks)
        )
        keys = [SampleKey(self._recipe.train.seed, number * len(masks) + i, _SHARED)
                for i in range(len(masks))]  # fmt: skip
        draws = self._draw(keys, masks)
        losses, fakes = LossSum(), {}
        with accelerator.autocast():
            if "mask" in self._parts.critics:
                fakes["mask"] = self._networks.segment(images, draws.t_a, draws.noise_a)
            fakes["angiogram"], eps = self._networks.paint(grounds, masks, draws.t_b, draws.noise_b)
            self._path_b_losses(fakes["angiogram"], eps, (grounds, masks), draws, losses)
            self._mask_losses(fakes["angiogram"], masks, draws, step, losses)
            if self._pairs is not None and self._recipe.losses.pairs:
                self._pair_loss(self._pairs.batch(number), draws, losses)
            self._fool(fakes, losses)
            critics = self._judge({"mask": masks, "angiogram": images}, fakes, keys[0], losses)
        accelerator.backward(losses.total)
        if critics is not None:
            accelerator.backward(critics)
        self._adams.step(accelerator, self._recipe.train.clip_norm)
        return losses.values

    def _draw(self, keys: list[SampleKey], like: Tensor) -> _Draws:
        """Draw t for each path and the noise; one noise serves all where the recipe says so."""
        schedule, shape = self._recipe.schedule, like.shape[1:]
        generators = [key.torch(Stream.NOISE) for key in keys]
        t_a, t_b = (
            torch.cat([torch.randint(most, (1,), generator=g) for g in generators]).to(like.device)
            for most in (schedule.segment_t, schedule.paint_t)
        )
        if schedule.shared_noise:
            noises = [_noise(generators, shape, like.device)] * 4
        else:
            attempts = (_PATH_A, _PATH_B, _CYCLE, _PAIRS)
            own = [[SampleKey(k.seed, k.index, a).torch(Stream.NOISE) for k in keys]
                   for a in attempts]  # fmt: skip
            noises = [_noise(group, shape, like.device) for group in own]
        return _Draws(t_a, t_b, *noises)

    def _path_b_losses(
        self,
        painted: Tensor,
        eps: Tensor,
        shown: tuple[Tensor, Tensor],
        draws: _Draws,
        losses: LossSum,
    ) -> None:
        """Add the noise prediction's loss and, where asked, faithfulness to the background."""
        weights, (grounds, masks) = self._recipe.losses, shown
        if weights.diffusion and self._networks.noise_predictor is not None:
            value = functional.mse_loss(eps.float(), draws.noise_b)
            losses.add("diffusion", weights.diffusion, value)
        if weights.background:
            value = background_preservation(
                painted,
                grounds,
                masks,
                margin=weights.background_margin,
                weights=self._surviving(draws.t_b),
            )
            losses.add("background", weights.background, value)

    def _surviving(self, t: Tensor) -> Tensor:
        """Return abar_t `(B,)`, the share of an image's variance that noise left."""
        if self._networks.noise_predictor is None:
            return torch.ones_like(t, dtype=torch.float32)
        abar: Tensor = self._networks.scheduler.alphas_cumprod.to(t.device)[t]
        return abar

    def _mask_losses(
        self, painted: Tensor, masks: Tensor, draws: _Draws, step: int, losses: LossSum
    ) -> None:
        """Find the mask again in what was painted with it."""
        weights = self._recipe.losses
        if not (weights.cycle or weights.dice or weights.cldice):
            return
        found = self._networks.segment(painted, draws.t_a, draws.noise_cycle)
        if weights.cycle:
            compare = l1 if weights.cycle_kind == "l1" else cross_entropy
            losses.add("cycle", weights.cycle, compare(found, masks))
        grown = ramp(step, weights.ramp_from, weights.ramp)
        if weights.dice and grown:
            losses.add("dice", weights.dice * grown, soft_dice(found, masks))
        if weights.cldice and grown:
            value = centreline_dice(found, masks, weights.cldice_iterations)
            losses.add("cldice", weights.cldice * grown, value)

    def _pair_loss(self, pair: tuple[Tensor, Tensor], draws: _Draws, losses: LossSum) -> None:
        images, masks = (part.to(draws.t_a.device) for part in pair)
        found = self._networks.segment(images, draws.t_a, draws.noise_pairs)
        value = cross_entropy(found, masks) + soft_dice(found, masks)
        losses.add("pairs", self._recipe.losses.pairs, value)

    def _fool(self, fakes: Mapping[str, Tensor], losses: LossSum) -> None:
        """Ask the critics, whose own weights get no gradient from this."""
        for name, critic in self._parts.critics.items():
            weight = getattr(self._recipe.losses, f"adversarial_{name}")
            with frozen(critic.network):
                judged = self.models[f"{name}_critic"](fakes[name])
            losses.add(f"adversarial_{name}", weight, lsgan_generator(scale_logits(judged)))

    def _judge(
        self,
        real: Mapping[str, Tensor],
        fakes: Mapping[str, Tensor],
        key: SampleKey,
        losses: LossSum,
    ) -> Tensor | None:
        """Return the sum of the critics' own losses; their fakes pass through the histories."""
        draws = SampleKey(key.seed, key.index, _POOLS).torch(Stream.NOISE)
        terms = []
        for name, critic in self._parts.critics.items():
            shown = critic.pool.exchange(fakes[name], draws)
            logits = self.models[f"{name}_critic"](torch.cat([real[name], shown]))
            half = len(shown)
            told = [scale[-1] for scale in logits]
            terms.append(lsgan_discriminator([s[:half] for s in told], [s[half:] for s in told]))
            losses.values[f"discriminator_{name}"] = terms[-1].detach()
        return torch.stack(terms).sum() if terms else None


def cross_entropy(found: Tensor, masks: Tensor) -> Tensor:
    """Return the mean binary cross-entropy of masks on [-1, 1], in float32."""
    with torch.autocast(found.device.type, enabled=False):
        return functional.binary_cross_entropy((found.float() + 1) / 2, (masks.float() + 1) / 2)


def _noise(generators: list[torch.Generator], shape: torch.Size, device: torch.device) -> Tensor:
    return torch.stack([torch.randn(shape, generator=g) for g in generators]).to(device)
