"""Kill generation and training 200 times at random moments and compare with undisturbed runs.

The command line runs on tiny models in forked children of one process. SIGKILL, SIGTERM or SIGINT
comes at a uniformly random moment of a run, up to four times in one folder; the same command (a
training with `--resume`) then completes it. Counted are samples that are lost or stand twice,
files whose bytes differ from an undisturbed run's (of a training: weights, losses, checkpoints,
sheets; seconds apart), and what was not whole right after a kill. All of them have to be 0.

    python benchmarks/faults.py [--kills 200] [--seed 0] [--jobs 2]

Prints a table and writes `benchmarks/results/faults-DATE.json`.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT / "tests"))

from faults import world  # noqa: E402 - the harness is part of the tests
from faults.driver import Driver  # noqa: E402
from faults.kills import DATASETS, TRAININGS, Killed, Tally  # noqa: E402
from timing import write_result  # noqa: E402

SHARES = {
    **{("make", stage): share for stage, share in zip(DATASETS, (6, 5, 4, 4), strict=True)},
    **{("train", stage): share for stage, share in zip(TRAININGS, (4, 4, 3), strict=True)},
}
"""Kills of each stage, in thirtieths."""
SIGNALS = ("SIGKILL", "SIGTERM", "SIGINT")


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


def kill_stage(root: Path, place: Path, key: tuple[str, str], kills: int, seed: int) -> Tally:
    """Kill one stage's runs in a process of its own, and print the row of the table."""
    what, stage = key
    rng = np.random.default_rng([seed, [*SHARES].index(key)])
    with Driver() as driver:
        killed = Killed(driver, root, stage, place / what / stage, rng, training=what == "train")
        killed.fall(kills)
    tally = killed.tally
    hits = [tally.kills[name] for name in SIGNALS]
    faults = (tally.lost, tally.duplicated, len(tally.differing), len(tally.broken),
              len(tally.untidy))  # fmt: skip
    cells = "".join(f"{count:9}" for count in (*hits, *faults))
    print(f"{what + ' ' + stage:18}{cells}", flush=True)
    return tally


def main() -> None:
    """Kill every stage, print and write."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--kills", type=int, default=200)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--jobs", type=int, default=2, help="stages at a time")
    args = parser.parse_args()
    started = time.perf_counter()
    heads = (*SIGNALS, "lost", "twice", "differ", "broken", "untidy")
    print(f"{'stage':18}" + "".join(f"{head:>9}" for head in heads), flush=True)
    with tempfile.TemporaryDirectory() as name, ThreadPoolExecutor(args.jobs) as pool:
        place = Path(name)
        with Driver() as driver:
            root = world.build(place / "world", driver)
        futures = {
            " ".join(key): pool.submit(kill_stage, root, place, key, kills, args.seed)
            for key, kills in zip(SHARES, counts(args.kills), strict=True)
        }
        stages = {key: row(future.result()) for key, future in futures.items()}
    keys = ("lost_samples", "duplicated_samples", "differing_files", "broken_after_kill",
            "untidy_exits")  # fmt: skip
    total = {key: sum(found[key] for found in stages.values()) for key in keys}
    result = {
        "seed": args.seed,
        "seconds": round(time.perf_counter() - started, 1),
        "kills": {s: sum(f["kills"].get(s, 0) for f in stages.values()) for s in SIGNALS},
        "all": total,
        "stages": stages,
    }
    print(f"{sum(result['kills'].values())} kills in {result['seconds']} s: {total}")
    write_result("faults", result)
    if any(total.values()):
        sys.exit(1)


if __name__ == "__main__":
    main()
