"""Style encoder: an image to a Gaussian over style codes.

Source: Fernandez et al. 2022, arXiv:2209.08256 (variational style encoder of a SPADE VAE-GAN).
`faithful=True` is the published network: resize to 256 x 256, six strided convolutions with
spectral and instance norm, flatten, two linear layers.

Deviations of the default: no norm at all, because instance norm deletes the first- and
second-order statistics in which contrast lives; no resize and no flattening, but means and
standard deviations of every stage over the brain (image > -1), so that the aspect is kept, any
size is accepted and the share of background does not enter the code.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

import torch
from diffusers.configuration_utils import ConfigMixin, register_to_config
from diffusers.models.modeling_utils import ModelMixin
from torch import Tensor, nn
from torch.nn import functional

from synthgen.core.errors import RequestError
from synthgen.models.spectral import spectral_conv

if TYPE_CHECKING:
    from collections.abc import Sequence

BACKGROUND = -1.0
"""Value of pixels outside the brain at the networks."""

_SLOPE = 0.2
_FAITHFUL_SIZE = 256
_FAITHFUL_LAYERS = 6
_VARIANCE_FLOOR = 1e-5


class StyleCode(NamedTuple):
    """A diagonal Gaussian over style codes: `mu` and `logvar`, each `(B, Z)` float32."""

    mu: Tensor
    logvar: Tensor

    def sample(self, generators: Sequence[torch.Generator]) -> Tensor:
        """Return mu + sigma * noise `(B, Z)`, the noise of sample i from `generators[i]` (CPU)."""
        if len(generators) != self.mu.shape[0]:
            raise RequestError(
                f"expected one generator per style code ({self.mu.shape[0]}), got {len(generators)}"
            )
        noise = torch.stack([torch.randn(self.mu.shape[1], generator=g) for g in generators])
        return self.mu + torch.exp(0.5 * self.logvar) * noise.to(self.mu)


class StyleEncoder(ModelMixin, ConfigMixin):  # type: ignore[misc]  # diffusers is untyped
    """Encode the style (contrast, intensity, texture) of an image.

    Args:
        base_channels: n; the stages have n, 2n, 4n, 8n, 8n, ... channels.
        latent_dim: length Z of the code.
        faithful: the published network instead of the default (see the module's text).
        num_layers: strided convolutions; the faithful network has six.
        in_channels: image channels.
        spectral_norm: spectral normalisation, in the faithful network only.

    Examples:
        >>> encoder = StyleEncoder(base_channels=2, latent_dim=3)
        >>> encoder(torch.zeros(1, 1, 32, 48)).mu.shape
        torch.Size([1, 3])
    """

    @register_to_config  # type: ignore[untyped-decorator]
    def __init__(
        self,
        base_channels: int = 16,
        latent_dim: int = 16,
        faithful: bool = False,
        num_layers: int = 6,
        in_channels: int = 1,
        spectral_norm: bool = True,
    ) -> None:
        super().__init__()
        if faithful and num_layers != _FAITHFUL_LAYERS:
            raise RequestError(
                f"the faithful style encoder has {_FAITHFUL_LAYERS} layers, got {num_layers}"
            )
        self.faithful = faithful
        widths = [base_channels * min(2**level, 8) for level in range(num_layers)]
        self.convs = nn.ModuleList(
            spectral_conv(
                nn.Conv2d(wide, narrow, 3, stride=2, padding=1, bias=not faithful),
                enabled=faithful and spectral_norm,
            )
            for wide, narrow in zip([in_channels, *widths[:-1]], widths, strict=True)
        )
        if faithful:
            side = _FAITHFUL_SIZE >> num_layers
            features = widths[-1] * side * side
        else:
            features = 2 * (in_channels + sum(widths))
        self.mu = nn.Linear(features, latent_dim)
        self.logvar = nn.Linear(features, latent_dim)

    def forward(self, image: Tensor) -> StyleCode:
        """Return the code of each image.

        Args:
            image: `(B, in_channels, X, Y)` in [-1, 1], -1 outside the brain.
        """
        features = self._flatten(image) if self.faithful else self._moments(image)
        with torch.autocast(image.device.type, enabled=False):
            features = features.to(self.mu.weight.dtype)
            mu, logvar = self.mu(features).float(), self.logvar(features).float()
        return StyleCode(mu, logvar.clamp(-30.0, 20.0))

    def _flatten(self, image: Tensor) -> Tensor:
        x = functional.interpolate(
            image, size=(_FAITHFUL_SIZE, _FAITHFUL_SIZE), mode="bilinear", align_corners=False
        )
        for conv in self.convs:
            # The paper's order: norm, then activation. Groups of one channel are instance norm.
            x = conv(x)
            x = functional.leaky_relu(functional.group_norm(x, x.shape[1]), _SLOPE)
        return x.flatten(1)

    def _moments(self, image: Tensor) -> Tensor:
        mask = (image > BACKGROUND).any(dim=1, keepdim=True).float()
        # Background becomes 0, the value that the convolutions pad with.
        x = image - BACKGROUND
        moments = [masked_moments(x, mask)]
        for conv in self.convs:
            x = functional.leaky_relu(conv(x), _SLOPE)
            moments.append(masked_moments(x, mask))
        return torch.cat(moments, dim=1)


def masked_moments(x: Tensor, mask: Tensor) -> Tensor:
    """Return mean and standard deviation of each channel over a mask, `(B, 2C)` in float32.

    Args:
        x: features `(B, C, x, y)`.
        mask: `(B, 1, X, Y)` in [0, 1]; averaged down to the size of x. An empty mask gives 0 and
            the square root of the variance floor.
    """
    with torch.autocast(x.device.type, enabled=False):
        x = x.float()
        weight = functional.adaptive_avg_pool2d(mask.float(), (x.shape[-2], x.shape[-1]))
        weight = weight / weight.sum(dim=(2, 3), keepdim=True).clamp_min(1e-6)
        mean = (x * weight).sum(dim=(2, 3), keepdim=True)
        variance = ((x - mean).square() * weight).sum(dim=(2, 3))
        return torch.cat([mean.flatten(1), (variance + _VARIANCE_FLOOR).sqrt()], dim=1)
