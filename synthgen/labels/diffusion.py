"""The label generator's pipeline: noise to latents to partial-volume maps.

Latent diffusion as in Fernandez et al. 2022 (arXiv:2209.08256, section 2.1). Deviations, each
chosen in the recipe: a softmax head, lesion shares and slice position instead of 0/1 flags,
classifier-free guidance, a measured latent scale, deterministic samplers, a random warp of the
decoded map.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from diffusers import DiffusionPipeline, ModelMixin, SchedulerMixin, UNet2DModel
from diffusers.utils import BaseOutput

from synthgen.data.augment import PvAugment, warp_raw
from synthgen.diffusion.sampling import Predictor, guided, sample, seeded_noise
from synthgen.diffusion.schedule import Sampler, build_sampler
from synthgen.models.autoencoder import Head, apply_head

# Imported here and now: diffusers builds components only of modules that are imported already.
from synthgen.models.condition import ConditionEmbedding  # noqa: TC001

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence


@dataclass
class LabelPipelineOutput(BaseOutput):  # type: ignore[misc]
    """Output of the pipeline.

    Attributes:
        pv: `(B, C, X, Y)` float32 on the CPU, in [0, 1], summing to 1 over C.
    """

    pv: torch.Tensor


class LabelDiffusionPipeline(DiffusionPipeline):  # type: ignore[misc]
    """Draws partial-volume maps.

    Args:
        vae: an autoencoder of synthgen/models/autoencoder.py or diffusers' AutoencoderKL.
        unet: the U-Net of the latent.
        condition_embedding: feeds the condition to it.
        scheduler: the training scheduler, from which samplers are built.
        latent_size: size of the latent.
        head: what turns decoder output into PV maps.
        background_threshold: of the linear head.
        temperature: of the softmax head.
        warp: settings of `PvAugment` by which every decoded map is warped; None for no warp.
        sampler: default sampler.
        num_inference_steps: default steps.
        guidance: default guidance.
        folded_guidance: guidance that the U-Net's own prediction under a condition holds already.
        eta: default stochasticity of DDIM.
    """

    def __init__(  # noqa: PLR0913 - settings are stored flat in model_index.json
        self,
        vae: ModelMixin,
        unet: UNet2DModel,
        condition_embedding: ConditionEmbedding,
        scheduler: SchedulerMixin,
        latent_size: Sequence[int] = (48, 64),
        head: Head = "softmax",
        background_threshold: float = 0.0,
        temperature: float = 1.0,
        warp: Mapping[str, float] | None = None,
        sampler: Sampler = "dpm",
        num_inference_steps: int = 20,
        guidance: float = 1.0,
        folded_guidance: float = 1.0,
        eta: float = 0.0,
    ) -> None:
        super().__init__()
        self.register_modules(
            vae=vae, unet=unet, condition_embedding=condition_embedding, scheduler=scheduler
        )
        self.register_to_config(
            latent_size=tuple(latent_size),
            head=head,
            background_threshold=background_threshold,
            temperature=temperature,
            warp=None if warp is None else dict(warp),
            sampler=sampler,
            num_inference_steps=num_inference_steps,
            guidance=guidance,
            folded_guidance=folded_guidance,
            eta=eta,
        )

    def strength(self, guidance: float | None = None) -> float:
        """Return by how much a guidance multiplies the network's own distance from the null token.

        Where that is 1, a step takes one network call, else two. A network that was trained to
        predict what guidance `w` gives, `null + w (conditional - null)`, gives any other guidance
        as `null + guidance / w (own - null)`.
        """
        wanted = self.config.guidance if guidance is None else guidance
        return float(wanted / self.config.folded_guidance)

    def predictor(self, values: torch.Tensor) -> Predictor:
        """Return the network under scaled conditions `(B, K)`.

        It takes one or several copies of a batch, one after the other, and for each sample of them
        whether its condition counts (1) or the null token (0).
        """
        values, dtype = values.to(self.unet.device), self.unet.dtype

        def predict(x_t: torch.Tensor, t: torch.Tensor, keep: torch.Tensor) -> torch.Tensor:
            repeated = values.repeat(x_t.shape[0] // values.shape[0], 1)
            inputs = self.condition_embedding(x_t, repeated, keep)
            x_in = inputs.sample.to(dtype, memory_format=torch.channels_last)
            prediction: torch.Tensor = self.unet(x_in, t, class_labels=inputs.class_labels).sample
            return prediction

        return predict

    @torch.inference_mode()
    def __call__(
        self,
        values: torch.Tensor,
        generators: Sequence[torch.Generator],
        *,
        sampler: Sampler | None = None,
        num_inference_steps: int | None = None,
        guidance: float | None = None,
        eta: float | None = None,
    ) -> LabelPipelineOutput:
        """Draw one map for each row of `values`.

        Args:
            values: scaled conditions `(B, K)`.
            generators: B CPU generators.
            sampler: None for the pipeline's own, like the following.
            num_inference_steps: steps, of one network call, or of two if guidance asks for it.
            guidance: classifier-free guidance, 1 for none.
            eta: stochasticity of DDIM.
        """
        config, device = self.config, self.unet.device
        noise = seeded_noise(
            generators, (self.unet.config.out_channels, *config.latent_size), device
        )
        latents = sample(
            guided(self.predictor(values), self.strength(guidance)),
            build_sampler(sampler or config.sampler, self.scheduler),
            num_inference_steps or config.num_inference_steps,
            noise,
            generators,
            eta=config.eta if eta is None else eta,
        )
        z = (latents / self.vae.config.scaling_factor).to(
            self.vae.dtype, memory_format=torch.channels_last
        )
        raw = self.vae.decode(z).sample.float()
        if config.warp is not None:
            # The samplers are done with the generators: the warp is the last draw of each.
            raw = warp_raw(raw, generators, PvAugment(**config.warp))
        pv = apply_head(
            raw,
            config.head,
            background_threshold=config.background_threshold,
            temperature=config.temperature,
        )
        return LabelPipelineOutput(pv=pv.cpu().contiguous())
