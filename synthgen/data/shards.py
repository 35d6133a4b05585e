"""Datasets of generated samples: a manifest and checksummed shards; writer and reader.

A label shard of n rows holds `pv (n, C, X, Y)` uint8 (value / 255), `index (n,)`, `attempt (n,)`,
`condition (n, K)` (requested lesion fractions in schema order, the slice position, and the CSF
rank if the model knows it) and `realised (n, L)` (lesion fractions of the map as stored). An image
shard copies these rows from its labels and adds `images (n, M, X, Y)` float16 in [0, 1], one per
style, exactly 0 outside the brain, and `label_index (n,)`.

Vessel trees are labels without conditions (K and L are 0), with the extra arrays that were asked
for; see `shard_checks`. An angiogram shard holds tree and `images (n, 1, X, Y)`, which show a
background, and, where a gate looked at them, `gate (n, 2)`: Dice of what a segmenter finds, and
what it finds far from the vessels as a share of their area.
"""

from __future__ import annotations

import os
import time
from collections import OrderedDict, deque
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

import numpy as np
import numpy.typing as npt

from synthgen.core.errors import SchemaError, StoreError
from synthgen.core.input_files import unusable
from synthgen.core.manifest import MANIFEST, Manifest, digest
from synthgen.core.plan import ShardPlan
from synthgen.core.schema import LabelSchema
from synthgen.data.shard_checks import Arrays, file_names
from synthgen.data.shard_file import check_shard, open_shard, write_shard

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence
    from types import TracebackType

    import h5py

__all__ = [
    "Arrays",
    "ShardRow",
    "ShardWriter",
    "Shards",
    "dataset_digest",
    "shard_path",
    "shard_rows",
]

MAX_SHARDS = 1_000_000
"""Most shards of a dataset; each is a file that is looked for."""

_OPEN_FILES = 8
DAMAGED = "`synthgen verify` lists what is damaged; make or copy it again"


def shard_path(folder: Path, shard: int) -> Path:
    """Return the file of one shard."""
    return folder / "shards" / f"{shard:05d}.h5"


def dataset_digest(kind: str, identity: Mapping[str, Any]) -> str:
    """Return the digest that every shard of a dataset carries, so that a stray one is noticed."""
    return digest({"kind": kind, "identity": dict(identity)})


def shard_rows(folder: Path, shard: int, dataset: str, schema: LabelSchema) -> int:
    """Return how many rows a shard holds, after checking that it stands in its place.

    Raises:
        StoreError: unreadable, or of another dataset or place (`dataset` is its digest).
        SchemaError: it has another label schema.
    """
    path = shard_path(folder, shard)
    with open_shard(path) as file:
        _require_place(path, file.attrs, shard, dataset, schema)
        return len(file["index"])


def _require_place(
    path: Path, attrs: Mapping[str, Any], shard: int, dataset: str, schema: LabelSchema
) -> None:
    if attrs.get("schema") != schema.fingerprint:
        raise SchemaError(
            f"{path}: expected label schema '{schema.name}' ({schema.fingerprint}), "
            f"got {attrs.get('schema')!r}"
        )
    if attrs.get("identity") != dataset or attrs.get("shard") != shard:
        raise StoreError(
            f"{path}: belongs to another dataset or another place in it; delete the file and "
            "run the command that makes this dataset again"
        )


class ShardWriter:
    """Write shards in a background thread while the next ones are computed.

    At most two shards wait, so memory does not grow. An error in the thread is raised by the next
    `put`, or on leaving the `with` block; when the block itself fails, or is interrupted, the
    shards already handed over are still written.

    Attributes:
        written: number of files written.
        bytes: their total size.
        busy_s: seconds the thread spent compressing and writing.
        blocked_s: seconds the caller waited for the thread.
    """

    def __init__(self, pending: int = 1) -> None:
        self.written = 0
        self.bytes = 0
        self.busy_s = 0.0
        self.blocked_s = 0.0
        self._limit = pending
        self._pool = ThreadPoolExecutor(max_workers=1, thread_name_prefix="synthgen-writer")
        self._futures: deque[Future[None]] = deque()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        started = time.perf_counter()
        self._pool.shutdown(wait=True)
        self.blocked_s += time.perf_counter() - started
        if error is None:
            while self._futures:
                self._futures.popleft().result()

    def put(
        self,
        path: Path,
        arrays: Mapping[str, npt.NDArray[Any]],
        attrs: Mapping[str, str | int],
        written: Callable[[], None] | None = None,
    ) -> None:
        """Hand over a shard; waits while too many are pending. The arrays must not change later.

        Args:
            path: its file.
            arrays: see `write_shard`.
            attrs: see `write_shard`.
            written: called when it is written, or could not be.

        Raises:
            StoreError: an earlier shard could not be written.
        """
        started = time.perf_counter()
        while self._futures and (self._futures[0].done() or len(self._futures) > self._limit):
            self._futures.popleft().result()
        self.blocked_s += time.perf_counter() - started
        future = self._pool.submit(self._write, path, arrays, attrs)
        self._futures.append(future)
        if written is not None:
            future.add_done_callback(lambda _: written())

    def _write(
        self, path: Path, arrays: Mapping[str, npt.NDArray[Any]], attrs: Mapping[str, str | int]
    ) -> None:
        started = time.perf_counter()
        write_shard(path, arrays, attrs)
        self.written += 1
        self.bytes += path.stat().st_size
        self.busy_s += time.perf_counter() - started


