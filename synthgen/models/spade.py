"""SPADE: spatially adaptive normalisation and the generator built from it.

Sources: Park et al. 2019, arXiv:1903.07291 (SPADE norm, residual block, generator);
Fernandez et al. 2022, arXiv:2209.08256 (brain images from partial-volume maps and a style
code). Written from the published formulas.

Deviations, each a setting: partial-volume maps shrink by area averaging (`pv_resize="area"`; the
papers take the nearest pixel, which drops small lesions and breaks partial volumes), the style
may also enter every SPADE norm (`style_in_norm=True`): instance norm erases the channel
statistics that a style sets at the 6 x 8 start, so a style that enters only there is weak; and
noise may be added to the image (`grain_bands`), of a strength that the generator sets pixel by
pixel: without it a label and a style have one image, and all that the label does not tell is
averaged away.
"""

from __future__ import annotations

import math
from itertools import pairwise
from typing import TYPE_CHECKING, Literal, assert_never

import torch
from diffusers.configuration_utils import ConfigMixin, register_to_config
from diffusers.models.modeling_utils import ModelMixin
from torch import Tensor, nn
from torch.nn import functional

from synthgen.core.errors import GeometryError, RequestError
from synthgen.models.instance_norm import GroupNorm, instance_norm
from synthgen.models.spectral import spectral_conv

if TYPE_CHECKING:
    from collections.abc import Sequence

Norm = Literal["instance", "group", "batch"]
Resize = Literal["nearest", "area"]
Upsample = Literal["nearest", "bilinear"]
Output = Literal["tanh", "leaky_relu"]

SLOPE = 0.2
"""Negative slope of every leaky ReLU (Park et al. 2019)."""

_HALVINGS = 5
_FAINT = -4.0
_MAX_GROUPS = 32


class SPADENorm(nn.Module):
    """Spatially adaptive normalisation: y = norm(x) * (1 + gamma) + beta.

    gamma and beta come from plain convolutions of the labels with no normalisation behind them,
    so that their value inside a region does not depend on the region's size:
    hidden = ReLU(conv3x3(pv) [+ Linear(style)]), (gamma, beta) = conv3x3(hidden).

    Args:
        channels: channels of x.
        label_channels: channels of pv.
        hidden: width of the hidden layer (128 in the papers).
        norm: parameter-free norm of x: `instance`, `group` (at most 32 groups) or `batch`.
        style_dim: length of the style code that is added to the hidden layer; None for no style.
        pv_resize: how pv is brought to the size of x.
        switchable: without labels, an instance norm with its own weight and bias stands in
            (Kim et al. 2023, arXiv:2209.14566).

    Examples:
        >>> norm = SPADENorm(channels=4, label_channels=2, hidden=8)
        >>> norm(torch.zeros(1, 4, 8, 8), torch.ones(1, 2, 16, 16)).shape
        torch.Size([1, 4, 8, 8])
    """

    def __init__(
        self,
        channels: int,
        label_channels: int,
        hidden: int = 128,
        norm: Norm = "instance",
        style_dim: int | None = None,
        *,
        pv_resize: Resize = "area",
        switchable: bool = False,
    ) -> None:
        super().__init__()
        self.norm = _make_norm(norm, channels)
        self.pv_resize: Resize = pv_resize
        self.shared = nn.Conv2d(label_channels, hidden, 3, padding=1)
        self.style = None if style_dim is None else nn.Linear(style_dim, hidden)
        # One convolution gives gamma (first half) and beta: the same maths, one pass.
        self.modulation = nn.Conv2d(hidden, 2 * channels, 3, padding=1)
        self.unlabelled = GroupNorm(channels, channels) if switchable else None

    def modulate(
        self, pv: Tensor, style: Tensor | None = None, size: tuple[int, int] | None = None
    ) -> tuple[Tensor, Tensor]:
        """Return gamma and beta, each `(B, channels, *size)`.

        Args:
            pv: `(B, label_channels, X, Y)`.
            style: `(B, style_dim)`, for norms built with `style_dim`.
            size: spatial size of x; that of `pv` by default.
        """
        if size is not None:
            pv = resize_pv(pv, size, self.pv_resize)
        hidden = self.shared(pv)
        if self.style is not None:
            if style is None:
                raise RequestError("this SPADE norm was built with a style input; pass the style")
            hidden = hidden + self.style(style)[:, :, None, None]
        gamma, beta = self.modulation(functional.relu(hidden)).chunk(2, dim=1)
        return gamma, beta

    def forward(self, x: Tensor, pv: Tensor | None, style: Tensor | None = None) -> Tensor:
        """Return the modulated features.

        Args:
            x: `(B, channels, X, Y)`.
            pv: `(B or 1, label_channels, *S)`; resized to x. A batch of 1 serves all of x. None
                for a switchable norm without labels.
            style: `(B, style_dim)` or None.

        Returns:
            `(B, channels, X, Y)`.
        """
        if pv is None:
            if self.unlabelled is None:
                raise RequestError("this SPADE norm is not switchable; pass the labels")
            plain: Tensor = self.unlabelled(x)
            return plain
        gamma, beta = self.modulate(pv, style, (x.shape[-2], x.shape[-1]))
        normed = self.norm(x).to(gamma.dtype)
        # normed + (beta + normed * gamma): adding 1 to gamma would round it away in bfloat16.
        out: Tensor = normed + torch.addcmul(beta, normed, gamma)
        return out


