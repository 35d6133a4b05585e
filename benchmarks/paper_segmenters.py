"""Diffusion segmenters beside their plain networks: step by step, case by case, several seeds.

ImgX (Fu et al. 2023, arXiv:2303.06040 and arXiv:2308.16355) against its supervised twin, and its
training strategies against one another; HiDiff (Chen et al. 2024, arXiv:2407.03548) against the
segmentor that it refines. Every model folder of `train imgx` gives a row for each step and one for
its twin, every one of `train hidiff` a row for the segmentor and one for each step. Beside Dice
stands that of thin structures alone: what an opening by a disc of two pixels removes.

    python benchmarks/paper_segmenters.py imgx_brain --data work/store --whole \
        --model recycle=a0,a1,a2 --model standard=b0,b1,b2 --compare "recycle,standard"

`--compare A,B` adds the difference of the last steps of two models. Differences are paired over
cases; intervals are of a bootstrap over cases and trainings. Writes NAME-DATE.json and .md, and the
first cases' overlays as .png, to `benchmarks/results`.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from scipy import ndimage
from timing import RESULTS, save_result

from synthgen.benchmark.significance import joint_bootstrap, seed_spread
from synthgen.core.errors import SynthgenError
from synthgen.core.rng import SampleKey, Stream
from synthgen.data.labelled import open_labelled
from synthgen.evaluate.segmentation import centreline_dice, overlap
from synthgen.segment import load_segmenter
from synthgen.segment.hidiff import HiDiffSegmenter
from synthgen.segment.imgx import ImgXSegmenter
from synthgen.segment.sheets import segmentation_sheet
from synthgen.segment.validation import chosen_cases

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    import numpy.typing as npt
    from torch import Tensor

    from synthgen.data.labelled import LabelledData

    Floats = npt.NDArray[np.float64]
    Bools = npt.NDArray[np.bool_]

METRICS = ("dice", "thin_dice")
THIN_PX = 2
"""Radius of the disc whose opening removes what is thin."""
SHOWN = 4


@dataclass(frozen=True)
class Model:
    """Trainings of one kind, which differ in their seed alone.

    Attributes:
        name: for people.
        folders: one a seed.
    """

    name: str
    folders: tuple[Path, ...]


def disc(radius: int, ndim: int) -> Bools:
    """Return a disc or ball as a mask."""
    grid = np.indices((2 * radius + 1,) * ndim) - radius
    ball: Bools = (grid**2).sum(0) <= radius**2
    return ball


def thin_dice(found: Bools, truth: Bools) -> float | None:
    """Return Dice of what is thin, where nothing thick is; None where the truth has none."""
    ball = disc(THIN_PX, truth.ndim)
    thick = ndimage.binary_opening(truth, ball)
    thin = truth & ~thick
    if not thin.any():
        return None
    near = ndimage.binary_dilation(thin, ball) & ~thick
    return overlap(found & near, thin).dice


def hard(probabilities: Tensor, overlapping: bool) -> Bools:
    """Return masks `(tissues, *S)` of `(C, *S)`, without the background."""
    if overlapping:
        return (probabilities >= 0.5).numpy()
    labels = probabilities.argmax(dim=0).numpy()
    return np.stack([labels == c for c in range(1, len(probabilities))])


def mean_of(values: Sequence[float | None]) -> float:
    """Return the mean of what is there, not a number for nothing."""
    known = [value for value in values if value is not None]
    return float(np.mean(known)) if known else float("nan")


def scores(found: Bools, truth: Bools) -> dict[str, float]:
    """Return the means over tissues; a tissue that is nowhere does not count."""
    row = {
        "dice": mean_of([overlap(a, b).dice for a, b in zip(found, truth, strict=True)]),
        "thin_dice": mean_of([thin_dice(a, b) for a, b in zip(found, truth, strict=True)]),
    }
    if len(truth) == 1:
        row["cldice"] = mean_of([centreline_dice(found[0], truth[0])])
    return row


def outputs(folder: Path, whole: tuple[int, ...] | None) -> tuple[list[str], Any, Any]:
    """Load a model: names of what it finds, a function that finds them, and the model."""
    segmenter = load_segmenter(folder, dtype="bfloat16")
    if not isinstance(segmenter, ImgXSegmenter | HiDiffSegmenter):
        raise SynthgenError(f"{folder}: expected a model of `train imgx` or `train hidiff`")
    if whole is not None:
        segmenter.use = replace(segmenter.use, window=whole)
    if isinstance(segmenter, HiDiffSegmenter):
        steps = len(segmenter.identity["steps"])
        names = ["segmentor", *(f"step {k + 1}" for k in range(steps))]

        def find(image: Tensor, key: SampleKey) -> Tensor:
            return torch.cat([segmenter.prior(image), segmenter.steps(image, [key])[:, 0]])

        return names, find, segmenter
    try:
        twin = segmenter.twin()
    except SynthgenError:
        twin = None
    steps = len(segmenter.steps(torch.zeros(1, 1, *segmenter.use.window), [SampleKey(0, 0)]))
    names = [f"step {k + 1}" for k in range(steps)] + ["twin"] * (twin is not None)

    def find_all(image: Tensor, key: SampleKey) -> Tensor:
        found = segmenter.steps(image, [key])[:, 0]
        return found if twin is None else torch.cat([found, twin.predict(image)])

    return names, find_all, segmenter


def measure(
    model: Model, data: LabelledData, cases: Sequence[int], whole: tuple[int, ...] | None
) -> Iterator[tuple[dict[str, Any], Tensor | None]]:
    """Yield a row for each seed, case and output, and, of the first seed, what was found."""
    for seed, folder in enumerate(model.folders):
        names, find, segmenter = outputs(folder, whole)
        require_unseen_by(segmenter.subjects, data)
        for index in cases:
            image, soft = (torch.from_numpy(array) for array in data.load(index))
            truth = hard(soft, data.overlapping)
            for name, found in zip(names, find(image[None], SampleKey(0, index)), strict=True):
                row = {"model": model.name, "seed": seed, "output": name, "case": index}
                row |= {"group": data.cases[index].group}
                row |= scores(hard(found, data.overlapping), truth)
                yield row, None if seed else found


def require_unseen_by(subjects: Sequence[str], data: LabelledData) -> None:
    """Refuse test data of a subject that a model saw."""
    seen = sorted({*subjects} & {*data.subjects})
    if seen:
        raise SynthgenError(f"{data.name}: a model was trained on {seen[0]}, which is tested on")


def column(rows: Sequence[dict[str, Any]], model: str, output: str, metric: str) -> Floats:
    """Return `(cases, seeds)`; cases where the metric is undefined are not a number."""
    chosen = [r for r in rows if r["model"] == model and r["output"] == output]
    seeds = 1 + max(r["seed"] for r in chosen)
    return np.asarray([r[metric] for r in chosen], float).reshape(seeds, -1).T


def difference(first: Floats, second: Floats) -> dict[str, Any]:
    """Return how much larger the first is, with its interval over cases and trainings."""
    known = ~(np.isnan(first).any(1) | np.isnan(second).any(1))
    first, second = first[known], second[known]
    rng = SampleKey(0, 0).numpy(Stream.EVALUATE)
    low, high = joint_bootstrap(first, second, rng)
    by_case = first.mean(1) - second.mean(1)
    return {
        "difference": float(by_case.mean()),
        "low": low,
        "high": high,
        "better": int((by_case > 0).sum()),
        "cases": len(by_case),
        "by_seed": [
            round(float(a - b), 4) for a, b in zip(first.mean(0), second.mean(0), strict=False)
        ],
    }


def contrasts(
    rows: Sequence[dict[str, Any]], compared: Sequence[tuple[str, str]], metrics: Sequence[str]
) -> list[dict[str, Any]]:
    """Compare the last step with the first, with twin or segmentor, and models with models."""
    found = []
    outputs_of: dict[str, list[str]] = {}
    for row in rows:
        known = outputs_of.setdefault(row["model"], [])
        if row["output"] not in known:
            known.append(row["output"])
    steps = {m: [o for o in known if o.startswith("step")] for m, known in outputs_of.items()}
    pairs: list[tuple[tuple[str, str], tuple[str, str]]] = []
    for model, known in outputs_of.items():
        last = (model, steps[model][-1])
        pairs += [(last, (model, other)) for other in ("segmentor", "twin") if other in known]
        if len(steps[model]) > 1:
            pairs.append((last, (model, steps[model][0])))
    pairs += [((a, steps[a][-1]), (b, steps[b][-1])) for a, b in compared]
    for metric in metrics:
        for first, second in pairs:
            result = difference(column(rows, *first, metric), column(rows, *second, metric))
            found.append({"metric": metric, "of": first, "than": second, **result})
    return found


def markdown(
    rows: Sequence[dict[str, Any]], pairs: Sequence[dict[str, Any]], metrics: Sequence[str]
) -> str:
    """Return the tables: levels, then differences."""
    lines = ["| model | output | seeds | " + " | ".join(metrics) + " |"]
    lines.append("|---" * (3 + len(metrics)) + "|")
    for model, output in dict.fromkeys((r["model"], r["output"]) for r in rows):
        cells = []
        for metric in metrics:
            values = column(rows, model, output, metric)
            values = values[~np.isnan(values).any(1)]
            spread = f" ± {seed_spread(values):.3f}" if values.shape[1] > 1 else ""
            cells.append(f"{values.mean():.3f}{spread}")
        lines.append(f"| {model} | {output} | {values.shape[1]} | " + " | ".join(cells) + " |")
    lines += ["", "Mean over cases ± standard deviation over seeds of that mean.", ""]
    lines += ["| metric | of | than | difference [95 %] | cases better | by seed |"]
    lines.append("|---" * 6 + "|")
    for pair in pairs:
        lines.append(
            f"| {pair['metric']} | {', '.join(pair['of'])} | {', '.join(pair['than'])} | "
            f"{pair['difference']:+.4f} [{pair['low']:+.4f}, {pair['high']:+.4f}] | "
            f"{pair['better']} of {pair['cases']} | {pair['by_seed']} |"
        )
    return "\n".join(lines) + "\n"


def parse_model(text: str) -> Model:
    """Read NAME=FOLDER,FOLDER."""
    name, _, folders = text.partition("=")
    return Model(name, tuple(Path(folder) for folder in folders.split(",")))


def whole_window(data: LabelledData, cases: Sequence[int], multiple: int = 32) -> tuple[int, ...]:
    """Return a window that covers the largest case."""
    sizes = np.max([data.load(index)[0].shape[1:] for index in cases], axis=0)
    return tuple(int(-(-side // multiple) * multiple) for side in sizes)


def main() -> None:
    """Measure, print, write."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("name")
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--tissues", default="csf,gm,wm")
    parser.add_argument("--model", action="append", type=parse_model, required=True)
    parser.add_argument("--compare", action="append", default=[], metavar="A,B")
    parser.add_argument("--cases", type=int, default=120)
    parser.add_argument("--whole", action="store_true", help="one window for the whole picture")
    parser.add_argument("--out", type=Path, default=RESULTS)
    options = parser.parse_args()
    torch.set_num_threads(1)
    started = time.monotonic()
    data = open_labelled(options.data, tissues=tuple(options.tissues.split(",")), split="val")
    cases = chosen_cases(data, options.cases)
    window = whole_window(data, cases) if options.whole else None
    rows: list[dict[str, Any]] = []
    first: dict[str, dict[int, list[Tensor]]] = {}
    for model in options.model:
        for row, found in measure(model, data, cases, window):
            rows.append(row)
            if found is not None and row["case"] in chosen_cases_of(cases):
                first.setdefault(model.name, {}).setdefault(row["case"], []).append(found)
        print(f"{model.name}: done after {time.monotonic() - started:.0f} s", flush=True)
    metrics = [*METRICS, *["cldice"] * ("cldice" in rows[0])]
    compared = [tuple(text.split(",")) for text in options.compare]
    pairs = contrasts(rows, compared, metrics)
    table = markdown(rows, pairs, metrics)
    print(table)
    document = {
        "data": {"name": Path(data.name).name, "subjects": list(data.subjects), "real": data.real},
        "cases": len(cases),
        "window": window,
        "models": {m.name: [records(folder) for folder in m.folders] for m in options.model},
        "levels": levels(rows, metrics),
        "differences": pairs,
        "seconds": round(time.monotonic() - started),
    }
    path = save_result(options.name, document, "paper_segmenters", options.out)
    path.with_suffix(".md").write_text(table)
    draw(path.with_suffix(".png"), data, first)
    print(path)


