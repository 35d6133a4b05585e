"""Time vessel masks for each preset on one core, in memory, with numba and with NumPy, in turn.

Each round draws one batch with numba, then the same keys with NumPy, so that a drifting machine
moves both. Rates are given for wall time and for CPU time of the process: on a shared machine the
latter says what an idle core would do.

    python benchmarks/speed_vessels.py

Prints a table and writes `benchmarks/results/speed_vessels-DATE.json`.
"""

from __future__ import annotations

import argparse
import json
import resource
import time
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np

from synthgen.core.manifest import provenance
from synthgen.core.rng import SampleKey
from synthgen.labels.vessels import Preset, VesselGenerator

SHAPES: dict[Preset, tuple[int, int]] = {
    "coronary": (512, 512),
    "retina": (584, 565),
    "ssvs": (512, 512),
}
LOOPS = {"numba": True, "numpy": False}


def seconds(generator: VesselGenerator, keys: list[SampleKey]) -> tuple[float, float]:
    """Return wall and CPU seconds for each mask."""
    wall, cpu = time.perf_counter(), time.process_time()
    generator.draw(keys)
    return (time.perf_counter() - wall) / len(keys), (time.process_time() - cpu) / len(keys)


def spread(values: list[float]) -> dict[str, float]:
    """Return median and quartiles."""
    low, middle, high = np.percentile(values, [25, 50, 75])
    return {"median": float(middle), "q25": float(low), "q75": float(high)}


def measure(preset: Preset, rounds: int, batch: int) -> dict[str, Any]:
    """Return the rates of one preset, in masks for each second, and numba's gain."""
    generators = {
        name: VesselGenerator(preset, SHAPES[preset], accelerate)
        for name, accelerate in LOOPS.items()
    }
    spent: dict[str, list[tuple[float, float]]] = {name: [] for name in LOOPS}
    for generator in generators.values():
        generator.draw([SampleKey(1, i) for i in range(2)])  # compiles
    for done in range(rounds):
        keys = [SampleKey(0, done * batch + i) for i in range(batch)]
        for name, generator in generators.items():
            spent[name].append(seconds(generator, keys))
    result: dict[str, Any] = {"shape": SHAPES[preset]}
    for name, taken in spent.items():
        wall, cpu = zip(*taken, strict=True)
        result[name] = {
            "masks_per_wall_s": spread([1 / s for s in wall]),
            "masks_per_cpu_s": spread([1 / s for s in cpu]),
        }
    pairs = zip(spent["numpy"], spent["numba"], strict=True)
    result["numba_gain_cpu"] = spread([slow[1] / fast[1] for slow, fast in pairs])
    return result


def main() -> None:
    """Measure every preset, print and write."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--batch", type=int, default=16)
    args = parser.parse_args()
    result: dict[str, Any] = {
        "made_by": "benchmarks/speed_vessels.py",
        "date": datetime.now(tz=UTC).isoformat(timespec="seconds"),
        "versions": provenance(),
        "rounds": args.rounds,
        "batch": args.batch,
        "presets": {preset: measure(preset, args.rounds, args.batch) for preset in SHAPES},
        "peak_memory_mib": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024,
    }
    print(f"{'preset':9} {'loops':6} {'masks/CPU s':>24} {'masks/wall s':>24}")
    for preset, found in result["presets"].items():
        for name in LOOPS:
            cpu, wall = (found[name][f"masks_per_{clock}_s"] for clock in ("cpu", "wall"))
            cells = (f"{r['median']:8.1f} [{r['q25']:.1f}, {r['q75']:.1f}]" for r in (cpu, wall))
            print(f"{preset:9} {name:6} " + " ".join(f"{cell:>24}" for cell in cells))
        gain = found["numba_gain_cpu"]
        print(f"{'':9} gain   {gain['median']:8.2f} [{gain['q25']:.2f}, {gain['q75']:.2f}]")
    print(f"peak memory {result['peak_memory_mib']:.0f} MiB")
    day = datetime.now(tz=UTC).date().isoformat()
    target = Path(__file__).parent / "results" / f"speed_vessels-{day}.json"
    target.write_text(json.dumps(result, indent=1) + "\n")
    print("written:", target.relative_to(Path(__file__).parents[1]))


if __name__ == "__main__":
    main()
