"""The generation engine: plan x job -> shards, resumable, extensible, on any number of workers.

Sample *i* is a function of (model, seed, *i*): it draws from its own key and always runs in the
same full batch. A worker owns whole shards, dealt round robin, and never talks to the others; so
worker count, neighbours, kill and resume change no byte. That holds on one kind of machine with
one version of torch: another CPU or GPU may differ in the last bits, and what is stored already
is kept, never computed again.
"""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch

from synthgen.core.errors import RequestError, StoreError
from synthgen.core.manifest import MANIFEST, Manifest, provenance
from synthgen.data.shard_file import BLOCK, check_shard, encode_shard, read_shard
from synthgen.data.shards import Arrays, ShardWriter, dataset_digest, shard_path, shard_rows

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from synthgen.core.plan import ShardPlan
    from synthgen.generate.jobs import Job

_PRECISE_S = 2.0
"""A batch faster than this is timed again, without the costs of the first one."""
_SHARD_NAME = re.compile(r"^\.?(\d{5,})\.h5")

Progress = Callable[[int, int], None]


@dataclass(frozen=True)
class Outcome:
    """What one worker did.

    Attributes:
        folder: the dataset folder.
        n: samples in the whole dataset.
        generated: samples that this worker computed.
        kept: samples that this worker owns and found complete.
        repaired: damaged shards that were made again.
        seconds: wall time, without loading the model.
        writing_s: seconds the writer thread was busy, overlapped with computing.
        blocked_s: seconds that computing waited for writing.
        bytes: size of the files written.
    """

    folder: Path
    n: int
    generated: int
    kept: int
    repaired: int
    seconds: float
    writing_s: float
    blocked_s: float
    bytes: int


@dataclass(frozen=True)
class Forecast:
    """What a run would do, for all workers together.

    Attributes:
        n: samples in the whole dataset.
        kept: samples already there.
        files: shard files to write.
        bytes: estimated size of those files.
        seconds: estimated time with the given number of workers, loading the model apart.
    """

    n: int
    kept: int
    files: int
    bytes: int
    seconds: float


@dataclass(frozen=True)
class _Survey:
    """What stands in a folder: rows of each intact shard, and the damaged ones."""

    rows: Mapping[int, int]
    damaged: Mapping[int, str]


def run(
    job: Job,
    n: int,
    folder: Path,
    *,
    notes: Mapping[str, str] | None = None,
    progress: Progress | None = None,
) -> Outcome:
    """Complete a dataset of n samples: keep what is there, compute what is missing.

    Args:
        job: what to compute.
        n: the total number of samples; more than before continues the dataset.
        folder: the dataset folder; created when absent.
        notes: extra provenance of a new dataset, such as where its model lies.
        progress: called with (samples done, samples to do) of this worker.

    Raises:
        RequestError: n is below 1 or below what is there, or the folder holds another dataset;
            nothing is touched.
        StoreError: a damaged shard (`repair` makes it again), or the disk is full; finished
            shards stay, and the same call completes the dataset.
    """
    started = time.perf_counter()
    settings = job.settings
    plan = settings.plan(n)
    mine = plan.shards_of(settings.worker, settings.num_workers)
    survey = _survey(job, plan, folder, mine)
    todo = [shard for shard in mine if survey.rows.get(shard, 0) < len(plan.rows(shard))]
    _open_folder(job, n, folder, notes or {})
    owned = sum(len(plan.rows(shard)) for shard in mine)
    kept = sum(min(survey.rows.get(shard, 0), len(plan.rows(shard))) for shard in mine)
    done = 0
    attrs = _attrs(job)
    with intra_op_threads(settings.threads), ShardWriter() as writer:
        for shard in todo:
            parts = []
            if survey.rows.get(shard):
                parts.append(read_shard(shard_path(folder, shard)))
            for part in _batches(job, plan, shard, survey.rows.get(shard, 0)):
                parts.append(part)
                done += len(part["index"])
                if progress is not None:
                    progress(done, owned - kept)
            arrays = {name: np.concatenate([p[name] for p in parts]) for name in parts[0]}
            writer.put(shard_path(folder, shard), arrays, attrs | {"shard": shard})
    # Only now: while workers start, another one's manifest may be on its way through such a file.
    for leftover in folder.glob(f".{MANIFEST}.*.tmp"):
        leftover.unlink(missing_ok=True)
    return Outcome(
        folder=folder,
        n=n,
        generated=done,
        kept=kept,
        repaired=len(survey.damaged),
        seconds=time.perf_counter() - started,
        writing_s=writer.busy_s,
        blocked_s=writer.blocked_s,
        bytes=writer.bytes,
    )


