"""What the finished trainings of a benchmark left: all scores as one checked table.

A training writes `runs/ARM/seedK/cases.json`, one row for each test subject, modality and tissue,
and then `done.json`. A score is null where it is not defined: Dice where neither the reference nor
the prediction has the tissue, a surface distance where one of them lacks it. A tissue that the
reference has and the prediction lacks has Dice 0 and counts as missed.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from synthgen.benchmark.job import CASES, DONE, FAILED
from synthgen.benchmark.spec import SPEC
from synthgen.core.errors import RequestError, StoreError
from synthgen.core.input_files import read_json

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

SMOKE = "smoke"
NOT_A_RESULT = "NOT A RESULT"
"""Stamp on everything that the `smoke` budget makes: it only shows that the machinery runs."""


@dataclass(frozen=True)
class Measure:
    """A score of one subject and tissue.

    Attributes:
        name: its key in `cases.json`.
        title: what a reader sees.
        higher: whether higher is better.
        unit: such as "mm"; scores without one lie in [0, 1].
    """

    name: str
    title: str
    higher: bool = True
    unit: str = ""


MEASURES = {
    measure.name: measure
    for measure in (
        Measure("dice", "Dice"),
        Measure("hd95_mm", "HD95", higher=False, unit="mm"),
        Measure("nsd", "surface Dice"),
        Measure("precision", "precision"),
        Measure("recall", "recall"),
    )
}
_NAMES = ("arm", "subject", "modality", "tissue")
_COUNTS = ("seed", "n_ref", "n_pred", "slices")
_REQUIRED = {*_NAMES, *_COUNTS, *MEASURES}


@dataclass(frozen=True)
class Case:
    """The scores of one training on one tissue of one test volume; NaN where undefined."""

    arm: str
    seed: int
    subject: str
    modality: str
    tissue: str
    scores: Mapping[str, float]
    n_ref: int
    n_pred: int
    slices: int


@dataclass(frozen=True)
class Results:
    """All that a benchmark folder holds.

    Attributes:
        folder: the benchmark's folder.
        spec: `spec.json`.
        arms: arms with a finished training, in the order of the spec.
        tissues: tissues without the background: tissue i has the label i + 1.
        modalities: modalities of the test volumes.
        cases: the rows of all finished trainings.
        failed: training to the one line that says why it crashed.
        pending: trainings that neither finished nor failed, as `ARM seed K`.
    """

    folder: Path
    spec: Mapping[str, Any]
    arms: tuple[str, ...]
    tissues: tuple[str, ...]
    modalities: tuple[str, ...]
    cases: tuple[Case, ...]
    failed: Mapping[str, str]
    pending: tuple[str, ...]

    @cached_property
    def subjects(self) -> tuple[str, ...]:
        """Test subjects, sorted."""
        return tuple(sorted({case.subject for case in self.cases}))

    @property
    def smoke(self) -> bool:
        """Whether the numbers mean nothing."""
        return bool(self.spec["budget_name"] == SMOKE)

    def seeds(self, arm: str) -> tuple[int, ...]:
        """Return the seeds of an arm's finished trainings."""
        return tuple(sorted({case.seed for case in self.cases if case.arm == arm}))

    def scores(
        self, arm: str, tissue: str, measure: str, modalities: Sequence[str]
    ) -> npt.NDArray[np.float64]:
        """Return one measure of one arm and tissue, the mean over some modalities.

        A subject is one subject, however many of its modalities are looked at.

        Returns:
            `(subjects, seeds)`, NaN where any of the modalities has none.
        """
        places = [self.modalities.index(modality) for modality in modalities]
        mean: npt.NDArray[np.float64] = self._grids[arm, tissue, measure][places].mean(axis=0)
        return mean

    @cached_property
    def _grids(self) -> dict[tuple[str, str, str], npt.NDArray[np.float64]]:
        """Scores `(modalities, subjects, seeds)` of each arm, tissue and measure."""
        seeds = {arm: self.seeds(arm) for arm in self.arms}
        axes = len(self.modalities), len(self.subjects)
        grids = {
            (arm, tissue, measure.name): np.full((*axes, len(seeds[arm])), np.nan)
            for arm in self.arms
            for tissue in self.tissues
            for measure in MEASURES.values()
        }
        subject, modality = (
            {n: i for i, n in enumerate(x)} for x in (self.subjects, self.modalities)
        )
        for case in self.cases:
            place = modality[case.modality], subject[case.subject], seeds[case.arm].index(case.seed)
            for measure in MEASURES.values():
                grids[case.arm, case.tissue, measure.name][place] = case.scores[measure.name]
        return grids


