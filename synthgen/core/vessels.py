"""What a vessel tree looks like on the pixel grid: the arrays that renderers and writers share."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from synthgen.core.errors import SchemaError

if TYPE_CHECKING:
    from collections.abc import Sequence

Floats = npt.NDArray[np.float32]
COVERED = 128
"""Stored coverage (of 255) from which a pixel belongs to the vessel mask."""


@dataclass(frozen=True)
class VesselMaps:
    """A batch of drawn vessel trees, `(B, X, Y)` each. X runs down the picture, Y to the right.

    Attributes:
        coverage: share of the pixel that labelled vessels cover, in [0, 1], whole 255ths, so that
            what is stored and what is rendered agree.
        path_length: length of the ray inside labelled vessels, in pixels; crossings add up.
        hidden_path_length: the same for vessels too thin to be labelled.
        vein_path_length: the part of `path_length` that belongs to veins; zero where the tree has
            no veins.
        disc: centre (x, y) and radius of the optic disc in pixels, `(B, 3)`; zero without one.
        field: centre (x, y) and radius of the circular field of view in pixels, `(B, 3)`; zero
            where the whole frame is seen.
    """

    coverage: Floats
    path_length: Floats
    hidden_path_length: Floats
    vein_path_length: Floats
    disc: Floats
    field: Floats

    def __post_init__(self) -> None:
        shape = self.coverage.shape
        maps = (self.path_length, self.hidden_path_length, self.vein_path_length)
        if len(shape) != 3 or any(array.shape != shape for array in maps):
            raise SchemaError(
                f"vessel maps: expected arrays of one shape (B, X, Y), got {shape} and "
                f"{[array.shape for array in maps]}"
            )
        circles = (self.disc.shape, self.field.shape)
        if circles != ((shape[0], 3),) * 2:
            raise SchemaError(f"vessel maps: expected circles of {(shape[0], 3)}, got {circles}")

    @property
    def mask(self) -> npt.NDArray[np.bool_]:
        """The binary vessel mask `(B, X, Y)`: coverage, as stored, of one half or more."""
        mask: npt.NDArray[np.bool_] = np.rint(self.coverage * 255) >= COVERED
        return mask

    @property
    def pv(self) -> Floats:
        """Partial volumes `(B, 2, X, Y)` of the schema `vessel`, summing to 1."""
        return np.stack([1 - self.coverage, self.coverage], axis=1)

    @classmethod
    def concatenate(cls, parts: Sequence[VesselMaps]) -> VesselMaps:
        """Join batches.

        Examples:
            >>> maps = np.zeros((1, 4, 4), np.float32)
            >>> one = VesselMaps(maps, maps, maps, maps, *np.zeros((2, 1, 3), np.float32))
            >>> VesselMaps.concatenate([one, one]).mask.shape
            (2, 4, 4)
        """
        names = cls.__dataclass_fields__
        return cls(**{n: np.concatenate([getattr(p, n) for p in parts]) for n in names})
