"""Conditions as the network sees them: scaled lesion shares, the rank of the CSF, and position."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt
import torch

from synthgen.core.errors import RequestError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from synthgen.labels import LabelCondition

POSITION, CSF = "position", "csf"
_POSITIONS, _RANKS = 33, 21
_NEAR = 0.03
"""Standard deviation, in slice position, of the weights that make the CSF table."""


@dataclass(frozen=True)
class ConditionScale:
    """Names of the condition values in order, and what scales them to [0, 1].

    A lesion share f becomes `sqrt(f / maximum)`: the root spreads the many small lesions, whose
    sizes would otherwise all lie near 0. The CSF's share of the brain becomes its rank among the
    training slices at the same position, so that ranks drawn uniformly give their population.

    Attributes:
        names: lesions, then `csf` if the model knows it, then `position`.
        maxima: largest share of each lesion in the training data; 1 for the others.
        csf: shares `(P, Q)` of CSF at P evenly spaced positions and Q evenly spaced ranks;
            empty without `csf`.

    Examples:
        >>> from synthgen.labels import LabelCondition
        >>> scale = ConditionScale(("wmh", "position"), (0.16, 1.0))
        >>> scale.encode([LabelCondition({"wmh": 0.04}, 0.5)])
        tensor([[0.5000, 0.5000]])
    """

    names: tuple[str, ...]
    maxima: tuple[float, ...]
    csf: tuple[tuple[float, ...], ...] = ()

    @classmethod
    def measure(
        cls,
        names: Sequence[str],
        fractions: torch.Tensor,
        position: torch.Tensor,
        csf: torch.Tensor,
    ) -> ConditionScale:
        """Measure the scales.

        Args:
            names: of the values; lesions come first.
            fractions: lesion shares `(N, L)`.
            position: slice positions `(N,)`.
            csf: CSF shares `(N,)`.
        """
        maxima = fractions.amax(dim=0).tolist()
        table = _quantiles(position.double().cpu().numpy(), csf.double().cpu().numpy())
        return cls(
            tuple(names),
            (*maxima, *[1.0] * (len(names) - len(maxima))),
            table if CSF in names else (),
        )

    def scale(
        self, fractions: torch.Tensor, position: torch.Tensor, csf: torch.Tensor
    ) -> torch.Tensor:
        """Return the values `(N, K)` of what was measured on N slices.

        Args:
            fractions: lesion shares `(N, L)`.
            position: slice positions `(N,)`.
            csf: CSF shares `(N,)`.
        """
        return self._stacked(fractions, position, self.ranks(position, csf) if self.csf else csf)

    def ranks(self, position: torch.Tensor, csf: torch.Tensor) -> torch.Tensor:
        """Return the ranks `(N,)` of CSF shares `(N,)` at positions `(N,)`."""
        table = np.asarray(self.csf)
        place = np.clip(position.double().cpu().numpy(), 0, 1) * (len(table) - 1)
        low = np.minimum(place.astype(np.int64), len(table) - 2)
        weight = (place - low)[:, None]
        curves = (1 - weight) * table[low] + weight * table[low + 1]  # (N, Q)
        steps = np.linspace(0, 1, table.shape[1])
        shares = csf.double().cpu().numpy()
        ranks = [np.interp(s, curve, steps) for s, curve in zip(shares, curves, strict=True)]
        return torch.as_tensor(np.asarray(ranks), dtype=torch.float32, device=position.device)

    def encode(self, conditions: Sequence[LabelCondition]) -> torch.Tensor:
        """Return the values `(B, K)` of requested conditions.

        Raises:
            RequestError: a lesion that the model does not know or never saw, a CSF rank that it
                does not know or lacks, or a share, rank or position outside [0, 1].
        """
        lesions = [name for name in self.names if name not in (POSITION, CSF)]
        for condition in conditions:
            given = {"slice position": condition.position, "csf rank": condition.csf}
            for what, value in given.items():
                if value is not None and not 0 <= value <= 1:
                    raise RequestError(f"{what}: expected a value in [0, 1], got {value:g}")
            if (condition.csf is None) == (CSF in self.names):
                raise RequestError(
                    "csf rank: the label model needs one"
                    if CSF in self.names
                    else "csf rank: the label model was trained without it; leave it out"
                )
            for name, share in condition.lesions.items():
                self._check(name, share, lesions)
        table = [[c.lesions.get(name, 0.0) for name in lesions] for c in conditions]
        fractions = torch.from_numpy(np.asarray(table, dtype=np.float32)).reshape(-1, len(lesions))
        return self._stacked(
            fractions,
            torch.tensor([c.position for c in conditions]),
            torch.tensor([c.csf or 0.0 for c in conditions]),
        )

    def _stacked(
        self, fractions: torch.Tensor, position: torch.Tensor, ranks: torch.Tensor
    ) -> torch.Tensor:
        others = {POSITION: position, CSF: ranks}
        parts = [
            others[name].float() if name in others else self._scaled(fractions[:, i], i)
            for i, name in enumerate(self.names)
        ]
        return torch.stack(parts, dim=1)

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


def _quantiles(
    position: npt.NDArray[np.float64], csf: npt.NDArray[np.float64]
) -> tuple[tuple[float, ...], ...]:
    """Return CSF shares at 33 positions and 21 ranks, slices weighted by how near they lie."""
    order = np.argsort(csf, kind="stable")
    shares, places = csf[order], position[order]
    table = []
    for place in np.linspace(0, 1, _POSITIONS):
        # Near ends, or where no slice lies, the nearest ones count.
        far = np.abs(places - place)
        weight = np.exp(-0.5 * ((far - far.min()) / _NEAR) ** 2)
        below = (np.cumsum(weight) - 0.5 * weight) / weight.sum()
        curve = np.interp(np.linspace(0, 1, _RANKS), below, shares)
        table.append(tuple(float(v) for v in curve))
    return tuple(table)
