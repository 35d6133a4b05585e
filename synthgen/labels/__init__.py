"""Label generators: what they are asked for, and how a trained one is loaded.

A torchvision that cannot be imported is hidden first, so that diffusers loads.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, Protocol

from synthgen.core.errors import RequestError
from synthgen.core.rng import SampleKey, Stream
from synthgen.torchvision_guard import hide_broken_torchvision

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

    from torch import Tensor

    from synthgen.core.schema import LabelSchema

hide_broken_torchvision()

Sampler = Literal["dpm", "ddim", "unipc", "ddpm", "euler", "distilled"]


@dataclass(frozen=True)
class LabelCondition:
    """What one label map should show.

    Attributes:
        lesions: lesion name to its share of the brain in the slice; lesions left out are 0.
        position: place in the brain, 0 at the foot, 1 at the top.
        csf: rank of the CSF's share of the brain among the training slices at that place, 0 for
            the least CSF, 1 for the most, as atrophy widens ventricles and sulci; None for a
            model that does not know it.
    """

    lesions: Mapping[str, float]
    position: float
    csf: float | None = None


@dataclass(frozen=True)
class ConditionRange:
    """Ranges that conditions are drawn from, uniformly.

    Attributes:
        lesions: lesion name to the lowest and highest share of the brain, in [0, 1].
        position: lowest and highest slice position, in [0, 1].
        csf: lowest and highest rank of the CSF's share, in [0, 1]; the whole range is the
            population of the training data. None for a model that does not know it.

    Examples:
        >>> wanted = ConditionRange({"wmh": (0.01, 0.05)}, (0.3, 0.7))
        >>> condition = wanted.draw(SampleKey(0, 3))
        >>> 0.01 <= condition.lesions["wmh"] <= 0.05 and 0.3 <= condition.position <= 0.7
        True
    """

    lesions: Mapping[str, tuple[float, float]]
    position: tuple[float, float]
    csf: tuple[float, float] | None = None

    def __post_init__(self) -> None:
        rank = {} if self.csf is None else {"csf rank": self.csf}
        for name, (low, high) in {
            **self.lesions,
            "slice position": self.position,
            **rank,
        }.items():
            if not 0 <= low <= high <= 1:
                raise RequestError(
                    f"range of {name}: expected 0 <= low <= high <= 1, got {low:g}:{high:g}"
                )

    def draw(self, key: SampleKey) -> LabelCondition:
        """Draw the condition of one sample; a pure function of its key."""
        rng = key.numpy(Stream.CONDITION)
        position = float(rng.uniform(*self.position))
        # Sorted, so that the order in which lesions were named changes nothing.
        lesions = {name: float(rng.uniform(*self.lesions[name])) for name in sorted(self.lesions)}
        return LabelCondition(
            lesions, position, None if self.csf is None else float(rng.uniform(*self.csf))
        )


class LabelGenerator(Protocol):
    """Draws partial-volume maps; sample *i* depends on its key and condition alone."""

    @property
    def schema(self) -> LabelSchema:
        """The label schema of the maps."""

    @property
    def shape(self) -> tuple[int, int]:
        """Size (X, Y) of the maps."""

    @property
    def conditions(self) -> ConditionRange:
        """Ranges of the training data; lesions that it never saw are left out."""

    @property
    def identity(self) -> dict[str, Any]:
        """All that decides the bytes of its maps: model hash, sampler, steps, guidance, dtype."""

    @property
    def subjects(self) -> tuple[str, ...]:
        """Real subjects that the model saw."""

    def sample(self, keys: Sequence[SampleKey], conditions: Sequence[LabelCondition]) -> Tensor:
        """Draw a batch.

        Args:
            keys: B keys; only they decide the draws.
            conditions: B conditions.

        Returns:
            float32 `(B, C, X, Y)` on the CPU, in [0, 1], summing to 1 over C.

        Raises:
            RequestError: a lesion that the schema has not, or that the model never saw.
        """


def load_label_generator(
    model: Path,
    *,
    sampler: Sampler | None = None,
    steps: int | None = None,
    guidance: float | None = None,
    device: str = "cpu",
    dtype: Literal["fp32", "bf16"] = "fp32",
) -> LabelGenerator:
    """Load a trained label generator from its model folder.

    Args:
        model: the folder that `train labels` wrote.
        sampler: None for the one of the model's recipe.
        steps: sampling steps; None as in the recipe.
        guidance: strength of classifier-free guidance, 1 for none; None as in the recipe.
        device: a torch device.
        dtype: precision of the networks.

    Raises:
        StoreError: the folder is no such model, or a file is missing or damaged.
        RequestError: a sampler that does not fit the model, a device that is absent.
    """
    # Imported here, so that conditions can be checked without torch.
    from synthgen.labels.generator import DiffusionLabelGenerator  # noqa: PLC0415

    return DiffusionLabelGenerator.load(
        model, sampler=sampler, steps=steps, guidance=guidance, device=device, dtype=dtype
    )
