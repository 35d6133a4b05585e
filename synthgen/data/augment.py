"""Augmentation of label maps and images: warps that keep partial volumes summing to 1.

Every sample is drawn from its own CPU generator, in a fixed order, so that neither its
neighbours nor the settings of another transform change a draw. Zero padding breaks the sum of
PV maps (0.58 measured with MONAI's RandAffine); here the background takes what leaves the field.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, fields
from typing import TYPE_CHECKING

import torch
from torch import Tensor
from torch.nn import functional

from synthgen.core.errors import RequestError

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

HOSTS: Mapping[int, float] = {2: 0.25, 3: 1.0, 4: 0.6}
"""How much of each brain9 channel a pasted lesion takes: white matter, some grey."""

_BIAS_GRID = (3, 4)  # control points of a bias field: smooth across the whole brain


@dataclass(frozen=True)
class PvAugment:
    """How far labels are warped; the defaults leave them as they are.

    Attributes:
        rotate_deg: largest rotation to either side.
        scale: largest relative change of size, per axis.
        shear: largest shear.
        shift_px: largest shift along each axis.
        elastic_px: largest displacement of the elastic field along each axis. Beyond a third of
            the distance between control points it may fold.
        elastic_grid: control points of the elastic field along X; as dense along Y.
        flip_probability: chance of a left-right flip.
        lesion_paste_probability: chance that a loader pastes a real lesion shape.
    """

    rotate_deg: float = 0.0
    scale: float = 0.0
    shear: float = 0.0
    shift_px: float = 0.0
    elastic_px: float = 0.0
    elastic_grid: int = 6
    flip_probability: float = 0.0
    lesion_paste_probability: float = 0.0

    def __post_init__(self) -> None:
        _require_nonnegative(self)
        for name in ("flip_probability", "lesion_paste_probability"):
            if getattr(self, name) > 1:
                raise RequestError(f"{name} must lie in [0, 1], got {getattr(self, name)}")
        if self.elastic_grid < 2 or self.scale >= 1:
            raise RequestError(
                "elastic_grid must be at least 2 and scale below 1, got "
                f"{self.elastic_grid} and {self.scale}"
            )

    @property
    def warps(self) -> bool:
        """Whether anything but flips can happen."""
        return any((self.rotate_deg, self.scale, self.shear, self.shift_px, self.elastic_px))


@dataclass(frozen=True)
class ImageAugment:
    """How far an image's contrast is changed; the defaults leave it as it is.

    Attributes:
        bias: largest log of the bias field: 0.35 keeps it within (0.70, 1.42).
        gamma_low: smallest exponent.
        gamma_high: largest exponent.
        noise: largest standard deviation of the Rician noise, in units of the robust maximum.
    """

    bias: float = 0.0
    gamma_low: float = 1.0
    gamma_high: float = 1.0
    noise: float = 0.0

    def __post_init__(self) -> None:
        _require_nonnegative(self)
        if not 0 < self.gamma_low <= self.gamma_high:
            raise RequestError(
                f"expected 0 < gamma_low <= gamma_high, got {self.gamma_low} and {self.gamma_high}"
            )


def _require_nonnegative(settings: PvAugment | ImageAugment) -> None:
    for field in fields(settings):
        value = getattr(settings, field.name)
        if not (math.isfinite(value) and value >= 0):
            raise RequestError(f"{field.name} must be a number of at least 0, got {value}")


def augment_pv(pv: Tensor, generators: Sequence[torch.Generator], settings: PvAugment) -> Tensor:
    """Warp label maps.

    Args:
        pv: `(B, C, X, Y)` in [0, 1], summing to 1, background first.
        generators: B CPU generators.
        settings: how far.

    Returns:
        `(B, C, X, Y)` in [0, 1], summing to 1; background comes in from outside.
    """
    pose = _draw_pose(pv, generators, settings)
    return _flip(_warp_pv(pv, pose.grid), pose.flip)


def warp_raw(raw: Tensor, generators: Sequence[torch.Generator], settings: PvAugment) -> Tensor:
    """Warp a decoder's output before its head turns it into partial volumes.

    A softmax behind it keeps borders as sharp as they were, where `augment_pv` blurs them.

    Args:
        raw: float32 `(B, C, X, Y)`, such as logits; what lies at the rim goes on outside.
        generators: B CPU generators.
        settings: how far; pasting lesions is not part of it.
    """
    pose = _draw_pose(raw, generators, settings)
    if pose.grid is not None:
        raw = _sample(raw, pose.grid, "bilinear", "border")
    return _flip(raw, pose.flip)


def augment_pair(
    pv: Tensor, image: Tensor, generators: Sequence[torch.Generator], settings: PvAugment
) -> tuple[Tensor, Tensor]:
    """Warp label maps and their images alike.

    Args:
        pv: `(B, C, X, Y)`, as in `augment_pv`; warped linearly.
        image: `(B, N, X, Y)` in [0, 1]; warped with cubic splines, so that it stays sharp.
        generators: B CPU generators.
        settings: how far.

    Returns:
        The label maps as `augment_pv` gives them, and the images in [0, 1], 0 where background
        PV exceeds 0.5.
    """
    pose = _draw_pose(pv, generators, settings)
    labels = _flip(_warp_pv(pv, pose.grid), pose.flip)
    if pose.grid is not None:
        image = _sample(image, pose.grid, "bicubic").clamp(0, 1)
    return labels, _flip(image, pose.flip).masked_fill(labels[:, :1] > 0.5, 0)


def augment_lesions(
    lesion: Tensor, generators: Sequence[torch.Generator], settings: PvAugment
) -> Tensor:
    """Warp soft lesion masks `(B, X, Y)` on their own, before `paste_lesions`."""
    masks = lesion[:, None]
    pose = _draw_pose(masks, generators, settings)
    if pose.grid is not None:
        masks = _sample(masks, pose.grid, "bilinear").clamp(0, 1)
    return _flip(masks, pose.flip)[:, 0]


def paste_lesions(
    pv: Tensor,
    lesion: Tensor,
    channel: int,
    amount: float | Tensor = 1.0,
    *,
    hosts: Mapping[int, float] = HOSTS,
) -> Tensor:
    """Let lesions take over tissue.

    Args:
        pv: `(B, C, X, Y)`, summing to 1.
        lesion: soft masks `(B, X, Y)` in [0, 1].
        channel: the lesion's channel.
        amount: strength in [0, 1]; a number, or one per sample `(B,)`. 0 pastes nothing.
        hosts: channel -> share that a full mask takes of it; others, such as CSF, stay.

    Returns:
        `(B, C, X, Y)`: what the hosts lose, `channel` gains.
    """
    strength = torch.as_tensor(amount, dtype=pv.dtype, device=pv.device).reshape(-1, 1, 1)
    take = (strength * lesion).clamp(0, 1)
    out = pv.clone()
    for host, share in hosts.items():
        if host == channel or host >= pv.shape[1]:
            continue
        moved = take * share * pv[:, host]
        out[:, host] -= moved
        out[:, channel] += moved
    return out


def augment_image(
    image: Tensor, brain: Tensor, generators: Sequence[torch.Generator], settings: ImageAugment
) -> Tensor:
    """Change contrast: gamma, a bounded smooth bias field, Rician noise.

    Args:
        image: `(B, 1, X, Y)` in [0, 1].
        brain: `(B, 1, X, Y)`, 1 inside the brain, else 0.
        generators: B CPU generators.
        settings: how far.

    Returns:
        `(B, 1, X, Y)` in [0, 1], exactly 0 outside the brain.
    """
    shape = (image.shape[-2], image.shape[-1])
    out = []
    for sample, generator in zip(image, generators, strict=True):
        gamma, strength, sigma = torch.rand(3, generator=generator).tolist()
        control = torch.rand(1, *_BIAS_GRID, generator=generator) * 2 - 1
        noise = torch.randn(2, 1, *shape, generator=generator).to(image)
        changed = sample
        if settings.gamma_high != 1 or settings.gamma_low != 1:
            low, high = math.log(settings.gamma_low), math.log(settings.gamma_high)
            changed = changed.clamp(min=0) ** math.exp(low + gamma * (high - low))
        if settings.bias:
            field = _upsample(control, shape).clamp(-1, 1).to(image)
            changed = changed * torch.exp(settings.bias * strength * field)
        if settings.noise:
            noise = noise * (settings.noise * sigma)
            changed = torch.sqrt((changed + noise[0]) ** 2 + noise[1] ** 2)
        out.append(changed)
    return torch.stack(out).clamp(0, 1).masked_fill(brain <= 0, 0)


@dataclass(frozen=True)
class _Pose:
    grid: Tensor | None  # (B, X, Y, 2), for grid_sample; flips are in it
    flip: Tensor | None  # (B,) bool, of maps without a grid


def _draw_pose(maps: Tensor, generators: Sequence[torch.Generator], settings: PvAugment) -> _Pose:
    """Draw every sample's warp; the number of draws depends on the shape alone."""
    shape = (maps.shape[-2], maps.shape[-1])
    control = (settings.elastic_grid, max(2, round(settings.elastic_grid * shape[1] / shape[0])))
    grids, flips = [], []
    for _, generator in zip(maps, generators, strict=True):
        flips.append(torch.rand(1, generator=generator).item() < settings.flip_probability)
        draws = torch.rand(6, generator=generator) * 2 - 1
        elastic = torch.rand(2, *control, generator=generator) * 2 - 1
        if settings.warps:
            grid = _sampling_grid(draws.tolist(), elastic, settings, shape)
            grids.append(grid.flip(0) if flips[-1] else grid)
    if grids:
        return _Pose(torch.stack(grids).to(maps.device), None)
    return _Pose(None, torch.tensor(flips, dtype=torch.bool, device=maps.device))


