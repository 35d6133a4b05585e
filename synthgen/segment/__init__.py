"""Segmenters: find tissues or vessels in images.

A torchvision that cannot be imported is hidden first, so that diffusers loads.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Protocol

from synthgen.torchvision_guard import hide_broken_torchvision

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from torch import Tensor

    from synthgen.core.rng import SampleKey
    from synthgen.core.schema import LabelSchema

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
            images: float32 `(B, 1, *S)` in [0, 1].
            keys: B keys for segmenters that draw; others need none.

        Returns:
            Probabilities, float32 `(B, C, *S)` on the CPU, summing to 1 over C.

        Raises:
            RequestError: images of another form.
        """
