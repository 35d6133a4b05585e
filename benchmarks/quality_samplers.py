"""How good are label maps of few steps? A teacher's steps and its distilled students, side by side.

Every arm draws the same requests from the same noise, one draw each (no map is drawn again), batch
by batch in turn, so that a drifting machine slows all of them. A second set of the teacher, same
requests and other noise, is what all are compared with. The floor is how far two sets of the
teacher lie apart by chance: the 95th percentile over sets that swap some samples, each for that of
the same request.

    python benchmarks/quality_samplers.py --student work/models/labels_fast --store work/store

Prints a table, writes `results/quality_samplers-DATE.json` and a sheet of maps, one row an arm.
"""

from __future__ import annotations

import argparse
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
import torch
from timing import save_result

from synthgen.core.manifest import digest
from synthgen.core.rng import SampleKey, Stream
from synthgen.data.store import TrainingStore
from synthgen.evaluate import descriptors, label_metrics
from synthgen.evaluate.diversity_pairs import soft_dice
from synthgen.evaluate.fidelity import frechet_distance
from synthgen.evaluate.label_metrics import LabelDescriptors, describe_labels
from synthgen.evaluate.nearest import by_subject
from synthgen.evaluate.sets import from_arrays, from_store
from synthgen.generate import Acceptance
from synthgen.labels import ConditionRange, LabelCondition
from synthgen.labels.generator import DiffusionLabelGenerator
from synthgen.starter import starter_folder
from synthgen.training.log import colour_argmax, write_sheet

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

Bytes = npt.NDArray[np.uint8]
Rows = npt.NDArray[np.float64]
GOAL, OTHER = "teacher, its own steps", "teacher, other noise"
COMPONENTS, SWAPS, SHOWN = 16, 200, 12


@dataclass
class Arm:
    """One way to draw, and what it drew.

    Attributes:
        generator: draws.
        calls: network calls a map, guidance included.
        seed: seed of its noise.
        pv: `(n, C, X, Y)` uint8, value / 255.
        seconds: CPU seconds a map, batch by batch.
    """

    generator: DiffusionLabelGenerator
    calls: int
    seed: int
    pv: list[Bytes] = field(default_factory=list)
    seconds: list[float] = field(default_factory=list)

    def draw(
        self, indices: Sequence[int], wanted: Sequence[LabelCondition], drawn: Path | None
    ) -> None:
        """Draw a batch and keep it, or take it from the folder of an earlier run."""
        facts = {**self.generator.identity, "seed": self.seed, "first": indices[0]}
        kept = drawn / f"{digest(facts | {'n': len(indices)})[:16]}.npz" if drawn else None
        if kept is None or not kept.is_file():
            start = time.thread_time()
            pv = self.generator.sample([SampleKey(self.seed, i) for i in indices], wanted)
            self.seconds.append((time.thread_time() - start) / len(indices))
            self.pv.append((pv * 255).round().to(torch.uint8).numpy())
            if kept:
                np.savez_compressed(kept, pv=self.pv[-1], seconds=self.seconds[-1])
            return
        with np.load(kept) as held:
            self.pv.append(held["pv"])
            self.seconds.append(float(held["seconds"]))

    @property
    def maps(self) -> Bytes:
        """All that it drew."""
        return np.concatenate(self.pv)


def build_arms(args: argparse.Namespace) -> dict[str, Arm]:
    """Load every arm: the teacher in fewer and fewer steps, then the students."""
    teacher = args.teacher or starter_folder("labels")

    def arm(folder: Path, steps: int | None, guidance: float | None, seed: int) -> Arm:
        generator = DiffusionLabelGenerator.load(
            folder, steps=steps, guidance=guidance, dtype="bf16"
        )
        return Arm(generator, generator.network_calls, seed)

    arms = {
        GOAL: arm(teacher, None, None, args.seed),
        OTHER: arm(teacher, None, None, args.seed + 1),
    }
    for steps in args.steps:
        cut = arms[f"teacher, {steps} steps"] = arm(teacher, steps, None, args.seed)
        if steps == min(args.steps) and cut.calls > steps:
            arms[f"teacher, {steps} steps, no guidance"] = arm(teacher, steps, 1.0, args.seed)
    for folder in args.student:
        student = arm(folder, None, None, args.seed)
        arms[f"student {folder.name}, {student.calls} calls"] = student
    return arms


def requests(arm: Arm, args: argparse.Namespace) -> list[LabelCondition]:
    """Return the conditions of samples 0, 1, ...: the same for all arms."""
    known = arm.generator.conditions
    lesions = {name: (0.0, min(args.lesion, high)) for name, (_, high) in known.lesions.items()}
    wanted = ConditionRange(lesions, known.position, known.csf)
    return [wanted.draw(SampleKey(args.seed, i)) for i in range(args.n)]


@dataclass(frozen=True)
class Measured:
    """One arm in numbers: descriptors, place in the teacher's components, pairs of neighbours."""

    labels: LabelDescriptors
    points: Rows
    likeness: Rows


