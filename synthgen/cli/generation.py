"""What the generating commands share: options, models, devices, progress and reports."""

from __future__ import annotations

import json
import os
import shutil
import sys
import time
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from synthgen.core.errors import RequestError, StoreError
from synthgen.core.pace import Pace
from synthgen.core.workspace import Workspace

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence

    from synthgen.core.manifest import Manifest
    from synthgen.generate import Forecast, GenerationSettings, Job, Outcome

LINE_EVERY_S = 30.0
THREADS = 1
"""`synthgen.generate.DEFAULT_THREADS`, without the import of torch."""


STARTER = "starter:"
"""How the name of a shipped model begins."""


class Precision(StrEnum):
    """Number format of the networks."""

    FP32 = "fp32"
    BF16 = "bf16"


DatasetArgument = Annotated[Path, typer.Argument(help="Dataset folder.")]
SeedOption = Annotated[int, typer.Option(help="Seed of the dataset.")]
ShardSizeOption = Annotated[int, typer.Option(help="Samples in one file.")]
BatchSizeOption = Annotated[int, typer.Option(help="Samples computed at once.")]
DeviceOption = Annotated[str, typer.Option(help="auto, cpu, cuda, cuda:1, ...")]
PrecisionOption = Annotated[
    Precision,
    typer.Option(help="Number format of the networks; part of what decides the bytes."),
]
ThreadsOption = Annotated[
    int, typer.Option(help="CPU threads of each worker; part of what decides the bytes.")
]
WorkerOption = Annotated[
    str | None,
    typer.Option(
        "--worker",
        metavar="K/N",
        help="This is worker K of 1 .. N that share the folder, as in a job array; the bytes are "
        "those of one.",
    ),
]
RepairOption = Annotated[
    bool, typer.Option("--repair", help="Make shards again whose checksum is wrong.")
]
DryRunOption = Annotated[
    bool, typer.Option("--dry-run", help="Print time, bytes and files; write nothing.")
]
JsonOption = Annotated[bool, typer.Option("--json", help="Print one JSON document.")]
WorkspaceOption = Annotated[Path, typer.Option(help="The workspace folder.")]


def by_comma(text: str | None) -> tuple[str, ...]:
    """Return the parts of an option that joins several by commas; none for None."""
    return tuple(part.strip() for part in (text or "").split(",") if part.strip())


def parse_range(text: str, what: str) -> tuple[float, float]:
    """Read `LOW:HIGH`, or one number for both.

    Raises:
        RequestError: not numbers, reversed, or outside [0, 1].
    """
    low, colon, high = text.partition(":")
    try:
        ends = float(low), float(high if colon else low)
    except ValueError as error:
        raise RequestError(f"{what}: expected LOW:HIGH such as 0.01:0.05, got '{text}'") from error
    if not 0 <= ends[0] <= ends[1] <= 1:
        raise RequestError(f"{what}: expected 0 <= LOW <= HIGH <= 1, got '{text}'")
    return ends


def parse_lesions(texts: Sequence[str]) -> dict[str, tuple[float, float] | None]:
    """Read `NAME=LOW:HIGH` options; `NAME` alone gives None.

    Raises:
        RequestError: no name, a name twice, or a wrong range.
    """
    ranges: dict[str, tuple[float, float] | None] = {}
    for text in texts:
        name, equals, ends = text.partition("=")
        if not name:
            raise RequestError(
                f"--lesion: expected NAME=LOW:HIGH such as wmh=0.01:0.05, got '{text}'"
            )
        if name in ranges:
            raise RequestError(f"--lesion: '{name}' stands twice")
        ranges[name] = parse_range(ends, f"--lesion {name}") if equals else None
    return ranges


@dataclass(frozen=True)
class FoundModel:
    """A model folder, and its name for provenance: its path, or such as `starter:labels`."""

    folder: Path
    name: str

    @property
    def shown(self) -> str:
        """The name, for people."""
        return f"{self.name}, shipped with synthgen" if self.is_starter else self.name

    @property
    def is_starter(self) -> bool:
        """Whether it is shipped with synthgen."""
        return self.name.startswith(STARTER)


