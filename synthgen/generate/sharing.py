"""What stands in a dataset folder, and which of its shards a worker makes.

Shards are dealt round robin. A worker makes its own first, then those of others that nobody is
making, from the last one back, as their owners go forward: so a worker that died, or has not
started yet, leaves nothing undone. A claim on each shard keeps two workers from the same one.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING

from synthgen.core.errors import RequestError, StoreError
from synthgen.core.manifest import MANIFEST, Manifest, sweep
from synthgen.data.shard_file import check_shard
from synthgen.data.shards import dataset_digest, shard_path, shard_rows

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping
    from pathlib import Path

    from synthgen.core.lock import Claim, FolderLock
    from synthgen.core.plan import ShardPlan
    from synthgen.generate.jobs import Job

_SHARD_NAME = re.compile(r"^(\d{5,})\.h5$")


@dataclass(frozen=True)
class Survey:
    """What stands in a folder: rows of each intact shard, and the damaged ones."""

    rows: Mapping[int, int]
    damaged: Mapping[int, str]


class Work:
    """The shards that one worker is to make.

    Attributes:
        plan: which sample stands in which shard.
        folder: the dataset folder.
        survey: what stood there, of this worker's shards, at the start.
        taken_over: samples of other workers that this one claimed.

    Raises:
        RequestError: the folder holds another dataset, or more than n samples.
        StoreError: a damaged shard.
    """

    def __init__(self, job: Job, plan: ShardPlan, folder: Path, lock: FolderLock) -> None:
        settings = job.settings
        self.plan = plan
        self.folder = folder
        self._job, self._lock = job, lock
        self._own = plan.shards_of(settings.worker, settings.num_workers)
        self.survey = look(job, plan, folder, self._own)
        missing = {s: len(plan.rows(s)) - self.survey.rows.get(s, 0) for s in self._own}
        self._ahead = {shard: count for shard, count in missing.items() if count > 0}
        self._claimed = self.taken_over = 0
        self._left: list[int] = []

    @property
    def to_do(self) -> int:
        """Samples that this worker has made or has to make, as far as it knows."""
        return self._claimed + self.taken_over + sum(self._ahead.values())

    @property
    def kept(self) -> int:
        """Samples of this worker's shards that it did not have to make."""
        owned = sum(len(self.plan.rows(shard)) for shard in self._own)
        return owned - self._claimed - self._missing(s for s in self._left if s in self._own)

    @property
    def elsewhere(self) -> int:
        """Samples that other workers are making, after all that could be claimed."""
        return self._missing(self._left)

    def claimed(self) -> Iterator[tuple[int, int, Claim]]:
        """Yield each shard to make: its number, the rows that are there, and the claim on it.

        Raises:
            StoreError: a shard of another worker is damaged.
        """
        others = [s for s in reversed(range(self.plan.num_shards)) if s not in self._own]
        # Without locks nobody knows what is being made.
        self._left = [] if self._lock.enforced else others
        todo = [*self._ahead, *(others if self._lock.enforced else ())]
        while todo:
            busy, before = [], self._claimed + self.taken_over
            for shard in todo:
                claim = self._lock.claim(f"{shard:05d}") if self._missing([shard]) else None
                missing = self._missing([shard])  # the one who held it may have just made it
                self._ahead.pop(shard, None)
                if claim is None:
                    busy += [shard] if missing else []
                elif not missing:
                    claim.release()
                else:
                    yield self._taken(shard, missing, claim)
            # A worker that held one may have died since.
            todo = busy if self._claimed + self.taken_over > before else []
            self._left += [] if todo else busy

    def _taken(self, shard: int, missing: int, claim: Claim) -> tuple[int, int, Claim]:
        if shard in self._own:
            self._claimed += missing
        else:
            self.taken_over += missing
        if self._job.settings.num_workers > 1 and self._lock.enforced:
            sweep(self.folder / "shards", f".{shard:05d}.h5.*.tmp")
        return shard, len(self.plan.rows(shard)) - missing, claim

    def _missing(self, shards: Iterable[int]) -> int:
        """Return how many samples of some shards are not there now."""
        return sum(len(self.plan.rows(shard)) - self._have(shard) for shard in shards)

    def _have(self, shard: int) -> int:
        """Return how many rows of a shard are there now."""
        path = shard_path(self.folder, shard)
        if not path.exists():
            return 0
        try:
            if shard in self.survey.damaged:
                check_shard(path)
            dataset = dataset_digest(self._job.kind, self._job.identity)
            return shard_rows(self.folder, shard, dataset, self._job.schema)
        except StoreError:
            if not self._job.settings.repair:
                raise
            return 0

    def samples_there(self) -> int:
        """Return how many samples of the dataset are there now."""
        whole = {shard: len(self.plan.rows(shard)) for shard in _present(self.folder)}
        short = {s for s, rows in self.survey.rows.items() if rows < whole.get(s, 0)}
        return sum(self._have(s) if s in short else rows for s, rows in whole.items())


def look(job: Job, plan: ShardPlan, folder: Path, shards: range) -> Survey:
    """Look at a folder without touching it, and refuse what must not be continued.

    Args:
        job: what is to be computed.
        plan: which sample stands in which shard.
        folder: the dataset folder.
        shards: those that are looked at; the last one of all is, too.

    Raises:
        RequestError: it holds another dataset, or more than n samples.
        StoreError: shards without a manifest, or a damaged one that is not to be repaired.
    """
    present = _present(folder)
    if (folder / MANIFEST).exists():
        require_same(Manifest.read(folder), job, folder)
    elif present:
        raise StoreError(
            f"{folder}: has shards but no {MANIFEST}, so what they hold is unknown; "
            "restore it or choose another --out"
        )
    damaged: dict[int, str] = {}
    rows: dict[int, int] = {}
    last = max(present, default=-1)
    dataset = dataset_digest(job.kind, job.identity)
    for shard in sorted({last} | set(present).intersection(shards)) if present else ():
        try:
            check_shard(shard_path(folder, shard))
        except StoreError as error:
            damaged[shard] = str(error)
            continue
        rows[shard] = shard_rows(folder, shard, dataset, job.schema)
    there = last * plan.shard_size + rows.get(last, 1)
    if present and there > plan.n:
        raise RequestError(
            f"{folder} already holds {there} samples and --n is the total; "
            f"ask for at least {there}, got {plan.n}"
        )
    mine = set(shards)
    damaged = {shard: text for shard, text in damaged.items() if shard in mine}
    if damaged and not job.settings.repair:
        more = f" (and {len(damaged) - 1} more damaged shards)" if len(damaged) > 1 else ""
        raise StoreError(f"{next(iter(damaged.values()))}{more}")
    return Survey({shard: count for shard, count in rows.items() if shard in mine}, damaged)


def _present(folder: Path) -> list[int]:
    names = (_SHARD_NAME.match(path.name) for path in (folder / "shards").glob("*.h5"))
    return sorted(int(name[1]) for name in names if name)


def require_same(there: Manifest, job: Job, folder: Path) -> None:
    """Refuse a folder that holds another dataset.

    Raises:
        RequestError: it does.
    """
    asked = Manifest(job.kind, job.identity, there.n, job.schema.to_json())
    there.require_same_identity(asked, folder)
