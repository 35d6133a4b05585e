"""The latent cache: posteriors of augmented training slices, encoded once.

Cached are (mu, logvar), never one draw: a training step takes mu, or draws `z = mu + sigma * eps`
anew.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass, fields
from typing import TYPE_CHECKING, Literal

import numpy as np
import torch

from synthgen.core.errors import RequestError, StoreError
from synthgen.core.rng import SampleKey, Stream
from synthgen.data.loaders import LabelBatches, draw_shuffled
from synthgen.labels.cache import load_tensors, save_tensors

if TYPE_CHECKING:
    from pathlib import Path

    from accelerate import Accelerator

    from synthgen.models.autoencoder import Autoencoder

logger = logging.getLogger(__name__)
Latents = Literal["posterior", "mean"]
_CHUNK = 16
_SHOWS_LESION = 1e-4
_NEGLIGIBLE = 1e-3
_ROUNDING = 1e-12
"""A variance below this share of the mean square is rounding."""


@dataclass(frozen=True)
class LatentBatch:
    """A batch of latents.

    Attributes:
        z: unscaled means or draws `(B, Z, X, Y)` float32.
        fractions: lesion shares `(B, L)`.
        position: slice positions `(B,)`.
        csf: CSF shares `(B,)`.
    """

    z: torch.Tensor
    fractions: torch.Tensor
    position: torch.Tensor
    csf: torch.Tensor


@dataclass(frozen=True)
class LatentCache:
    """Posteriors `(N, Z, X, Y)` float16; lesion shares `(N, L)`; positions, CSF shares `(N,)`."""

    mu: torch.Tensor
    logvar: torch.Tensor
    fractions: torch.Tensor
    position: torch.Tensor
    csf: torch.Tensor

    def measured_scale(self, latents: Latents) -> float:
        """Return 1 / std over all draws from the posteriors, or over their means.

        Raises:
            RequestError: the latents do not vary.
        """
        total = square = noise = 0.0
        for start in range(0, len(self.mu), 256):
            mu = self.mu[start : start + 256].double()
            total += float(mu.sum())
            square += float(mu.square().sum())
            if latents == "posterior":
                noise += float(self.logvar[start : start + 256].double().exp().sum())
        mean_square = (square + noise) / self.mu.numel()
        variance = mean_square - (total / self.mu.numel()) ** 2
        if not variance > _ROUNDING * mean_square:
            raise RequestError(
                "latents: expected a positive standard deviation over the training slices, got "
                f"variance {variance:.3g}: the autoencoder encodes them all alike; lower the "
                "recipe's labels.autoencoder.losses.kl, or train the autoencoder longer"
            )
        return float(variance**-0.5)

    def templates(self, positions: int) -> torch.Tensor:
        """Return mean posteriors `(positions, Z, X, Y)`, unscaled, at evenly spaced positions.

        A Gaussian of one spacing weights the slices around each.
        """
        table = []
        for place in torch.linspace(0, 1, positions):
            weight = torch.exp(-0.5 * ((self.position.cpu() - place) * (positions - 1)) ** 2)
            near = torch.nonzero(weight > _NEGLIGIBLE)[:, 0]
            if not len(near):
                near = (self.position.cpu() - place).abs().argmin()[None]
            share = weight[near].clamp_min(_NEGLIGIBLE)
            share = (share / share.sum()).to(self.mu.device)
            table.append(
                torch.einsum("n,nzxy->zxy", share, self.mu[near.to(self.mu.device)].float())
            )
        return torch.stack(table)

    def to(self, device: torch.device) -> LatentCache:
        """Move the cache to a device, so that training never waits for data."""
        return LatentCache(**{f.name: getattr(self, f.name).to(device) for f in fields(self)})


class LatentBatches:
    """Stateless batches from a cache; see `LabelBatches` for `lesion_share`."""

    def __init__(
        self,
        cache: LatentCache,
        batch_size: int,
        seed: int,
        *,
        latents: Latents = "posterior",
        lesion_share: float = 0.0,
    ) -> None:
        self._cache, self._seed, self._latents = cache, seed, latents
        shows = (cache.fractions > _SHOWS_LESION).any(dim=1).cpu().numpy()
        self._all = np.arange(len(shows))
        self._with_lesion = np.flatnonzero(shows)
        self._num_lesion = round(lesion_share * batch_size) if shows.any() else 0
        self._num_any = batch_size - self._num_lesion

    def batch(self, step: int) -> LatentBatch:
        """Return batch `step`; the same for the same (seed, step)."""
        rows = [
            *draw_shuffled(self._all, self._seed, 0, step * self._num_any, self._num_any),
            *draw_shuffled(
                self._with_lesion, self._seed, 1, step * self._num_lesion, self._num_lesion
            ),
        ]
        cache = self._cache
        index = torch.as_tensor(rows, device=cache.mu.device)
        z = cache.mu[index].float()
        if self._latents == "posterior":
            generator = SampleKey(self._seed, step).torch(Stream.NOISE)
            eps = torch.randn(z.shape, generator=generator).to(z.device)
            z = z + torch.exp(0.5 * cache.logvar[index].float()) * eps
        return LatentBatch(z, cache.fractions[index], cache.position[index], cache.csf[index])


def encode_slices(
    vae: Autoencoder,
    batches: LabelBatches,
    indices: list[int],
    copies: int,
    seed: int,
    accelerator: Accelerator,
) -> LatentCache:
    """Encode `copies` augmented versions of each slice; a pure function of its arguments.

    Args:
        vae: in eval mode, on the accelerator's device.
        batches: gives augmented slices.
        indices: slices of the store.
        copies: versions of each, with their own keys.
        seed: seed of the augmentation.
        accelerator: for its autocast precision.
    """
    jobs = [(i, SampleKey(seed, i * copies + k)) for k in range(copies) for i in indices]
    cache: LatentCache | None = None
    for start in range(0, len(jobs), _CHUNK):
        chunk = jobs[start : start + _CHUNK]
        batch = batches.augmented([i for i, _ in chunk], [key for _, key in chunk])
        pv = batch.pv.to(accelerator.device, memory_format=torch.channels_last)
        with torch.inference_mode(), accelerator.autocast():
            posterior = vae.encode(pv).latent_dist
        if cache is None:
            cache = _empty_cache(len(jobs), posterior.mean, batch.fractions)
        rows = slice(start, start + len(chunk))
        cache.mu[rows], cache.logvar[rows] = posterior.mean, posterior.logvar
        cache.fractions[rows], cache.position[rows] = batch.fractions, batch.position
        cache.csf[rows] = batch.csf
        if start // _CHUNK % 50 == 0:
            logger.info("encoded %d of %d augmented slices", start, len(jobs))
    if cache is None:
        raise StoreError("no training slices to encode; prepare more subjects")
    return cache


def _empty_cache(count: int, mu: torch.Tensor, fractions: torch.Tensor) -> LatentCache:
    """Allocate it whole: small parts kept between large temporaries would pin the heap."""
    shape = (count, *mu.shape[1:])
    return LatentCache(
        torch.empty(shape, dtype=torch.float16),
        torch.empty(shape, dtype=torch.float16),
        torch.empty(count, fractions.shape[1]),
        torch.empty(count),
        torch.empty(count),
    )


def load_cache(path: Path, identity: str) -> LatentCache | None:
    """Return the cache that `save_cache` wrote, None if absent, damaged or of other data."""
    tensors = load_tensors(path, [field.name for field in fields(LatentCache)], identity)
    return None if tensors is None else LatentCache(**tensors)


def save_cache(path: Path, cache: LatentCache, identity: str) -> None:
    """Write the cache; see `save_tensors`."""
    save_tensors(
        path, {field.name: getattr(cache, field.name) for field in fields(cache)}, identity
    )
