"""The generation engine: plan x job -> shards, resumable, extensible, on any number of workers.

Sample *i* is a function of (model, seed, *i*): it draws from its own key and always runs in the
same full batch. Workers make whole shards and never talk to each other (see `sharing`); so worker
count, neighbours, kill and resume change no byte. That holds on one kind of machine with
one version of torch: another CPU or GPU may differ in the last bits, and what is stored already
is kept, never computed again.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch

from synthgen.core.errors import StoreError
from synthgen.core.interrupt import Interrupted, stopping
from synthgen.core.lock import folder_lock
from synthgen.core.manifest import MANIFEST, Manifest, provenance, sweep
from synthgen.data.shard_file import BLOCK, encode_shard, read_shard
from synthgen.data.shards import Arrays, ShardWriter, dataset_digest, shard_path
from synthgen.generate.sharing import Work, look, require_same

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from synthgen.core.lock import FolderLock
    from synthgen.core.plan import ShardPlan
    from synthgen.generate.jobs import Job

_PRECISE_S = 2.0
"""A batch faster than this is timed again, without the costs of the first one."""

Progress = Callable[[int, int], None]


@dataclass(frozen=True)
class Outcome:
    """What one worker did.

    Attributes:
        folder: the dataset folder.
        n: samples in the whole dataset.
        generated: samples that this worker computed.
        kept: samples that this worker owns and did not have to compute.
        taken_over: samples of other workers among those that it computed.
        elsewhere: samples that were still in other workers' hands at the end.
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
    taken_over: int
    elsewhere: int
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
        RequestError: n is below 1 or below what is there, or the folder holds another dataset,
            or another process writes there; nothing is touched.
        StoreError: a damaged shard (`repair` makes it again), or the disk is full; finished
            shards stay, and the same call completes the dataset.
        Interrupted: SIGINT or SIGTERM came; raised after the batch at hand, and as after a full
            disk the same call completes the dataset.
    """
    settings = job.settings
    plan = settings.plan(n)
    with folder_lock(
        folder,
        f"{job.kind}, {n} samples",
        worker=settings.worker,
        num_workers=settings.num_workers,
    ) as lock:
        work = Work(job, plan, folder, lock)
        _open_folder(job, n, lock, notes or {})
        try:
            return _complete(job, work, progress)
        except Interrupted as stop:
            stop.note = (
                f"{folder} holds {work.samples_there()} of {n} samples; the same command "
                "continues there"
            )
            raise


def _complete(job: Job, work: Work, progress: Progress | None) -> Outcome:
    """Compute and write every shard that this worker can claim."""
    started = time.perf_counter()
    done = 0
    attrs = _attrs(job)
    with stopping() as check, intra_op_threads(job.settings.threads), ShardWriter() as writer:
        for shard, have, claim in work.claimed():
            path = shard_path(work.folder, shard)
            try:
                parts = [read_shard(path)] if have else []
                for part in _batches(job, work.plan, shard, have, check):
                    parts.append(part)
                    done += len(part["index"])
                    if progress is not None:
                        progress(done, work.to_do)
                arrays = {name: np.concatenate([p[name] for p in parts]) for name in parts[0]}
                writer.put(path, arrays, attrs | {"shard": shard}, claim.release)
            except BaseException:
                claim.release()
                raise
    return Outcome(
        folder=work.folder,
        n=work.plan.n,
        generated=done,
        kept=work.kept,
        taken_over=work.taken_over,
        elsewhere=work.elsewhere,
        repaired=len(work.survey.damaged),
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
    survey = look(job, plan, folder, range(plan.num_shards))
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


def _batches(
    job: Job, plan: ShardPlan, shard: int, have: int, check: Callable[[], None]
) -> Iterator[Arrays]:
    """Compute the rows of a shard from its row `have` on, batch by batch, without the padding.

    `check` is called before each batch, and may end the work.
    """
    rows = plan.rows(shard)
    first = rows.start + have
    for batch in plan.batches(shard):
        if batch.stop <= first:
            continue
        check()
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


def _open_folder(job: Job, n: int, lock: FolderLock, notes: Mapping[str, str]) -> None:
    """Write the manifest, unless it says this already, and clear what a killed run left."""
    folder = lock.folder
    try:
        (folder / "shards").mkdir(exist_ok=True)
    except OSError as error:
        raise StoreError(f"{folder}: cannot be created ({error.strerror or error})") from error
    with lock.alone(MANIFEST):
        subjects, origin, there = list(job.subjects), {**provenance(), **notes}, 0
        if (folder / MANIFEST).exists():
            old = Manifest.read(folder)
            require_same(old, job, folder)
            subjects, origin, there = list(old.subjects), dict(old.provenance), old.n
        if there != n:
            manifest = Manifest(job.kind, job.identity, n, job.schema.to_json(), subjects, origin)
            manifest.write(folder)
        if lock.enforced:
            sweep(folder, f".{MANIFEST}.*.tmp")
    if job.settings.num_workers == 1:
        sweep(folder / "shards", ".*.tmp")
