"""Which drawn label maps are kept: those that show the lesions they were asked for.

A diffusion model meets a request on average, not each time. A map that misses it is drawn again
under the same condition from the sample's next key, so that sample *i* stays a pure function of
(model, seed, *i*): its first draw that meets the request, or the nearest one of them all.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from synthgen.core.errors import RequestError

if TYPE_CHECKING:
    from typing import Any

Shares = npt.NDArray[np.float32]
PRESENT = 1e-3
"""Below this share of the brain, a lesion that nobody asked for is haze: no pixel is mostly it."""


@dataclass(frozen=True)
class Acceptance:
    """When a map meets its lesion request.

    Attributes:
        max_attempts: draws at most; 1 keeps each first draw.
        factor: the realised share may be this many times the requested one, or this fraction.
        slack: and miss by this share of the brain on top.

    Examples:
        >>> wanted, made = np.asarray([[0.02], [0.02], [0.0]]), np.asarray([[0.03], [0.0], [0.0]])
        >>> Acceptance().meets(wanted, made).tolist()
        [True, False, True]
    """

    max_attempts: int = 4
    factor: float = 1.5
    slack: float = 0.002

    def __post_init__(self) -> None:
        if self.max_attempts < 1:
            raise RequestError(f"max-attempts must be at least 1, got {self.max_attempts}")
        if not (1 <= self.factor < float("inf") and self.slack > 0):
            raise RequestError(
                "acceptance: expected a factor of at least 1 and a slack above 0, "
                f"got {self.factor:g} and {self.slack:g}"
            )

    def meets(self, wanted: Shares, realised: Shares) -> npt.NDArray[np.bool_]:
        """Return which of B maps show the lesions asked for, and no others.

        Args:
            wanted: shares of the brain `(B, L)`.
            realised: shares of the brain `(B, L)`.
        """
        low = np.maximum(wanted / self.factor - self.slack, np.minimum(wanted, PRESENT) / 2)
        high = wanted * self.factor + self.slack
        present = (realised >= low) & (realised <= high)
        return np.asarray(np.where(wanted > 0, present, realised < PRESENT).all(axis=1))

    def nearer(self, wanted: Shares, fresh: Shares, kept: Shares) -> npt.NDArray[np.bool_]:
        """Return which of B fresh draws meet the request, or miss it by less than the kept ones."""
        closer = self._miss(wanted, fresh) < self._miss(wanted, kept)
        return np.asarray(self.meets(wanted, fresh) | closer)

    def _miss(self, wanted: Shares, realised: Shares) -> npt.NDArray[np.float64]:
        """Return how far each map is from its request: the largest log ratio over lesions."""
        ratio = (realised.astype(np.float64) + self.slack) / (wanted + self.slack)
        miss: npt.NDArray[np.float64] = np.abs(np.log(ratio)).max(axis=1, initial=0.0)
        return miss

    def identity(self) -> dict[str, Any]:
        """Return the settings; they decide the bytes."""
        return asdict(self)
