"""Train the autoencoder of PV maps (Fernandez et al. 2022, arXiv:2209.08256, section 2.1)."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import nn

from synthgen.core.rng import SampleKey, Stream
from synthgen.labels.optimise import build_ema, build_optimizer, build_schedule
from synthgen.losses.label_maps import (
    feature_l1,
    kl_to_standard_normal,
    least_squares,
    multi_resolution_l1,
    soft_cross_entropy,
    weighted_l1,
)
from synthgen.models.autoencoder import Autoencoder, apply_head
from synthgen.runtime import place, seeded_init
from synthgen.training.log import colour_argmax, colour_labels, stack_rows

if TYPE_CHECKING:
    from collections.abc import Mapping

    import numpy as np
    import numpy.typing as npt
    from accelerate import Accelerator
    from diffusers.training_utils import EMAModel

    from synthgen.core.schema import LabelSchema
    from synthgen.data.loaders import Batches, LabelBatch
    from synthgen.recipe.labels import AutoencoderRecipe


class Reconstruction(NamedTuple):
    """One pass through the autoencoder: raw decoder output, posterior mean and log-variance."""

    raw: torch.Tensor
    mu: torch.Tensor
    logvar: torch.Tensor


class Reconstructor(nn.Module):
    """Encode, draw, decode: one `forward`, so that accelerate can wrap it."""

    def __init__(self, vae: Autoencoder) -> None:
        super().__init__()
        self.vae = vae

    def forward(self, pv: torch.Tensor, noise: torch.Tensor | None) -> Reconstruction:
        """Reconstruct `(B, C, X, Y)` from the posterior mean plus `noise` standard deviations."""
        posterior = self.vae.encode(pv).latent_dist
        mu, logvar = posterior.mean.float(), posterior.logvar.float()
        z = mu if noise is None else mu + torch.exp(0.5 * logvar) * noise
        return Reconstruction(self.vae.decode(z).sample, mu, logvar)


class AutoencoderStep:
    """A `TrainStep`: one iteration of the autoencoder and, if asked for, its discriminator."""

    def __init__(
        self,
        vae: Autoencoder,
        recipe: AutoencoderRecipe,
        schema: LabelSchema,
        batches: Batches[LabelBatch],
        preview: LabelBatch,
        accelerator: Accelerator,
    ) -> None:
        self._recipe, self._batches, self._preview = recipe, batches, preview
        train = recipe.train
        net = place(Reconstructor(vae), accelerator.device)
        weights = torch.ones(schema.channels, device=accelerator.device)
        weights[list(schema.lesion_channels)] = recipe.losses.lesion_weight
        self._weights = weights
        self.ema: Mapping[str, EMAModel] = {"vae": build_ema(train, net)}
        optimizer = build_optimizer(train, net.parameters())
        self.schedulers: dict[str, Any] = {"vae": build_schedule(train, optimizer)}
        self._vae, self._vae_optimizer = accelerator.prepare(net, optimizer)
        self.models: dict[str, nn.Module] = {"vae": self._vae}
        self.optimizers: dict[str, Any] = {"vae": self._vae_optimizer}
        if recipe.losses.need_discriminator:
            self._add_discriminator(schema.channels, accelerator)

    def _add_discriminator(self, channels: int, accelerator: Accelerator) -> None:
        # MONAI takes seconds to import, and most recipes have no discriminator.
        from monai.networks.nets import PatchDiscriminator  # noqa: PLC0415

        recipe = self._recipe.discriminator
        with seeded_init(self._recipe.train.seed, 3):
            # BatchNorm and N(0, 0.02) weights, as pix2pix and the paper's code have them.
            net = PatchDiscriminator(
                spatial_dims=2,
                channels=recipe.channels,
                in_channels=channels,
                num_layers_d=recipe.num_layers,
            )
        place(net, accelerator.device)
        optimizer = build_optimizer(self._recipe.train, net.parameters(), recipe.lr)
        self.schedulers["discriminator"] = build_schedule(self._recipe.train, optimizer)
        prepared = accelerator.prepare(net, optimizer)
        self.models["discriminator"], self.optimizers["discriminator"] = prepared

    def step(self, accelerator: Accelerator, step: int) -> Mapping[str, float | torch.Tensor]:
        """Make one iteration; see `TrainStep.step`."""
        micro_batches = accelerator.gradient_accumulation_steps
        losses: dict[str, torch.Tensor] = {}
        for micro in range(micro_batches):
            number = step * micro_batches + micro
            with accelerator.accumulate(*self.models.values()):
                part = self._micro_step(accelerator, number)
            for name, value in part.items():
                losses[name] = losses.get(name, torch.zeros_like(value)) + value / micro_batches
        for scheduler in self.schedulers.values():
            scheduler.step()
        net = accelerator.unwrap_model(self._vae)
        self.ema["vae"].step(net.parameters())
        return losses

    def _micro_step(self, accelerator: Accelerator, number: int) -> dict[str, torch.Tensor]:
        world, rank = accelerator.num_processes, accelerator.process_index
        index = number * world + rank
        pv = self._batches.batch(index).pv.to(accelerator.device, memory_format=torch.channels_last)
        noise = self._noise(pv, index)
        out = self._vae(pv, noise)
        pv_out = (
            apply_head(out.raw, "softmax") if self._recipe.head == "softmax" else out.raw.float()
        )
        # The generator side must leave no gradient in the discriminator: while gradients
        # accumulate, nothing would clear them.
        self._freeze_discriminator(True)
        losses = self._losses(pv, pv_out, out)
        accelerator.backward(torch.stack(list(losses.values())).sum())
        self._freeze_discriminator(False)
        self._update(accelerator, "vae")
        if "discriminator" in self.models:
            losses["discriminator"] = self._discriminate(accelerator, pv, pv_out.detach())
        with torch.no_grad():
            gap = (apply_head(out.raw, self._recipe.head) - pv).abs()
            losses["pv_error"] = gap.mean() * pv.shape[1]
            losses["latent_std"] = out.mu.std()
        return {name: value.detach() for name, value in losses.items()}

    def _losses(
        self, pv: torch.Tensor, pv_out: torch.Tensor, out: Reconstruction
    ) -> dict[str, torch.Tensor]:
        """Return each weighted loss of the generator side."""
        weight = self._recipe.losses
        losses = {"kl": weight.kl * kl_to_standard_normal(out.mu, out.logvar)}
        if weight.cross_entropy:
            entropy = soft_cross_entropy(out.raw, pv, self._weights)
            losses["cross_entropy"] = weight.cross_entropy * entropy
        if weight.l1:
            losses["l1"] = weight.l1 * weighted_l1(pv_out, pv, self._weights)
        if weight.multi_resolution:
            losses["multi_resolution"] = weight.multi_resolution * multi_resolution_l1(pv_out, pv)
        if weight.need_discriminator:
            features = self.models["discriminator"](pv_out)
            if weight.adversarial:
                losses["adversarial"] = weight.adversarial * least_squares(features[-1], 1.0)
            if weight.feature_matching:
                with torch.no_grad():
                    target = self.models["discriminator"](pv)
                matching = feature_l1(features[:-1], target[:-1])
                losses["feature_matching"] = weight.feature_matching * matching
        return losses

    def _discriminate(
        self, accelerator: Accelerator, pv: torch.Tensor, pv_out: torch.Tensor
    ) -> torch.Tensor:
        """Step the discriminator."""
        net = self.models["discriminator"]
        fake = least_squares(net(pv_out.contiguous())[-1], 0.0)
        loss = 0.5 * (fake + least_squares(net(pv)[-1], 1.0))
        accelerator.backward(loss)
        self._update(accelerator, "discriminator")
        return loss

    def _freeze_discriminator(self, frozen: bool) -> None:
        if "discriminator" in self.models:
            self.models["discriminator"].requires_grad_(not frozen)

    def _update(self, accelerator: Accelerator, name: str) -> None:
        optimizer = self.optimizers[name]
        if accelerator.sync_gradients and self._recipe.train.clip_norm:
            accelerator.clip_grad_norm_(
                self.models[name].parameters(), self._recipe.train.clip_norm
            )
        optimizer.step()
        optimizer.zero_grad()

    def _noise(self, pv: torch.Tensor, number: int) -> torch.Tensor:
        factor = latent_factor(self._recipe)
        shape = (
            self._recipe.latent_channels,
            *(size // factor for size in pv.shape[2:]),
        )
        generator = SampleKey(self._recipe.train.seed, number).torch(Stream.TRAIN)
        return torch.randn((pv.shape[0], *shape), generator=generator).to(pv.device)

    @torch.no_grad()
    def sheet(self, step: int) -> npt.NDArray[np.float32] | None:
        """Return four rows: labels, PV in colour, and both of the reconstruction."""
        net = self._vae
        parameters = list(net.parameters())
        self.ema["vae"].store(parameters)
        self.ema["vae"].copy_to(parameters)
        pv = self._preview.pv.to(self._weights.device, memory_format=torch.channels_last)
        raw = net(pv, None).raw
        self.ema["vae"].restore(parameters)
        out = apply_head(raw, self._recipe.head).cpu().numpy()
        real = self._preview.pv.numpy()
        return stack_rows(
            [colour_argmax(real), colour_argmax(out), colour_labels(real), colour_labels(out)]
        )

    def state(self) -> dict[str, Any]:
        """Return nothing: all state is in tensors."""
        return {}

    def load_state(self, state: Mapping[str, Any]) -> None:
        """Restore nothing."""


def latent_factor(recipe: AutoencoderRecipe) -> int:
    """Return how many times smaller a side of the latent is."""
    return int(recipe.patch_size * 2 ** (len(recipe.block_out_channels) - 1))
