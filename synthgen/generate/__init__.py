"""Generate datasets: jobs (what to compute) and the engine (plan, resume, workers, shards)."""

from __future__ import annotations

from typing import TYPE_CHECKING

from synthgen.generate.acceptance import Acceptance
from synthgen.generate.angiogram_job import AngiogramJob
from synthgen.generate.engine import Forecast, Outcome, Progress, forecast, intra_op_threads, run
from synthgen.generate.gate import Gate, GateReport
from synthgen.generate.image_job import ImageJob
from synthgen.generate.jobs import DEFAULT_THREADS, GenerationSettings, Job
from synthgen.generate.label_job import LabelJob
from synthgen.generate.redraw import Quarantine, RedrawJob, flagged_labels
from synthgen.generate.replay import (
    replay,
    replay_angiograms,
    replay_images,
    replay_labels,
    replay_vessels,
    workspace_styles,
)
from synthgen.generate.vessel_job import VesselJob
from synthgen.generate.volume_set import VolumeOutcome, Volumes, VolumeSet

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from synthgen.data.shards import Shards
    from synthgen.images import ImageGenerator
    from synthgen.labels import ConditionRange, LabelGenerator

__all__ = [
    "DEFAULT_THREADS",
    "Acceptance",
    "AngiogramJob",
    "Forecast",
    "Gate",
    "GateReport",
    "GenerationSettings",
    "ImageJob",
    "Job",
    "LabelJob",
    "Outcome",
    "Progress",
    "Quarantine",
    "RedrawJob",
    "VesselJob",
    "VolumeOutcome",
    "VolumeSet",
    "Volumes",
    "flagged_labels",
    "forecast",
    "generate_images",
    "generate_labels",
    "intra_op_threads",
    "replay",
    "replay_angiograms",
    "replay_images",
    "replay_labels",
    "replay_vessels",
    "run",
    "workspace_styles",
]


def generate_labels(
    generator: LabelGenerator,
    conditions: ConditionRange,
    n: int,
    folder: Path,
    settings: GenerationSettings | None = None,
    *,
    acceptance: Acceptance | None = None,
    progress: Progress | None = None,
) -> Outcome:
    """Make, or continue, a dataset of n label maps; see `run`.

    Args:
        generator: draws the maps.
        conditions: ranges of lesion fractions and slice position to draw from.
        n: the total number of samples.
        folder: the dataset folder.
        settings: seed, sizes, threads, worker.
        acceptance: which draws are kept, and how often to draw again.
        progress: called with (samples done, samples to do).

    Raises:
        RequestError: n too small, an unknown lesion, or a folder that holds another dataset.
        StoreError: a damaged shard or a full disk.
    """
    job = LabelJob(
        generator, conditions, settings or GenerationSettings(), acceptance or Acceptance()
    )
    return run(job, n, folder, progress=progress)


def generate_images(
    generator: ImageGenerator,
    labels: Shards,
    styles: Sequence[str],
    folder: Path,
    settings: GenerationSettings | None = None,
    *,
    per_label: int = 1,
    progress: Progress | None = None,
) -> Outcome:
    """Paint every map of a complete dataset of labels; see `run`.

    Args:
        generator: paints the maps.
        labels: the dataset of labels.
        styles: style names; each sample gets one image of each.
        folder: the dataset folder.
        settings: seed, sizes, threads, worker.
        per_label: samples painted from one label.
        progress: called with (samples done, samples to do).

    Raises:
        RequestError: an unknown style, or a folder that holds another dataset.
        SchemaError: the generator paints maps of another schema.
        StoreError: labels are missing, a damaged shard, or a full disk.
    """
    job = ImageJob.of(generator, labels, styles, per_label=per_label, settings=settings)
    return run(job, job.n, folder, progress=progress)