def find_model(model: Path | None, workspace: Path, kind: str) -> FoundModel:
    """Return the model to use: the one given, else the workspace's own, else the shipped one.

    Args:
        model: a folder, or the name of a shipped model, such as `starter:labels`.
        workspace: the workspace folder.
        kind: "labels", "images" or "angiograms".

    Raises:
        StoreError: there is none.
    """
    from synthgen.core.model_folder import INDEX
    from synthgen.starter import starter_folder

    folder = model or Workspace(workspace).model(kind)
    named = str(folder).startswith(STARTER)
    if not named and (folder / INDEX).is_file():
        return FoundModel(folder, str(folder))
    if named or (model is None and not folder.exists()):
        name = str(folder) if named else f"{STARTER}{kind}"
        shipped = starter_folder(name.removeprefix(STARTER))
        if shipped:
            return FoundModel(shipped, name)
    raise StoreError(
        f"no {kind} model in {folder}; `synthgen train {kind} RECIPE` makes one, or name another "
        f"folder, or {STARTER}{kind}, which is shipped"
    )


def pick_device(device: str) -> str:
    """Return a torch device; "auto" takes a GPU if there is one, by the launcher's local rank.

    Raises:
        RequestError: the device is not there.
    """
    import torch

    count = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if device == "auto":
        rank = os.environ.get("LOCAL_RANK", "0")
        return f"cuda:{int(rank) % count}" if count and rank.isdecimal() else "cpu"
    if device.startswith("cuda") and not count:
        raise RequestError(f"--device {device}: no CUDA device here; use --device cpu")
    return device