def chosen_cases_of(cases: Sequence[int]) -> list[int]:
    """Return the cases that are drawn."""
    places = np.linspace(0, len(cases) - 1, min(SHOWN, len(cases)) + 2).round().astype(int)[1:-1]
    return [cases[place] for place in dict.fromkeys(places.tolist())]


def records(folder: Path) -> dict[str, Any]:
    """Return what a model folder says of its training; of its data the names alone."""
    training: dict[str, Any] = json.loads((folder / "synthgen.json").read_text())["training"]
    data = {Path(name).name: share for name, share in training.get("data", {}).items()}
    return {k: v for k, v in training.items() if k != "validation"} | {"data": data}


def levels(rows: Sequence[dict[str, Any]], metrics: Sequence[str]) -> list[dict[str, Any]]:
    """Return the mean over cases of every training."""
    return [
        {"model": model, "output": output, "metric": metric}
        | {"by_seed": np.nanmean(column(rows, model, output, metric), axis=0).round(4).tolist()}
        for model, output in dict.fromkeys((r["model"], r["output"]) for r in rows)
        for metric in metrics
    ]


def cropped(maps: Sequence[Tensor], size: tuple[int, ...]) -> list[Tensor]:
    """Return the first pixels along each axis of maps `(C, *S)`."""
    return [one[:, *(slice(side) for side in size)] for one in maps]