def pooled(maps: Bytes) -> Rows:
    """Return mean partial volumes `(n, d)` of 12 x 16 blocks of every tissue."""
    n, channels, x, y = maps.shape
    blocks = maps.reshape(n, channels, 12, x // 12, 16, y // 16).mean(axis=(3, 5)) / 255
    return blocks.reshape(n, -1)


def measure(arm: Arm, wanted: Sequence[LabelCondition], axes: Callable[[Rows], Rows]) -> Measured:
    """Reduce an arm's maps to numbers."""
    schema = arm.generator.schema
    asked = [[c.lesions.get(name, 0.0) for name in schema.lesions] for c in wanted]
    position = [c.position for c in wanted]
    maps = arm.maps
    # Floats of one map at a time: `from_arrays` reads row by row.
    labels = describe_labels(
        from_arrays(maps.astype(np.float32) / 255, schema, position=position, requested=asked)
    )
    order = np.argsort(position)
    pairs = zip(order[:-1:2], order[1::2], strict=False)
    likeness = [soft_dice(maps[a] / np.float32(255), maps[b] / np.float32(255)) for a, b in pairs]
    return Measured(labels, axes(pooled(maps)), np.asarray(likeness))


def principal_axes(first: Rows, second: Rows) -> Callable[[Rows], Rows]:
    """Return the projection to the first principal components of two sets together."""
    both = np.concatenate([first, second])
    mean = both.mean(axis=0)
    _, _, directions = np.linalg.svd(both - mean, full_matrices=False)
    return lambda rows: (rows - mean) @ directions[:COMPONENTS].T


def distances(first: Measured, second: Measured) -> dict[str, Callable[[Any, Any], float]]:
    """Return distances of row subsets `(i of first, j of second)`; 0 is the same."""
    present = [
        c for c in range(1, first.labels.schema.channels) if first.labels.fractions[:, c].any()
    ]
    edges = label_metrics.position_bins(first.labels.position, second.labels.position)

    def shares(i: Any, j: Any) -> float:  # noqa: ANN401 - numpy rows
        sides = [
            label_metrics.binned(m.labels.position[k], m.labels.fractions[k][:, present], edges)[0]
            for m, k in ((first, i), (second, j))
        ]
        return 100 * label_metrics.in_bins(label_metrics.mean_wasserstein)(sides[0], sides[1])

    def gap(column: Callable[[LabelDescriptors], Rows]) -> Callable[[Any, Any], float]:
        return lambda i, j: float(
            100 * abs(column(first.labels)[i].mean() - column(second.labels)[j].mean())
        )

    return {
        "Frechet": lambda i, j: frechet_distance(first.points[i], second.points[j]),
        "Wasserstein": lambda i, j: label_metrics.mean_wasserstein(
            first.points[i], second.points[j]
        ),
        "shares %": shares,
        "boundaries %": lambda i, j: (
            100
            * label_metrics.boundary_distance(
                first.labels.neighbours[i], second.labels.neighbours[j]
            )
        ),
        "sharpness %": gap(lambda d: d.sharpness),
        "one piece %": gap(lambda d: (d.pieces == 1).astype(float)),
        "no holes %": gap(lambda d: (d.holes == 0).astype(float)),
    }


def joined(first: Measured, second: Measured) -> Measured:
    """Return two sets as one, for the floor; their lesions are not needed."""
    a, b = first.labels, second.labels
    columns = {
        name: np.concatenate([getattr(a, name), getattr(b, name)])
        for name in ("position", "fractions", "neighbours", "sharpness", "pieces", "holes")
    }
    labels = LabelDescriptors(
        **(a.__dict__ | columns | {"subject": a.subject + b.subject})  # type: ignore[arg-type]
    )
    return Measured(labels, np.concatenate([first.points, second.points]), first.likeness)


def floors(goal: Measured, other: Measured, key: SampleKey) -> dict[str, list[float]]:
    """Return the 5th, 50th and 95th percentile of each distance between sets of swapped samples."""
    both, n = joined(goal, other), len(goal.points)
    rng = key.numpy(Stream.EVALUATE)
    values: dict[str, list[float]] = {}
    for _ in range(SWAPS):
        side = np.arange(n) + n * rng.integers(0, 2, n)
        for name, distance in distances(both, both).items():
            values.setdefault(name, []).append(distance(side, (side + n) % (2 * n)))
    return {k: [float(p) for p in np.percentile(v, [5, 50, 95])] for k, v in values.items()}


def lesion_numbers(arm: Arm, labels: LabelDescriptors) -> dict[str, float]:
    """Return how requests were met at the first draw, for the lesions that the model knows."""
    names = arm.generator.schema.lesions
    seen = [i for i, name in enumerate(names) if name in arm.generator.conditions.lesions]
    asked, made = labels.requested[:, seen], labels.realised[:, seen]
    first, real = asked[:, 0], made[:, 0]
    there = first > label_metrics.PRESENT
    return {
        "hit %": 100 * float(Acceptance().meets(asked, made).mean()),
        "presence %": 100 * label_metrics.presence_right(first, real),
        "rank": label_metrics.rank_agreement(first, real),
        "made / asked": float(np.median(real[there] / first[there])),
    }


def copies(arms: Mapping[str, Arm], store_path: Path) -> dict[str, dict[str, float]]:
    """Return how near maps lie to training slices, and the share nearer to them than to others."""
    found = {}
    with TrainingStore.open(store_path) as store:
        banks = {
            split: descriptors.describe(from_store(store, [split]), "labels").light()
            for split in ("train", "val")
        }
    for name, arm in arms.items():
        made = from_arrays(arm.maps.astype(np.float32) / 255, arm.generator.schema)
        bank = descriptors.describe(made, "labels").light()
        near, far = (
            by_subject(bank, banks[split]).distance.min(axis=1) for split in ("train", "val")
        )
        found[name] = {
            "to training, median": float(np.median(near)),
            "to training, 1 %": float(np.percentile(near, 1)),
            "nearer to training %": 100 * float((near < far).mean()),
        }
    return found


def main() -> None:
    """Run the benchmark."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0] if __doc__ else "")
    parser.add_argument("--student", type=Path, nargs="*", default=[], help="model folders")
    parser.add_argument("--teacher", type=Path, help="model folder; the shipped one by default")
    parser.add_argument("--steps", type=int, nargs="*", default=[10, 6, 4], help="of the teacher")
    parser.add_argument("--n", type=int, default=256, help="maps of each arm")
    parser.add_argument("--seed", type=int, default=7)
    parser.add_argument("--lesion", type=float, default=0.06, help="largest share asked for")
    parser.add_argument("--store", type=Path, help="training store, to look for copies")
    parser.add_argument(
        "--drawn", type=Path, help="folder that keeps the draws; times are then not of one run"
    )
    args = parser.parse_args()
    torch.set_num_threads(1)
    if args.drawn:
        args.drawn.mkdir(parents=True, exist_ok=True)
    arms = build_arms(args)
    wanted = requests(arms[GOAL], args)
    for start in range(0, args.n, 8):
        rows = range(start, min(start + 8, args.n))
        for arm in arms.values():
            arm.draw(rows, [wanted[i] for i in rows], args.drawn)
    axes = principal_axes(pooled(arms[GOAL].maps), pooled(arms[OTHER].maps))
    measured = {name: measure(arm, wanted, axes) for name, arm in arms.items()}
    floor = floors(measured[GOAL], measured[OTHER], SampleKey(args.seed, 0))
    near = copies(arms, args.store) if args.store else {}
    goal, everything = arms[GOAL].maps, np.arange(args.n)
    table: dict[str, dict[str, Any]] = {}
    for name, arm in arms.items():
        agreement = [
            soft_dice(a / np.float32(255), b / np.float32(255))
            for a, b in zip(arm.maps, goal, strict=True)
        ]
        apart = distances(measured[name], measured[OTHER])
        ratio = np.asarray(arms[GOAL].seconds) / np.asarray(arm.seconds)
        table[name] = {
            "calls": arm.calls,
            "CPU s": float(np.median(arm.seconds)),
            "times faster": [float(v) for v in np.percentile(ratio, [25, 50, 75])],
            "agreement": float(np.mean(agreement)),
            **{k: distance(everything, everything) for k, distance in apart.items()},
            "likeness of neighbours": float(measured[name].likeness.mean()),
            **lesion_numbers(arm, measured[name].labels),
            **near.get(name, {}),
        }
    show(table, floor)
    write(args, arms, table, floor)


def show(table: Mapping[str, Mapping[str, Any]], floor: Mapping[str, Sequence[float]]) -> None:
    """Print the table; `!` marks a distance above the floor."""
    print(f"{'floor, 95 %':40s}", *(f"{k} {v[2]:.3g}" for k, v in floor.items()), sep="  ")
    for name, row in table.items():
        cells = []
        for key, value in row.items():
            shown = value[1] if isinstance(value, list) else value
            above = key in floor and name != OTHER and shown > floor[key][2]
            cells.append(f"{key} {shown:.3g}{'!' if above else ''}")
        print(f"{name:40s}", *cells, sep="  ")


def write(
    args: argparse.Namespace,
    arms: Mapping[str, Arm],
    table: Mapping[str, Mapping[str, Any]],
    floor: Mapping[str, Sequence[float]],
) -> None:
    """Write the numbers and the sheet."""
    record = {
        "threads": 1,
        "n": args.n,
        "seed": args.seed,
        "batch_size": 8,
        "models": {name: dict(arm.generator.identity) for name, arm in arms.items()},
        "floor": floor,
        "arms": table,
    }
    sheet = save_result("quality_samplers", record).with_suffix(".png")
    rows = [colour_argmax(arm.maps[:SHOWN]) for name, arm in arms.items() if name != OTHER]
    write_sheet(sheet, np.stack(rows))


if __name__ == "__main__":
    main()