@dataclass(frozen=True)
class ShardRow:
    """One sample of a dataset.

    Attributes:
        index: sample index in the dataset.
        attempt: number of redraws before this one.
        pv: float32 `(C, X, Y)` in [0, 1], sums to 1 over C.
        condition: what was asked: lesion fractions by tissue name, `position`, perhaps `csf`.
        realised: lesion fractions of `pv` by tissue name.
        images: float32 `(M, X, Y)` in [0, 1], one per style; None in a dataset of labels.
        styles: the M style names.
        label_index: index in the dataset of labels that `pv` was copied from; None in that one.
        gate: Dice of what a segmenter finds in the image, and what it finds far from the vessels
            as a share of their area; None where no gate looked.
        extras: further arrays of a vessel tree by name, as stored; see `shard_checks`.
    """

    index: int
    attempt: int
    pv: npt.NDArray[np.float32]
    condition: dict[str, float]
    realised: dict[str, float]
    images: npt.NDArray[np.float32] | None = None
    styles: tuple[str, ...] = ()
    label_index: int | None = None
    gate: tuple[float, float] | None = None
    extras: Mapping[str, npt.NDArray[Any]] = field(default_factory=dict)


class Shards:
    """Read a generated dataset: a sequence of `ShardRow`, usable as a torch `Dataset`.

    Picklable; every process opens the files for itself, when needed, and checks the checksum of
    a shard when it opens it for the first time. For a `DataLoader` pass a
    `collate_fn` that picks what you train on, such as
    `lambda rows: torch.stack([torch.from_numpy(row.pv) for row in rows])`.

    Attributes:
        folder: the dataset folder.
        manifest: its manifest.
        schema: label schema of the PV channels.
        plan: which sample stands in which shard.
        styles: style names of the images; empty in a dataset of labels.

    Raises:
        StoreError: no dataset there, or its manifest is damaged.
        SchemaError: a `schema` was given and the dataset has another.
    """

    def __init__(self, folder: Path, schema: LabelSchema | None = None) -> None:
        self.folder = Path(folder)
        self.manifest = Manifest.read(self.folder)
        with unusable(self.folder / MANIFEST, DAMAGED):
            self.schema = LabelSchema.from_json(self.manifest.schema)
        if schema is not None:
            schema.require_same(self.schema, str(self.folder))
        identity, path = self.manifest.identity, self.folder / MANIFEST
        try:
            self.plan = ShardPlan(
                self.manifest.n, int(identity["shard_size"]), int(identity["batch_size"])
            )
            self.styles: tuple[str, ...] = file_names(identity, "styles")
            self._extras = file_names(identity, "extras")
        except (KeyError, TypeError, ValueError, OverflowError) as error:
            raise StoreError(f"{path}: not a usable dataset manifest ({error})") from error
        if self.plan.num_shards > MAX_SHARDS:
            count = self.plan.num_shards
            raise StoreError(f"{path}: says {count} shards; at most {MAX_SHARDS} are read")
        self._digest = dataset_digest(self.manifest.kind, identity)
        self._files: OrderedDict[int, h5py.File] = OrderedDict()
        self._checked: set[int] = set()
        self._pid = os.getpid()

    def __len__(self) -> int:
        return self.plan.n

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"_files": OrderedDict()}

    def __getitem__(self, index: int) -> ShardRow:
        """Return one sample.

        Raises:
            IndexError: outside `-len(self) .. len(self) - 1`.
            StoreError: its shard is missing or damaged.
            SchemaError: its shard has another label schema.
        """
        if not -len(self) <= index < len(self):
            raise IndexError(f"index must lie in 0 .. {len(self) - 1}, got {index}")
        index %= len(self)
        with unusable(shard_path(self.folder, self.plan.shard_of(index)), DAMAGED):
            return self._row(index)

    def _row(self, index: int) -> ShardRow:
        raw = {name: array[0] for name, array in self.raw([index]).items()}
        lesions = self.schema.lesions
        condition = dict(
            zip(self.condition_names, (float(v) for v in raw["condition"]), strict=True)
        )
        images = raw["images"].astype(np.float32) if "images" in raw else None
        return ShardRow(
            index=int(raw["index"]),
            attempt=int(raw["attempt"]),
            pv=raw["pv"].astype(np.float32) / np.float32(255),
            condition=condition,
            realised=dict(zip(lesions, (float(v) for v in raw["realised"]), strict=True)),
            images=images,
            styles=self.styles,
            label_index=int(raw["label_index"]) if "label_index" in raw else None,
            gate=(float(raw["gate"][0]), float(raw["gate"][1])) if "gate" in raw else None,
            extras={name: raw[name] for name in self._extras},
        )

    @cached_property
    def condition_names(self) -> tuple[str, ...]:
        """What the columns of `condition` are."""
        with unusable(shard_path(self.folder, 0), DAMAGED):
            return tuple(filter(None, str(self._open(0).attrs["condition_names"]).split(",")))

    def raw(self, indices: Sequence[int]) -> Arrays:
        """Return rows as stored, stacked in the order of `indices`.

        Raises:
            StoreError: a shard is missing or damaged.
            SchemaError: a shard has another label schema.
        """
        rows: list[Arrays] = []
        for index in indices:
            shard = self.plan.shard_of(index)
            file, row = self._open(shard), index - self.plan.rows(shard).start
            try:
                rows.append({name: np.asarray(dataset[row]) for name, dataset in file.items()})
            except (OSError, ValueError, TypeError, LookupError, RuntimeError) as error:
                raise StoreError(
                    f"{shard_path(self.folder, shard)}: row {row} cannot be read ({error}); "
                    "run the command that makes this dataset again to complete or mend it"
                ) from error
        return {name: np.stack([row[name] for row in rows]) for name in rows[0]}

    def column(self, name: str) -> npt.NDArray[np.float32]:
        """Return one small array of all samples, such as "condition" or "realised".

        Raises:
            StoreError: a shard is missing.
        """
        parts = []
        for shard in range(self.plan.num_shards):
            with unusable(shard_path(self.folder, shard), DAMAGED):
                parts.append(np.asarray(self._open(shard)[name]))
        return np.concatenate(parts)

    def arrays(self, shard: int) -> Arrays:
        """Return all arrays of a shard as stored, after checking its checksum.

        Raises:
            StoreError: missing or damaged, or of another dataset.
            SchemaError: it has another label schema.
        """
        path = shard_path(self.folder, shard)
        check_shard(path)
        with unusable(path, DAMAGED), open_shard(path) as file:
            _require_place(path, file.attrs, shard, self._digest, self.schema)
            return {name: np.asarray(dataset[()]) for name, dataset in file.items()}

    def missing(self) -> list[int]:
        """Return the shards that are absent, or shorter than they should be by now."""
        return [
            shard
            for shard in range(self.plan.num_shards)
            if not shard_path(self.folder, shard).exists()
            or len(self._open(shard)["index"]) < len(self.plan.rows(shard))
        ]

    def close(self) -> None:
        """Close the files that are open."""
        while self._files:
            self._files.popitem()[1].close()

    def _open(self, shard: int) -> h5py.File:
        if self._pid != os.getpid():  # after a fork the handles belong to the parent process
            self._files, self._pid = OrderedDict(), os.getpid()
        if shard in self._files:
            self._files.move_to_end(shard)
            return self._files[shard]
        path = shard_path(self.folder, shard)
        if shard not in self._checked:
            check_shard(path)
            self._checked.add(shard)
        file = open_shard(path)
        _require_place(path, file.attrs, shard, self._digest, self.schema)
        self._files[shard] = file
        if len(self._files) > _OPEN_FILES:
            self._files.popitem(last=False)[1].close()
        return file
