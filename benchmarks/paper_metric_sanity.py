"""Do the metrics tell good data from bad? Real slices, spoilt step by step, against other people.

Real people are split in two groups. One is the reference; the other plays the generated set, first
as it is, then blurred, noisy, biased, with foreign labels, with labels moved by 2, 4 and 8 px, with
lesions taken out of its label maps, which still claim them. A metric that should see a fault must
get worse at every step.

    python benchmarks/paper_metric_sanity.py --store work/store --reports work/reports

Prints a table, writes `results/metric_sanity-DATE.json` and a report with the table.
"""

from __future__ import annotations

import argparse
import sys
import time
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from scipy import ndimage
from timing import save_result

from synthgen.core.manifest import provenance
from synthgen.core.rng import SampleKey, Stream
from synthgen.data.store import TrainingStore
from synthgen.evaluate.agreement import agreement_section
from synthgen.evaluate.feature_spaces import ClassifierSpace, SpectrumSpace
from synthgen.evaluate.fidelity_section import fidelity_section
from synthgen.evaluate.judge_training import judges_for
from synthgen.evaluate.label_metrics import describe_labels
from synthgen.evaluate.label_section import labels_section
from synthgen.evaluate.metric import Section, Table
from synthgen.evaluate.report import Report, write_report
from synthgen.evaluate.sets import SliceSet, from_store
from synthgen.evaluate.style_section import style_section

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence

    from synthgen.evaluate.judges import Judges
    from synthgen.evaluate.sets import Floats

KEY = SampleKey(0, 0)
SLICES = 240


@dataclass(frozen=True)
class Fault:
    """One way to spoil a set, in growing strength.

    Attributes:
        name: what a reader sees, with the unit of the strengths.
        strengths: growing; 0, the set as it is, comes before them.
        spoil: returns the set with a fault of some strength.
        sees: metric-name prefix to whether it must "rise" or "fall".
    """

    name: str
    strengths: tuple[float, ...]
    spoil: Callable[[SliceSet, float], SliceSet]
    sees: dict[str, str]


def blurred(subset: SliceSet, sigma: float) -> SliceSet:
    """Blur images inside the brain."""

    def read(row: int) -> Floats:
        image = subset.read_image(row)
        inside = (image > 0).astype(np.float32)
        weight = np.maximum(ndimage.gaussian_filter(inside, (0, sigma, sigma)), 1e-6)
        smooth = ndimage.gaussian_filter(image, (0, sigma, sigma)) / weight
        return np.where(image > 0, smooth, 0).astype(np.float32)

    return replace(subset, read_image=read)


def noisy(subset: SliceSet, sigma: float) -> SliceSet:
    """Add Gaussian noise inside the brain."""

    def read(row: int) -> Floats:
        image = subset.read_image(row)
        noise = sigma * SampleKey(1, row).numpy(Stream.EVALUATE).standard_normal(image.shape)
        return np.where(image > 0, np.clip(image + noise, 1e-3, 1), 0).astype(np.float32)

    return replace(subset, read_image=read)


def biased(subset: SliceSet, strength: float) -> SliceSet:
    """Multiply by a field that runs from 1 - strength to 1 + strength in a random direction."""

    def read(row: int) -> Floats:
        image = subset.read_image(row)
        angle = SampleKey(2, row).numpy(Stream.EVALUATE).uniform(0, 2 * np.pi)
        x, y = np.meshgrid(*(np.linspace(-1.6, 1.6, n) for n in image.shape[1:]), indexing="ij")
        field = 1 + strength * np.clip(np.cos(angle) * x + np.sin(angle) * y, -1, 1)
        return np.clip(image * field, 0, 1).astype(np.float32)

    return replace(subset, read_image=read)


def shuffled(subset: SliceSet, share: float) -> SliceSet:
    """Give a share of the slices the label map of another one."""
    rng = KEY.numpy(Stream.EVALUATE)
    order = np.arange(len(subset))
    moved = rng.permutation(len(subset))[: round(share * len(subset))]
    order[moved] = np.roll(moved, 1)
    return replace(subset, read_pv=lambda index: subset.read_pv(int(order[index])))


def shifted(subset: SliceSet, pixels: float) -> SliceSet:
    """Move label maps against their images."""
    return replace(
        subset, read_pv=lambda index: np.roll(subset.read_pv(index), int(pixels), axis=1)
    )


def healed(subset: SliceSet, share: float) -> SliceSet:
    """Turn the lesions of a share of the slices into white matter."""
    chosen = KEY.numpy(Stream.EVALUATE).permutation(len(subset))[: round(share * len(subset))]
    cured, lesions = {*chosen.tolist()}, list(subset.schema.lesion_channels)
    wm = subset.schema.index("wm")

    def read(index: int) -> Floats:
        pv = subset.read_pv(index)
        if index in cured:
            pv = pv.copy()
            pv[wm] += pv[lesions].sum(axis=0)
            pv[lesions] = 0
        return pv

    return replace(subset, read_pv=read)


AGREEMENT = {"agreement/dice/": "fall", "agreement/border_fit": "fall"}
FAULTS = (
    Fault(
        "blur, sigma in px",
        (0.5, 1.0, 2.0),
        blurred,
        {"fidelity/frechet/spectrum/": "rise", "fidelity/kid/spectrum/": "rise"},
    ),
    Fault(
        "noise, sigma in 1 of the range",
        (0.02, 0.05, 0.1),
        noisy,
        {"fidelity/frechet/spectrum/": "rise", "fidelity/kid/spectrum/": "rise"},
    ),
    Fault(
        "bias field, half of the range",
        (0.2, 0.4, 0.8),
        biased,
        {"fidelity/frechet/classifier/": "rise", "fidelity/kid/classifier/": "rise"},
    ),
    Fault("labels of other slices, share", (0.25, 0.5, 1.0), shuffled, AGREEMENT),
    Fault("labels moved, px", (2, 4, 8), shifted, AGREEMENT),
    Fault(
        "lesions removed, share of slices",
        (0.33, 0.67, 1.0),
        healed,
        {"labels/request/wmh/presence": "fall"},
    ),
)


