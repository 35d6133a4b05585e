"""Quality against time of the label generator: samplers, steps, guidance and precision.

Every setting draws the same maps (same keys, same requests), so that settings differ by less than
two sets of maps would. Of each: CPU seconds a map; how far tissue shares at matched height are
from real slices (`label_metrics.mean_wasserstein`, as in `synthgen evaluate quality`); the Fréchet
distance of shares and shape in units of real slices; lesion requests met by the first draw; and
Dice with the maps of the reference setting. Beside them stand the same numbers between halves of
real people. Every finished setting is written at once.
"""

from __future__ import annotations

import json
import time
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from matplotlib.figure import Figure

from synthgen.core.rng import SampleKey, Stream
from synthgen.data.store import TrainingStore
from synthgen.data.tissue import quantize_batch
from synthgen.evaluate import label_metrics, sets
from synthgen.evaluate.fidelity import frechet_distance
from synthgen.evaluate.metric import subject_halves
from synthgen.generate import Acceptance
from synthgen.labels.generator import DiffusionLabelGenerator

if TYPE_CHECKING:
    import argparse

    from synthgen.evaluate.label_metrics import LabelDescriptors
    from synthgen.evaluate.sets import SliceSet

BATCH, SEED = 8, 7
SPLITS = ("train", "val", "test")


@dataclass(frozen=True)
class Setting:
    """How maps are drawn."""

    sampler: str
    steps: int
    guidance: float
    dtype: str = "bf16"

    @property
    def name(self) -> str:
        """What a row is called."""
        guided = "" if self.guidance == 1 else f", guidance {self.guidance:g}"
        return f"{self.sampler} {self.steps}{guided}, {self.dtype}"


REFERENCE = Setting("dpm", 50, 1.5)
SETTINGS = (
    REFERENCE,
    Setting("dpm", 20, 1.5),
    Setting("dpm", 10, 1.5),
    Setting("dpm", 20, 1.0),
    Setting("dpm", 20, 1.5, "fp32"),
    Setting("dpm", 5, 1.5),
    Setting("ddim", 20, 1.5),
    Setting("unipc", 10, 1.5),
    Setting("unipc", 20, 1.5),
    Setting("ddim", 50, 1.5),
    Setting("ddim", 10, 1.5),
    Setting("unipc", 5, 1.5),
    Setting("dpm", 15, 1.5),
    Setting("dpm", 20, 3.0),
)


def add_options(parser: argparse.ArgumentParser) -> None:
    """Add the options of the curve."""
    parser.add_argument("--curve", action="store_true", help="measure quality against time")
    parser.add_argument("--real", type=Path, help="training store to compare with")
    parser.add_argument("--maps", type=int, default=256, help="maps of each setting")
    parser.add_argument("--minutes", type=float, default=25, help="no setting starts later")


def measure(args: argparse.Namespace, about: dict[str, Any], target: Path) -> None:
    """Measure the settings, most telling first; write and draw after each."""
    real = real_slices(args.real)
    result = about | {"maps": args.maps, "batch": BATCH, "reference": REFERENCE.name}
    result["real"] = str(args.real.name) if args.real else None
    result["floor"] = {} if real is None else floors(real, args.maps)
    result["rows"] = []
    reference, started = None, time.monotonic()
    for setting in SETTINGS:
        if time.monotonic() - started > 60 * args.minutes:
            break
        made, row = draw(args.labels, setting, args.maps)
        labels = made.pv(range(len(made))).argmax(axis=1).astype(np.uint8)
        reference = labels if reference is None else reference
        row["dice with reference"] = mean_dice(labels, reference, made.schema.channels)
        if real is not None:
            row |= distances(label_metrics.describe_labels(made), real)
        result["rows"].append(row)
        print(row, flush=True)
        target.write_text(json.dumps(result, indent=1) + "\n")
        plot(result, target.with_suffix(".png"))


def real_slices(store: Path | None) -> LabelDescriptors | None:
    """Return descriptors of the real slices of all splits that there are; None without a store."""
    if store is None:
        return None
    with TrainingStore.open(store) as opened:
        splits = [s for s in SPLITS if len(opened.slice_indices(s))]
        return label_metrics.describe_labels(sets.from_store(opened, splits))


