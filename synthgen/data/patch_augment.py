"""Augmentation of patches in 2-D and 3-D: one affine sampling in millimetres, then appearance.

The draws have a fixed order, so that the settings of one transform never change another's.
"""

from __future__ import annotations

import itertools
import math
from dataclasses import dataclass, fields
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from torch.nn import functional

from synthgen.core.errors import RequestError

if TYPE_CHECKING:
    from collections.abc import Sequence

Vector = npt.NDArray[np.float64]

_CONTROL_POINTS = 4  # of a bias field, along each axis: smooth across a whole head
_LINEAR = {2: "bilinear", 3: "trilinear"}


@dataclass(frozen=True)
class PatchAugmentation:
    """How far patches are changed; 0 everywhere changes nothing.

    Attributes:
        rotate_deg: largest rotation, in the plane of each pair of axes.
        scale: largest natural logarithm of the change of size, for each axis by itself.
        shift: largest shift along each axis, as a share of the patch.
        mirror: probability of mirroring, one number an axis; none if empty.
        gamma: largest natural logarithm of the exponent.
        gain: largest natural logarithm of the change of contrast, about the mean of what is not 0.
        bias: largest natural logarithm of the smooth bias field.
        blur: largest standard deviation of the Gaussian blur, in voxels.
        noise: largest standard deviation of white noise, in units of the image range.

    Raises:
        RequestError: a number below 0, or a probability above 1.
    """

    rotate_deg: float = 0.0
    scale: float = 0.0
    shift: float = 0.0
    mirror: tuple[float, ...] = ()
    gamma: float = 0.0
    gain: float = 0.0
    bias: float = 0.0
    blur: float = 0.0
    noise: float = 0.0

    def __post_init__(self) -> None:
        for field in fields(self):
            value = getattr(self, field.name)
            for number in value if isinstance(value, tuple) else (value,):
                if not (math.isfinite(number) and number >= 0):
                    raise RequestError(f"{field.name} must be at least 0, got {number}")
        if max(self.mirror, default=0) > 1:
            raise RequestError(f"mirror must be probabilities in [0, 1], got {self.mirror}")


@dataclass(frozen=True)
class Pose:
    """How one patch lies.

    Attributes:
        matrix: `(n, n)`, from millimetres in the patch to millimetres in the volume, about the
            patch's centre.
        shift: `(n,)` shift of the centre, as a share of the patch.
        flipped: axes that are mirrored.
    """

    matrix: Vector
    shift: Vector
    flipped: tuple[int, ...]

    @property
    def still(self) -> bool:
        """Whether the patch lies on whole voxels, mirrored or not."""
        return not self.shift.any() and np.array_equal(self.matrix, np.eye(len(self.matrix)))


def draw_pose(rng: np.random.Generator, dims: int, settings: PatchAugmentation) -> Pose:
    """Draw how a patch lies."""
    planes = list(itertools.combinations(range(dims), 2))
    angles = math.radians(settings.rotate_deg) * rng.uniform(-1, 1, len(planes))
    sizes = np.exp(settings.scale * rng.uniform(-1, 1, dims))
    shift = settings.shift * rng.uniform(-1, 1, dims)
    mirrored = rng.random(dims) < np.asarray(settings.mirror or (0.0,) * dims)
    matrix = np.eye(dims)
    for (first, second), angle in zip(planes, angles, strict=True):
        turn = np.eye(dims)
        turn[first, first] = turn[second, second] = math.cos(angle)
        turn[first, second], turn[second, first] = -math.sin(angle), math.sin(angle)
        matrix = matrix @ turn
    return Pose(matrix * sizes, shift, tuple(int(axis) for axis in np.flatnonzero(mirrored)))


