"""Draw anew the samples that an audit flagged, in a new dataset; all others keep their bytes.

A flagged sample is drawn from the attempts after its stored one, under the same condition and by
the same acceptance rule; `LabelJob.redraw` is that rule, for `replay` too. What was stored of the
others is copied, not computed: it stays true on another machine.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from synthgen.core.errors import RequestError
from synthgen.core.input_files import read_json
from synthgen.core.manifest import MANIFEST
from synthgen.data.shards import Shards, dataset_digest
from synthgen.generate.label_job import require_complete_labels

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from synthgen.core.schema import LabelSchema
    from synthgen.data.shards import Arrays
    from synthgen.generate.jobs import GenerationSettings
    from synthgen.generate.label_job import LabelJob


@dataclass(frozen=True)
class Quarantine:
    """What an audit of a dataset flagged.

    Attributes:
        path: the file that says so.
        dataset: folder of the dataset, of labels or of images.
        total: number of samples it held.
        flagged: sample indices, ascending.
    """

    path: Path
    dataset: Path
    total: int
    flagged: tuple[int, ...]

    @classmethod
    def read(cls, path: Path) -> Quarantine:
        """Read a file that `synthgen evaluate privacy --quarantine` wrote.

        Raises:
            RequestError: no such file, not JSON, fields that are missing or wrong, or indices
                that the dataset cannot have.
        """
        try:
            raw = read_json(path)
        except OSError as error:
            raise RequestError(f"{path}: cannot be read ({error.strerror or error})") from error
        except ValueError as error:
            raise RequestError(f"{path}: not readable as JSON ({error})") from error
        match raw:
            case {"dataset": str(dataset), "total": int(total), "flagged": list(flagged)} if all(
                type(index) is int for index in flagged
            ):
                indices = tuple(sorted(set(flagged)))
            case _:
                raise RequestError(
                    f"{path}: expected a folder as dataset, a number as total and sample indices "
                    f"as flagged, got {raw!r:.100}"
                )
        outside = [index for index in indices if not 0 <= index < total]
        if outside:
            raise RequestError(
                f"{path}: flags sample {outside[0]} of a dataset of {total} samples, "
                f"0 .. {total - 1}"
            )
        return cls(path, Path(dataset), total, indices)

    def open(self) -> Shards:
        """Open the dataset.

        Raises:
            RequestError: it is not there, synthgen did not make it, its size has changed, or it
                holds vessel trees, which no model remembers.
            StoreError: its manifest is damaged.
        """
        if not (self.dataset / MANIFEST).is_file():
            raise RequestError(
                f"{self.path}: flags samples of {self.dataset}, which is no dataset of `synthgen "
                f"labels` or `synthgen images` (no {MANIFEST} there); only those are drawn anew"
            )
        shards = Shards(self.dataset)
        if shards.schema.is_picture:
            raise RequestError(
                f"{self.dataset} holds vessel trees, drawn without a model; only label maps of a "
                "model are drawn anew"
            )
        if len(shards) != self.total:
            raise RequestError(
                f"{self.path}: audited {self.total} samples and {self.dataset} holds "
                f"{len(shards)}; audit it again"
            )
        return shards


def flagged_labels(images: Shards, labels: Shards, flagged: Sequence[int]) -> tuple[int, ...]:
    """Return the indices of the labels behind flagged images, ascending.

    Args:
        images: a dataset of images.
        labels: the dataset of labels that it was painted from.
        flagged: sample indices of `images`.

    Raises:
        RequestError: the images were painted from other labels.
        StoreError: shards of the images are missing.
    """
    then = images.manifest.identity.get("labels")
    here = dataset_digest(labels.manifest.kind, labels.manifest.identity)
    if here != then:
        raise RequestError(
            f"{images.folder} was not painted from {labels.folder} (labels: then {str(then)[:16]}, "
            f"here {here[:16]}); name the dataset of labels behind it with --labels"
        )
    behind = images.column("label_index")[list(flagged)]
    return tuple(sorted({int(index) for index in behind}))


@dataclass(frozen=True)
class RedrawJob:
    """Copy a dataset of labels, with some samples drawn anew.

    Attributes:
        job: what made the dataset, with the flagged samples in its `first_attempts`.
        flagged: the samples to draw anew.
        n: number of samples.
        stored: gives the arrays of a shard of the dataset, its checksum checked.
    """

    job: LabelJob
    flagged: frozenset[int]
    n: int
    stored: Callable[[int], Arrays]

    @classmethod
    def of(cls, job: LabelJob, source: Shards, flagged: Sequence[int]) -> RedrawJob:
        """Draw flagged samples of a complete dataset of labels anew.

        Args:
            job: what made the dataset, as `replay_labels` returns it.
            source: the dataset.
            flagged: its samples to draw anew.

        Raises:
            RequestError: no dataset of labels, no sample flagged, or one that is not there.
            StoreError: shards of the dataset are missing.
        """
        require_complete_labels(source)
        outside = [index for index in flagged if not 0 <= index < len(source)]
        if outside or not flagged:
            raise RequestError(
                f"{source.folder}: expected flagged samples among 0 .. {len(source) - 1}, "
                f"got {outside or 'none'}"
            )
        attempts = source.column("attempt")
        first = {index: int(attempts[index]) + 1 for index in flagged}
        return cls(
            replace(job, first_attempts={**job.first_attempts, **first}),
            frozenset(flagged),
            len(source),
            lru_cache(maxsize=1)(source.arrays),
        )

    @property
    def kind(self) -> str:
        """That of the dataset."""
        return self.job.kind

    @property
    def schema(self) -> LabelSchema:
        """Label schema of the dataset."""
        return self.job.schema

    @property
    def settings(self) -> GenerationSettings:
        """Seed, sizes, threads, worker."""
        return self.job.settings

    @property
    def identity(self) -> dict[str, Any]:
        """That of a job that computes every sample."""
        return self.job.identity

    @property
    def condition_names(self) -> Sequence[str]:
        """Those of the dataset."""
        return self.job.condition_names

    @property
    def subjects(self) -> Sequence[str]:
        """Real subjects that the generator saw."""
        return self.job.subjects

    def rows(self, batch: range) -> Arrays:
        """Return one full batch, as stored but for the flagged samples.

        Raises:
            StoreError: a damaged shard of the dataset.
            SchemaError: the generator returned something that is no PV map.
        """
        plan = self.settings.plan(self.n)
        shard = plan.shard_of(batch.start)
        start = plan.rows(shard).start
        places = [min(index, self.n - 1) - start for index in batch]
        arrays = {name: array[places] for name, array in self.stored(shard).items()}
        for index in self.flagged & set(batch):
            for name, row in self.job.redraw(index).items():
                arrays[name][index - batch.start] = row
        return arrays
