"""Vessels without manual labels: DARL in one step, U-Nets on generated pictures, ridge filters.

The table of Kim et al. 2023 (DARL, arXiv:2209.14566), Table 1: IoU, Dice and precision at a
threshold of one half on the full frame, mean and population standard deviation over pictures.
Beside them what precision alone hides: recall, clDice, Betti-0 error, HD95; then noise (their
Table 2) and differences paired by picture. Every trained row has several seeds; no manual label
enters training, selection or a threshold. The filters are told the share of vessels to mark.

    python benchmarks/paper_darl.py CHASE_DB1 --darl darl=work/models/angiograms
    python benchmarks/paper_darl.py XCAD --data coronary --only ridges,new --steps 200

Writes NAME-DATE.json, .md and .png to `benchmarks/results`, NAME being paper_darl_retina or
paper_darl_coronary.
"""

from __future__ import annotations

import argparse
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from PIL import Image
from timing import RESULTS, save_result
from vessel_methods import coronary, lazily, retina

from synthgen.core.errors import RequestError, SynthgenError
from synthgen.core.rng import SampleKey, Stream
from synthgen.evaluate.segmentation import mask_metrics

if TYPE_CHECKING:
    from collections.abc import Sequence

    import numpy.typing as npt
    from vessel_methods import Case, Method, Task

    Floats = npt.NDArray[np.float32]
    Bools = npt.NDArray[np.bool_]

METRICS = ("iou", "dice", "precision", "recall", "cldice", "betti0_error", "hd95")
PAIRED = ("dice", "cldice")
NOISE = (0, 10, 25, 50)
"""Standard deviations of white noise added to the test pictures, of 255."""


def noisy(image: Floats, sigma: float, number: int) -> Floats:
    """Add white noise: the same draw for every method and, scaled, for every strength."""
    noise = SampleKey(0, number).numpy(Stream.EVALUATE).standard_normal(image.shape)
    return np.clip(image + sigma / 255 * noise, 0, 1).astype(np.float32)


def measure(method: Method, cases: Sequence[Case]) -> tuple[list[dict[str, Any]], list[Bools]]:
    """Return one row for each seed, noise and picture, and the first seed's noise-free masks."""
    rows, masks = [], []
    for seed, label in enumerate(method.seeds):
        for sigma in NOISE:
            for number, case in enumerate(cases):
                found = label(noisy(case.image, sigma, number), case.field)
                row = {"method": method.name, "seed": seed, "sigma": sigma, "case": case.name}
                measured = mask_metrics(found, case.truth)
                # As in the paper: nothing predicted has a precision of 0.
                measured["precision"] = measured["precision"] or 0.0
                rows.append(row | {name: measured[name] for name in METRICS})
                if seed == sigma == 0:
                    masks.append(found)
    return rows, masks


def values(rows: Sequence[dict[str, Any]], method: str, metric: str, sigma: int) -> Floats:
    """Return a metric as `(seeds, pictures)`, not a number where it is undefined."""
    chosen = [row for row in rows if row["method"] == method and row["sigma"] == sigma]
    seeds = 1 + max(row["seed"] for row in chosen)
    flat = [np.nan if row[metric] is None else row[metric] for row in chosen]
    return np.asarray(flat, np.float32).reshape(seeds, -1)


def spread(found: Floats) -> tuple[float, float, float | None]:
    """Return the mean, the deviation over pictures of their mean over seeds, that over seeds.

    The first deviation is the population's, as in the paper; the second is a sample's, and None
    with one seed.
    """
    over_seeds = np.nanmean(found, axis=1)
    return (
        float(np.nanmean(found)),
        float(np.nanstd(np.nanmean(found, axis=0))),
        float(over_seeds.std(ddof=1)) if len(found) > 1 else None,
    )


