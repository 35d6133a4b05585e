"""How numbers asked of a label map reach the U-Net: an embedding, or constant planes.

"class" adds a learnt embedding to the time embedding (UNet2DModel, class_embed_type="identity");
"concat" appends one constant plane per value to the latent, as the conditional U-Net of
Fernandez et al. 2022 (arXiv:2209.08256). A null token replaces dropped conditions, for
classifier-free guidance (Ho and Salimans 2022, arXiv:2207.12598).
"""

from __future__ import annotations

import math
from typing import Literal, NamedTuple

import torch
from diffusers import ConfigMixin, ModelMixin
from diffusers.configuration_utils import register_to_config
from torch import nn

ConditionMode = Literal["class", "concat", "none"]


class Conditioned(NamedTuple):
    """What the U-Net takes.

    Attributes:
        sample: `(B, Z + planes, *S)`.
        class_labels: `(B, E)` or None.
    """

    sample: torch.Tensor
    class_labels: torch.Tensor | None


class ConditionEmbedding(ModelMixin, ConfigMixin):  # type: ignore[misc]
    """Conditions a latent on K values, and on where each of its pixels lies.

    Args:
        num_values: K.
        embedding_dim: E, four times the U-Net's first width; used by "class".
        mode: see the module.
        num_frequencies: sine and cosine pairs that each value is expanded to, for "class".
        coordinates: append x and y in [-1, 1], with this many sine and cosine pairs each, as
            planes; 0 for none. Convolutions alone hardly know the place in a centred brain.
        template_shape: `(P, Z, X, Y)` of a table of mean latents by slice position, which are
            appended as planes; None for none. The last of the K values must be the position.

    Examples:
        >>> embed = ConditionEmbedding(2, 8, "class", 3)
        >>> embed(torch.zeros(1, 3, 4, 4), torch.zeros(1, 2), torch.ones(1)).class_labels.shape
        torch.Size([1, 8])
        >>> embed = ConditionEmbedding(2, 8, "concat", 0)
        >>> embed(torch.zeros(1, 3, 4, 4), torch.zeros(1, 2), torch.zeros(1)).sample[0, -1, 0, 0]
        tensor(-1.)
    """

    @register_to_config  # type: ignore[untyped-decorator]
    def __init__(
        self,
        num_values: int,
        embedding_dim: int,
        mode: ConditionMode = "class",
        num_frequencies: int = 4,
        coordinates: int = 0,
        template_shape: tuple[int, int, int, int] | None = None,
    ) -> None:
        super().__init__()
        self.mode: ConditionMode = mode
        self.coordinates = coordinates
        table = None if template_shape is None else torch.zeros(*template_shape)
        self.register_buffer("template", table)
        frequencies = math.pi * 2.0 ** torch.arange(num_frequencies)
        self.register_buffer("frequencies", frequencies, persistent=False)
        if mode == "class":
            width = num_values * (1 + 2 * num_frequencies)
            self.mlp = nn.Sequential(
                nn.Linear(width, embedding_dim), nn.SiLU(), nn.Linear(embedding_dim, embedding_dim)
            )
            self.null = nn.Parameter(torch.zeros(embedding_dim))
        else:
            # Null value -1: outside of the range of every condition (Fernandez et al. 2024 code).
            self.register_buffer("null", -torch.ones(num_values))

    def forward(
        self, latent: torch.Tensor, values: torch.Tensor, keep: torch.Tensor
    ) -> Conditioned:
        """Condition a batch.

        Args:
            latent: `(B, Z, *S)`.
            values: `(B, K)`, about 0 to 1.
            keep: `(B,)`, 1 where the condition holds, 0 where the null token replaces it.
        """
        planes = [latent]
        if self.coordinates:
            planes.append(coordinate_planes(latent, self.coordinates))
        if self.template is not None:
            planes.append(self._expected(values[:, -1], keep).to(latent.dtype))
        latent = torch.cat(planes, dim=1)
        match self.mode:
            case "none":
                return Conditioned(latent, None)
            case "concat":
                kept = torch.where(keep[:, None] > 0, values, self.null)
                constant = kept.to(latent.dtype)[:, :, None, None].expand(-1, -1, *latent.shape[2:])
                return Conditioned(torch.cat([latent, constant], dim=1), None)
            case _:
                phase = values[:, :, None] * self.frequencies  # (B, K, F)
                waves = torch.cat([phase.sin(), phase.cos()], dim=-1).flatten(1)
                features = torch.cat([values, waves], dim=1).to(self.null.dtype)
                embedding = self.mlp(features)
                return Conditioned(
                    latent, torch.where(keep[:, None] > 0, embedding, self.null.to(embedding.dtype))
                )

    def _expected(self, position: torch.Tensor, keep: torch.Tensor) -> torch.Tensor:
        """Return the mean latent at each position `(B,)`, of all positions where it is dropped."""
        table: torch.Tensor = self.template
        place = position.clamp(0, 1) * (len(table) - 1)
        low = place.long().clamp(max=len(table) - 2)
        share = (place - low)[:, None, None, None].to(table.dtype)
        mean = torch.lerp(table[low], table[low + 1], share)
        return torch.where(keep[:, None, None, None] > 0, mean, table.mean(dim=0))


def num_coordinate_planes(coordinates: int) -> int:
    """Return how many planes `coordinate_planes` makes."""
    return 2 + 4 * coordinates if coordinates else 0


def coordinate_planes(latent: torch.Tensor, coordinates: int) -> torch.Tensor:
    """Return x, y in [-1, 1] and `coordinates` sine and cosine pairs of each.

    Args:
        latent: `(B, Z, X, Y)`, for its size, type and device.
        coordinates: pairs of each axis, of 1, 2, 4, ... half periods.

    Returns:
        `(B, 2 + 4 * coordinates, X, Y)`.
    """
    sizes = latent.shape[2:]
    axes = [torch.linspace(-1, 1, size, device=latent.device) for size in sizes]
    grid = torch.stack(torch.meshgrid(*axes, indexing="ij"))  # (2, X, Y)
    phases = [math.pi * 2.0**k * grid for k in range(coordinates)]
    waves = [wave for phase in phases for wave in (phase.sin(), phase.cos())]
    planes = torch.cat([grid, *waves]).to(latent.dtype)
    return planes.expand(latent.shape[0], -1, -1, -1)
