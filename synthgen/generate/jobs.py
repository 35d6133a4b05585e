"""What the engine runs: jobs that turn sample indices into rows of arrays.

The sums inside a convolution depend, in the last bits, on how many threads share it; the number
of threads is therefore part of a dataset's identity, beside seed, batch size and shard size, with
a default that does not look at the machine. A CPU with many cores is filled by several workers.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

from synthgen.core.errors import RequestError
from synthgen.core.manifest import canonical_json
from synthgen.core.plan import ShardPlan

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from synthgen.core.schema import LabelSchema
    from synthgen.data.shards import Arrays

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


class Job(Protocol):
    """What the engine runs: rows of arrays from sample indices."""

    @property
    def kind(self) -> str:
        """One of "labels", "images" and "angiograms"."""

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
    def condition_names(self) -> Sequence[str]:
        """What the columns of `condition` are: lesions, `position`, `csf`; of trees nothing."""

    @property
    def subjects(self) -> Sequence[str]:
        """Real subjects that any ancestor model saw."""

    def rows(self, batch: range) -> Arrays:
        """Compute one full batch: arrays as stored, one row for each index."""


def common_identity(
    settings: GenerationSettings, schema: LabelSchema, generator: Mapping[str, Any]
) -> dict[str, Any]:
    """Return the common part of an identity, as JSON would give it back."""
    flat = {f"generator.{name}": value for name, value in generator.items()}
    common: dict[str, Any] = json.loads(canonical_json(flat))
    return common | settings.identity() | {"schema": schema.fingerprint}
