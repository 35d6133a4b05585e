"""Procedural vessel trees: labels without a photograph, an annotator or a trained model.

Space colonisation grows a skeleton, Murray's law gives it radii, a view puts it on the picture,
an annotator's cut decides what is labelled, and exact capsules draw it. `ssvs` is the historical
baseline of warped rectangles.
"""

from __future__ import annotations

from dataclasses import asdict
from functools import cached_property
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any, Literal, get_args

import numpy as np

from synthgen.core.errors import RequestError
from synthgen.core.manifest import digest
from synthgen.core.rng import SampleKey, Stream
from synthgen.core.schema import VESSEL, LabelSchema
from synthgen.core.vessels import VesselMaps
from synthgen.labels.vessels import growth, raster
from synthgen.labels.vessels.coronary import coronary_tree
from synthgen.labels.vessels.maps import EXTRAS, draw_extras
from synthgen.labels.vessels.presets import PRESETS, Coronary, Retina, Ssvs
from synthgen.labels.vessels.retina import retina_tree
from synthgen.labels.vessels.ssvs import draw_ssvs
from synthgen.labels.vessels.tree import VesselTree, graph

if TYPE_CHECKING:
    from collections.abc import Sequence

    import numpy.typing as npt

    from synthgen.labels.vessels.growth import Grow
    from synthgen.labels.vessels.raster import Draw

__all__ = ["EXTRAS", "Preset", "VesselGenerator", "VesselTree", "graph"]

Preset = Literal["coronary", "retina", "ssvs"]
SMALLEST = 32


class VesselGenerator:
    """Draws vessel trees; sample *i* depends on its key alone.

    Args:
        preset: "coronary", "retina" or "ssvs".
        shape: (X, Y) of the maps; widths and lengths scale with the smaller side.
        accelerate: True for numba, False for NumPy, None for numba where it is installed. Both
            draw the same trees, bit by bit.

    Raises:
        RequestError: an unknown preset, a shape that is too small, or numba asked for but absent.

    Examples:
        >>> generator = VesselGenerator("coronary", (64, 64), accelerate=False)
        >>> maps = generator.draw([SampleKey(0, 0), SampleKey(0, 1)])
        >>> maps.coverage.shape, bool(maps.mask.any())
        ((2, 64, 64), True)
    """

    def __init__(
        self,
        preset: Preset,
        shape: tuple[int, int] = (512, 512),
        accelerate: bool | None = None,
    ) -> None:
        if preset not in get_args(Preset):
            raise RequestError(
                f"vessel preset: expected one of {', '.join(get_args(Preset))}, got '{preset}'"
            )
        if len(shape) != 2 or min(shape) < SMALLEST:
            raise RequestError(
                f"shape of vessel maps: expected two sides of at least {SMALLEST}, got {shape}"
            )
        self.preset = preset
        self._shape = (int(shape[0]), int(shape[1]))
        self._numbers = PRESETS[preset]
        self._grow, self._draw = _loops(accelerate)

    @property
    def schema(self) -> LabelSchema:
        """The schema `vessel`."""
        return VESSEL

    @property
    def shape(self) -> tuple[int, int]:
        """Size (X, Y) of the maps."""
        return self._shape

    @cached_property
    def identity(self) -> dict[str, Any]:
        """All that decides the maps beside the keys."""
        return {
            "preset": self.preset,
            "numbers": digest(asdict(self._numbers)),
            "shape": list(self._shape),
        }

    @property
    def subjects(self) -> tuple[str, ...]:
        """No real subject was seen: the presets were fitted by statistics alone."""
        return ()

    def tree(self, key: SampleKey) -> VesselTree:
        """Draw one tree.

        Raises:
            RequestError: the preset is "ssvs", whose masks have no tree.
        """
        rng = key.numpy(Stream.VESSEL)
        match self._numbers:
            case Coronary():
                return coronary_tree(self._numbers, self._shape, rng, self._grow)
            case Retina():
                return retina_tree(self._numbers, self._shape, rng, self._grow)
            case Ssvs():
                raise RequestError(
                    "ssvs masks are warped rectangles without a tree; "
                    "choose the preset 'coronary' or 'retina'"
                )

    def draw(self, keys: Sequence[SampleKey]) -> VesselMaps:
        """Draw a batch of maps.

        Args:
            keys: B keys; only they decide the draws.
        """
        size = (len(keys), *self._shape)
        coverage, path, hidden, vein = (np.zeros(size, np.float32) for _ in range(4))
        circles = np.zeros((2, len(keys), 3), np.float32)
        for b, key in enumerate(keys):
            if isinstance(self._numbers, Ssvs):
                rng = key.numpy(Stream.VESSEL)
                coverage[b], path[b] = draw_ssvs(self._numbers, self._shape, rng)
                continue
            tree = self.tree(key)
            self._draw(raster.Edges.of(tree), coverage[b], path[b], hidden[b], vein[b])
            circles[:, b] = tree.disc, tree.field
        return VesselMaps(coverage, path, hidden, vein, *circles)

    def extras(
        self, keys: Sequence[SampleKey], names: Sequence[str]
    ) -> dict[str, npt.NDArray[Any]]:
        """Draw further maps `(B, X, Y)` of the labelled vessels, by name.

        Args:
            keys: B keys.
            names: of `EXTRAS`: "centreline" uint8, "path_length" float16 in pixels, "radius"
                float16 in pixels, "branches" int16 (number of the branch from 1), "bifurcations"
                uint8; zero off the vessels.

        Raises:
            RequestError: an unknown name, or the preset "ssvs".
        """
        return draw_extras([self.tree(key) for key in keys], names, self._shape)


def _loops(accelerate: bool | None) -> tuple[Grow, Draw]:
    """The growth and drawing loops: numba's or NumPy's."""
    installed = find_spec("numba") is not None
    if accelerate and not installed:
        raise RequestError(
            "accelerate=True needs numba, which is not installed; "
            "run `pip install synthgen[numba]` or leave `accelerate` out"
        )
    if accelerate is False or not installed:
        return growth.grow, raster.draw
    from synthgen.labels.vessels import accelerated  # noqa: PLC0415 - numba is optional

    return accelerated.grow, accelerated.draw
