"""Discriminative networks whose masks HiDiff refines: what they find, and what they saw.

HiDiff (Chen et al. 2024, arXiv:2407.03548, section III) takes any segmentation network that shows
its encoder's feature maps beside its logits. Networks are MONAI's U-Net with residual units
(Kerfoot et al. 2019), DynUNet (nnU-Net's, Isensee et al. 2021) and SwinUNETR (Hatamizadeh et al.
2022), and the U-Net of ImgX (Fu et al. 2023) without mask and time.
"""

from __future__ import annotations

import itertools
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

import torch
from diffusers.configuration_utils import ConfigMixin, register_to_config
from diffusers.models.modeling_utils import ModelMixin
from torch import Tensor, nn

from synthgen.core.errors import RequestError
from synthgen.models.imgx import ImgXUNet

if TYPE_CHECKING:
    from collections.abc import Sequence

SegmentorKind = Literal["unet", "dynunet", "swinunetr", "imgx"]

_SWIN = (1, 1, 2, 4, 8, 16)
"""Widths of SwinUNETR's maps, in units of its feature size."""


_CONVOLUTIONS = (nn.Conv2d, nn.Conv3d, nn.ConvTranspose2d, nn.ConvTranspose3d)
_SLOPE = 0.01
"""Of DynUNet's leaky ReLU, for its initial weights."""


class Seen(NamedTuple):
    """What a segmentor makes of images.

    Attributes:
        logits: `(B, K, *S)`.
        features: its encoder's maps, finest first, one for each level of its configuration.
    """

    logits: Tensor
    features: list[Tensor]


class Segmentor(ModelMixin, ConfigMixin):  # type: ignore[misc]  # diffusers is untyped
    """A segmentation network by kind.

    Args:
        kind: which network.
        spatial_dims: n, 2 or 3.
        in_channels: of images.
        out_channels: K, logits of which softmax or sigmoid make probabilities.
        channels: width of each level, finest first; of "swinunetr" its feature size times 1, 1, 2,
            4, 8 and 16.
        strides: of each transition to the next level, one number for each axis.
        num_blocks: of "imgx": residual blocks in each level.
        num_heads: of "imgx": heads of the attention at the bottom; of "swinunetr" the heads at its
            finest level, twice as many at each next one.
        head_dim: of "imgx": width of each head.

    Raises:
        RequestError: channels and strides that the kind cannot have.

    Examples:
        >>> net = Segmentor("unet", 2, 1, 3, channels=(4, 8), strides=((2, 2),))
        >>> seen = net(torch.zeros(1, 1, 8, 8))
        >>> tuple(seen.logits.shape), [tuple(f.shape[1:]) for f in seen.features]
        ((1, 3, 8, 8), [(4, 8, 8), (8, 4, 4)])
    """

    @register_to_config  # type: ignore[untyped-decorator]
    def __init__(
        self,
        kind: SegmentorKind,
        spatial_dims: int,
        in_channels: int,
        out_channels: int,
        *,
        channels: Sequence[int],
        strides: Sequence[Sequence[int]],
        num_blocks: int = 2,
        num_heads: int = 4,
        head_dim: int = 16,
    ) -> None:
        super().__init__()
        check_levels(kind, spatial_dims, channels, strides)
        self.network: Any = _BUILD[kind](self.config)

    @property
    def reduction(self) -> tuple[int, ...]:
        """What the sides of images must be divisible by, one number for each axis."""
        return self.feature_strides[-1]

    @property
    def feature_strides(self) -> tuple[tuple[int, ...], ...]:
        """How many times smaller than images the maps are along each axis, finest first."""
        steps = [(1,) * self.config.spatial_dims, *self.config.strides]
        return tuple(
            itertools.accumulate(
                (tuple(s) for s in steps),
                lambda a, b: tuple(p * q for p, q in zip(a, b, strict=True)),
            )
        )

    def forward(self, images: Tensor) -> Seen:
        """Segment images `(B, Ci, *S)` in [0, 1] whose sides `reduction` divides."""
        features: list[Tensor] = []
        match self.config.kind:
            case "unet":
                logits = _unet(self.network.model, images, features)
            case "dynunet":
                logits = _dynunet(self.network, images, features)
            case "swinunetr":
                logits = _swin(self.network, images, features)
            case _:
                levels = self.network.encode(images)
                features = [maps[-1] for maps in levels]
                logits = self.network.decode(levels)
        return Seen(logits, features)


def check_levels(
    kind: SegmentorKind, rank: int, channels: Sequence[int], strides: Sequence[Sequence[int]]
) -> None:
    """Refuse levels that a segmentor cannot have.

    Raises:
        RequestError: one line.
    """
    if len(channels) < 2 or len(strides) != len(channels) - 1:
        raise RequestError(
            f"a segmentor of {len(channels)} levels has {max(0, len(channels) - 1)} transitions, "
            f"and at least one; got {len(strides)} strides"
        )
    if any(len(stride) != rank for stride in strides):
        raise RequestError(f"each of a segmentor's strides has {rank} numbers, got {strides}")
    if kind == "dynunet" and len(channels) < 3:
        raise RequestError(f"a dynunet has at least 3 levels, got {len(channels)}")
    if kind == "swinunetr":
        expected = [channels[0] * factor for factor in _SWIN]
        halving = all(s == 2 for stride in strides for s in stride)
        if list(channels) != expected or not halving or channels[0] % 12:
            raise RequestError(
                "swinunetr has channels (f, f, 2f, 4f, 8f, 16f) with f a multiple of 12, and "
                f"strides of 2, got {tuple(channels)} and {strides}"
            )


