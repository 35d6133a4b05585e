"""Smooth random deformations of volumes: an affine map and cubic B-splines on a control grid.

Coefficients of the splines stay below 0.4 control spacings, so that nothing folds (Choi and Lee
2000, "Injectivity conditions of 2D and 3D uniform cubic B-spline functions", Graphical Models 62:
the bound in 3D is 1 / 2.48).
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from torch.nn import functional

from synthgen.core.errors import RequestError

if TYPE_CHECKING:
    from collections.abc import Sequence

_INJECTIVE = 0.4

Array = npt.NDArray[np.float64]


@dataclass(frozen=True)
class WarpRange:
    """How far volumes are deformed, to either side.

    Attributes:
        rotate_deg: largest rotation about each axis.
        scale: largest relative change of size along each axis.
        shear: largest shear.
        shift_mm: largest shift along each axis.
        elastic_mm: largest coefficient of the splines.
        grid_mm: distance of their control points.
        flip_probability: chance of a left-right mirror image.

    Raises:
        RequestError: splines that may fold, or a size that may vanish.
    """

    rotate_deg: float = 0.0
    scale: float = 0.0
    shear: float = 0.0
    shift_mm: float = 0.0
    elastic_mm: float = 0.0
    grid_mm: float = 32.0
    flip_probability: float = 0.0

    def __post_init__(self) -> None:
        if not 0 <= self.elastic_mm <= _INJECTIVE * self.grid_mm or not 0 <= self.scale < 1:
            raise RequestError(
                f"expected elastic_mm in [0, {_INJECTIVE * self.grid_mm:g}] (control points every "
                f"{self.grid_mm:g} mm fold beyond) and scale in [0, 1), got {self.elastic_mm:g} "
                f"and {self.scale:g}"
            )


@dataclass(frozen=True)
class Warp:
    """One deformation: from mm in the result to mm in the source, from the middle of each.

    Attributes:
        matrix: `(3, 3)`.
        shift_mm: `(3,)`.
        control: `(3, *G)` spline coefficients in mm.
        grid_mm: distance of the control points.
    """

    matrix: Array
    shift_mm: Array
    control: Array
    grid_mm: float

    @classmethod
    def draw(cls, rng: np.random.Generator, limits: WarpRange, extent_mm: Sequence[float]) -> Warp:
        """Draw a deformation.

        Args:
            rng: what draws.
            limits: how far.
            extent_mm: size of the field of view.
        """
        a, b, c = np.radians(limits.rotate_deg * rng.uniform(-1, 1, 3))
        matrix = _rotation(a, 1, 2) @ _rotation(b, 2, 0) @ _rotation(c, 0, 1)
        size = np.diag(np.exp(np.log1p(limits.scale) * rng.uniform(-1, 1, 3)))
        size[np.triu_indices(3, 1)] = limits.shear * rng.uniform(-1, 1, 3)
        matrix = matrix @ size
        shift = limits.shift_mm * rng.uniform(-1, 1, 3)
        if rng.random() < limits.flip_probability:
            matrix[0] *= -1
        # Three more points than intervals: a spline's support reaches two to either side.
        points = [math.ceil(extent / limits.grid_mm) + 3 for extent in extent_mm]
        strength = limits.elastic_mm * rng.uniform(0, 1)
        control = strength * rng.uniform(-1, 1, (3, *points))
        return cls(matrix, shift, control, limits.grid_mm)

    def points(self, axes: Sequence[Array]) -> Tensor:
        """Return where each point of a grid comes from.

        Args:
            axes: three coordinates `(n,)` in mm from the middle of the result.

        Returns:
            float32 `(3, nx, ny, nz)`, mm from the middle of the source.
        """
        x, y, z = (torch.from_numpy(axis).float() for axis in axes)
        matrix = torch.from_numpy(self.matrix).float()
        shift = torch.from_numpy(self.shift_mm).float().reshape(3, 1, 1, 1)
        straight = (
            matrix[:, 0].reshape(3, 1, 1, 1) * x.reshape(-1, 1, 1)
            + matrix[:, 1].reshape(3, 1, 1, 1) * y.reshape(-1, 1)
            + matrix[:, 2].reshape(3, 1, 1, 1) * z
        )
        bent = torch.from_numpy(self.control).float()  # (3, gx, gy, gz)
        for number, axis in enumerate(axes, start=1):
            weights = torch.from_numpy(_spline(axis, bent.shape[number], self.grid_mm)).float()
            bent = torch.tensordot(bent, weights, ([number], [1])).movedim(-1, number)
        return straight + shift + bent


def read_at(maps: Tensor, voxels: Tensor) -> Tensor:
    """Interpolate linearly; what lies outside is 0.

    Args:
        maps: float32 `(K, X, Y, Z)`, each axis at least 2 long.
        voxels: float32 `(3, *S)` places in voxels.

    Returns:
        `(K, *S)`.
    """
    size = torch.tensor(maps.shape[1:], dtype=torch.float32).reshape(3, 1, 1, 1)
    # grid_sample names the last axis first and counts from -1 to 1.
    grid = (2 * voxels / (size - 1) - 1).flip(0).movedim(0, -1)
    return functional.grid_sample(maps[None], grid[None], mode="bilinear", align_corners=True)[0]


def _rotation(angle: float, first: int, second: int) -> Array:
    matrix = np.eye(3)
    matrix[first, first] = matrix[second, second] = math.cos(angle)
    matrix[first, second], matrix[second, first] = -math.sin(angle), math.sin(angle)
    return matrix


def _spline(axis: Array, count: int, grid_mm: float) -> Array:
    """Return the cubic B-spline weight `(n, count)` of each control point at each coordinate.

    Control points lie `grid_mm` apart, centred on 0.
    """
    place = axis[:, None] / grid_mm - (np.arange(count) - (count - 1) / 2)
    distance = np.abs(place)
    near = 2 / 3 - distance**2 + distance**3 / 2
    far = np.maximum(2 - distance, 0) ** 3 / 6
    return np.asarray(np.where(distance < 1, near, far))
