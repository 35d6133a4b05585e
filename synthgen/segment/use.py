"""What a segmenter of images and volumes was trained on, and how it is used."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any, Self

from synthgen.core.errors import RequestError
from synthgen.core.input_files import is_list_of
from synthgen.core.model_settings import MAX_ELEMENTS
from synthgen.core.schema import VESSEL, LabelSchema, Tissue

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from torch import Tensor

    from synthgen.core.rng import SampleKey


@dataclass(frozen=True)
class SegmenterUse:
    """Stands in `synthgen.json` as `use`.

    Attributes:
        tissues: of the output channels: background first, or overlapping regions alone.
        overlapping: whether a voxel may belong to several of them.
        channels: names of the input channels.
        spatial_dims: 2 or 3.
        spacing_mm: of the training images.
        window: larger images are seen in windows of this size.
        overlap: of neighbouring windows, a share.
    """

    tissues: tuple[str, ...]
    overlapping: bool
    channels: tuple[str, ...]
    spatial_dims: int
    spacing_mm: tuple[float, ...]
    window: tuple[int, ...]
    overlap: float

    @property
    def schema(self) -> LabelSchema:
        """Background and the tissues, numbered in order; without background where they overlap.

        Examples:
            >>> use = SegmenterUse(("background", "vessel"), False, ("grey",), 2, (1, 1), (8, 8), 0)
            >>> use.schema.name
            'vessel'
        """
        names = ("background", *self.tissues) if self.overlapping else self.tissues
        if names == VESSEL.names:
            return VESSEL
        return LabelSchema("segmented", tuple(Tissue(n, i) for i, n in enumerate(names)))

    def to_json(self) -> dict[str, Any]:
        """Return it as plain data."""
        return asdict(self)

    @classmethod
    def from_json(cls, raw: Mapping[str, Any]) -> Self:
        """Read what `to_json` made.

        Raises:
            KeyError, TypeError, ValueError: it did not make this.
        """
        use = cls(
            tissues=tuple(raw["tissues"]),
            overlapping=bool(raw["overlapping"]),
            channels=tuple(raw["channels"]),
            spatial_dims=int(raw["spatial_dims"]),
            spacing_mm=tuple(raw["spacing_mm"]),
            window=tuple(raw["window"]),
            overlap=float(raw["overlap"]),
        )
        dims = use.spatial_dims
        fine = {
            "tissues": is_list_of(raw["tissues"], str) and bool(use.tissues),
            "channels": is_list_of(raw["channels"], str) and bool(use.channels),
            "spatial_dims": dims in (2, 3),
            "spacing_mm": len(use.spacing_mm) == dims and all(0 < s < 1e3 for s in use.spacing_mm),
            "window": len(use.window) == dims
            and is_list_of(raw["window"], int)
            and min(use.window) >= 1
            and math.prod(use.window) <= MAX_ELEMENTS,
            "overlap": 0 <= use.overlap < 1,
        }
        if wrong := [name for name, good in fine.items() if not good]:
            raise ValueError(f"'use' cannot have {wrong[0]} {raw[wrong[0]]!r:.60}")
        return use

    def check(self, images: Tensor, keys: Sequence[SampleKey] | None = None) -> None:
        """Refuse a batch that the model cannot take.

        Raises:
            RequestError: images of another rank or other channels, or not in [0, 1]; or another
                number of keys.
        """
        axes = ", ".join("XYZ"[: self.spatial_dims])
        low, high = (float(f) for f in images.aminmax()) if images.numel() else (0.0, 0.0)
        fits = images.ndim == self.spatial_dims + 2 and images.shape[1] == len(self.channels)
        if not (fits and low >= 0 and high <= 1):
            raise RequestError(
                f"expected images (B, {len(self.channels)}, {axes}) in [0, 1] with channels "
                f"{', '.join(self.channels)}, got an array of shape {tuple(images.shape)} in "
                f"[{low:g}, {high:g}]; this model segments {self.spatial_dims}-D images"
            )
        if keys is not None and len(keys) != len(images):
            raise RequestError(
                f"this model draws noise: expected one key for each of {len(images)} images, "
                f"got {len(keys)}"
            )
