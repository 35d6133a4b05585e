"""The job that draws vessel trees, paints each as an angiogram and keeps what a gate lets pass."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

import numpy as np

from synthgen.core.errors import SchemaError
from synthgen.core.rng import SampleKey
from synthgen.core.vessels import COVERED
from synthgen.generate.jobs import GenerationSettings, common_identity
from synthgen.generate.vessel_job import tree_rows

if TYPE_CHECKING:
    from collections.abc import Sequence

    from synthgen.core.schema import LabelSchema
    from synthgen.data.shards import Arrays
    from synthgen.generate.gate import Gate
    from synthgen.generate.vessel_job import VesselDrawer
    from synthgen.images.angiogram import AngiogramRenderer


STYLE = "angiogram"
"""Style name of the images, whoever paints them."""


@dataclass(frozen=True)
class AngiogramJob:
    """Draw trees as `VesselJob` does, and paint each.

    The first draw of sample *i* is the tree that a `VesselJob` of the same generator and seed
    draws. The samples of a batch that the gate refuses are drawn again together: which ones these
    are depends on the batch alone, and so do the bytes.

    Attributes:
        generator: draws the trees.
        renderer: paints them.
        gate: looks at the images as stored; None keeps every first draw.
        settings: seed, sizes, threads, worker.
    """

    generator: VesselDrawer
    renderer: AngiogramRenderer
    gate: Gate | None = None
    settings: GenerationSettings = field(default_factory=GenerationSettings)
    kind: str = "angiograms"

    @property
    def schema(self) -> LabelSchema:
        """Label schema of the generator."""
        return self.generator.schema

    @property
    def condition_names(self) -> Sequence[str]:
        """None: trees are not asked for anything."""
        return ()

    @property
    def subjects(self) -> Sequence[str]:
        """Real subjects that the generator, the renderer or the gate's segmenter saw."""
        looked = self.gate.segmenter.subjects if self.gate else ()
        return sorted({*self.generator.subjects, *self.renderer.subjects, *looked})

    @property
    def identity(self) -> dict[str, Any]:
        """Settings, generator, renderer, gate."""
        painted = {f"renderer.{name}": value for name, value in self.renderer.identity.items()}
        both = {**self.generator.identity, **painted}
        return common_identity(self.settings, self.schema, both) | {
            "shape": list(self.generator.shape),
            "styles": [STYLE],
            "gate": self.gate.identity() if self.gate else None,
        }

    def rows(self, batch: range) -> Arrays:
        """Compute one full batch of angiograms with their trees.

        Raises:
            SchemaError: the generator returned no trees, the renderer values out of range, or
                the segmenter no probabilities.
        """
        first = [SampleKey(self.settings.seed, index) for index in batch]
        kept = self._draw(first)
        if self.gate is None:
            return kept
        for attempt in range(1, self.gate.max_attempts):
            refused = np.flatnonzero(~self.gate.passes(kept["gate"]))
            if not refused.size:
                break
            fresh = self._draw([replace(first[row], attempt=attempt) for row in refused])
            better = self.gate.better(fresh["gate"], kept["gate"][refused])
            for name, array in fresh.items():
                kept[name][refused[better]] = array[better]
        return kept

    def _draw(self, keys: Sequence[SampleKey]) -> Arrays:
        """Draw, paint and measure one batch once: arrays as stored."""
        maps = self.generator.draw(keys)
        arrays = tree_rows(maps, keys, self.generator.shape)
        painted = np.asarray(self.renderer.render(maps, keys))
        expected = (len(keys), 1, *self.generator.shape)
        if painted.shape != expected or not ((painted >= 0) & (painted <= 1)).all():
            raise SchemaError(
                f"angiogram renderer, samples from {keys[0].index}: expected finite values in "
                f"[0, 1] of shape {expected}, got {painted.min():g} .. {painted.max():g} of "
                f"{painted.shape}"
            )
        arrays["images"] = painted.astype(np.float16)
        if self.gate is not None:
            images = arrays["images"].astype(np.float32)
            arrays["gate"] = self.gate.measure(images, arrays["pv"][:, 1] >= COVERED)
        return arrays