@dataclass(frozen=True)
class Groups:
    """Who is compared with whom.

    Attributes:
        reference: real slices with images.
        candidates: slices with images of other people.
        reference_labels: real label maps.
        candidate_labels: label maps of other people.
    """

    reference: SliceSet
    candidates: SliceSet
    reference_labels: SliceSet
    candidate_labels: SliceSet

    @classmethod
    def of(cls, store: TrainingStore) -> Groups:
        """Split all people of a store, those with images apart, every other one to a side."""
        whole = from_store(store, [s for s in ("train", "val") if store.slice_indices(s).size])
        imaged = sorted({*whole.image_subjects()})
        rest = [name for name in whole.subjects if name not in imaged]
        sides = [[*names[i::2]] for names in (imaged, rest) for i in (0, 1)]
        painted = [whole.of_subjects(side) for side in sides[:2]]
        painted = [p.take(np.unique(p.images.slices)).sample(SLICES, KEY) for p in painted]
        maps = [whole.of_subjects(a + b) for a, b in zip(sides[:2], sides[2:], strict=True)]
        maps = [m.sample(2 * SLICES, KEY) for m in maps]
        # Candidates claim the lesions that they have, as if these had been asked for.
        claimed = describe_labels(maps[1]).realised
        maps[1] = replace(maps[1], table=replace(maps[1].table, requested=claimed))
        return cls(*painted, *maps)


def measure(groups: Groups, fault: Fault, strength: float, judges: Judges) -> dict[str, float]:
    """Return all metrics that the fault should move, means over modalities and tissues."""
    sections = {prefix.partition("/")[0] for prefix in fault.sees}
    found: list[Section] = []
    spoilt = fault.spoil(groups.candidates, strength) if strength else groups.candidates
    if "fidelity" in sections:
        spaces = (ClassifierSpace(judges), SpectrumSpace())
        found.append(fidelity_section(spoilt, groups.reference, spaces=spaces, key=KEY))
    if "agreement" in sections:
        found.append(agreement_section(spoilt, groups.candidates, segmenter=judges, key=KEY))
    if "style" in sections:
        found.append(style_section(spoilt, groups.reference, key=KEY))
    if "labels" in sections:
        maps = groups.candidate_labels
        spoilt = fault.spoil(maps, strength) if strength else maps
        found.append(labels_section(spoilt, groups.reference_labels, key=KEY))
    metrics = [metric for section in found for metric in section.metrics]
    return {
        prefix: float(np.mean([m.value for m in metrics if m.name.startswith(prefix)]))
        for prefix in fault.sees
    }


def is_monotone(values: Sequence[float], way: str) -> bool:
    """Return whether values rise, or fall, at every step."""
    steps = np.diff(values)
    return bool((steps > 0).all() if way == "rise" else (steps < 0).all())


def rows_of(results: Iterable[dict[str, Any]]) -> list[tuple[str, ...]]:
    """Return one line for each fault and metric."""
    lines = []
    for result in results:
        for name, values in result["values"].items():
            way = result["sees"][name]
            shown = [f"{value:.4g}" for value in values]
            verdict = "yes" if is_monotone(values, way) else "NO"
            lines.append((result["fault"], name.rstrip("/"), *shown, f"{verdict} ({way}s)"))
    return lines


def main() -> int:
    """Measure, print, write; 1 if a metric did not follow a fault."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--store", type=Path, default=Path("work/store"))
    parser.add_argument("--reports", type=Path, default=Path("work/reports"))
    options = parser.parse_args()
    started = time.perf_counter()
    with TrainingStore.open(options.store) as store:
        groups = Groups.of(store)
        judges = judges_for(groups.reference, options.reports / "judges", KEY)
        results = []
        for fault in FAULTS:
            levels = [0.0, *fault.strengths]
            measured = [measure(groups, fault, level, judges) for level in levels]
            results.append(
                {
                    "fault": fault.name,
                    "strengths": levels,
                    "sees": fault.sees,
                    "values": {name: [row[name] for row in measured] for name in fault.sees},
                }
            )
            for line in rows_of(results[-1:]):
                print(" | ".join(line), flush=True)
    columns = ("fault", "metric", "as it is", "weak", "middle", "strong", "worse at every step")
    table = Table("Metrics of real slices that were spoilt step by step", columns, ())
    table = replace(table, rows=tuple(rows_of(results)))
    people = f"{len(groups.reference.subjects)} against {len(groups.candidates.subjects)} people"
    text = f"{people} with images, {len(groups.candidates)} slices; means over modalities."
    section = Section("sanity", "Metric sanity", text, tables=(table,))
    facts = tuple(provenance().items())
    page = write_report(
        Report("quality", "Do the metrics see faults?", (section,), facts=facts),
        options.reports / "metric_sanity",
    )
    body = {
        "results": results,
        "seconds": time.perf_counter() - started,
        "slices": len(groups.candidates),
    }
    save_result("metric_sanity", body, "paper_metric_sanity")
    print(page)
    wrong = [line for line in rows_of(results) if line[-1].startswith("NO")]
    return int(bool(wrong))


if __name__ == "__main__":
    sys.exit(main())
