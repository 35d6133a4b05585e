"""Do drawn vessel trees look like real ones? Statistics, gates and a classifier two-sample test.

200 trees a preset beside CHASE_DB1 (retina) and the sample of XCAD (coronary), and beside `ssvs`,
the masks of earlier work. CHASE's masks are brought to DRIVE's scale, a field of view of 540 px;
a pixel counts as vessel there from a coverage of 0.3 on, which keeps the observers' hairlines in
one piece. Presets were fitted to children 01 to 04 of CHASE and to XCAD's two test masks, so that
only children 05 to 07 are a test of anything.

    python benchmarks/realism_vessels.py CHASE_DB1 XCAD

Writes realism_vessels-DATE.json to `benchmarks/results`.
"""

from __future__ import annotations

import argparse
import sys
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from timing import RESULTS, save_result

from synthgen.core.rng import SampleKey
from synthgen.data.vessel_images import read_vessel_images, scale_to
from synthgen.evaluate.two_sample import two_sample_test
from synthgen.evaluate.vessel_statistics import distance, gates, statistics, table_row
from synthgen.labels.vessels import VesselGenerator

if TYPE_CHECKING:
    from collections.abc import Sequence

    import numpy.typing as npt

    from synthgen.evaluate.vessel_statistics import VesselStatistics

    Mask = npt.NDArray[np.bool_]

SEED = 20261121
COVERED = 0.3
SHOWN = (
    "field_foreground",
    "dimension",
    "skeleton_dimension",
    "width",
    "width_p95",
    "length",
    "bifurcations",
    "ends",
    "excess",
    "segment",
    "tortuosity",
    "angle_p50",
    "components",
)


def disc(circle: npt.NDArray[np.float32], shape: tuple[int, ...]) -> Mask | None:
    """Return a round field of view as a mask; None for the whole frame."""
    if not circle[2]:
        return None
    x, y = np.ogrid[: shape[0], : shape[1]]
    inside: Mask = np.hypot(x - circle[0], y - circle[1]) <= circle[2]
    return inside


def drawn(preset: Any, n: int) -> tuple[list[Mask], list[VesselStatistics], list[bool]]:  # noqa: ANN401
    """Draw trees; returns masks, statistics, and whether the optic disc lies in the middle."""
    generator = VesselGenerator(preset, (584, 565) if preset == "retina" else (512, 512))
    masks, found, middle = [], [], []
    for number in range(n):
        maps = generator.draw([SampleKey(SEED, number)])
        view = maps.field[0]
        masks.append(maps.mask[0])
        found.append(statistics(maps.mask[0], disc(view, maps.mask[0].shape)))
        away = np.hypot(*(maps.disc[0, :2] - view[:2]))
        middle.append(bool(maps.disc[0, 2] > 0 and away <= 0.25 * view[2]))
    return masks, found, middle


def chase(folder: Path, children: Sequence[str]) -> tuple[list[Mask], list[VesselStatistics]]:
    """Return the first observer's masks at DRIVE's scale."""
    read = read_vessel_images(folder, "chase", subjects=children)
    as_pictures = replace(read, images=tuple(m.astype(np.float32) for m in read.masks["1st"]))
    small = scale_to(as_pictures, field_diameter=540)
    masks = [coverage >= COVERED for coverage in small.images]
    return masks, [statistics(m, f) for m, f in zip(masks, small.fields, strict=True)]


def compared(
    preset: Any,  # noqa: ANN401
    trees: Sequence[VesselStatistics],
    real: Sequence[VesselStatistics],
) -> dict[str, Any]:
    """Return gates, distances and rows."""
    return {
        "gates": [gate._asdict() | {"passed": gate.passed} for gate in gates(preset, trees, real)],
        "w1": {name: distance(trees, real, name) for name in ("widths", "angles", "segments")},
        "drawn": table_row(trees),
        "real": table_row(real),
        "n": [len(trees), len(real)],
    }


def show(name: str, found: dict[str, Any]) -> None:
    """Print one comparison."""
    print(f"\n{name}: {found['n'][0]} drawn, {found['n'][1]} real")
    for key in SHOWN:
        print(f"  {key:20s} {found['drawn'][key]:9.3f} {found['real'][key]:9.3f}")
    print("  W1 " + ", ".join(f"{key} {value:.2f}" for key, value in found["w1"].items()))
    for gate in found["gates"]:
        told = "ok  " if gate["passed"] else "MISS"
        print(
            f"  {told} {gate['name']}: {gate['value']:.3f} in [{gate['low']:g}, {gate['high']:g}]"
        )


def main() -> int:
    """Measure, print, write."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("chase", type=Path)
    parser.add_argument("xcad", type=Path)
    parser.add_argument("--n", type=int, default=200)
    parser.add_argument("--out", type=Path, default=RESULTS)
    options = parser.parse_args()
    body: dict[str, Any] = {"seed": SEED}
    retina, of_retina, middle = drawn("retina", options.n)
    nerve = [s for s, in_middle in zip(of_retina, middle, strict=True) if in_middle]
    fitted = chase(options.chase, ("01", "02", "03", "04"))
    held = chase(options.chase, ("05", "06", "07"))
    coronary, of_coronary, _ = drawn("coronary", options.n)
    ssvs, of_ssvs, _ = drawn("ssvs", options.n)
    xcad = [*read_vessel_images(options.xcad, "xcad", role="test").masks["1st"]]
    of_xcad = [statistics(mask) for mask in xcad]
    for name, preset, trees, real in (
        ("retina, disc in the middle, beside CHASE 01-04 (fitted)", "retina", nerve, fitted[1]),
        ("retina, disc in the middle, beside CHASE 05-07", "retina", nerve, held[1]),
        ("coronary beside XCAD (fitted)", "coronary", of_coronary, of_xcad),
        ("ssvs beside XCAD", "coronary", of_ssvs, of_xcad),
    ):
        body[name] = compared(preset, trees, real)
        show(name, body[name])
    both_views = gates("retina", of_retina)
    body["retina, both views"] = {
        "gates": [gate._asdict() | {"passed": gate.passed} for gate in both_views],
        "drawn": table_row(of_retina),
    }
    print("\nretina, both views: " + ", ".join(f"{g.name} {g.value:.3f}" for g in both_views))
    centred = [mask for mask, in_middle in zip(retina, middle, strict=True) if in_middle]
    print("\ntwo-sample test, accuracy (chance 0.5):")
    for name, first, second in (
        ("CHASE against drawn retina", [*fitted[0], *held[0]], centred),
        ("CHASE against ssvs", [*fitted[0], *held[0]], ssvs),
        ("XCAD against drawn coronary", xcad, coronary),
        ("XCAD against ssvs", xcad, ssvs),
    ):
        told = two_sample_test(first, second, SampleKey(SEED, 0))
        body[f"two-sample: {name}"] = {"accuracy": told.accuracy, "spread": told.spread}
        print(f"  {name}: {told.accuracy:.3f} ± {told.spread:.3f}")
    save_result("realism_vessels", body, folder=options.out)
    return 0


if __name__ == "__main__":
    sys.exit(main())
