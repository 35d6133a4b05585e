"""The networks of DARL: one generator that segments angiograms and paints vessels.

Source: Kim et al. 2023, arXiv:2209.14566 (Diffusion adversarial representation learning for
self-supervised vessel segmentation), written from the published formulas and tables. With x_t a
noisy image and eps the noise that `darl_unet.NoisePredictor` sees in it, the generator gives

- path A, no mask: the vessel mask of an angiogram;
- path B, a mask: an angiogram with these vessels on the background x_t.

Deviation: the mask may be soft. Its two channels are its complement and itself, so the painted
area is the area of the target; the authors' code cuts soft masks at grey level 255, and their
painted vessels are a fifth thinner than the label. Settings beyond the paper: widths,
`label_resize`, and the number of blocks, for models that a CPU can train.
"""

from __future__ import annotations

import torch
from diffusers.configuration_utils import ConfigMixin, register_to_config
from diffusers.models.modeling_utils import ModelMixin
from torch import Tensor, nn
from torch.nn import functional

from synthgen.core.errors import RequestError
from synthgen.models.darl_unet import require_divisible
from synthgen.models.discriminators import PyramidPatchDiscriminator
from synthgen.models.instance_norm import instance_norm
from synthgen.models.spade_blocks import SLOPE, Resize, SPADEResBlock

GENERATOR_REDUCTION = 4
"""Sides of its input must be divisible by this."""
_REACH = 3


class DarlGenerator(ModelMixin, ConfigMixin):  # type: ignore[misc]  # diffusers is untyped
    """Turn (noisy image, predicted noise) into a mask, or with a mask into an angiogram.

    conv7 to n channels, two halvings to 2n and 4n, `num_blocks` switchable SPADE blocks at 1/4
    of the size, two more with a doubling in front of each, conv7, tanh (n = `base_channels`).
    All convolutions but those of the masks serve both paths.

    Args:
        base_channels: n.
        spade_hidden: hidden width of the SPADE norms; at 128 they are 3/4 of the cost of path B.
        num_blocks: blocks at 1/4 of the size.
        label_resize: how the mask shrinks: `nearest` as in the paper, which loses thin vessels,
            or `area`.
        spectral_norm: spectral normalisation on the convolutions of the SPADE blocks.

    Examples:
        >>> generator = DarlGenerator(base_channels=2, spade_hidden=4)
        >>> x_t, eps = torch.zeros(1, 1, 16, 16), torch.zeros(1, 1, 16, 16)
        >>> generator(x_t, eps).shape, generator(x_t, eps, -torch.ones(1, 1, 16, 16)).shape
        (torch.Size([1, 1, 16, 16]), torch.Size([1, 1, 16, 16]))
    """

    @register_to_config  # type: ignore[untyped-decorator]
    def __init__(
        self,
        base_channels: int = 64,
        spade_hidden: int = 128,
        num_blocks: int = 2,
        label_resize: Resize = "nearest",
        spectral_norm: bool = True,
    ) -> None:
        super().__init__()
        n = base_channels
        self.stem = nn.Conv2d(2, n, 2 * _REACH + 1, padding=_REACH, padding_mode="reflect")
        self.down = nn.ModuleList(
            nn.Conv2d(wide, 2 * wide, 3, stride=2, padding=1) for wide in (n, 2 * n)
        )

        def block(wide: int, narrow: int) -> SPADEResBlock:
            return SPADEResBlock(
                wide,
                narrow,
                2,
                spade_hidden,
                pv_resize=label_resize,
                spectral_norm=spectral_norm,
                switchable=True,
            )

        self.middle = nn.ModuleList(block(4 * n, 4 * n) for _ in range(num_blocks))
        self.up = nn.ModuleList([block(4 * n, 2 * n), block(2 * n, n)])
        self.head = nn.Conv2d(n, 1, 2 * _REACH + 1)

    def forward(self, x_t: Tensor, eps: Tensor, mask: Tensor | None = None) -> Tensor:
        """Return a mask (path A) or an angiogram (path B), `(B, 1, X, Y)` float32 in (-1, 1).

        Args:
            x_t: `(B, 1, X, Y)`, the noisy image, [-1, 1] before noise; X and Y divisible by 4.
            eps: `(B, 1, X, Y)`, the noise predicted in it.
            mask: `(B, 1, X, Y)`, -1 background and 1 vessel, for path B; see `one_hot`.

        Raises:
            RequestError: a side is not divisible, or the mask has another size.
        """
        require_divisible("DarlGenerator", x_t, GENERATOR_REDUCTION)
        x = torch.cat([x_t, eps], dim=1).to(self.stem.weight.dtype)
        x = functional.relu(instance_norm(self.stem(x)))
        for conv in self.down:
            x = functional.relu(instance_norm(conv(x)))
        labels = None if mask is None else self._labels(mask, x_t)
        for block in self.middle:
            x = block(x, labels)
        for block in self.up:
            x = block(functional.interpolate(x, scale_factor=2, mode="nearest"), labels)
        return self._paint(functional.leaky_relu(x, SLOPE))

    def _labels(self, mask: Tensor, x_t: Tensor) -> Tensor:
        if mask.shape != x_t.shape:
            raise RequestError(
                f"DarlGenerator: expected a mask of shape {tuple(x_t.shape)} like the image, "
                f"got {tuple(mask.shape)}"
            )
        return one_hot(mask).to(self.stem.weight.dtype)

    def _paint(self, x: Tensor) -> Tensor:
        """Last convolution in float32: bfloat16 steps would show as bands in the image."""
        with torch.autocast(x.device.type, enabled=False):
            x = functional.pad(x.float(), (_REACH,) * 4, mode="reflect")
            bias = None if self.head.bias is None else self.head.bias.float()
            return torch.tanh(functional.conv2d(x, self.head.weight.float(), bias))


def one_hot(mask: Tensor) -> Tensor:
    """Return background and vessel channels `(B, 2, X, Y)`, summing to 1.

    A binary mask becomes one-hot; a soft one keeps its area.

    Args:
        mask: `(B, 1, X, Y)` in [-1, 1].

    Examples:
        >>> one_hot(torch.tensor([-1.0, 1.0]).reshape(1, 1, 1, 2)).flatten().tolist()
        [1.0, 0.0, 0.0, 1.0]
    """
    return torch.cat([1 - mask, 1 + mask], dim=1) / 2


def patch_discriminator(base_channels: int = 64) -> PyramidPatchDiscriminator:
    """Return the patch discriminator of DARL: receptive field 70 pixels, 256^2 -> 30 x 30 logits.

    Conv4 to n, 2n, 4n with stride 2, to 8n and to the logits with stride 1; padding 1, biases,
    instance norm, no spectral norm (Isola et al. 2017, arXiv:1611.07004).
    """
    discriminator: PyramidPatchDiscriminator = PyramidPatchDiscriminator(
        in_channels=1,
        base=base_channels,
        num_scales=1,
        num_layers=4,
        spectral_norm=False,
        padding=1,
        bias=True,
    )
    return discriminator