def paired(a: Floats, b: Floats) -> dict[str, float | None]:
    """Return how much larger `a` is than `b`, picture by picture; one seed stands for all."""
    seeds = max(len(a), len(b))
    if {len(a), len(b)} - {1, seeds}:
        seeds = min(len(a), len(b))
        a, b = a[:seeds], b[:seeds]
    mean, over_pictures, over_seeds = spread(a - b)
    better = float((np.nanmean(a - b, axis=0) > 0).sum())
    return {
        "difference": mean,
        "sd_pictures": over_pictures,
        "sd_seeds": over_seeds,
        "better": better,
        "pictures": float(a.shape[1]),
    }


def comparisons(rows: Sequence[dict[str, Any]], names: Sequence[str]) -> list[dict[str, Any]]:
    """Compare trained rows with the Sato filter and the U-Net on ssvs masks, DARL's with DARL.

    Of several one-step models the first is the one that the others, ablations, are held against.
    """
    trained = [name for name in names if not name.endswith("filter")]
    steps = [name for name in names if name.startswith("One step")]
    bases = {"Sato filter": trained, "U-Net on ssvs masks": trained}
    if steps:
        bases[steps[0]] = steps
    found = []
    for base, others in bases.items():
        for name in others if base in names else ():
            for metric in PAIRED if name != base else ():
                pair = [values(rows, one, metric, 0) for one in (name, base)]
                found.append({"method": name, "base": base, "metric": metric, **paired(*pair)})
    return found


def shown(mean: float, deviation: float | None, digits: int = 3) -> str:
    """Return "0.701 ± 0.072"."""
    return f"{mean:.{digits}f}" + ("" if deviation is None else f" ± {deviation:.{digits}f}")


def markdown(rows: Sequence[dict[str, Any]], pairs: Sequence[dict[str, Any]]) -> str:
    """Return the three tables."""
    names = list(dict.fromkeys(row["method"] for row in rows))
    lines = ["| method | seeds | " + " | ".join(METRICS) + " |", "|---" * (len(METRICS) + 2) + "|"]
    for name in names:
        cells = [str(len(values(rows, name, "dice", 0)))]
        for metric in METRICS:
            mean, deviation, _ = spread(values(rows, name, metric, 0))
            cells.append(shown(mean, deviation, 1 if metric in {"betti0_error", "hd95"} else 3))
        lines.append(f"| {name} | " + " | ".join(cells) + " |")
    lines += ["", "Mean ± population standard deviation over pictures; HD95 in pixels.", ""]
    heads = [f"{metric}, noise {sigma}" for metric in PAIRED for sigma in NOISE[1:]]
    lines += ["| method | " + " | ".join(heads) + " |", "|---" * (len(heads) + 1) + "|"]
    for name in names:
        cells = [
            shown(*spread(values(rows, name, metric, sigma))[:2])
            for metric in PAIRED
            for sigma in NOISE[1:]
        ]
        lines.append(f"| {name} | " + " | ".join(cells) + " |")
    lines += [
        "",
        "| row | beside | metric | difference ± over pictures | over seeds | better |",
        "|---" * 6 + "|",
    ]
    for pair in pairs:
        seeds = "-" if pair["sd_seeds"] is None else f"± {pair['sd_seeds']:.3f}"
        difference = f"{pair['difference']:+.3f} ± {pair['sd_pictures']:.3f}"
        better = f"{pair['better']:.0f} of {pair['pictures']:.0f}"
        cells = (pair["method"], pair["base"], pair["metric"], difference, seeds, better)
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines) + "\n"


def sheet(task: Task, masks: Sequence[Sequence[Bools]], *, pictures: bool) -> Image.Image:
    """Return a row for each test picture: it, its truth, what each method found.

    White is right, red was found wrongly, green was missed.
    """
    x, y = (max(case.image.shape[axis] for case in task.cases) for axis in (0, 1))
    rows = []
    for number, case in enumerate(task.cases):
        columns = [np.repeat((case.image / case.image.max())[..., None], 3, 2)] if pictures else []
        columns.append(np.repeat(case.truth[..., None].astype(np.float32), 3, 2))
        for found in masks:
            both = found[number] & case.truth
            columns.append(np.stack([found[number], case.truth, both], -1).astype(np.float32))
        gaps = [(0, x - case.image.shape[0]), (0, y + 6 - case.image.shape[1]), (0, 0)]
        rows.append(np.concatenate([np.pad(c, gaps) for c in columns], axis=1))
    return Image.fromarray(np.rint(255 * np.concatenate(rows)).astype(np.uint8))