def sample(
    arrays: Sequence[npt.NDArray[np.floating | np.integer]],
    patch: Sequence[int],
    center: Vector,
    matrix: Vector,
) -> Tensor:
    """Sample a patch linearly; what lies outside of the volume is 0.

    Args:
        arrays: `(C_i, *S)` each, on one grid; they are joined along C.
        patch: size of the patch.
        center: `(n,)` voxel coordinates of the patch's centre in the volume; centres of voxels
            have whole coordinates.
        matrix: `(n, n)`, from voxels of the patch to voxels of the volume.

    Returns:
        float32 `(C_1 + C_2 + ..., *patch)`.
    """
    shape, size = np.asarray(arrays[0].shape[1:]), np.asarray(patch)
    reach = np.abs(matrix) @ ((size - 1) / 2)
    low = np.clip(np.floor(center - reach).astype(int), 0, shape - 1)
    high = np.clip(np.ceil(center + reach).astype(int) + 1, low + 1, shape)
    box = (slice(None), *(slice(a, b) for a, b in zip(low, high, strict=True)))
    volume = torch.cat([torch.from_numpy(array[box].astype(np.float32)) for array in arrays])
    extent = high - low
    theta = np.column_stack(
        [matrix * size / extent[:, None], (2 * (center - low) + 1) / extent - 1]
    )
    theta[:, :-1] = theta[::-1, -2::-1]  # affine_grid names the last axis first
    theta[:, -1] = theta[::-1, -1]
    grid = functional.affine_grid(
        torch.from_numpy(theta[None].astype(np.float32)), [1, 1, *patch], align_corners=False
    )
    return functional.grid_sample(volume[None], grid, align_corners=False)[0]


def change_appearance(
    image: Tensor, settings: PatchAugmentation, rng: np.random.Generator, noise: torch.Generator
) -> Tensor:
    """Change sharpness, bias field, contrast, gamma and noise of each channel by itself.

    Args:
        image: `(Ci, *S)` in [0, 1].
        settings: how far.
        rng: of the strengths.
        noise: CPU generator of fields.

    Returns:
        `(Ci, *S)` in [0, 1]; what was exactly 0, such as the outside of a brain, stays 0.
    """
    count, dims = len(image), image.ndim - 1
    signed = torch.from_numpy(rng.uniform(-1, 1, (2, count)).astype(np.float32))
    strength = torch.from_numpy(rng.random((3, count)).astype(np.float32))
    control = 2 * torch.rand(count, *(_CONTROL_POINTS,) * dims, generator=noise) - 1
    column = (count, *(1,) * dims)
    gamma, gain = (torch.exp(a * s.reshape(column)) for a, s in
                   zip((settings.gamma, settings.gain), signed, strict=True))  # fmt: skip
    outside = image == 0
    if settings.blur:
        image = torch.stack(
            [_blur(c, settings.blur * float(s)) for c, s in zip(image, strength[0], strict=True)]
        )
    if settings.bias:
        shape = list(image.shape[1:])
        field = functional.interpolate(
            control[None], shape, mode=_LINEAR[dims], align_corners=True
        )[0]
        image = image * torch.exp(settings.bias * strength[1].reshape(column) * field)
    if settings.gain:
        axes = tuple(range(1, dims + 1))
        inside = (~outside).sum(axes, keepdim=True).clamp_min(1)
        mean = image.masked_fill(outside, 0).sum(axes, keepdim=True) / inside
        image = mean + gain * (image - mean)
    image = image.clamp(0, 1)
    if settings.gamma:
        image = image**gamma
    if settings.noise:
        level = settings.noise * strength[2].reshape(column)
        image = image + level * torch.randn(image.shape, generator=noise)
    return image.clamp(0, 1).masked_fill(outside, 0)


def _blur(channel: Tensor, sigma: float) -> Tensor:
    """Blur `(*S)` along every axis, borders replicated."""
    reach = math.ceil(3 * sigma)
    if not reach:
        return channel
    offset = torch.arange(-reach, reach + 1)
    weight = torch.exp(-0.5 * (offset / max(sigma, 1e-3)) ** 2)
    weight = (weight / weight.sum())[None, None]
    for axis in range(channel.ndim):
        lines = channel.movedim(axis, -1)
        padded = functional.pad(lines.reshape(-1, 1, lines.shape[-1]), (reach, reach), "replicate")
        channel = functional.conv1d(padded, weight).reshape(lines.shape).movedim(-1, axis)
    return channel
