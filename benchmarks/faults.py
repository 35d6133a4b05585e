"""Kill generation and training 200 times at random moments and compare with undisturbed runs.

The command line runs on tiny models in forked children of one process. SIGKILL, SIGTERM or SIGINT
comes at a uniformly random moment of a run, up to four times in one folder; the same command (a
training with `--resume`) then completes it. Counted are samples that are lost or stand twice,
files whose bytes differ from an undisturbed run's (of a training: weights, losses, checkpoints,
sheets; seconds apart), and what was not whole right after a kill. All of them have to be 0.

    python benchmarks/faults.py [--kills 200] [--seed 0]

Prints a table and writes `benchmarks/results/faults-DATE.json`.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import time
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT / "tests"))

from faults import world  # noqa: E402 - the harness is part of the tests
from faults.driver import Driver  # noqa: E402
from faults.kills import DATASETS, TRAININGS, Killed, Tally  # noqa: E402

from synthgen.core.manifest import provenance  # noqa: E402

SHARES = {
    **{("make", stage): share for stage, share in zip(DATASETS, (6, 5, 4, 4), strict=True)},
    **{("train", stage): share for stage, share in zip(TRAININGS, (4, 4, 3), strict=True)},
}
"""Kills of each stage, in thirtieths."""


def counts(kills: int) -> list[int]:
    """Return how many kills each stage gets; they sum to `kills`."""
    ends = np.rint(kills * np.cumsum([*SHARES.values()]) / sum(SHARES.values())).astype(int)
    return [int(n) for n in np.diff(ends, prepend=0)]


def row(tally: Tally) -> dict[str, Any]:
    """Return a stage's counts, and the first lines of what went wrong."""
    return {
        "kills": dict(tally.kills),
        "kills_by_finished_files": {str(k): v for k, v in sorted(tally.found.items())},
        "folders": tally.folders,
        "lost_samples": tally.lost,
        "duplicated_samples": tally.duplicated,
        "differing_files": len(tally.differing),
        "broken_after_kill": len(tally.broken),
        "untidy_exits": len(tally.untidy),
        "first_problems": [*tally.differing, *tally.broken, *tally.untidy][:5],
    }


def main() -> None:
    """Kill every stage, print and write."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--kills", type=int, default=200)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    started = time.perf_counter()
    stages: dict[str, dict[str, Any]] = {}
    print(f"{'stage':18} {'SIGKILL':>8} {'SIGTERM':>8} {'SIGINT':>8} {'lost':>5} {'twice':>6} "
          f"{'differ':>7} {'broken':>7} {'untidy':>7}")  # fmt: skip
    with tempfile.TemporaryDirectory() as name, Driver() as driver:
        root = world.build(Path(name) / "world", driver)
        for number, ((what, stage), kills) in enumerate(
            zip(SHARES, counts(args.kills), strict=True)
        ):
            rng = np.random.default_rng([args.seed, number])
            place = Path(name) / what / stage
            killed = Killed(driver, root, stage, place, rng, training=what == "train")
            killed.fall(kills)
            found = stages[f"{what} {stage}"] = row(killed.tally)
            hits = [found["kills"].get(signal, 0) for signal in ("SIGKILL", "SIGTERM", "SIGINT")]
            bad = [v for k, v in found.items() if isinstance(v, int) and k != "folders"]
            print(f"{what + ' ' + stage:18} {hits[0]:8} {hits[1]:8} {hits[2]:8} {bad[0]:5} "
                  f"{bad[1]:6} {bad[2]:7} {bad[3]:7} {bad[4]:7}", flush=True)  # fmt: skip
    keys = ("lost_samples", "duplicated_samples", "differing_files", "broken_after_kill",
            "untidy_exits")  # fmt: skip
    total = {key: sum(found[key] for found in stages.values()) for key in keys}
    signals = sorted({signal for found in stages.values() for signal in found["kills"]})
    result = {
        "made_by": "benchmarks/faults.py",
        "date": datetime.now(tz=UTC).isoformat(timespec="seconds"),
        "versions": provenance(),
        "seed": args.seed,
        "seconds": round(time.perf_counter() - started, 1),
        "kills": {s: sum(f["kills"].get(s, 0) for f in stages.values()) for s in signals},
        "all": total,
        "stages": stages,
    }
    print(f"{sum(result['kills'].values())} kills in {result['seconds']} s: {total}")
    day = datetime.now(tz=UTC).date().isoformat()
    target = ROOT / "benchmarks" / "results" / f"faults-{day}.json"
    target.write_text(json.dumps(result, indent=1) + "\n")
    print("written:", target.relative_to(ROOT))
    if any(total.values()):
        sys.exit(1)


if __name__ == "__main__":
    main()