def _build_unet(config: Any) -> nn.Module:  # noqa: ANN401 - diffusers' FrozenDict
    from monai.networks.nets import UNet  # noqa: PLC0415

    network: nn.Module = UNet(
        spatial_dims=config.spatial_dims,
        in_channels=config.in_channels,
        out_channels=config.out_channels,
        # The bottom keeps the resolution of the level above it.
        channels=(*config.channels, config.channels[-1]),
        strides=((1,) * config.spatial_dims, *(tuple(s) for s in config.strides)),
        num_res_units=2,
        norm="instance",
    )
    return network


def _unet(block: Any, x: Tensor, maps: list[Tensor]) -> Tensor:  # noqa: ANN401 - untyped
    """Run MONAI's nested blocks and leave the maps of the way down in `maps`."""
    if not isinstance(block, nn.Sequential):
        found: Tensor = block(x)
        maps[-1] = found  # the bottom, as fine as the level above it and deeper
        return found
    down, skip, up = block
    here = down(x)
    maps.append(here)
    raised: Tensor = up(torch.cat([here, _unet(skip.submodule, here, maps)], dim=1))
    return raised


def _build_dynunet(config: Any) -> nn.Module:  # noqa: ANN401
    from monai.networks.nets import DynUNet  # noqa: PLC0415

    class InPlace(DynUNet):  # type: ignore[misc]  # monai is untyped
        """DynUNet, whose initial weights are set in place.

        MONAI assigns what torch's functions return: nothing, while diffusers loads a model.
        """

        @staticmethod
        def initialize_weights(module: nn.Module) -> None:
            if isinstance(module, _CONVOLUTIONS):
                nn.init.kaiming_normal_(module.weight, a=_SLOPE)
                if module.bias is not None:
                    nn.init.zeros_(module.bias)

    steps = [list(stride) for stride in config.strides]
    network: nn.Module = InPlace(
        spatial_dims=config.spatial_dims,
        in_channels=config.in_channels,
        out_channels=config.out_channels,
        kernel_size=[[3] * config.spatial_dims] * len(config.channels),
        strides=[[1] * config.spatial_dims, *steps],
        upsample_kernel_size=steps,
        filters=list(config.channels),
    )
    # The same modules once more, which a weight file could not hold.
    del network.skip_layers
    return network


def _dynunet(network: Any, images: Tensor, maps: list[Tensor]) -> Tensor:  # noqa: ANN401
    x = images
    for block in (network.input_block, *network.downsamples, network.bottleneck):
        x = block(x)
        maps.append(x)
    for block, skip in zip(network.upsamples, reversed(maps[:-1]), strict=True):
        x = block(x, skip)
    logits: Tensor = network.output_block(x)
    return logits


def _build_swin(config: Any) -> nn.Module:  # noqa: ANN401
    from monai.networks.nets import SwinUNETR  # noqa: PLC0415

    network: nn.Module = SwinUNETR(
        spatial_dims=config.spatial_dims,
        in_channels=config.in_channels,
        out_channels=config.out_channels,
        feature_size=config.channels[0],
    )
    return network


def _swin(network: Any, images: Tensor, maps: list[Tensor]) -> Tensor:  # noqa: ANN401
    seen = network.swinViT(images, network.normalize)
    finest = network.encoder1(images)
    maps += [finest, *seen]
    skips = [
        finest,
        network.encoder2(seen[0]),
        network.encoder3(seen[1]),
        network.encoder4(seen[2]),
    ]
    x = network.decoder5(network.encoder10(seen[4]), seen[3])
    raising = (network.decoder4, network.decoder3, network.decoder2, network.decoder1)
    for block, skip in zip(raising, reversed(skips), strict=True):
        x = block(x, skip)
    logits: Tensor = network.out(x)
    return logits


def _build_imgx(config: Any) -> nn.Module:  # noqa: ANN401
    network: nn.Module = ImgXUNet(
        spatial_dims=config.spatial_dims,
        in_channels=config.in_channels,
        out_channels=config.out_channels,
        mask_channels=0,
        channels=tuple(config.channels),
        strides=tuple(tuple(s) for s in config.strides),
        num_blocks=config.num_blocks,
        num_heads=config.num_heads,
        head_dim=config.head_dim,
        dropout=0.0,
        time_conditioning="none",
    )
    return network


_BUILD = {
    "unet": _build_unet,
    "dynunet": _build_dynunet,
    "swinunetr": _build_swin,
    "imgx": _build_imgx,
}
