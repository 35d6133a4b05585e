"""Train on generated slices, test on real people: the bar of the shipped models.

One small 2D segmenter (the judge of `synthgen evaluate quality`: the same network, steps and
augmentation) is trained on generated images and, apart, on all real training images. Both are
tested on held-out real subjects; Dice of each tissue, per image, mean over modalities.

    python benchmarks/paper_train_on_synthetic.py work/images/NAME --store work/store

Prints a table and writes `results/train_on_synthetic-DATE.json`.
"""

from __future__ import annotations

import argparse
import json
import sys
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from synthgen.core.errors import LeakageError
from synthgen.core.manifest import provenance
from synthgen.core.rng import SampleKey
from synthgen.data.shards import Shards
from synthgen.data.store import TrainingStore
from synthgen.evaluate.agreement_scores import score_images
from synthgen.evaluate.judge_networks import JudgeSettings
from synthgen.evaluate.judge_training import judges_for
from synthgen.evaluate.sets import from_shards, from_store

if TYPE_CHECKING:
    from synthgen.evaluate.sets import SliceSet

TISSUES = ("csf", "gm", "wm")


def dice(trained_on: SliceSet, held: SliceSet, folder: Path, seed: int) -> dict[str, float]:
    """Train a segmenter on one set and return its Dice of each tissue on another."""
    settings = replace(JudgeSettings(), classifier_steps=1)
    judge = judges_for(trained_on, folder, SampleKey(seed, 0), settings)
    scores = score_images(held, np.arange(len(held.images.slices)), judge)
    of = np.asarray(held.images.modality)
    means = [np.nanmean(scores.dice[of == m], axis=0) for m in held.modalities]
    columns = [held.schema.index(tissue) for tissue in TISSUES]
    found = np.nanmean(np.stack(means)[:, columns], axis=0)
    return dict(zip(TISSUES, found.tolist(), strict=True))


def main() -> int:
    """Train, test, print, write."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("images", type=Path)
    parser.add_argument("--store", type=Path, default=Path("work/store"))
    parser.add_argument("--judges", type=Path, default=Path("work/models/judges"))
    parser.add_argument("--seeds", type=int, default=3)
    options = parser.parse_args()
    with TrainingStore.open(options.store) as store:
        real, held = from_store(store, ["train"]), from_store(store, ["val"])
        made = from_shards(Shards(options.images), real.modalities)
        seen = sorted(made.ancestors & {*held.subjects})
        if seen:
            raise LeakageError(f"{made.name}: its models saw {', '.join(seen)}")
        held = held.take(np.unique(held.images.slices))
        rows = [
            {"arm": arm, "seed": seed, **dice(subset, held, options.judges, seed)}
            for seed in range(options.seeds)
            for arm, subset in (("real", real), ("synthetic", made))
        ]
    for row in rows:
        print(" | ".join(f"{v:.3f}" if isinstance(v, float) else str(v) for v in row.values()))
    means = {
        arm: float(np.mean([r[t] for r in rows if r["arm"] == arm for t in TISSUES]))
        for arm in ("real", "synthetic")
    }
    ratio = means["synthetic"] / means["real"]
    print(f"mean Dice: real {means['real']:.3f}, synthetic {means['synthetic']:.3f}: {ratio:.3f}")
    body = {"rows": rows, "means": means, "ratio": ratio, "test": list(held.subjects)}
    name = f"train_on_synthetic-{datetime.now(UTC):%Y-%m-%d}.json"
    out = Path(__file__).parent / "results" / name
    out.write_text(json.dumps(body | {"versions": provenance()}, indent=1) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