def read_results(out: Path) -> Results:
    """Read and check the rows of all finished trainings of a benchmark folder.

    Args:
        out: folder with `spec.json` and `runs/ARM/seedK/cases.json`.

    Raises:
        RequestError: no benchmark, or none of its trainings has finished.
        StoreError: a file is damaged, a row is malformed or contradicts itself, or trainings
            were scored on different subjects or tissues.
    """
    spec = _read_spec(out / SPEC)
    failed = _read_failed(out / FAILED)
    tissues = tuple(spec["tissues"][1:])
    cases: dict[str, list[Case]] = {}
    pending = []
    for arm in (arm["name"] for arm in spec["arms"]):
        for seed in spec["seeds"]:
            name = f"{arm} seed {seed}"
            folder = out / "runs" / arm / f"seed{seed}"
            if (folder / DONE).is_file():
                cases[name] = _read_cases(folder / CASES, arm, seed, tissues)
            elif name not in failed:
                pending.append(name)
    if not cases:
        why = "; ".join(f"{name}: {line}" for name, line in failed.items())
        raise RequestError(
            f"{out}: no training has finished{f' ({why})' if why else ''}; "
            "run the benchmark again to continue it"
        )
    _require_same_grid(out, cases)
    return Results(
        folder=out,
        spec=spec,
        arms=tuple(dict.fromkeys(run[0].arm for run in cases.values())),
        tissues=tissues,
        modalities=tuple(sorted({case.modality for run in cases.values() for case in run})),
        cases=tuple(case for run in cases.values() for case in run),
        failed=failed,
        pending=tuple(pending),
    )


def _read_json(path: Path) -> Any:  # noqa: ANN401 - any JSON value
    try:
        return read_json(path)
    except OSError as error:
        raise StoreError(f"{path}: cannot be read ({error.strerror or error})") from error
    except ValueError as error:
        raise StoreError(f"{path}: not JSON ({error}); delete it and run that arm again") from error


def _read_spec(path: Path) -> dict[str, Any]:
    if not path.is_file():
        raise RequestError(
            f"{path.parent}: no {SPEC}, so no benchmark; expected the --out folder of "
            "`synthgen benchmark nnunet`"
        )
    spec = _read_json(path)
    kinds = {"arms": list, "seeds": list, "tissues": list, "budget_name": str, "trainer": str}
    for key, kind in kinds.items():
        value = spec.get(key) if isinstance(spec, dict) else None
        if not isinstance(value, kind) or not value:
            raise StoreError(f"{path}: '{key}' must be a {kind.__name__}, got {value!r:.60}")
    if not all(isinstance(arm, dict) and isinstance(arm.get("name"), str) for arm in spec["arms"]):
        raise StoreError(f"{path}: every arm needs a name, got {spec['arms']!r:.60}")
    margin = spec.get("margin")
    if isinstance(margin, bool) or not isinstance(margin, int | float) or not 0 < margin < 1:
        raise StoreError(f"{path}: 'margin' must lie in (0, 1), got {margin!r:.60}")
    checked: dict[str, Any] = spec
    return checked


def _read_failed(path: Path) -> dict[str, str]:
    if not path.is_file():
        return {}
    failed = _read_json(path)
    if not isinstance(failed, dict) or not all(isinstance(v, str) for v in failed.values()):
        raise StoreError(f"{path}: expected training names and reasons, got {failed!r:.60}")
    return {name: " ".join(line.split()) for name, line in failed.items()}


