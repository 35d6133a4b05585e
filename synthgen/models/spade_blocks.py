"""Spatially adaptive normalisation (SPADE) and the residual block built from it.

Park et al. 2019, arXiv:1903.07291; style in the norms and area averaging: see `spade.py`.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Literal, assert_never, cast

import torch
from torch import Tensor, nn
from torch.nn import functional

from synthgen.core.errors import RequestError
from synthgen.models.compact import CompactMaps, whole
from synthgen.models.instance_norm import GroupNorm, instance_norm
from synthgen.models.spectral import spectral_conv

if TYPE_CHECKING:
    from collections.abc import Sequence

Norm = Literal["instance", "group", "batch"]
Resize = Literal["nearest", "area"]

SLOPE = 0.2
"""Negative slope of every leaky ReLU (Park et al. 2019)."""

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
        """Return 1 + gamma and beta, each `(B, channels, *size)`.

        Args:
            pv: `(B, label_channels, X, Y)`.
            style: `(B, style_dim)`, for norms built with `style_dim`.
            size: spatial size of x; that of `pv` by default.
        """
        if size is not None:
            pv = resize_pv(pv, size, self.pv_resize)
        (labelled,) = self.labelled([whole(pv)])
        return self._styled(labelled, style)

    def labelled(self, maps: Sequence[CompactMaps]) -> list[CompactMaps]:
        """Return what the labels alone decide, the same for every style.

        Args:
            maps: all partial-volume maps of the size of x, or each alone, label_channels wide.

        Returns:
            The same, of hidden width for a norm with style, else 2 channels wide: 1 + gamma, beta.
        """
        hidden = [replace(part, values=self.shared(part.values)) for part in maps]
        if self.style is not None:
            return hidden
        return [replace(part, values=self._modulation(part.values)) for part in hidden]

    def modulated(
        self, normed: Tensor, labelled: Sequence[CompactMaps], style: Tensor | None = None
    ) -> Tensor:
        """Return normed features `(B, channels, X, Y)` modulated by `self.labelled(...)`."""
        normed = normed.to(labelled[0].values.dtype)
        if len(labelled) == 1:
            scale, shift = self._styled(labelled[0], style)
            return torch.addcmul(shift, normed, scale)
        result = torch.empty_like(normed)
        for i, part in enumerate(labelled):
            own = None if style is None else style[i : i + 1]
            scale, shift = self._styled(part, own)
            torch.addcmul(shift, normed[i : i + 1], scale, out=result[i : i + 1])
        return result

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
        small = resize_pv(pv, (x.shape[-2], x.shape[-1]), self.pv_resize)
        return self.modulated(self.norm(x), self.labelled([whole(small)]), style)

    def _styled(self, labelled: CompactMaps, style: Tensor | None) -> tuple[Tensor, Tensor]:
        both = labelled.values
        if self.style is not None:
            if style is None:
                raise RequestError("this SPADE norm was built with a style input; pass the style")
            both = self._modulation(both + self.style(style)[:, :, None, None])
        scale, shift = labelled.put_back(both).chunk(2, dim=1)
        return scale, shift

    def _modulation(self, hidden: Tensor) -> Tensor:
        """Return 1 + gamma and beta; the 1 is added where the convolution sums in float32."""
        hidden = functional.relu(hidden, inplace=not torch.is_grad_enabled())
        gamma, beta = cast("Tensor", self.modulation.bias).chunk(2)
        bias = torch.cat([1 + gamma, beta])
        return functional.conv2d(hidden, self.modulation.weight, bias, padding=1)


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

    def labelled(self, maps: Sequence[CompactMaps]) -> tuple[list[CompactMaps], ...]:
        """Return `SPADENorm.labelled` of each norm."""
        norms = (self.norm_0, self.norm_1, self.norm_s)
        return tuple(norm.labelled(maps) for norm in norms if norm is not None)

    def forward(
        self,
        x: Tensor,
        pv: Tensor | None,
        style: Tensor | None = None,
        labelled: Sequence[Sequence[CompactMaps]] | None = None,
    ) -> Tensor:
        """Return `(B, out_channels, X, Y)`.

        Args:
            x: as in `SPADENorm.forward`, like `pv` and `style`.
            pv: labels; None for a switchable block without them.
            style: style codes.
            labelled: `self.labelled(...)` of the labels, where they are painted in several styles.
        """
        if pv is None:
            return self._unlabelled(x)
        if labelled is None:
            size = (x.shape[-2], x.shape[-1])
            labelled = self.labelled([whole(resize_pv(pv, size, self.norm_0.pv_resize))])
        normed = self.norm_0.norm(x)
        shortcut = x
        if self.norm_s is not None and self.conv_s is not None:
            # Group norms of one x are one; batch norms keep statistics of their own.
            same = isinstance(self.norm_s.norm, _GroupNorm)
            own = normed if same else self.norm_s.norm(x)
            shortcut = self.conv_s(self.norm_s.modulated(own, labelled[2], style))
        h = self.conv_0(_leaky(self.norm_0.modulated(normed, labelled[0], style)))
        h = self.conv_1(_leaky(self.norm_1.modulated(self.norm_1.norm(h), labelled[1], style)))
        out: Tensor = shortcut + h
        return out

    def _unlabelled(self, x: Tensor) -> Tensor:
        h = self.conv_0(_leaky(self.norm_0(x, None)))
        h = self.conv_1(_leaky(self.norm_1(h, None)))
        if self.norm_s is not None and self.conv_s is not None:
            x = self.conv_s(self.norm_s(x, None))
        out: Tensor = x + h
        return out


def _leaky(x: Tensor) -> Tensor:
    """Leaky ReLU, in the place of x where no gradient needs it."""
    return functional.leaky_relu(x, SLOPE, inplace=not torch.is_grad_enabled())


def resize_pv(pv: Tensor, size: tuple[int, int], mode: Resize) -> Tensor:
    """Resize PV maps `(B, C, X, Y)` to `size`; channels still sum to 1 in both modes."""
    if tuple(pv.shape[-2:]) == tuple(size):
        return pv
    return functional.interpolate(pv, size=size, mode=mode)


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