def _sampling_grid(
    draws: Sequence[float], elastic: Tensor, settings: PvAugment, shape: tuple[int, int]
) -> Tensor:
    """Return where each output pixel is read, `(X, Y, 2)` in grid_sample's units."""
    angle = math.radians(settings.rotate_deg) * draws[0]
    scale = [1 + settings.scale * draws[1], 1 + settings.scale * draws[2]]
    cosine, sine = math.cos(angle), math.sin(angle)
    rotation = torch.tensor([[cosine, -sine], [sine, cosine]])
    shape_change = torch.tensor([[scale[0], settings.shear * draws[3]], [0.0, scale[1]]])
    matrix = rotation @ shape_change
    axes = [torch.arange(n) - (n - 1) / 2 for n in shape]
    pixels = torch.stack(torch.meshgrid(*axes, indexing="ij"))  # (2, X, Y), centred
    read = torch.einsum("ij,jxy->ixy", matrix, pixels)
    read = read + settings.shift_px * torch.tensor(draws[4:6])[:, None, None]
    if settings.elastic_px:
        read = read + settings.elastic_px * _upsample(elastic, shape).clamp(-1, 1)
    half = torch.tensor(shape, dtype=torch.float32)[:, None, None] / 2
    # grid_sample names the last axis (Y here) first.
    return (read / half).flip(0).movedim(0, -1)


def _upsample(control: Tensor, shape: tuple[int, int]) -> Tensor:
    """Turn control points `(N, gx, gy)` into smooth fields `(N, *shape)`."""
    return functional.interpolate(control[None], shape, mode="bicubic", align_corners=True)[0]


def _sample(maps: Tensor, grid: Tensor, mode: str, padding: str = "zeros") -> Tensor:
    return functional.grid_sample(
        maps, grid.to(maps.dtype), mode=mode, padding_mode=padding, align_corners=False
    )


def _warp_pv(pv: Tensor, grid: Tensor | None) -> Tensor:
    """Warp the tissues; the background is what they leave."""
    if grid is None:
        return pv.clone()
    tissues = _sample(pv[:, 1:], grid, "bilinear").clamp(min=0)
    total = tissues.sum(dim=1, keepdim=True)
    tissues = tissues / total.clamp(min=1)  # rounding only
    return torch.cat([(1 - total).clamp(min=0), tissues], dim=1)


def _flip(maps: Tensor, flip: Tensor | None) -> Tensor:
    """Mirror the chosen samples along X (left-right), of None none."""
    if flip is None:
        return maps
    return torch.where(flip.reshape(-1, 1, 1, 1), maps.flip(-2), maps)