def idle_cores(settings: GenerationSettings, device: str, command: str) -> str:
    """Return how to use the cores that a lone CPU worker leaves idle, or ""."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    workers = (cores or 1) // settings.threads
    if device != "cpu" or settings.num_workers > 1 or workers < 2:
        return ""
    return (
        f"cores: {settings.threads} of {cores}; `torchrun --nproc-per-node {workers} -m -- "
        f"synthgen {command} ...` uses all of them and makes the same bytes"
    )


def slow_format(precision: Precision, device: str) -> str:
    """Return a warning of a number format that a device only emulates, or ""."""
    from synthgen.cli.doctor import native_bf16

    if precision is Precision.FP32 or native_bf16(device):
        return ""
    return f"{device} only emulates bf16; --precision fp32 is faster here (another dataset)"


@contextmanager
def progress_on_stderr(what: str, unit: str = "samples") -> Iterator[Callable[[int, int], None]]:
    """Show progress: a bar on a terminal, elsewhere a line every 30 s."""
    if sys.stderr.isatty():
        from rich.console import Console
        from rich.progress import (
            MofNCompleteColumn,
            Progress,
            TimeElapsedColumn,
            TimeRemainingColumn,
        )

        columns = (*Progress.get_default_columns()[:2], MofNCompleteColumn())
        console = Console(stderr=True)
        with Progress(*columns, TimeElapsedColumn(), TimeRemainingColumn(), console=console) as bar:
            task = bar.add_task(what, total=None)
            yield lambda done, total: bar.update(task, completed=done, total=total)
        return
    last = time.monotonic()
    pace = Pace()

    def line(done: int, total: int) -> None:
        nonlocal last
        now = time.monotonic()
        pace.mark(now, done)
        if now - last >= LINE_EVERY_S:
            last = now
            left_s = pace.left_s(total)
            left = "" if left_s is None else f", {duration(left_s)} left"
            text = f"{what}: {done} of {total} {unit}, {pace.rate:.3g}/s{left}"
            print(text, file=sys.stderr, flush=True)

    yield line


def complete(
    job: Job,
    n: int,
    out: Path,
    notes: Mapping[str, str],
    *,
    dry_run: bool,
    as_json: bool,
    facts: Callable[[], Mapping[str, object]] = dict,
) -> None:
    """Run a job, or only estimate it, and report.

    Args:
        job: what to compute.
        n: the total number of samples.
        out: the dataset folder.
        notes: provenance of a new dataset: where its model lies.
        dry_run: estimate, write nothing.
        as_json: print one JSON document instead of lines.
        facts: called after a run for what else the JSON document says.
    """
    from synthgen.generate import forecast, run

    if dry_run:
        report = forecast(job, n, out)
        print(json.dumps(asdict(report)) if as_json else _forecast_text(report, job, out))
        return
    settings = job.settings
    name = job.kind
    if settings.num_workers > 1:
        name += f" [worker {settings.worker + 1} of {settings.num_workers}]"
    with progress_on_stderr(name) as progress:
        outcome = run(job, n, out, notes=notes, progress=progress)
    if as_json:
        print(json.dumps(asdict(outcome) | {"folder": str(out)} | dict(facts())))
    else:
        print(_outcome_text(outcome, name))


def _outcome_text(outcome: Outcome, name: str) -> str:
    made = outcome.generated
    text = f"{name}: {outcome.folder} holds "
    if outcome.elsewhere:
        there = outcome.n - outcome.elsewhere
        text += f"{there} of {outcome.n} samples, {outcome.elsewhere} are in other workers' hands"
    else:
        text += f"{outcome.n} samples in all"
    if outcome.kept:
        text += f", {outcome.kept} were there"
    if outcome.repaired:
        text += f", {outcome.repaired} damaged shards made again"
    if not made:
        return f"{text}; nothing to do"
    share = outcome.blocked_s / outcome.seconds
    others = f" ({outcome.taken_over} for other workers)" if outcome.taken_over else ""
    return (
        f"{text}; made {made}{others} in {duration(outcome.seconds)} "
        f"({made / outcome.seconds:.3g}/s), {size(outcome.bytes)}, "
        f"waited for the disk {share:.1%} of the time"
    )


def _forecast_text(report: Forecast, job: Job, out: Path) -> str:
    if not report.files:
        return f"{out} holds all {report.n} samples; nothing to do"
    existing = next(folder for folder in (out, *out.absolute().parents) if folder.exists())
    free = shutil.disk_usage(existing).free
    workers = job.settings.num_workers
    lines = [
        f"{out}: {report.n - report.kept} of {report.n} samples to make, {report.kept} there",
        f"files: {report.files} shards and a manifest",
        f"bytes: about {size(report.bytes)}, {size(free)} free there",
        (
            f"time:  about {duration(report.seconds)} with {workers} worker{'s' * (workers > 1)} "
            f"(measured on one batch of {job.settings.batch_size}, loading the model apart)"
        ),
    ]
    if report.bytes > free:
        lines.append("this does not fit: free space or choose another --out")
    return "\n".join(lines)


def load_note(manifest: Manifest, folder: Path) -> dict[str, Any]:
    """Return how a dataset's model was loaded, from its provenance.

    Raises:
        StoreError: the manifest does not say.
    """
    try:
        return dict(json.loads(manifest.provenance["load"]))
    except (KeyError, ValueError, TypeError) as error:
        raise StoreError(
            f"{folder / 'manifest.json'}: does not say how its model was loaded; it was not made "
            "by `synthgen labels`, `images`, `vessels` or `angiograms`"
        ) from error


def duration(seconds: float) -> str:
    """Return a time for people.

    Examples:
        >>> duration(5.34), duration(125), duration(7500)
        ('5.3 s', '2 min 05 s', '2 h 05 min')
    """
    if seconds < 60:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    if minutes < 60:
        return f"{minutes} min {rest:02d} s"
    return f"{minutes // 60} h {minutes % 60:02d} min"


def size(count: float) -> str:
    """Return a number of bytes for people.

    Examples:
        >>> size(900), size(1_260_000_000)
        ('900 B', '1.3 GB')
    """
    for unit in ("B", "kB", "MB", "GB"):
        if count < 1000:
            return f"{count:.0f} {unit}" if unit == "B" else f"{count:.1f} {unit}"
        count /= 1000
    return f"{count:.1f} TB"