def _read_cases(path: Path, arm: str, seed: int, tissues: Sequence[str]) -> list[Case]:
    rows = _read_json(path)
    if not isinstance(rows, list) or not rows:
        raise StoreError(f"{path}: expected a list of rows, got {rows!r:.60}; run that arm again")
    cases: dict[tuple[str, str, str], Case] = {}
    for number, row in enumerate(rows):
        where = f"{path}: row {number}"
        case = _case(row, where)
        if (case.arm, case.seed) != (arm, seed):
            raise StoreError(f"{where}: belongs to {case.arm} seed {case.seed}; run that arm again")
        if case.tissue not in tissues:
            raise StoreError(
                f"{where}: tissue '{case.tissue}' is none of {', '.join(tissues)} of {SPEC}"
            )
        place = _place(case)
        if place in cases:
            raise StoreError(f"{where}: {', '.join(place)} stands twice; run that arm again")
        cases[place] = case
    return list(cases.values())


def _case(row: Any, where: str) -> Case:  # noqa: ANN401 - any JSON value
    if not isinstance(row, dict):
        raise StoreError(f"{where}: expected an object, got {row!r:.60}")
    missing, unknown = _REQUIRED - {*row}, {*row} - _REQUIRED
    if missing or unknown:
        what = f"lacks '{min(missing)}'" if missing else f"has the unknown key '{min(unknown)}'"
        raise StoreError(f"{where}: {what}; run that arm again with this version")
    for key in _NAMES:
        if not isinstance(row[key], str) or not row[key]:
            raise StoreError(f"{where}: '{key}' must be a name, got {row[key]!r:.60}")
    for key in _COUNTS:
        if isinstance(row[key], bool) or not isinstance(row[key], int) or row[key] < 0:
            raise StoreError(f"{where}: '{key}' must be a count, got {row[key]!r:.60}")
    scores = {name: _score(row[name], measure, where) for name, measure in MEASURES.items()}
    case = Case(
        **{key: row[key] for key in (*_NAMES, *_COUNTS)},
        scores=scores,
    )
    _require_consistent(case, where)
    return case


def _score(value: object, measure: Measure, where: str) -> float:
    if value is None:
        return math.nan
    most = math.inf if measure.unit else 1.0
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value <= most:
        limits = "at least 0" if measure.unit else "in [0, 1]"
        raise StoreError(f"{where}: {measure.name} is {value!r:.60}; expected {limits}, or null")
    return float(value)


def _require_consistent(case: Case, where: str) -> None:
    """Refuse rows whose counts and scores cannot both be true."""
    dice, what = case.scores["dice"], f"{where} ({case.subject}, {case.tissue})"
    if math.isnan(dice) != (case.n_ref == 0 and case.n_pred == 0):
        raise StoreError(
            f"{what}: dice is {'null' if math.isnan(dice) else dice} with {case.n_ref} reference "
            f"and {case.n_pred} predicted voxels; it is null exactly where both are 0"
        )
    one_empty = (case.n_ref == 0) != (case.n_pred == 0)
    if one_empty and (dice > 0 or not math.isnan(case.scores["hd95_mm"])):
        raise StoreError(
            f"{what}: {case.n_ref} reference and {case.n_pred} predicted voxels; expected dice 0 "
            "and hd95_mm null"
        )


def _place(case: Case) -> tuple[str, str, str]:
    return case.subject, case.modality, case.tissue


def _require_same_grid(out: Path, cases: Mapping[str, Sequence[Case]]) -> None:
    """Refuse trainings that were scored on different subjects, modalities or tissues."""
    grids = {name: {_place(case) for case in run} for name, run in cases.items()}
    subjects, modalities, tissues = (
        {place[axis] for grid in grids.values() for place in grid} for axis in range(3)
    )
    full = {(s, m, t) for s in subjects for m in modalities for t in tissues}
    for name, grid in grids.items():
        if full - grid:
            raise StoreError(
                f"{out}: {name} has no row for {', '.join(min(full - grid))}; every training "
                "must be scored on the same subjects, modalities and tissues: run it again"
            )