def named_folders(text: str) -> tuple[str, tuple[Path, ...]]:
    """Read NAME=FOLDER[,FOLDER...]."""
    name, sign, folders = text.partition("=")
    if not (name and sign and folders):
        raise argparse.ArgumentTypeError(f"expected NAME=FOLDER, got '{text}'")
    return name, tuple(Path(folder) for folder in folders.split(","))


def parsed() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path, help="CHASE_DB1, or XCAD with --data coronary")
    parser.add_argument("--data", choices=("retina", "coronary"), default="retina")
    parser.add_argument(
        "--train", default="01,02,03,04,05", help="children to take backgrounds of, or none"
    )
    parser.add_argument("--test", default="06,07", help="children to test on")
    parser.add_argument(
        "--darl", type=named_folders, action="append", default=[], metavar="NAME=FOLDER[,FOLDER]",
        help="trained models, one folder a seed; the first is DARL, others are its ablations",
    )  # fmt: skip
    parser.add_argument(
        "--dataset", type=named_folders, action="append", default=[], metavar="NAME=FOLDER",
        help="a dataset of `synthgen angiograms` to train a U-Net on",
    )  # fmt: skip
    parser.add_argument("--only", help="comma list of ridges, new, ssvs and the names given")
    parser.add_argument("--steps", type=int, default=600, help="of a U-Net")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--pool", type=int, default=128, help="pictures to render for a U-Net")
    parser.add_argument("--minutes", type=float, help="most for one training; it then ends early")
    parser.add_argument("--work", type=Path, default=Path("work/benchmark/darl"))
    parser.add_argument("--out", type=Path, default=RESULTS)
    return parser.parse_args()


def main() -> int:
    """Measure, print, write."""
    options, started = parsed(), time.perf_counter()
    if options.data == "retina":
        training = [] if options.train == "none" else options.train.split(",")
        task = retina(options.folder, training, options.test.split(","))
    else:
        task = coronary(options.folder)
    made = lazily(task, options, options.work / task.name)
    wanted = options.only.split(",") if options.only else list(made)
    unknown = sorted({*wanted} - {*made})
    if unknown:
        raise RequestError(f"--only: expected names of {', '.join(made)}, got '{unknown[0]}'")
    rows: list[dict[str, Any]] = []
    masks, identities, seconds = [], {}, {}
    for short in wanted:
        before = time.perf_counter()
        for method in made[short]():
            measured, found = measure(method, task.cases)
            rows += measured
            masks.append(found)
            identities[method.name] = [dict(identity) for identity in method.identities]
        seconds[short] = time.perf_counter() - before
    pairs = comparisons(rows, list(dict.fromkeys(row["method"] for row in rows)))
    table = markdown(rows, pairs)
    print(table)
    body = {
        "task": task.name,
        "test": [case.name for case in task.cases],
        "backgrounds": [background.subject for background in task.backgrounds or ()],
        "options": {k: v for k, v in vars(options).items() if isinstance(v, int | float | str)},
        "models": identities,
        "rows": rows,
        "paired": pairs,
        "seconds": {**seconds, "all": time.perf_counter() - started},
    }
    path = save_result(f"paper_darl_{task.name}", body, "paper_darl", options.out)
    path.with_suffix(".md").write_text(table)
    # XCAD states no licence: its pictures are not shown.
    sheet(task, masks, pictures=task.name == "retina").save(path.with_suffix(".png"), optimize=True)
    return 0


if __name__ == "__main__":
    try:
        sys.exit(main())
    except SynthgenError as error:
        sys.exit(f"error: {error}")
