"""Image generators: paint label maps in a style.

A torchvision that cannot be imported is hidden first, so that diffusers loads.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, Protocol

from synthgen.torchvision_guard import hide_broken_torchvision

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

    from torch import Tensor

    from synthgen.core.rng import SampleKey
    from synthgen.core.schema import LabelSchema

hide_broken_torchvision()


@dataclass(frozen=True)
class Style:
    """What `--style oasis_flair` names.

    Attributes:
        name: `{dataset}_{modality}`.
        dataset: lower-case slug of the data set.
        modality: lower-case modality, such as "t1".
        source: "fitted" on images of that data set, or "simulated" from its protocol.
        digest: of a workspace style's file; empty for a style of the model itself.
        subjects: real subjects that a workspace style was fitted on.

    Examples:
        >>> Style("oasis_flair", "oasis", "flair", "fitted").modality
        'flair'
    """

    name: str
    dataset: str
    modality: str
    source: Literal["fitted", "simulated"]
    digest: str = ""
    subjects: tuple[str, ...] = ()


class ImageGenerator(Protocol):
    """Paints partial-volume maps; sample *i* depends on its own map and key alone."""

    @property
    def schema(self) -> LabelSchema:
        """The label schema of the maps it paints."""

    @property
    def styles(self) -> tuple[Style, ...]:
        """The styles it knows."""

    @property
    def identity(self) -> Mapping[str, Any]:
        """All that decides the bytes of its images: model hash, precision."""

    @property
    def subjects(self) -> tuple[str, ...]:
        """Real subjects that it, or any model it was made from, saw."""

    def render(self, pv: Tensor, styles: Sequence[str], keys: Sequence[SampleKey]) -> Tensor:
        """Paint a batch.

        Args:
            pv: float32 `(B, C, X, Y)` in [0, 1], summing to 1 over C.
            styles: M style names.
            keys: B keys; only they decide the draws.

        Returns:
            float32 `(B, M, X, Y)` in [0, 1] on the CPU, exactly 0 where background pv > 0.5.

        Raises:
            RequestError: an unknown style; the message lists the known ones.
            SchemaError: maps of another number of channels.
        """


def load_image_generator(
    model: Path,
    *,
    device: str = "cpu",
    dtype: Literal["float32", "bfloat16"] = "float32",
    styles: Sequence[Path] = (),
) -> ImageGenerator:
    """Load a trained image generator. See `synthgen.images.spade.SpadePipeline.load`.

    Args:
        model: the folder that `train images` wrote.
        device: a torch device.
        dtype: precision of the networks.
        styles: files that `synthgen styles add` wrote, for this model.

    Raises:
        StoreError: a missing or damaged file, which is named.
        RequestError: a style of another model.
    """
    # They import this package, and diffusers takes seconds.
    from synthgen.images.spade import SpadePipeline  # noqa: PLC0415
    from synthgen.images.workspace_styles import read_style  # noqa: PLC0415

    pipeline = SpadePipeline.load(model, device=device, dtype=dtype)
    return pipeline.with_styles([read_style(path) for path in styles])
