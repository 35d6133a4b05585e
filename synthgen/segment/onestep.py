"""DARL as a segmenter of vessels: one forward pass, no reverse diffusion.

Kim et al. 2023, arXiv:2209.14566. The model folder is the one that paints angiograms: path A of
the same weights. Images are brought to the scale of the training pictures, and masks back.
"""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Any, Self

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from synthgen.core.schema import VESSEL, LabelSchema
from synthgen.data.vessel_images import field_circle, photograph_field
from synthgen.models.darl_inference import PathA, check_images
from synthgen.models.darl_networks import DarlUse, DTypeName, View, load_networks, read_use
from synthgen.segment.use import SegmenterUse

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

    from synthgen.core.rng import SampleKey
    from synthgen.core.vessels import Floats
    from synthgen.models.darl_networks import DarlNetworks

logger = logging.getLogger(__name__)

_DARK = 0.04
"""Grey value of the frame around a round photograph, at most."""


class OneStepSegmenter:
    """Finds vessels; see `synthgen.segment.Segmenter`.

    Args:
        networks: of a trained model, in eval mode.
        use: scale and crop of its training pictures, and how it looks at an image.
        digest: of the model's files.
        subjects: real subjects that it saw.
        view: `whole`, overlapping `tiles` or `polyphase`; None for the model's own way.

    Raises:
        RequestError: tiles whose side the networks cannot take.
    """

    def __init__(
        self,
        networks: DarlNetworks,
        use: DarlUse,
        digest: str,
        subjects: tuple[str, ...],
        *,
        view: View | None = None,
    ) -> None:
        self._dtype = str(next(networks.generator.parameters()).dtype).removeprefix("torch.")
        self._view: View = view or use.segment
        self._path_a = PathA(networks, self._view, use.crop, contrast=use.contrast)
        self._digest, self._subjects = digest, subjects
        self._use = use

    @classmethod
    def load(
        cls,
        folder: Path,
        *,
        device: str = "cpu",
        dtype: DTypeName = "float32",
        view: View | None = None,
    ) -> Self:
        """Load a model folder that `train angiograms` wrote, and check every file of it.

        Raises:
            StoreError: not such a folder, or a missing or damaged file, which is named.
        """
        networks, model = load_networks(folder, device=device, dtype=dtype)
        record = model.record
        return cls(networks, read_use(record), model.digest, tuple(record["subjects"]), view=view)

    @property
    def schema(self) -> LabelSchema:
        """Background and vessel."""
        return VESSEL

    @property
    def use(self) -> SegmenterUse:
        """One channel of pictures at any scale, without windows: `identity` says how it looks."""
        return SegmenterUse(VESSEL.names, False, ("grey",), 2, (), (), 0.0)

    @property
    def identity(self) -> Mapping[str, Any]:
        """Digest of the model, precision, and how it looks at an image."""
        return {"model": self._digest, "dtype": self._dtype, "view": self._view}

    @property
    def subjects(self) -> tuple[str, ...]:
        """Real subjects that it saw."""
        return self._subjects

    def predict(self, images: Tensor, keys: Sequence[SampleKey] = ()) -> Tensor:
        """Return probabilities of background and vessel, float32 `(B, 2, X, Y)`.

        Nothing is drawn: `keys` are not looked at. See `segment`.
        """
        vessel = torch.from_numpy(self.segment(images))
        return torch.cat([1 - vessel, vessel], dim=1)

    def segment(self, images: Floats | Tensor) -> Floats:
        """Return the probability of vessel, float32 `(B, 1, X, Y)` in [0, 1].

        An image is resized so that its longer side, or its round field of view, has the size of
        the training pictures', if these were resized. Sides that the networks cannot take are
        mirrored at the edge; the log says so once.

        Args:
            images: `(B, 1, X, Y)` in [0, 1], of any scale.

        Raises:
            RequestError: not single-channel, not in [0, 1], or too small.
        """
        batch = torch.as_tensor(images)
        check_images(batch)
        return np.concatenate([self._one(image[None].float()) for image in batch])

    def _one(self, image: Tensor) -> Floats:
        """Segment one image `(1, 1, X, Y)`."""
        shape = tuple(image.shape[-2:])
        factor = self._factor(image[0, 0].numpy())
        scaled = image
        if factor != 1:
            size = [max(1, round(side * factor)) for side in shape]
            scaled = functional.interpolate(image, size, mode="bilinear", antialias=True)
        found = self._path_a(scaled.clamp(0, 1))
        if factor != 1:
            found = functional.interpolate(found, shape, mode="bilinear")
        result: Floats = found.numpy()
        return result

    def _factor(self, image: Floats) -> float:
        """Return what brings an image to the scale of the training pictures."""
        if self._use.side is not None:
            return float(self._use.side / max(image.shape))
        if self._use.field_diameter is None:
            return 1.0
        seen = photograph_field((image > _DARK).astype(np.float32))
        radius = float(field_circle(seen)[2])
        if radius == 0:
            logger.info("no round field of view in an image: it is taken at its own scale")
            return 1.0
        return float(self._use.field_diameter / (2 * radius))