def forecast(job: Job, n: int, folder: Path) -> Forecast:
    """Estimate what `run` would take, from one batch; writes nothing.

    Raises:
        RequestError: as `run` would.
        StoreError: as `run` would.
    """
    plan = job.settings.plan(n)
    survey = _survey(job, plan, folder, range(plan.num_shards))
    todo = [s for s in range(plan.num_shards) if survey.rows.get(s, 0) < len(plan.rows(s))]
    kept = sum(survey.rows.values())
    if not todo:
        return Forecast(n, kept, 0, 0, 0.0)
    first = next(plan.batches(todo[0]))
    with intra_op_threads(job.settings.threads):
        seconds = 0.0
        for _ in range(2):
            started = time.perf_counter()
            arrays = job.rows(first)
            seconds = time.perf_counter() - started
            if seconds > _PRECISE_S:
                break
    batches = sum(
        sum(batch.stop > plan.rows(s).start + survey.rows.get(s, 0) for batch in plan.batches(s))
        for s in todo
    )
    row_bytes = len(encode_shard(arrays, _attrs(job))) / len(first)
    rows = sum(len(plan.rows(s)) for s in todo)
    workers = min(job.settings.num_workers, len(todo))
    return Forecast(
        n=n,
        kept=kept,
        files=len(todo),
        bytes=round(rows * row_bytes) + BLOCK * len(todo),
        seconds=batches * seconds / workers,
    )


@contextmanager
def intra_op_threads(threads: int) -> Iterator[None]:
    """Let torch compute with this many CPU threads inside the block."""
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def _batches(job: Job, plan: ShardPlan, shard: int, have: int) -> Iterator[Arrays]:
    """Compute the rows of a shard from its row `have` on, batch by batch, without the padding."""
    rows = plan.rows(shard)
    first = rows.start + have
    for batch in plan.batches(shard):
        if batch.stop <= first:
            continue
        wanted = slice(max(first, batch.start) - batch.start, rows.stop - batch.start)
        yield {name: array[wanted] for name, array in job.rows(batch).items()}


def _attrs(job: Job) -> dict[str, str | int]:
    return {
        "kind": job.kind,
        "identity": dataset_digest(job.kind, job.identity),
        "schema": job.schema.fingerprint,
        "condition_names": ",".join(job.condition_names),
        "styles": ",".join(job.identity.get("styles", ())),
    }


def _survey(job: Job, plan: ShardPlan, folder: Path, shards: range) -> _Survey:
    """Look at a folder without touching it, and refuse what must not be continued."""
    present = _present(folder)
    if (folder / MANIFEST).exists():
        asked = Manifest(job.kind, job.identity, plan.n, job.schema.to_json())
        Manifest.read(folder).require_same_identity(asked, folder)
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
    return _Survey({shard: count for shard, count in rows.items() if shard in mine}, damaged)


def _present(folder: Path) -> list[int]:
    names = [_SHARD_NAME.match(path.name) for path in (folder / "shards").glob("*.h5")]
    return sorted(int(name[1]) for name in names if name and not name.string.startswith("."))


def _open_folder(job: Job, n: int, folder: Path, notes: Mapping[str, str]) -> None:
    """Write the manifest, unless it says this already, and clear what a killed run left."""
    try:
        (folder / "shards").mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise StoreError(f"{folder}: cannot be created ({error.strerror or error})") from error
    if (folder / MANIFEST).exists():
        old = Manifest.read(folder)
        subjects, origin = old.subjects, old.provenance
    else:
        old, subjects, origin = None, list(job.subjects), {**provenance(), **notes}
    if old is None or old.n != n:
        manifest = Manifest(job.kind, job.identity, n, job.schema.to_json(), subjects, origin)
        manifest.write(folder)
    settings = job.settings
    for leftover in (folder / "shards").glob(".*.tmp"):
        name = _SHARD_NAME.match(leftover.name)
        if name and int(name[1]) % settings.num_workers == settings.worker:
            leftover.unlink(missing_ok=True)
