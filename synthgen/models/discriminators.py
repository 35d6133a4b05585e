"""Patch discriminators on an image pyramid.

Source: Wang et al. 2018, arXiv:1711.11585 (multi-scale patch discriminators), as used by Park et
al. 2019, arXiv:1903.07291 and Fernandez et al. 2022, arXiv:2209.08256. The image is averaged
down between scales; the networks are equal.
"""

from __future__ import annotations

from itertools import pairwise

from diffusers.configuration_utils import ConfigMixin, register_to_config
from diffusers.models.modeling_utils import ModelMixin
from torch import Tensor, nn
from torch.nn import functional

from synthgen.core.errors import RequestError
from synthgen.models.instance_norm import instance_norm
from synthgen.models.spectral import spectral_conv

_SLOPE = 0.2
_MAX_CHANNELS = 512


class PyramidPatchDiscriminator(ModelMixin, ConfigMixin):  # type: ignore[misc]  # diffusers is untyped
    """Equal patch discriminators on an image at full, half, quarter ... size.

    Each: conv4 stride 2 to `base`; `num_layers - 1` conv4 with doubled widths (at most 512),
    stride 2 but for the last, spectral and instance norm; conv4 to one logit map. Its receptive
    field at full size is 34 pixels with three layers, 70 with four.

    Args:
        in_channels: planes of the input: one-hot labels, one-hot modality, image.
        base: channels of the first convolution.
        num_scales: levels of the pyramid.
        num_layers: layers in front of the logits.
        spectral_norm: spectral normalisation on the middle convolutions.
        padding: padding of every convolution.
        bias: a bias in the middle convolutions; the instance norm behind them cancels it.

    Examples:
        >>> import torch
        >>> discriminator = PyramidPatchDiscriminator(3, base=2, num_scales=2, num_layers=2)
        >>> scales = discriminator(torch.zeros(1, 3, 16, 16))
        >>> [len(features) for features in scales], scales[0][-1].shape[1]
        ([3, 3], 1)
    """

    @register_to_config  # type: ignore[untyped-decorator]
    def __init__(
        self,
        in_channels: int,
        base: int = 64,
        num_scales: int = 3,
        num_layers: int = 3,
        spectral_norm: bool = True,
        padding: int = 2,
        bias: bool = False,
    ) -> None:
        super().__init__()
        if num_scales < 1 or num_layers < 1:
            raise RequestError(
                "PyramidPatchDiscriminator: num_scales and num_layers must be at least 1, got "
                f"{num_scales} and {num_layers}"
            )
        self.scales = nn.ModuleList(
            _PatchDiscriminator(
                in_channels,
                base,
                num_layers,
                spectral_norm=spectral_norm,
                padding=padding,
                bias=bias,
            )
            for _ in range(num_scales)
        )

    def forward(self, x: Tensor) -> list[list[Tensor]]:
        """Return, per scale, every layer's activations; the last entry is the logits `(B, 1, *)`.

        Args:
            x: `(B, in_channels, X, Y)`.
        """
        outputs: list[list[Tensor]] = []
        for number, scale in enumerate(self.scales):
            if number:
                x = functional.avg_pool2d(x, 4, stride=2, padding=1, count_include_pad=False)
            outputs.append(scale(x))
        return outputs


class _PatchDiscriminator(nn.Module):
    def __init__(
        self,
        in_channels: int,
        base: int,
        num_layers: int,
        *,
        spectral_norm: bool,
        padding: int,
        bias: bool,
    ) -> None:
        super().__init__()
        widths = [min(base * 2**level, _MAX_CHANNELS) for level in range(num_layers)]
        self.first = nn.Conv2d(in_channels, widths[0], 4, stride=2, padding=padding)
        self.middle = nn.ModuleList(
            spectral_conv(
                nn.Conv2d(
                    wide,
                    narrow,
                    4,
                    stride=1 if level == num_layers - 1 else 2,
                    padding=padding,
                    bias=bias,
                ),
                enabled=spectral_norm,
            )
            for level, (wide, narrow) in enumerate(pairwise(widths), start=1)
        )
        self.last = nn.Conv2d(widths[-1], 1, 4, padding=padding)

    def forward(self, x: Tensor) -> list[Tensor]:
        features = [functional.leaky_relu(self.first(x), _SLOPE)]
        for conv in self.middle:
            x = conv(features[-1])
            # Groups of one channel are instance norm, and fast in channels_last.
            features.append(functional.leaky_relu(instance_norm(x), _SLOPE))
        features.append(self.last(features[-1]))
        return features
