"""HiDiff's refiner: the network that finds where a segmenter's mask is wrong.

Source: Chen et al. 2024, arXiv:2407.03548, section III: a U-Net over the picture, the noisy mask
and the segmenter's mask, with the segmenter's feature maps at the coarser levels and the
cross-transformer (X-Former) at the coarsest. Written from the published formulas.

One code path for 2-D and 3-D; widths, strides and the levels of the conditions are settings.
Deviation: any image size (each level's size is rounded up), where the published network takes
squares that can be halved five times.
"""

from __future__ import annotations

from itertools import pairwise
from typing import TYPE_CHECKING

import torch
from diffusers.configuration_utils import ConfigMixin, register_to_config
from diffusers.models.embeddings import get_timestep_embedding
from diffusers.models.modeling_utils import ModelMixin
from torch import Tensor, nn
from torch.nn import functional

from synthgen.core.errors import RequestError
from synthgen.models.hidiff_binary import BinaryBlocks
from synthgen.models.hidiff_blocks import (
    CONVOLUTIONS,
    Blocks,
    ConditionBlock,
    ConditionTrunk,
    RealBlocks,
    norm_groups,
    zeroed,
)
from synthgen.models.instance_norm import GroupNorm

if TYPE_CHECKING:
    from collections.abc import Sequence

Trunks = list[tuple[Tensor, Tensor]]
"""What `HiDiffRefiner.prepare` makes of the segmenter's feature maps, one entry per map."""

_WIDEN = 4


