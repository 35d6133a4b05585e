"""Segmenters: find tissues or vessels in images.

A torchvision that cannot be imported is hidden first, so that diffusers loads.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Protocol

from synthgen.core.errors import StoreError
from synthgen.core.model_folder import RECORD, read_record
from synthgen.torchvision_guard import hide_broken_torchvision

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

    from torch import Tensor

    from synthgen.core.rng import SampleKey
    from synthgen.core.schema import LabelSchema
    from synthgen.models.darl_networks import DTypeName
    from synthgen.segment.use import SegmenterUse

hide_broken_torchvision()


class Segmenter(Protocol):
    """Finds the tissues of a schema; sample *i* depends on its own image and key alone."""

    @property
    def schema(self) -> LabelSchema:
        """The label schema of what it finds."""

    @property
    def identity(self) -> Mapping[str, Any]:
        """All that decides what it finds."""

    @property
    def subjects(self) -> tuple[str, ...]:
        """Real subjects that it saw; it must not be judged on them."""

    def predict(self, images: Tensor, keys: Sequence[SampleKey] = ()) -> Tensor:
        """Segment a batch.

        Args:
            images: float32 `(B, Ci, *S)` in [0, 1].
            keys: B keys for segmenters that draw; others need none.

        Returns:
            Probabilities, float32 `(B, C, *S)` on the CPU, summing to 1 over C unless tissues
            overlap.

        Raises:
            RequestError: images of another form.
        """


class TrainedSegmenter(Segmenter, Protocol):
    """A segmenter out of a model folder."""

    @property
    def use(self) -> SegmenterUse:
        """The images that it takes, and the tissues that it finds."""


def load_segmenter(
    folder: Path, *, device: str = "cpu", dtype: DTypeName = "float32"
) -> TrainedSegmenter:
    """Load a model folder of `train angiograms`, `train imgx` or `train hidiff`, by its kind.

    Raises:
        StoreError: no such folder, one of another kind, or a file that is missing or damaged.
    """
    kind = read_record(folder)["kind"]
    # Each takes seconds to import.
    if kind == "angiograms":
        from synthgen.segment.onestep import OneStepSegmenter  # noqa: PLC0415

        return OneStepSegmenter.load(folder, device=device, dtype=dtype)
    if kind == "imgx":
        from synthgen.segment.imgx import ImgXSegmenter  # noqa: PLC0415

        return ImgXSegmenter.load(folder, device=device, dtype=dtype)
    if kind == "hidiff":
        from synthgen.segment.hidiff import HiDiffSegmenter  # noqa: PLC0415

        return HiDiffSegmenter.load(folder, device=device, dtype=dtype)
    raise StoreError(
        f"{folder / RECORD}: a model of kind '{kind}' segments nothing; expected one that "
        "`synthgen train angiograms`, `imgx` or `hidiff` wrote"
    )