def draw(folder: Path, setting: Setting, count: int) -> tuple[SliceSet, dict[str, Any]]:
    """Draw maps; return them and CPU seconds a map, and the share that meets its request."""
    generator = DiffusionLabelGenerator.load(
        folder,
        sampler=setting.sampler,
        steps=setting.steps,
        guidance=setting.guidance,
        dtype=setting.dtype,
    )
    lesions = generator.schema.lesions
    # As in the training data: one lesion at most, all heights, all people.
    trained = generator.conditions
    wanted = replace(trained, lesions=dict.fromkeys(list(trained.lesions)[:1], (0.0, 0.05)))
    keys = [SampleKey(SEED, i) for i in range(count)]
    conditions = [wanted.draw(key) for key in keys]
    asked = np.asarray([[c.lesions.get(n, 0.0) for n in lesions] for c in conditions])
    maps, spent = [], 0.0
    for first in range(0, count, BATCH):
        part = slice(first, first + BATCH)
        began = time.thread_time()
        pv = generator.sample(keys[part], conditions[part]).numpy()
        spent += time.thread_time() - began
        maps.append(quantize_batch(pv))
    pv = np.concatenate(maps).astype(np.float32) / np.float32(255)
    made = sets.from_arrays(
        pv,
        generator.schema,
        name=setting.name,
        position=[c.position for c in conditions],
        requested=asked,
    )
    shares = np.stack([generator.schema.fractions(row) for row in pv])
    seen = [i for i, name in enumerate(lesions) if name in trained.lesions]
    realised = shares[:, list(generator.schema.lesion_channels)].astype(np.float32)
    met = Acceptance().meets(asked.astype(np.float32)[:, seen], realised[:, seen])
    return made, {
        "setting": setting.name,
        "sampler": setting.sampler,
        "guidance": setting.guidance,
        "dtype": setting.dtype,
        "network_calls": generator.network_calls,
        "cpu_s_per_map": spent / count,
        "requests met at once": float(met.mean()),
    }


def distances(made: LabelDescriptors, real: LabelDescriptors) -> dict[str, float]:
    """Return distances of two sets of descriptors: tissue shares in percent, and Fréchet."""
    edges = label_metrics.position_bins(made.position, real.position)
    present = [c for c in range(1, real.schema.channels) if real.fractions[:, c].max() > 1e-4]
    shares = [
        label_metrics.binned(d.position, d.fractions[:, present], edges)[0] for d in (made, real)
    ]
    between = label_metrics.in_bins(label_metrics.mean_wasserstein)
    first, second = vectors(made), vectors(real)
    unit = second.std(axis=0) + 1e-9
    return {
        "tissue shares, %": 100 * between(*shares),
        "frechet": frechet_distance(first / unit, second / unit),
    }


def vectors(described: LabelDescriptors) -> np.ndarray:
    """Return shares, outline and sharpness of each map, without lesions, which are requests."""
    tissues = [
        c for c in range(described.schema.channels) if c not in described.schema.lesion_channels
    ]
    outline = np.stack([described.outside, described.hole_share, described.sharpness], axis=1)
    return np.concatenate([described.fractions[:, tissues], outline], axis=1)


def floors(real: LabelDescriptors, count: int) -> dict[str, float]:
    """Return the medians of the same distances between halves of real people."""
    found: list[dict[str, float]] = []
    for number, halves in enumerate(subject_halves(real.subject, SampleKey(SEED, 0))):
        rng = SampleKey(SEED, number).numpy(Stream.EVALUATE)
        some = [rng.permutation(half)[:count] for half in halves]
        found.append(distances(*(taken(real, rows) for rows in some)))
    return {name: float(np.median([row[name] for row in found])) for name in found[0]}


def taken(described: LabelDescriptors, rows: np.ndarray) -> LabelDescriptors:
    """Return some rows of the columns that `distances` reads."""
    columns = ("position", "fractions", "outside", "hole_share", "sharpness")
    return replace(described, **{name: getattr(described, name)[rows] for name in columns})


def mean_dice(first: np.ndarray, second: np.ndarray, channels: int) -> float:
    """Return the mean Dice of two sets of label maps over the tissues that either has."""
    scores = []
    for value in range(1, channels):
        a, b = first == value, second == value
        if a.any() or b.any():
            scores.append(2 * (a & b).sum() / (a.sum() + b.sum()))
    return float(np.mean(scores))


def plot(result: dict[str, Any], path: Path) -> None:
    """Draw what a setting costs and how good it is."""
    names = ["tissue shares, %", "frechet", "requests met at once", "dice with reference"]
    names = [n for n in names if n in result["rows"][0]]
    figure = Figure(figsize=(4.2 * len(names), 4), layout="constrained")
    for axis, name in zip(figure.subplots(1, len(names)), names, strict=True):
        for key in sorted({(r["sampler"], r["guidance"], r["dtype"]) for r in result["rows"]}):
            rows = [r for r in result["rows"] if (r["sampler"], r["guidance"], r["dtype"]) == key]
            rows.sort(key=lambda r: r["network_calls"])
            label = f"{key[0]}, guidance {key[1]:g}, {key[2]}"
            x, y = [r["cpu_s_per_map"] for r in rows], [r[name] for r in rows]
            axis.plot(x, y, "o-", markersize=4, label=label)
        if name in result["floor"]:
            axis.axhline(result["floor"][name], color="0.6", linestyle=":", label="real halves")
        axis.set_xscale("log")
        axis.set_xlabel("CPU s a map")
        axis.set_title(name)
    figure.axes[0].legend(fontsize=7)
    figure.savefig(path, dpi=90)
