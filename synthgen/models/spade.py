"""The SPADE generator: from a partial-volume map and a style code to an image.

Sources: Park et al. 2019, arXiv:1903.07291 (generator; its norm and block are in
`spade_blocks.py`); Fernandez et al. 2022, arXiv:2209.08256 (brain images from partial-volume maps
and a style code). Written from the published formulas.

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
from typing import TYPE_CHECKING, Literal, assert_never, cast

import torch
from diffusers.configuration_utils import ConfigMixin, register_to_config
from diffusers.models.modeling_utils import ModelMixin
from torch import Tensor, nn
from torch.nn import functional

from synthgen.core.errors import GeometryError, RequestError
from synthgen.models.compact import compact_each
from synthgen.models.spade_blocks import SLOPE, Norm, Resize, SPADEResBlock, resize_pv

if TYPE_CHECKING:
    from collections.abc import Sequence

Upsample = Literal["nearest", "bilinear"]
Output = Literal["tanh", "leaky_relu"]

_HALVINGS = 5
_FAINT = -4.0


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
        return self.paint(pv, [(z, noise)])[0]

    def paint(
        self, pv: Tensor, takes: Sequence[tuple[Tensor, Tensor | None]]
    ) -> list[tuple[Tensor, Tensor]]:
        """Return what `forward` does of each take, computing what the labels decide once.

        Args:
            pv: as in `forward`.
            takes: style codes and noise of each, as in `forward`.

        Raises:
            GeometryError: as in `forward`.
            RequestError: as in `forward`.
        """
        if tuple(pv.shape[-2:]) != self.shape:
            raise GeometryError(
                f"SPADEGenerator: expected pv of size {self.shape}, got {tuple(pv.shape[-2:])}"
            )
        xs = [self.start(z).view(-1, self.start_channels, *self.start_shape) for z, _ in takes]
        maps = self._smaller(pv)
        for number, block in enumerate(self.blocks):
            # The two middle blocks (1 and 2) share one resolution.
            if number not in (0, 2):
                xs = [functional.interpolate(x, scale_factor=2, mode=self.upsample) for x in xs]
            small = maps[xs[0].shape[-1]]
            # nn.ModuleList does not say what it holds.
            labelled = cast("SPADEResBlock", block).labelled(compact_each(small))
            xs = [block(x, small, z, labelled) for x, (z, _) in zip(xs, takes, strict=True)]
        return [self._finished(x, noise) for x, (_, noise) in zip(xs, takes, strict=True)]

    def _smaller(self, pv: Tensor) -> dict[int, Tensor]:
        """Return pv at every size by its last side, in the type of the weights."""
        maps, dtype = {}, self.start.weight.dtype
        for halvings in range(_HALVINGS + 1):
            size = (self.shape[0] >> halvings, self.shape[1] >> halvings)
            pv = resize_pv(pv, size, self.pv_resize)
            maps[size[1]] = pv.to(dtype)
        return maps

    def _finished(self, x: Tensor, noise: Tensor | None) -> tuple[Tensor, Tensor]:
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


def draw_noise(generators: Sequence[torch.Generator], size: tuple[int, int]) -> Tensor:
    """Return white noise `(B, 1, *size)`, one generator a sample, on the CPU."""
    return torch.stack([torch.randn(1, *size, generator=g) for g in generators])


def shrink_noise(noise: Tensor, size: tuple[int, int]) -> Tensor:
    """Resize white noise by area averaging; it stays standard normal."""
    if tuple(noise.shape[-2:]) == size:
        return noise
    factor = math.sqrt(noise.shape[-2] * noise.shape[-1] / (size[0] * size[1]))
    return functional.interpolate(noise, size=size, mode="area") * factor
