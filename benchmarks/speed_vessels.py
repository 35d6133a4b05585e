"""Time vessel masks for each preset on one core, in memory, with numba and with NumPy, in turn.

Each round draws one batch with numba, then the same keys with NumPy, so that a drifting machine
moves both. Rates are given for wall time and for CPU time of the process: on a shared machine the
latter says what an idle core would do.

    python benchmarks/speed_vessels.py

Prints a table and writes `benchmarks/results/speed_vessels-DATE.json`.
"""

from __future__ import annotations

import argparse
import resource
from typing import TYPE_CHECKING, Any

from timing import alternate, cell, gain, spread, write_result

from synthgen.core.rng import SampleKey
from synthgen.labels.vessels import Preset, VesselGenerator

if TYPE_CHECKING:
    from collections.abc import Callable

SHAPES: dict[Preset, tuple[int, int]] = {
    "coronary": (512, 512),
    "retina": (584, 565),
    "ssvs": (512, 512),
}
LOOPS = {"numba": True, "numpy": False}


def turns(generator: VesselGenerator, batches: list[list[SampleKey]]) -> Callable[[], object]:
    """Return a call that draws the batches one after the other."""
    given = iter(batches)
    return lambda: generator.draw(next(given))


def measure(preset: Preset, rounds: int, batch: int) -> dict[str, Any]:
    """Return the rates of one preset, in masks for each second, and numba's gain."""
    batches = [[SampleKey(0, done * batch + i) for i in range(batch)] for done in range(rounds)]
    calls = {}
    for name, accelerate in LOOPS.items():
        generator = VesselGenerator(preset, SHAPES[preset], accelerate)
        generator.draw([SampleKey(1, i) for i in range(2)])  # compiles
        calls[name] = turns(generator, batches)
    spent = alternate(calls, rounds, unseen=0, of_process=True)
    result: dict[str, Any] = {"shape": SHAPES[preset]}
    for name, taken in spent.items():
        result[name] = {
            "masks_per_wall_s": spread([batch / s for s in taken.wall]),
            "masks_per_cpu_s": spread([batch / s for s in taken.cpu]),
        }
    result["numba_gain_cpu"] = gain(spent["numpy"], spent["numba"])
    return result


def main() -> None:
    """Measure every preset, print and write."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--batch", type=int, default=16)
    args = parser.parse_args()
    result: dict[str, Any] = {
        "rounds": args.rounds,
        "batch": args.batch,
        "presets": {preset: measure(preset, args.rounds, args.batch) for preset in SHAPES},
        "peak_memory_mib": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024,
    }
    print(f"{'preset':9} {'loops':6} {'masks/CPU s':>24} {'masks/wall s':>24}")
    for preset, found in result["presets"].items():
        for name in LOOPS:
            cpu, wall = (found[name][f"masks_per_{clock}_s"] for clock in ("cpu", "wall"))
            print(f"{preset:9} {name:6} {cell(cpu, 1):>24} {cell(wall, 1):>24}")
        times = found["numba_gain_cpu"]
        print(f"{'':9} gain   {times['median']:8.2f} [{times['q25']:.2f}, {times['q75']:.2f}]")
    print(f"peak memory {result['peak_memory_mib']:.0f} MiB")
    write_result("speed_vessels", result)


if __name__ == "__main__":
    main()
