"""What the training step of DARL is given: batches, networks, discriminators."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Protocol

import torch

from synthgen.core.errors import SchemaError
from synthgen.models.contrast import even

if TYPE_CHECKING:
    from torch import Tensor, nn

    from synthgen.data.pools import PoolBatch
    from synthgen.models.darl_networks import DarlNetworks
    from synthgen.models.discriminators import PyramidPatchDiscriminator
    from synthgen.models.image_pool import ImagePool


class Pools(Protocol):
    """Batches of three unpaired pools; batch `step` is a function of (seed, step)."""

    def batch(self, step: int) -> PoolBatch:
        """Return batch `step`."""


class Pairs(Protocol):
    """Angiograms whose masks are known; batch `step` is a function of (seed, step)."""

    def batch(self, step: int) -> tuple[Tensor, Tensor]:
        """Return images and masks, `(B, 1, S, S)` in [-1, 1]; masks are -1 or 1."""


@dataclass(frozen=True)
class EvenedPools:
    """Pools whose pictures get even contrast, crop by crop."""

    pools: Pools

    def batch(self, step: int) -> PoolBatch:
        """Return batch `step`."""
        batch = self.pools.batch(step)
        return replace(
            batch,
            angiograms=even(batch.angiograms).images,
            backgrounds=even(batch.backgrounds).images,
        )


@dataclass(frozen=True)
class EvenedPairs:
    """Pairs whose pictures get even contrast, crop by crop."""

    pairs: Pairs

    def batch(self, step: int) -> tuple[Tensor, Tensor]:
        """Return images and masks; see `Pairs`."""
        images, masks = self.pairs.batch(step)
        return even(images).images, masks


@dataclass(frozen=True)
class Critic:
    """The discriminator of one side, and the fakes that it remembers."""

    network: PyramidPatchDiscriminator
    pool: ImagePool


@dataclass(frozen=True)
class DarlParts:
    """What is trained; a critic is None where its loss is left out."""

    networks: DarlNetworks
    mask_critic: Critic | None
    angiogram_critic: Critic | None

    @property
    def painters(self) -> dict[str, nn.Module]:
        """The networks of the first optimiser, by name."""
        found = {
            "generator": self.networks.generator,
            "noise_predictor": self.networks.noise_predictor,
            "painter": self.networks.painter,
        }
        return {name: network for name, network in found.items() if network is not None}

    @property
    def critics(self) -> dict[str, Critic]:
        """The critics there are, by side: "mask", "angiogram"."""
        found = {"mask": self.mask_critic, "angiogram": self.angiogram_critic}
        return {name: critic for name, critic in found.items() if critic is not None}


def check_batch(batch: PoolBatch, number: int) -> PoolBatch:
    """Return a batch of three single-channel pictures of one size, its masks binary.

    Raises:
        SchemaError: it is not; naming the batch and what it holds.
    """
    shapes = [tuple(part.shape) for part in (batch.angiograms, batch.backgrounds, batch.masks)]
    if len(set(shapes)) != 1 or len(shapes[0]) != 4 or shapes[0][1] != 1:
        raise SchemaError(
            f"batch {number}: expected single-channel angiograms, backgrounds and masks of one "
            f"shape (B, 1, X, Y), got {', '.join(map(str, shapes))}"
        )
    if not bool((batch.masks.abs() == 1).all()):
        values = torch.unique(batch.masks)[:4].tolist()
        raise SchemaError(
            f"batch {number}: expected binary masks, -1 and 1 alone, got values such as "
            f"{', '.join(f'{v:g}' for v in values)}; threshold them at half coverage"
        )
    return batch
