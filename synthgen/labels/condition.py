"""Conditions as the network sees them: lesion shares scaled by the data's maximum, and position."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch

from synthgen.core.errors import RequestError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from synthgen.labels import LabelCondition

POSITION = "position"


@dataclass(frozen=True)
class ConditionScale:
    """Names of the condition values in order, and the largest lesion shares of the training data.

    A lesion share f becomes `sqrt(f / maximum)`: the root spreads the many small lesions, whose
    sizes would otherwise all lie near 0.

    Examples:
        >>> from synthgen.labels import LabelCondition
        >>> scale = ConditionScale(("wmh", "position"), (0.16, 1.0))
        >>> scale.encode([LabelCondition({"wmh": 0.04}, 0.5)])
        tensor([[0.5000, 0.5000]])
    """

    names: tuple[str, ...]
    maxima: tuple[float, ...]

    @classmethod
    def measure(cls, names: Sequence[str], fractions: torch.Tensor) -> ConditionScale:
        """Measure the maxima over lesion shares `(N, L)`; lesions come first in `names`."""
        maxima = fractions.amax(dim=0).tolist()
        return cls(tuple(names), (*maxima, *[1.0] * (len(names) - len(maxima))))

    def scale(self, fractions: torch.Tensor, position: torch.Tensor) -> torch.Tensor:
        """Return the values `(N, K)` of measured shares `(N, L)` and positions `(N,)`."""
        parts = [
            position.float() if name == POSITION else self._scaled(fractions[:, i], i)
            for i, name in enumerate(self.names)
        ]
        return torch.stack(parts, dim=1)

    def encode(self, conditions: Sequence[LabelCondition]) -> torch.Tensor:
        """Return the values `(B, K)` of requested conditions.

        Raises:
            RequestError: a lesion that the model does not know or never saw, or a share or
                position outside [0, 1].
        """
        lesions = [name for name in self.names if name != POSITION]
        for condition in conditions:
            if not 0 <= condition.position <= 1:
                raise RequestError(
                    f"slice position: expected a value in [0, 1], got {condition.position:g}"
                )
            for name, share in condition.lesions.items():
                self._check(name, share, lesions)
        table = [[c.lesions.get(name, 0.0) for name in lesions] for c in conditions]
        fractions = torch.from_numpy(np.asarray(table, dtype=np.float32)).reshape(-1, len(lesions))
        return self.scale(fractions, torch.tensor([c.position for c in conditions]))

    def _check(self, name: str, share: float, lesions: Sequence[str]) -> None:
        if name not in lesions:
            known = ", ".join(lesions) or "none"
            raise RequestError(f"the label model knows no lesion '{name}'; it knows {known}")
        if not 0 <= share <= 1:
            raise RequestError(f"lesion '{name}': expected a share in [0, 1], got {share:g}")
        if share > 0 and self.maxima[self.names.index(name)] <= 0:
            seen = [n for n in lesions if self.maxima[self.names.index(n)] > 0]
            raise RequestError(
                f"the label model saw no '{name}' in its training data, so it cannot make any; "
                f"it saw {', '.join(seen) or 'no lesions'}"
            )

    def _scaled(self, fractions: torch.Tensor, index: int) -> torch.Tensor:
        maximum = self.maxima[index]
        if maximum <= 0:
            return torch.zeros_like(fractions, dtype=torch.float32)
        return (fractions.float() / maximum).sqrt()
