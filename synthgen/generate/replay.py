"""Make one sample again from a dataset's manifest and model, and compare it bit for bit."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from synthgen.core.errors import RequestError, StoreError
from synthgen.generate.acceptance import Acceptance
from synthgen.generate.angiogram_job import AngiogramJob
from synthgen.generate.engine import intra_op_threads
from synthgen.generate.image_job import WORKSPACE_STYLES, ImageJob
from synthgen.generate.jobs import GenerationSettings, Job
from synthgen.generate.label_job import LabelJob
from synthgen.generate.vessel_job import VesselJob
from synthgen.labels import ConditionRange

if TYPE_CHECKING:
    from collections.abc import Sequence

    from synthgen.data.shards import Arrays, Shards
    from synthgen.generate.gate import Gate
    from synthgen.generate.vessel_job import VesselDrawer
    from synthgen.images import ImageGenerator
    from synthgen.images.angiogram import AngiogramRenderer
    from synthgen.labels import LabelGenerator


def replay_labels(shards: Shards, generator: LabelGenerator) -> LabelJob:
    """Return the job that made a dataset of labels.

    Raises:
        RequestError: the generator is not the one that made it.
        StoreError: the manifest lacks something.
    """
    identity = dict(shards.manifest.identity)
    try:
        ranges = {k: (float(v[0]), float(v[1])) for k, v in identity["conditions"].items()}
        position, csf = ranges.pop("position"), ranges.pop("csf", None)
        job = LabelJob(
            generator,
            ConditionRange(ranges, position, csf),
            _settings(identity),
            Acceptance(**identity["acceptance"]),
            {int(index): int(first) for index, first in identity.get("first_attempts", {}).items()},
        )
    except (KeyError, TypeError, IndexError, AttributeError) as error:
        raise _incomplete(shards, error) from error
    _require_same(shards, job)
    return job


def replay_images(shards: Shards, generator: ImageGenerator) -> ImageJob:
    """Return the job that made a dataset of images; it reads the maps from the dataset itself.

    Args:
        shards: the dataset.
        generator: with the workspace styles that the dataset names (`workspace_styles`).

    Raises:
        RequestError: the generator, or a workspace style, is not the one that made it.
        StoreError: the manifest lacks something.
    """
    identity = dict(shards.manifest.identity)
    _require_styles(shards, generator)

    def fetch(label_index: Sequence[int]) -> Arrays:
        return shards.raw([index * per_label for index in label_index])

    try:
        per_label = int(identity["per_label"])
        job = ImageJob(
            generator,
            tuple(identity["styles"]),
            len(shards),
            fetch,
            str(identity["labels"]),
            shards.condition_names,
            tuple(shards.manifest.subjects),
            per_label,
            _settings(identity),
        )
    except (KeyError, TypeError) as error:
        raise _incomplete(shards, error) from error
    _require_same(shards, job)
    return job


def replay_vessels(shards: Shards, generator: VesselDrawer) -> VesselJob:
    """Return the job that made a dataset of vessel trees.

    Raises:
        RequestError: the generator is not the one that made it.
        StoreError: the manifest lacks something.
    """
    identity = dict(shards.manifest.identity)
    try:
        job = VesselJob(generator, tuple(identity["extras"]), _settings(identity))
    except (KeyError, TypeError) as error:
        raise _incomplete(shards, error) from error
    _require_same(shards, job)
    return job


def replay_angiograms(
    shards: Shards, generator: VesselDrawer, renderer: AngiogramRenderer, gate: Gate | None
) -> AngiogramJob:
    """Return the job that made a dataset of angiograms.

    Raises:
        RequestError: generator, renderer or gate are not those that made it.
        StoreError: the manifest lacks something.
    """
    identity = dict(shards.manifest.identity)
    try:
        job = AngiogramJob(generator, renderer, gate, _settings(identity))
    except (KeyError, TypeError) as error:
        raise _incomplete(shards, error) from error
    _require_same(shards, job)
    return job


def workspace_styles(shards: Shards) -> dict[str, str]:
    """Return the workspace styles that a dataset was painted in: name to digest."""
    return dict(shards.manifest.identity.get(WORKSPACE_STYLES, {}))


def replay(job: Job, shards: Shards, index: int) -> list[str]:
    """Compute sample `index` again, alone but in its full batch, and compare it with the stored.

    Returns:
        One line for each array that differs; empty when every bit is equal.

    Raises:
        RequestError: the dataset has no such sample.
        StoreError: its shard is missing or damaged.
    """
    if not 0 <= index < len(shards):
        raise RequestError(
            f"{shards.folder} holds the samples 0 .. {len(shards) - 1}; there is no {index}"
        )
    stored = shards.raw([index])
    start = index - index % job.settings.batch_size
    with intra_op_threads(job.settings.threads):
        fresh = job.rows(range(start, start + job.settings.batch_size))
    differing = []
    for name in sorted(stored.keys() | fresh.keys()):
        if name not in stored or name not in fresh:
            differing.append(f"{name}: stands on one side only")
            continue
        old, new = stored[name][0], fresh[name][index - start]
        if old.dtype != new.dtype or old.tobytes() != new.tobytes():
            gap = np.abs(old.astype(np.float64) - new.astype(np.float64))
            differing.append(
                f"{name}: {np.count_nonzero(gap)} of {gap.size} values differ, "
                f"by at most {gap.max():g}"
            )
    return differing


def _settings(identity: dict[str, Any]) -> GenerationSettings:
    return GenerationSettings(
        seed=int(identity["seed"]),
        batch_size=int(identity["batch_size"]),
        shard_size=int(identity["shard_size"]),
        threads=int(identity["threads"]),
    )


def _incomplete(shards: Shards, error: Exception) -> StoreError:
    return StoreError(
        f"{shards.folder / 'manifest.json'}: lacks what made the dataset ({error!r}); "
        "it cannot be replayed"
    )


def _require_styles(shards: Shards, generator: ImageGenerator) -> None:
    here = {style.name: style.digest for style in generator.styles}
    for name, digest in workspace_styles(shards).items():
        if here.get(name) == digest:
            continue
        what = "has changed since" if here.get(name) else "is not there"
        raise RequestError(
            f"{shards.folder} was painted in the workspace's style '{name}', which {what}; "
            f"`synthgen styles add {name}` from the same images brings it back"
        )


def _require_same(shards: Shards, job: Job) -> None:
    then, now = shards.manifest.identity, job.identity
    differing = [
        f"{key}: then {then.get(key)!r}, here {now.get(key)!r}"
        for key in sorted({*then, *now})
        if then.get(key) != now.get(key)
    ]
    if differing:
        raise RequestError(
            f"{shards.folder} was made by another generator ({'; '.join(differing)}); "
            "name the one that made it with --model"
        )
