"""Two folders of label maps, predicted and reference, compared case by case and tissue by tissue.

The measures, and what they are where a mask is empty, are those of
`synthgen.evaluate.segmentation`; files and the names of their values, of
`synthgen.evaluate.label_folders`.
"""

from __future__ import annotations

import csv
import io
import json
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from synthgen.core.errors import GeometryError, RequestError, StoreError
from synthgen.core.manifest import write_atomic
from synthgen.evaluate.label_folders import cases_of, read_label_map, tables_of
from synthgen.evaluate.segmentation import mask_metrics

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence
    from pathlib import Path

    from synthgen.evaluate.label_folders import LabelMap, LabelTable

MEASURES = ("dice", "iou", "precision", "recall", "cldice", "hd95", "asd", "nsd")
EMPTY_RULE = (
    "a case with the tissue in neither mask does not count; in one mask only, Dice, IoU, clDice "
    "and NSD are 0 and HD95 and ASD have no value: such a case is counted as missed or invented"
)
LISTING, METRICS = "cases.csv", "metrics.json"
_SHOWN = 5


@dataclass(frozen=True)
class CaseScores:
    """The scores of two folders.

    Attributes:
        rows: one for each case and tissue: case, tissue, n_ref, n_pred and `MEASURES`, None where
            a measure is undefined.
        unit: of the distances and the tolerance, "mm" or "px".
        tolerance: of the surface Dice.
    """

    rows: tuple[Mapping[str, Any], ...]
    unit: str
    tolerance: float

    @property
    def cases(self) -> int:
        """Number of cases."""
        return len({row["case"] for row in self.rows})

    def summary(self) -> dict[str, dict[str, Any]]:
        """Return for each tissue its counts, and mean, sd and n of each measure over cases.

        Counts: `cases`; `absent`, the tissue is in neither mask; `missed`, only in the reference;
        `invented`, only in the prediction.
        """
        tissues = dict.fromkeys(str(row["tissue"]) for row in self.rows)
        return {
            tissue: _summary([row for row in self.rows if row["tissue"] == tissue])
            for tissue in tissues
        }

    def write(self, folder: Path, facts: Mapping[str, Any]) -> None:
        """Write `cases.csv` and `metrics.json`, which holds `facts` as well.

        Raises:
            StoreError: they cannot be written.
        """
        text = io.StringIO()
        table = csv.DictWriter(text, [*self.rows[0]], lineterminator="\n")
        table.writeheader()
        table.writerows(self.rows)
        body = {
            **facts,
            "cases": self.cases,
            "unit": self.unit,
            "tolerance": self.tolerance,
            "empty": EMPTY_RULE,
            "tissues": self.summary(),
        }
        try:
            folder.mkdir(parents=True, exist_ok=True)
            write_atomic(folder / LISTING, text.getvalue().encode())
            write_atomic(folder / METRICS, json.dumps(body, indent=1).encode() + b"\n")
        except OSError as error:
            raise StoreError(f"{folder}: the scores could not be written ({error})") from error


def evaluate_cases(
    predictions: Path,
    reference: Path,
    *,
    tolerance: float = 1.0,
    suffix: str = "",
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> CaseScores:
    """Compare the label maps of two folders, which must hold the same cases.

    Args:
        predictions: folder of NAME.png, NAME.nii.gz or the like.
        reference: the same, each name with `suffix`.
        tolerance: of the surface Dice, in mm of volumes, in pixels of pictures.
        suffix: what names of the reference have after the case's.
        progress: called with the cases that are done, and all.

    Raises:
        RequestError: no such folder, or the folders hold different cases.
        GeometryError: the shapes or grids of a case differ.
        SchemaError: values that are no integers or have no name, or tissues that differ.
        StoreError: unreadable files.
    """
    if not tolerance > 0:
        raise RequestError(f"tolerance: expected more than 0, got {tolerance:g}")
    found, wanted = cases_of(predictions), cases_of(reference, suffix)
    _require_same_cases(found, wanted, (predictions, reference))
    tables = tables_of((predictions, reference), ([*found.values()], [*wanted.values()]))
    rows: list[Mapping[str, Any]] = []
    units: dict[str, str] = {}
    for done, name in enumerate(sorted(wanted), start=1):
        files = (found[name], wanted[name])
        maps = [read_label_map(file) for file in files]
        for file, one, table in zip(files, maps, tables, strict=True):
            table.check(one.labels, file)
        _require_same_grid(files, maps)
        units[maps[1].unit] = name
        rows += [{"case": name, **row} for row in _compared(maps, tables, tolerance)]
        progress(done, len(wanted))
    if len(units) > 1:
        raise RequestError(
            f"{reference}: holds volumes such as {units['mm']} and pictures such as {units['px']}; "
            "millimetres and pixels have no common mean, evaluate them apart"
        )
    return CaseScores(tuple(rows), next(iter(units)), tolerance)


def _compared(
    maps: Sequence[LabelMap], tables: Sequence[LabelTable], tolerance: float
) -> list[dict[str, Any]]:
    """Return one row for each tissue of one case."""
    labels, spacing = maps[1].labels, maps[1].spacing
    ignored = tables[1].ignored
    judged = np.ones(labels.shape, dtype=np.bool_) if ignored is None else labels != ignored
    rows = []
    for tissue in tables[1].values:
        predicted, reference = (
            table.mask(one.labels, tissue) & judged for one, table in zip(maps, tables, strict=True)
        )
        scores = mask_metrics(predicted, reference, spacing=spacing, tolerance=tolerance)
        counts = {"n_ref": int(reference.sum()), "n_pred": int(predicted.sum())}
        rows.append({"tissue": tissue, **counts, **{name: scores[name] for name in MEASURES}})
    return rows


def _summary(rows: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    there = [(row["n_ref"] > 0, row["n_pred"] > 0) for row in rows]
    body: dict[str, Any] = {
        "cases": len(rows),
        "absent": there.count((False, False)),
        "missed": there.count((True, False)),
        "invented": there.count((False, True)),
    }
    for name in MEASURES:
        values = np.asarray([row[name] for row in rows if row[name] is not None])
        body[name] = {
            "mean": float(values.mean()) if values.size else None,
            "sd": float(values.std(ddof=1)) if values.size > 1 else None,
            "n": int(values.size),
        }
    return body


def _require_same_cases(
    found: Mapping[str, Path], wanted: Mapping[str, Path], folders: Sequence[Path]
) -> None:
    lacking, extra = sorted({*wanted} - {*found}), sorted({*found} - {*wanted})
    parts = [f"{len(lacking)} without a prediction ({_some(lacking)})"] if lacking else []
    parts += [f"{len(extra)} without a reference ({_some(extra)})"] if extra else []
    if parts:
        raise RequestError(
            f"{folders[0]} and {folders[1]} must hold the same cases, got {' and '.join(parts)}"
        )


def _some(names: Sequence[str]) -> str:
    return ", ".join([*names[:_SHOWN], *(["..."] if len(names) > _SHOWN else [])])


def _require_same_grid(files: Sequence[Path], maps: Sequence[LabelMap]) -> None:
    shapes = [one.labels.shape for one in maps]
    if shapes[0] != shapes[1]:
        raise GeometryError(
            f"{files[0]}: expected the shape {shapes[1]} of {files[1]}, got {shapes[0]}"
        )
    predicted, reference = (one.grid for one in maps)
    if (predicted is None) != (reference is None):
        raise GeometryError(f"{files[0]} and {files[1]}: one is a volume and one a picture")
    if predicted is not None and reference is not None:
        reference.require_same(predicted, f"{files[0]} beside {files[1]}")
