"""Angiogram renderers: paint drawn vessel trees as X-ray coronary or retinal pictures.

`physics.PhysicsRenderer` needs no training; trained ones offer the same protocol.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Protocol

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from synthgen.core.rng import SampleKey
    from synthgen.core.vessels import Floats, VesselMaps


class AngiogramRenderer(Protocol):
    """Paints vessel maps; sample *i* depends on its own maps and key alone."""

    @property
    def name(self) -> str:
        """What the command line and the manifest call it."""

    @property
    def identity(self) -> Mapping[str, Any]:
        """All that decides the bytes of its images."""

    @property
    def subjects(self) -> tuple[str, ...]:
        """Real subjects that it, or any picture it paints on, saw."""

    def render(self, maps: VesselMaps, keys: Sequence[SampleKey]) -> Floats:
        """Paint a batch.

        Args:
            maps: B drawn vessel trees; what is labelled stays exactly as they say.
            keys: B keys; only they decide the draws.

        Returns:
            float32 `(B, 1, X, Y)` in [0, 1]; exactly 0 outside the field of view.

        Raises:
            RequestError: another number of keys than of trees.
        """