class SPADEResBlock(nn.Module):
    """Residual block of two (SPADE norm, leaky ReLU, conv3x3), learned 1x1 shortcut if needed.

    Args:
        in_channels: channels of x.
        out_channels: channels of the result; the middle has min(in, out).
        label_channels: channels of pv.
        hidden: hidden width of the SPADE norms.
        norm: see `SPADENorm`.
        style_dim: see `SPADENorm`.
        pv_resize: see `SPADENorm`.
        spectral_norm: spectral normalisation on the block's own convolutions.
        switchable: see `SPADENorm`.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        label_channels: int,
        hidden: int = 128,
        norm: Norm = "instance",
        style_dim: int | None = None,
        *,
        pv_resize: Resize = "area",
        spectral_norm: bool = True,
        switchable: bool = False,
    ) -> None:
        super().__init__()
        middle = min(in_channels, out_channels)

        def spade(channels: int) -> SPADENorm:
            return SPADENorm(
                channels,
                label_channels,
                hidden,
                norm,
                style_dim,
                pv_resize=pv_resize,
                switchable=switchable,
            )

        def conv(wide: int, narrow: int) -> nn.Conv2d:
            return spectral_conv(nn.Conv2d(wide, narrow, 3, padding=1), enabled=spectral_norm)

        self.norm_0 = spade(in_channels)
        self.conv_0 = conv(in_channels, middle)
        self.norm_1 = spade(middle)
        self.conv_1 = conv(middle, out_channels)
        self.norm_s: SPADENorm | None = None
        self.conv_s: nn.Conv2d | None = None
        if in_channels != out_channels:
            self.norm_s = spade(in_channels)
            shortcut = nn.Conv2d(in_channels, out_channels, 1, bias=False)
            self.conv_s = spectral_conv(shortcut, enabled=spectral_norm)

    def forward(self, x: Tensor, pv: Tensor | None, style: Tensor | None = None) -> Tensor:
        """Return `(B, out_channels, X, Y)`; arguments as in `SPADENorm.forward`."""
        shortcut = x
        if self.norm_s is not None and self.conv_s is not None:
            shortcut = self.conv_s(self.norm_s(x, pv, style))
        h = self.conv_0(functional.leaky_relu(self.norm_0(x, pv, style), SLOPE))
        h = self.conv_1(functional.leaky_relu(self.norm_1(h, pv, style), SLOPE))
        out: Tensor = shortcut + h
        return out


class SPADEGenerator(ModelMixin, ConfigMixin):  # type: ignore[misc]  # diffusers is untyped
    """Paint a partial-volume map in the style of a code.

    z is mapped linearly to 16n channels at 1/32 of the size; seven SPADE blocks, enlarged x2
    between them, go down to n channels at full size (n = `base_channels`), two of them at 1/16.

    Args:
        label_channels: channels of pv.
        shape: image size (X, Y), each divisible by 32.
        base_channels: n.
        latent_dim: length Z of the style code.
        hidden: hidden width of the SPADE norms (128 in the papers; it dominates the cost).
        norm: see `SPADENorm`.
        style_in_norm: add the style to the hidden layer of every SPADE norm.
        output: `tanh` for images in [-1, 1], `leaky_relu` for z-scored images.
        out_channels: image channels.
        pv_resize: `area`, or `nearest` as in the papers.
        spectral_norm: spectral normalisation on the convolutions of the residual blocks.
        upsample: `nearest` as in the papers, or `bilinear`: the pixels of the start map leave no
            seams in flat regions.
        grain_bands: bands of noise added to the image; see `_grain`. 0 for none.

    Examples:
        >>> generator = SPADEGenerator(2, (32, 64), base_channels=1, latent_dim=3, hidden=4)
        >>> image, _ = generator(torch.ones(1, 2, 32, 64), torch.zeros(1, 3))
        >>> image.shape
        torch.Size([1, 1, 32, 64])
    """

    @register_to_config  # type: ignore[untyped-decorator]
    def __init__(  # noqa: PLR0913 (flat settings: they are the saved config)
        self,
        label_channels: int,
        shape: tuple[int, int] = (192, 256),
        base_channels: int = 16,
        latent_dim: int = 16,
        hidden: int = 128,
        norm: Norm = "instance",
        style_in_norm: bool = False,
        output: Output = "tanh",
        out_channels: int = 1,
        pv_resize: Resize = "area",
        spectral_norm: bool = True,
        upsample: Upsample = "nearest",
        grain_bands: int = 0,
    ) -> None:
        super().__init__()
        if any(size % 2**_HALVINGS for size in shape):
            raise RequestError(
                f"SPADEGenerator: each side of shape must be divisible by {2**_HALVINGS}, "
                f"got {tuple(shape)}"
            )
        self.shape = (int(shape[0]), int(shape[1]))
        self.output_activation: Output = output
        self.pv_resize: Resize = pv_resize
        self.upsample: Upsample = upsample
        self.grain_bands, self.out_channels = grain_bands, out_channels
        n = base_channels
        widths = (16 * n, 16 * n, 16 * n, 16 * n, 8 * n, 4 * n, 2 * n, n)
        self.start_channels = widths[0]
        self.start_shape = (self.shape[0] >> _HALVINGS, self.shape[1] >> _HALVINGS)
        self.start = nn.Linear(latent_dim, widths[0] * self.start_shape[0] * self.start_shape[1])
        self.blocks = nn.ModuleList(
            SPADEResBlock(
                wide,
                narrow,
                label_channels,
                hidden,
                norm,
                latent_dim if style_in_norm else None,
                pv_resize=pv_resize,
                spectral_norm=spectral_norm,
            )
            for wide, narrow in pairwise(widths)
        )
        self.out = nn.Conv2d(n, out_channels * (1 + grain_bands), 3, padding=1)

    def forward(self, pv: Tensor, z: Tensor, noise: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Return images and images without grain, each `(B, out_channels, X, Y)` in float32.

        Args:
            pv: `(B, label_channels, X, Y)` in [0, 1], sum 1. A batch of 1 is painted in all B
                styles, computing the label convolutions once where the style does not enter them.
            z: style codes `(B, latent_dim)`.
            noise: `(B, 1, X, Y)`, standard normal, for a generator with grain.

        Raises:
            GeometryError: pv has another size than the model.
            RequestError: a generator with grain got no noise.
        """
        if tuple(pv.shape[-2:]) != self.shape:
            raise GeometryError(
                f"SPADEGenerator: expected pv of size {self.shape}, got {tuple(pv.shape[-2:])}"
            )
        x = self.start(z).view(-1, self.start_channels, *self.start_shape)
        for number, block in enumerate(self.blocks):
            # The two middle blocks (1 and 2) share one resolution.
            if number not in (0, 2):
                x = functional.interpolate(x, scale_factor=2, mode=self.upsample)
            small = resize_pv(pv, (x.shape[-2], x.shape[-1]), self.pv_resize)
            x = block(x, small, z)
        mean, strength = self._paint(functional.leaky_relu(x, SLOPE))
        if not self.grain_bands:
            return mean, mean
        if noise is None:
            raise RequestError("this SPADE generator paints grain; pass the noise")
        return mean + self._grain(strength, noise.float()), mean

    def _paint(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Last convolution in float32: bfloat16 steps would show as bands in the image."""
        with torch.autocast(x.device.type, enabled=False):
            bias = None if self.out.bias is None else self.out.bias.float()
            x = functional.conv2d(x.float(), self.out.weight.float(), bias, padding=1)
            image, strength = x[:, : self.out_channels], x[:, self.out_channels :]
            match self.output_activation:
                case "tanh":
                    return torch.tanh(image), strength
                case "leaky_relu":
                    return functional.leaky_relu(image, SLOPE), strength
                case _:
                    assert_never(self.output_activation)

    def _grain(self, strength: Tensor, noise: Tensor) -> Tensor:
        """Return sum_b softplus(s_b + s_0) n_b: band b is noise of 2**b pixels, unit variance.

        s_0 makes the grain of an untrained generator faint.
        """
        sigma = functional.softplus(strength + _FAINT).chunk(self.grain_bands, dim=1)
        total = torch.zeros_like(sigma[0])
        for band, scale in enumerate(sigma):
            size = (noise.shape[-2] >> band, noise.shape[-1] >> band)
            coarse = shrink_noise(noise, size)
            total = total + scale * functional.interpolate(coarse, size=self.shape, mode="bilinear")
        return total


def resize_pv(pv: Tensor, size: tuple[int, int], mode: Resize) -> Tensor:
    """Resize PV maps `(B, C, X, Y)` to `size`; channels still sum to 1 in both modes."""
    if tuple(pv.shape[-2:]) == tuple(size):
        return pv
    return functional.interpolate(pv, size=size, mode=mode)


def draw_noise(generators: Sequence[torch.Generator], size: tuple[int, int]) -> Tensor:
    """Return white noise `(B, 1, *size)`, one generator a sample, on the CPU."""
    return torch.stack([torch.randn(1, *size, generator=g) for g in generators])


def shrink_noise(noise: Tensor, size: tuple[int, int]) -> Tensor:
    """Resize white noise by area averaging; it stays standard normal."""
    if tuple(noise.shape[-2:]) == size:
        return noise
    factor = math.sqrt(noise.shape[-2] * noise.shape[-1] / (size[0] * size[1]))
    return functional.interpolate(noise, size=size, mode="area") * factor


class _GroupNorm(nn.Module):
    """Parameter-free group norm; with one channel a group it is instance norm.

    `functional.instance_norm` is several times slower in channels_last. The kernel accumulates its
    statistics in float32 whatever the input type.
    """

    def __init__(self, groups: int) -> None:
        super().__init__()
        self.groups = groups

    def forward(self, x: Tensor) -> Tensor:
        if self.groups == x.shape[1]:
            return instance_norm(x)
        # Not functional.group_norm, which refuses a single 1 x 1 map.
        return torch.group_norm(x, self.groups)


def _make_norm(norm: Norm, channels: int) -> nn.Module:
    match norm:
        case "instance":
            return _GroupNorm(channels)
        case "group":
            return _GroupNorm(max(g for g in range(1, _MAX_GROUPS + 1) if channels % g == 0))
        case "batch":
            return nn.BatchNorm2d(channels, affine=False)
        case _:
            assert_never(norm)