def draw(path: Path, data: LabelledData, first: dict[str, dict[int, list[Tensor]]]) -> None:
    """Draw image, truth and what the first seed of each model found, one row a case."""
    from PIL import Image  # noqa: PLC0415

    shown = sorted(next(iter(first.values())))
    images, softs = [], []
    for index in shown:
        image, soft = data.load(index)
        images.append(torch.from_numpy(image))
        softs.append(torch.from_numpy(soft))
    size = tuple(min(sides) for sides in zip(*(image.shape[1:] for image in images), strict=True))
    images, softs = (cropped(maps, size) for maps in (images, softs))
    masks = [torch.stack(softs)]
    for found in first.values():
        places = range(len(found[shown[0]]))
        masks += [
            torch.stack(cropped([found[index][place] for index in shown], size)) for place in places
        ]
    sheet = segmentation_sheet(torch.stack(images), masks, overlapping=data.overlapping)
    rows, columns, width, height, _ = sheet.shape
    # Axis 0 of the arrays runs to the right, axis 1 up.
    tiled = sheet[..., ::-1, :].transpose(0, 3, 1, 2, 4).reshape(rows * height, columns * width, 3)
    Image.fromarray((np.clip(tiled, 0, 1) * 255).astype(np.uint8)).save(path)


if __name__ == "__main__":
    try:
        main()
    except SynthgenError as error:
        sys.exit(f"{Path(__file__).name}: {error}")