class HiDiffRefiner(ModelMixin, ConfigMixin):  # type: ignore[misc]  # diffusers is untyped
    """Predict the true mask from a noisy one, the picture and the segmenter's mask.

    Level i has `channels[i]` channels. An encoder level is a block, the condition if one belongs
    there, and a block that shrinks; the middle two blocks around the X-Former; a decoder level a
    block on the enlarged map and one on its concatenation with the encoder's.

    Args:
        spatial_dims: 2 or 3.
        in_channels: image channels.
        out_channels: mask channels K.
        channels: widths of the levels, finest first; neighbours are equal or multiples.
        strides: between neighbouring levels, per axis.
        feature_channels: channels of the segmenter's maps, finest first; may be empty.
        feature_levels: the level that each map enters.
        num_heads: heads of the X-Former; 0 has none, and the coarsest map joins as the others do.
        binary: binary convolutions and attention in place of real ones.

    Examples:
        >>> refiner = HiDiffRefiner(2, 1, 1, (8, 16), ((2, 2),), (4,), (1,), num_heads=2)
        >>> image = mask = prior = torch.zeros(2, 1, 16, 12)
        >>> t, features = torch.tensor([0, 9]), [torch.zeros(2, 4, 8, 6)]
        >>> refiner(image, mask, prior, t, features).shape
        torch.Size([2, 1, 16, 12])
    """

    @register_to_config  # type: ignore[untyped-decorator]
    def __init__(
        self,
        spatial_dims: int,
        in_channels: int,
        out_channels: int,
        channels: Sequence[int],
        strides: Sequence[Sequence[int]],
        feature_channels: Sequence[int] = (),
        feature_levels: Sequence[int] = (),
        num_heads: int = 4,
        binary: bool = False,
    ) -> None:
        super().__init__()
        _check(spatial_dims, channels, strides, feature_channels, feature_levels, num_heads)
        self.time_waves, time_dim = channels[0], _WIDEN * channels[0]
        blocks = _blocks(spatial_dims, time_dim, binary=binary)
        flat, last = (1,) * spatial_dims, len(channels) - 1
        conv = CONVOLUTIONS[spatial_dims]
        self.strides = [tuple(stride) for stride in strides]
        self.feature_channels, self.feature_levels = tuple(feature_channels), tuple(feature_levels)
        self.time = nn.Sequential(
            nn.Linear(channels[0], time_dim), nn.SiLU(), nn.Linear(time_dim, time_dim), nn.SiLU()
        )
        self.stem = conv(in_channels + 2 * out_channels, channels[0], 3, padding=1)
        self.trunks = nn.ModuleList(
            ConditionTrunk(spatial_dims, width, channels[level])
            for width, level in zip(feature_channels, feature_levels, strict=True)
        )
        self.conditions = nn.ModuleList(
            ConditionBlock(spatial_dims, channels[level], time_dim) for level in feature_levels
        )
        crossed = num_heads > 0 and last in self.feature_levels
        joined = [level for level in self.feature_levels if not (crossed and level == last)]
        self.joins = nn.ModuleDict(
            {str(at): blocks.convolution(2 * channels[at], channels[at], flat) for at in joined}
        )
        self.encoder = nn.ModuleList(blocks.convolution(c, c, flat) for c in channels[:-1])
        self.shrinks = nn.ModuleList(
            blocks.convolution(fine, coarse, stride)
            for (fine, coarse), stride in zip(pairwise(channels), self.strides, strict=True)
        )
        self.middle = nn.ModuleList(
            blocks.convolution(channels[-1], channels[-1], flat) for _ in range(2)
        )
        self.x_former = nn.ModuleList(
            blocks.crossing(channels[-1], num_heads) for _ in range(2 * crossed)
        )
        self.enlarges = nn.ModuleList(
            blocks.convolution(coarse, fine, flat) for coarse, fine in pairwise(channels[::-1])
        )
        self.decoder = nn.ModuleList(
            blocks.convolution(2 * fine, fine, flat) for fine in channels[-2::-1]
        )
        self.norm = GroupNorm(norm_groups(channels[0]), channels[0])
        self.head = zeroed(conv(channels[0], out_channels, 3, padding=1))

    def forward(
        self,
        image: Tensor,
        y_t: Tensor,
        prior: Tensor,
        t: Tensor,
        features: Sequence[Tensor] = (),
    ) -> Tensor:
        """Return the logits of the prediction `(B, K, *S)`.

        What they are of is the scheduler's choice; see
        `synthgen.diffusion.bernoulli.BernoulliScheduler.target`.

        Args:
            image: `(B, in_channels, *S)`.
            y_t: `(B, K, *S)`, the noisy mask, 0 or 1.
            prior: `(B, K, *S)` in [0, 1], the segmenter's mask.
            t: `(B,)` whole numbers, the steps of the full schedule, whatever the chain skips.
            features: the segmenter's maps, each `(B, feature_channels[i], *)`; other sizes than
                the level's are interpolated.

        Raises:
            RequestError: other features than the network was built with.
        """
        return self.refine(image, y_t, prior, t, self.prepare(features, image.shape[2:]))

    def prepare(self, features: Sequence[Tensor], size: Sequence[int]) -> Trunks:
        """Return what the steps on one picture share of its features.

        Args:
            features: as for `forward`.
            size: spatial size of the picture.

        Raises:
            RequestError: other features than the network was built with.
        """
        given = tuple(feature.shape[1] for feature in features)
        if given != self.feature_channels:
            raise RequestError(
                f"HiDiffRefiner: expected feature maps of {list(self.feature_channels)} channels,"
                f" got {list(given)}; the refiner belongs to another segmenter"
            )
        sizes, dtype = level_sizes(size, self.strides), self.stem.weight.dtype
        return [
            trunk(_fit(feature.to(dtype), sizes[level]))
            for trunk, feature, level in zip(
                self.trunks, features, self.feature_levels, strict=True
            )
        ]

    def refine(
        self, image: Tensor, y_t: Tensor, prior: Tensor, t: Tensor, trunks: Trunks
    ) -> Tensor:
        """Return what `forward` does, of features that `prepare` has seen."""
        dtype = self.stem.weight.dtype
        emb = self.time(get_timestep_embedding(t, self.time_waves).to(dtype))
        conditions = {
            level: block(trunk, emb)
            for level, block, trunk in zip(
                self.feature_levels, self.conditions, trunks, strict=True
            )
        }
        x = self.stem(torch.cat([image.to(dtype), y_t.to(dtype), prior.to(dtype)], 1))
        skips: list[Tensor] = []
        for level, (block, shrink) in enumerate(zip(self.encoder, self.shrinks, strict=True)):
            x = self._join(level, block(x, emb), conditions, emb)
            skips.append(x)
            x = shrink(x, emb)
        x = self._middle(x, conditions, emb)
        for enlarge, block in zip(self.enlarges, self.decoder, strict=True):
            skip = skips.pop()
            x = enlarge(functional.interpolate(x, size=skip.shape[2:], mode="nearest"), emb)
            x = block(torch.cat([x, skip], 1), emb)
        logits: Tensor = self.head(functional.silu(self.norm(x)))
        return logits

    def _middle(self, x: Tensor, conditions: dict[int, Tensor], emb: Tensor) -> Tensor:
        """Return the coarsest map; each stream asks the other, the segmenter's changes first."""
        first, second = self.middle
        x = self._join(len(self.encoder), first(x, emb), conditions, emb)
        if len(self.x_former):
            into_segmenter, into_diffusion = self.x_former
            asking = into_segmenter(x, conditions[len(self.encoder)], emb)
            x = into_diffusion(asking, x, emb)
        result: Tensor = second(x, emb)
        return result

    def _join(self, level: int, x: Tensor, conditions: dict[int, Tensor], emb: Tensor) -> Tensor:
        if str(level) not in self.joins:
            return x
        joined: Tensor = self.joins[str(level)](torch.cat([x, conditions[level]], 1), emb)
        return joined


