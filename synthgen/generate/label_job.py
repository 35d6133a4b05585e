"""The job that draws label maps."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from synthgen.core.errors import RequestError, SchemaError, StoreError
from synthgen.core.rng import SampleKey
from synthgen.data.shards import Arrays, Shards, shard_path
from synthgen.data.tissue import quantize_batch
from synthgen.generate.acceptance import Acceptance
from synthgen.generate.jobs import GenerationSettings, common_identity

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from synthgen.core.schema import LabelSchema
    from synthgen.labels import ConditionRange, LabelCondition, LabelGenerator


@dataclass(frozen=True)
class LabelJob:
    """Draw label maps from a generator, under conditions drawn from ranges.

    The maps of a batch that miss their lesion request are drawn again together: which ones these
    are depends on the batch alone, and so do the bytes. Samples in `first_attempts` (index to the
    first attempt allowed, at least 1) were refused later, by an audit. Each is drawn alone and
    left where it was for the rest of its batch, so that it changes no byte of another sample.
    """

    generator: LabelGenerator
    conditions: ConditionRange
    settings: GenerationSettings = field(default_factory=GenerationSettings)
    acceptance: Acceptance = field(default_factory=Acceptance)
    first_attempts: Mapping[int, int] = field(default_factory=dict)
    kind: str = "labels"

    def __post_init__(self) -> None:
        lesions = self.generator.schema.lesions
        for name in self.conditions.lesions:
            if name not in lesions:
                raise RequestError(
                    f"unknown lesion '{name}'; the model's labels have {', '.join(lesions)}"
                )

    @property
    def schema(self) -> LabelSchema:
        """Label schema of the generator."""
        return self.generator.schema

    @property
    def condition_names(self) -> Sequence[str]:
        """Lesions, position, and the CSF rank if there is one."""
        rank = () if self.conditions.csf is None else ("csf",)
        return (*self.schema.lesions, "position", *rank)

    @property
    def subjects(self) -> Sequence[str]:
        """Real subjects that the generator saw."""
        return sorted(self.generator.subjects)

    @property
    def identity(self) -> dict[str, Any]:
        """Settings, generator, condition ranges and what was drawn anew."""
        conditions = {name: list(ends) for name, ends in self.conditions.lesions.items()}
        if self.conditions.csf is not None:
            conditions["csf"] = list(self.conditions.csf)
        redrawn = {str(index): self.first_attempts[index] for index in sorted(self.first_attempts)}
        return common_identity(self.settings, self.schema, self.generator.identity) | {
            "shape": list(self.generator.shape),
            "conditions": conditions | {"position": list(self.conditions.position)},
            "acceptance": self.acceptance.identity(),
            **({"first_attempts": redrawn} if redrawn else {}),
        }

    def rows(self, batch: range) -> Arrays:
        """Compute one full batch of label maps.

        Raises:
            SchemaError: the generator returned something that is no PV map.
        """
        arrays = self._accepted(batch, 0)
        for index in self.first_attempts.keys() & set(batch):
            for name, row in self.redraw(index).items():
                arrays[name][index - batch.start] = row
        return arrays

    def redraw(self, index: int) -> Arrays:
        """Draw one sample of `first_attempts`: arrays as stored, without the batch axis.

        Raises:
            SchemaError: the generator returned something that is no PV map.
        """
        drawn = self._accepted(range(index, index + 1), self.first_attempts[index])
        return {name: array[0] for name, array in drawn.items()}

    def _accepted(self, batch: range, start: int) -> Arrays:
        """Draw a batch at attempt `start`, and again what misses its request."""
        first = [SampleKey(self.settings.seed, index) for index in batch]
        wanted = [self.conditions.draw(key) for key in first]
        lesions = self.schema.lesions
        condition = np.asarray(
            [
                [
                    *(c.lesions.get(name, 0.0) for name in lesions),
                    c.position,
                    *(() if c.csf is None else (c.csf,)),
                ]
                for c in wanted
            ],
            dtype=np.float32,
        )
        asked = condition[:, : len(lesions)]
        kept = self._draw([replace(key, attempt=start) for key in first], wanted)
        for attempt in range(start + 1, start + self.acceptance.max_attempts):
            missed = np.flatnonzero(~self.meets(asked, kept["realised"]))
            if not missed.size:
                break
            again = [replace(first[row], attempt=attempt) for row in missed]
            fresh = self._draw(again, [wanted[row] for row in missed])
            nearer = self.acceptance.nearer(
                asked[missed][:, self._seen],
                fresh["realised"][:, self._seen],
                kept["realised"][missed][:, self._seen],
            )
            for name, array in fresh.items():
                kept[name][missed[nearer]] = array[nearer]
        return {
            **kept,
            "index": np.arange(batch.start, batch.stop, dtype=np.int64),
            "condition": condition,
        }

    def meets(
        self, asked: npt.NDArray[np.float32], realised: npt.NDArray[np.float32]
    ) -> npt.NDArray[np.bool_]:
        """Return which of B maps meet their request, for shares `(B, L)` of all lesions.

        Lesions that the generator never saw do not count: it cannot draw them.
        """
        return self.acceptance.meets(asked[:, self._seen], realised[:, self._seen])

    @property
    def _seen(self) -> list[int]:
        """Which lesions the generator saw in training."""
        seen = self.generator.conditions.lesions
        return [i for i, name in enumerate(self.schema.lesions) if name in seen]

    def _draw(self, keys: Sequence[SampleKey], wanted: Sequence[LabelCondition]) -> Arrays:
        """Draw one batch once: maps as stored, their lesion shares, and the attempt."""
        drawn = self.generator.sample(keys, wanted).numpy()
        expected = (len(keys), self.schema.channels, *self.generator.shape)
        if drawn.shape != expected:
            raise SchemaError(
                f"label generator: expected an array of shape {expected}, got {drawn.shape}"
            )
        try:
            pv = quantize_batch(drawn)
        except SchemaError as error:
            raise SchemaError(f"label generator, samples from {keys[0].index}: {error}") from error
        return {
            "pv": pv,
            "attempt": np.asarray([key.attempt for key in keys], dtype=np.int64),
            "realised": np.stack([_lesion_fractions(self.schema, row) for row in pv]),
        }


def require_complete_labels(shards: Shards) -> None:
    """Refuse what is no complete dataset of labels.

    Raises:
        RequestError: a dataset of another kind.
        StoreError: shards are missing.
    """
    if shards.manifest.kind != "labels":
        raise RequestError(
            f"{shards.folder} holds {shards.manifest.kind}; --labels wants a dataset of labels"
        )
    missing = shards.missing()
    if missing:
        raise StoreError(
            f"{shards.folder}: {len(missing)} of {shards.plan.num_shards} shards are missing "
            f"(first {shard_path(shards.folder, missing[0]).name}); run the `synthgen labels` "
            "command that makes it again to complete it"
        )


def _lesion_fractions(schema: LabelSchema, pv: npt.NDArray[np.uint8]) -> npt.NDArray[np.float32]:
    return schema.fractions(pv)[list(schema.lesion_channels)].astype(np.float32)
