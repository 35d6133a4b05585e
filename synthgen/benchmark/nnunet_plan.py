"""One nnU-Net plan for every arm, made by nnU-Net's own planner from the real slices.

Left to itself nnU-Net caps the batch by the size of the training set, so that arms of different
size would get different batches and patches. Here the planner sees the real set once; a budget may
then state a narrower network and its batch size.
"""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

from nnunetv2.experiment_planning.experiment_planners.default_experiment_planner import (
    ExperimentPlanner,
)

from synthgen.benchmark.arm_store import CaseStore, store_path
from synthgen.benchmark.arms import REFERENCE
from synthgen.core.manifest import write_atomic

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from synthgen.benchmark.spec import Spec

DATASET = "Dataset901_Benchmark"
PLANS = "synthgenPlans"
CONFIGURATION = "2d"
_OUT_OF_PLANE_MM = 999.0
"""nnU-Net takes the axis of the largest spacing as the slice axis; so does its PNG reader."""


def dataset_json(tissues: Sequence[str], count: int) -> dict[str, Any]:
    """Return nnU-Net's description: images that are normalised already, labels by group."""
    return {
        "channel_names": {"0": "noNorm"},
        "labels": {name: value for value, name in enumerate(tissues)},
        "numTraining": count,
        "file_ending": ".nii.gz",
        # The planner wants a case and a reader, and opens neither.
        "overwrite_image_reader_writer": "SimpleITKIO",
        "dataset": {"none": {"images": ["none.nii.gz"], "label": "none.nii.gz"}},
    }


def make_plan(out: Path, spec: Spec, raw: Path, preprocessed: Path) -> dict[str, Any]:
    """Plan the 2d configuration for a benchmark's real slices.

    Args:
        out: folder of the benchmark.
        spec: what is benchmarked.
        raw: nnU-Net's raw folder, private to this benchmark, as its environment variable says.
        preprocessed: likewise.

    Returns:
        nnU-Net's plans.
    """
    store = CaseStore(store_path(out, REFERENCE))
    for folder in (raw / DATASET, preprocessed / DATASET):
        folder.mkdir(parents=True, exist_ok=True)
    body = dataset_json(spec.tissues, len(store))
    _write(raw / DATASET / "dataset.json", body)
    _write(preprocessed / DATASET / "dataset_fingerprint.json", _fingerprint(store))
    planner = ExperimentPlanner(DATASET, plans_name=PLANS)
    planner.UNet_base_num_features = spec.budget.features
    plans: dict[str, Any] = planner.plan_experiment()
    configuration = plans["configurations"][CONFIGURATION]
    # Augmentation must not add noise to the background, which is exactly 0 in every test image.
    configuration["use_mask_for_norm"] = [True]
    if spec.budget.batch_size is not None:
        configuration["batch_size"] = spec.budget.batch_size
    return {**plans, "configurations": {CONFIGURATION: configuration}}


def _fingerprint(store: CaseStore) -> dict[str, Any]:
    """Return what nnU-Net measures of a data set: sizes of the brains, here one a subject."""
    boxes = store.boxes()
    area = store.shape[0] * store.shape[1]
    ratios = sorted(x * y / area for x, y in boxes)
    normal = {"max": 1.0, "mean": 0.0, "median": 0.0, "min": -1.0, "std": 1.0}
    normal |= {"percentile_00_5": -1.0, "percentile_99_5": 1.0}
    return {
        "spacings": [[_OUT_OF_PLANE_MM, store.spacing_mm, store.spacing_mm]] * len(boxes),
        "shapes_after_crop": [[1, x, y] for x, y in boxes],
        "foreground_intensity_properties_per_channel": {"0": normal},
        "median_relative_size_after_cropping": ratios[len(ratios) // 2],
    }


def _write(path: Path, body: dict[str, Any]) -> None:
    write_atomic(path, json.dumps(body, indent=1).encode())
