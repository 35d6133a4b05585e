"""What the engine runs: jobs that turn sample indices into rows of arrays.

The sums inside a convolution depend, in the last bits, on how many threads share it; the number
of threads is therefore part of a dataset's identity, beside seed, batch size and shard size, with
a default that does not look at the machine. A CPU with many cores is filled by several workers.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, Protocol, runtime_checkable

import numpy as np
import numpy.typing as npt
import torch

from synthgen.core.errors import RequestError, SchemaError, StoreError
from synthgen.core.manifest import canonical_json
from synthgen.core.plan import ShardPlan
from synthgen.core.rng import SampleKey
from synthgen.data.shards import Arrays, Shards, dataset_digest, shard_path
from synthgen.data.tissue import quantize_pv
from synthgen.generate.acceptance import Acceptance

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from synthgen.core.schema import LabelSchema
    from synthgen.images import ImageGenerator, Style
    from synthgen.labels import ConditionRange, LabelCondition, LabelGenerator

DEFAULT_THREADS = 1


@dataclass(frozen=True)
class GenerationSettings:
    """How to generate. All but `repair`, `worker` and `num_workers` belong to the identity.

    Attributes:
        seed: seed of the dataset.
        batch_size: samples computed at once; the last batch is padded.
        shard_size: samples in one file; a multiple of `batch_size`.
        threads: CPU threads that one worker computes with.
        repair: regenerate shards whose checksum is wrong, instead of refusing them.
        worker: rank of this worker.
        num_workers: how many workers share the dataset.
    """

    seed: int = 0
    batch_size: int = 8
    shard_size: int = 64
    threads: int = DEFAULT_THREADS
    repair: bool = False
    worker: int = 0
    num_workers: int = 1

    def __post_init__(self) -> None:
        if self.threads < 1:
            raise RequestError(f"threads must be at least 1, got {self.threads}")

    def plan(self, n: int) -> ShardPlan:
        """Return the plan of n samples."""
        return ShardPlan(n, self.shard_size, self.batch_size)

    def identity(self) -> dict[str, Any]:
        """Return the settings that decide the bytes."""
        return {
            "seed": self.seed,
            "batch_size": self.batch_size,
            "shard_size": self.shard_size,
            "threads": self.threads,
        }


@runtime_checkable
class _OpenStyles(Protocol):
    """An image generator that makes a style from any name of the right form."""

    def style(self, name: str) -> Style:
        """Return the style of a name, or raise RequestError."""


class Job(Protocol):
    """What the engine runs: rows of arrays from sample indices."""

    @property
    def kind(self) -> str:
        """Either "labels" or "images"."""

    @property
    def schema(self) -> LabelSchema:
        """Label schema of the PV channels."""

    @property
    def settings(self) -> GenerationSettings:
        """Seed, sizes, threads, worker."""

    @property
    def identity(self) -> dict[str, Any]:
        """All that decides the bytes, JSON-able."""

    @property
    def subjects(self) -> Sequence[str]:
        """Real subjects that any ancestor model saw."""

    def rows(self, batch: range) -> Arrays:
        """Compute one full batch: arrays as stored, one row for each index."""


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
    def subjects(self) -> Sequence[str]:
        """Real subjects that the generator saw."""
        return sorted(self.generator.subjects)

    @property
    def identity(self) -> dict[str, Any]:
        """Settings, generator, condition ranges and what was drawn anew."""
        conditions = {name: list(ends) for name, ends in self.conditions.lesions.items()}
        redrawn = {str(index): self.first_attempts[index] for index in sorted(self.first_attempts)}
        return _identity(self.settings, self.schema, self.generator.identity) | {
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
            [[*(c.lesions.get(name, 0.0) for name in lesions), c.position] for c in wanted],
            dtype=np.float32,
        )
        asked = condition[:, :-1]
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
            pv = np.ascontiguousarray(quantize_pv(drawn.swapaxes(0, 1)).swapaxes(0, 1))
        except SchemaError as error:
            raise SchemaError(f"label generator, samples from {keys[0].index}: {error}") from error
        return {
            "pv": pv,
            "attempt": np.asarray([key.attempt for key in keys], dtype=np.int64),
            "realised": np.stack([_lesion_fractions(self.schema, row) for row in pv]),
        }


@dataclass(frozen=True)
class ImageJob:
    """Paint a dataset of labels: sample i is take `i % per_label` of label `i // per_label`.

    Attributes:
        generator: paints the maps.
        styles: style names, one image each.
        n: number of samples that have a label; indices past it only pad a batch.
        fetch: gives label rows, as stored, for label indices.
        labels: digest of the dataset of labels.
        ancestors: real subjects behind the labels.
        per_label: images made from one label.
        settings: seed, sizes, threads, worker.
    """

    generator: ImageGenerator
    styles: Sequence[str]
    n: int
    fetch: Callable[[Sequence[int]], Arrays]
    labels: str
    ancestors: Sequence[str] = ()
    per_label: int = 1
    settings: GenerationSettings = field(default_factory=GenerationSettings)
    kind: str = "images"

    def __post_init__(self) -> None:
        if not self.styles:
            known = ", ".join(style.name for style in self.generator.styles)
            raise RequestError(f"no style was asked for; there are {known}")
        for name in self.styles:
            _require_style(self.generator, name)
        if len(set(self.styles)) != len(self.styles):
            raise RequestError(f"a style stands twice: {', '.join(self.styles)}")
        if self.per_label < 1:
            raise RequestError(f"per-label must be at least 1, got {self.per_label}")

    @classmethod
    def of(
        cls,
        generator: ImageGenerator,
        labels: Shards,
        styles: Sequence[str],
        *,
        per_label: int = 1,
        settings: GenerationSettings | None = None,
    ) -> ImageJob:
        """Paint every map of a complete dataset of labels.

        Raises:
            StoreError: shards of the labels are missing.
            SchemaError: the generator paints maps of another schema.
            RequestError: no dataset of labels, an unknown style, a number below 1.
        """
        require_complete_labels(labels)
        generator.schema.require_same(labels.schema, str(labels.folder))
        return cls(
            generator,
            tuple(styles),
            len(labels) * per_label,
            labels.raw,
            dataset_digest("labels", labels.manifest.identity),
            tuple(labels.manifest.subjects),
            per_label,
            settings or GenerationSettings(),
        )

    @property
    def schema(self) -> LabelSchema:
        """Label schema of the generator."""
        return self.generator.schema

    @property
    def subjects(self) -> Sequence[str]:
        """Real subjects that the generator, or the generator of the labels, saw."""
        return sorted({*self.generator.subjects, *self.ancestors})

    @property
    def identity(self) -> dict[str, Any]:
        """Settings, generator, styles and the dataset of labels."""
        return _identity(self.settings, self.schema, self.generator.identity) | {
            "styles": list(self.styles),
            "per_label": self.per_label,
            "labels": self.labels,
        }

    def rows(self, batch: range) -> Arrays:
        """Compute one full batch of images, with the label rows they show.

        Raises:
            SchemaError: the generator returned values out of range or outside the brain.
        """
        label_index = [min(index, self.n - 1) // self.per_label for index in batch]
        labels = self.fetch(label_index)
        pv = torch.from_numpy(labels["pv"].astype(np.float32) / np.float32(255))
        keys = [SampleKey(self.settings.seed, index) for index in batch]
        drawn = self.generator.render(pv, self.styles, keys).numpy()
        expected = (len(batch), len(self.styles), *pv.shape[2:])
        if drawn.shape != expected or not ((drawn >= 0) & (drawn <= 1)).all():
            raise SchemaError(
                f"image generator, samples from {batch.start}: expected finite values in [0, 1] "
                f"of shape {expected}, got {drawn.min():g} .. {drawn.max():g} of {drawn.shape}"
            )
        if drawn.max(axis=1, keepdims=True)[pv[:, :1].numpy() > 0.5].any():
            raise SchemaError(
                f"image generator, samples from {batch.start}: images are not exactly 0 where "
                "background exceeds one half"
            )
        return {
            "pv": labels["pv"],
            "images": drawn.astype(np.float16),
            "index": np.arange(batch.start, batch.stop, dtype=np.int64),
            "label_index": np.asarray(label_index, dtype=np.int64),
            "attempt": labels["attempt"],
            "condition": labels["condition"],
            "realised": labels["realised"],
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


def _identity(
    settings: GenerationSettings, schema: LabelSchema, generator: Mapping[str, Any]
) -> dict[str, Any]:
    """Return the common part of an identity, as JSON would give it back."""
    flat = {f"generator.{name}": value for name, value in generator.items()}
    common: dict[str, Any] = json.loads(canonical_json(flat))
    return common | settings.identity() | {"schema": schema.fingerprint}


def _require_style(generator: ImageGenerator, name: str) -> None:
    if isinstance(generator, _OpenStyles):
        generator.style(name)
        return
    known = [style.name for style in generator.styles]
    if name not in known:
        raise RequestError(f"unknown style '{name}'; there are {', '.join(known)}")


def _lesion_fractions(schema: LabelSchema, pv: npt.NDArray[np.uint8]) -> npt.NDArray[np.float32]:
    return schema.fractions(pv)[list(schema.lesion_channels)].astype(np.float32)