def level_sizes(size: Sequence[int], strides: Sequence[Sequence[int]]) -> list[tuple[int, ...]]:
    """Return the spatial size of every level, finest first; fractions are rounded up.

    Examples:
        >>> level_sizes((9, 8), ((2, 2), (2, 1)))
        [(9, 8), (5, 4), (3, 4)]
    """
    sizes = [tuple(size)]
    for stride in strides:
        sizes.append(tuple(-(-n // s) for n, s in zip(sizes[-1], stride, strict=True)))
    return sizes


def _blocks(spatial_dims: int, time_dim: int, *, binary: bool) -> Blocks:
    if binary:
        return BinaryBlocks(spatial_dims, time_dim)
    return RealBlocks(spatial_dims, time_dim)


def _fit(feature: Tensor, size: Sequence[int]) -> Tensor:
    """Return the feature map at a size; only maps of another one are interpolated."""
    if feature.shape[2:] == torch.Size(size):
        return feature
    mode = "bilinear" if len(size) == 2 else "trilinear"
    return functional.interpolate(feature, size=tuple(size), mode=mode)


def _check(
    spatial_dims: int,
    channels: Sequence[int],
    strides: Sequence[Sequence[int]],
    feature_channels: Sequence[int],
    feature_levels: Sequence[int],
    num_heads: int,
) -> None:
    """Refuse settings that no refiner can be built from."""
    if spatial_dims not in CONVOLUTIONS:
        raise RequestError(f"HiDiffRefiner: spatial_dims must be 2 or 3, got {spatial_dims}")
    if len(strides) != len(channels) - 1 or any(len(s) != spatial_dims for s in strides):
        raise RequestError(
            f"HiDiffRefiner: {len(channels)} levels in {spatial_dims}-D need {len(channels) - 1}"
            f" strides of {spatial_dims} numbers, got {[list(s) for s in strides]}"
        )
    if any(max(pair) % min(pair) for pair in pairwise(channels)):
        raise RequestError(
            "HiDiffRefiner: widths of neighbouring levels must be equal or multiples,"
            f" got {list(channels)}"
        )
    levels = list(feature_levels)
    if len(levels) != len(feature_channels) or levels != sorted(set(levels)):
        raise RequestError(
            f"HiDiffRefiner: {len(feature_channels)} feature maps need as many rising levels,"
            f" got {levels}"
        )
    if levels and not 0 <= levels[0] <= levels[-1] < len(channels):
        raise RequestError(
            f"HiDiffRefiner: feature levels must lie in 0 .. {len(channels) - 1}, got {levels}"
        )
    if num_heads and channels[-1] % num_heads:
        raise RequestError(
            f"HiDiffRefiner: num_heads must divide the coarsest width {channels[-1]},"
            f" got {num_heads}"
        )
