"""The style's part of a report: recognised styles, tissue contrast, style swaps, leakage."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from synthgen.core.errors import RequestError
from synthgen.evaluate.findings import Findings
from synthgen.evaluate.metric import Better, Floor, Section, Table, with_floor
from synthgen.evaluate.probes import probe_accuracy
from synthgen.evaluate.sets import UNKNOWN, require_comparable
from synthgen.evaluate.style import (
    MIN_PIXELS,
    PURE,
    ContrastTable,
    SwapTable,
    accuracy_floor,
    describe_styles,
    filled,
    own_mean,
    rows_of,
    wasserstein,
    with_gaps,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from synthgen.core.rng import SampleKey
    from synthgen.core.schema import LabelSchema
    from synthgen.evaluate.sets import Floats, Indices, SliceSet

    Classify = Callable[[Floats], tuple[Sequence[str], Sequence[str]]]
    """Names the modalities and datasets of images `(n, 1, X, Y)` in [0, 1]."""

Column = npt.NDArray[np.float64]
Rows = npt.NDArray[np.float64]

AT_LEAST = 20
"""Fewest images or pairs on which a number means anything."""
_PERCENT = 100.0
_BATCH = 32
_ANCHOR = "wm"
_TEXT = (
    "Do images look like the style that was asked for, and does the style change intensities and "
    "nothing else? Contrast is measured where a label map shows one tissue alone."
)


@dataclass(frozen=True)
class StyleCodes:
    """Style codes of n real images, for the leakage probes.

    Attributes:
        codes: `(n, d)`.
        subject: `(n,)`.
        position: `(n,)` place of the slice in the brain.
        style: `(n,)`; probes look within one style, as a style may tell its own dataset.
    """

    codes: Rows
    subject: Sequence[str]
    position: Column
    style: Sequence[str]


def style_section(
    synthetic: SliceSet,
    real: SliceSet,
    *,
    key: SampleKey,
    classifier: Classify | None = None,
    holdout: SliceSet | None = None,
    codes: StyleCodes | None = None,
) -> Section:
    """Compare the styles of two sets.

    Args:
        synthetic: generated images.
        real: real images.
        key: decides splits and draws.
        classifier: names modalities and datasets of images.
        holdout: real images that the classifier never saw: its reference.
        codes: style codes of real images.

    Raises:
        SchemaError: different label schemas.
        GeometryError: different picture sizes.
        RequestError: a set without images.
    """
    require_comparable(synthetic, real)
    findings = Findings()
    made, measured = describe_styles(synthetic, key), describe_styles(real, key)
    if classifier is None or holdout is None:
        missing = "classifier" if classifier is None else "held-out real images"
        findings.refuse("Recognised styles", f"no {missing} given")
    else:
        hits = _hits(synthetic, rows_of(synthetic, key), classifier)
        held = _hits(holdout, rows_of(holdout, key), classifier)
        _add_accuracy(findings, hits, held, key)
    table = _add_contrast(findings, made.contrast, measured.contrast, key)
    _add_swaps(findings, made.swaps, measured.swaps, key)
    if codes is None:
        findings.refuse("Leakage probes", "no style codes given")
    else:
        _add_probes(findings, codes, key)
    return Section(
        "style",
        "Style",
        _TEXT,
        tuple(findings.metrics),
        tables=(table,) if table.rows else (),
        refused=findings.refused,
    )


@dataclass(frozen=True)
class _Hits:
    """Whether the modality and the dataset of each image were recognised."""

    style: npt.NDArray[np.str_]
    modality: npt.NDArray[np.str_]
    dataset: npt.NDArray[np.str_]
    subject: npt.NDArray[np.str_]
    right: dict[str, npt.NDArray[np.bool_]]


def _hits(slices: SliceSet, rows: Indices, classify: Classify) -> _Hits:
    modality, dataset, style, subject = (
        np.asarray(column)[rows]
        for column in (
            slices.images.modality,
            slices.images.dataset,
            slices.images.style,
            slices.image_subjects(),
        )
    )
    modalities: list[str] = []
    datasets: list[str] = []
    for start in range(0, len(rows), _BATCH):
        batch = classify(slices.image(rows[start : start + _BATCH]))
        modalities += batch[0]
        datasets += batch[1]
    right = {
        "modality": np.asarray(modalities) == modality,
        "dataset": np.asarray(datasets) == dataset,
    }
    return _Hits(style, modality, dataset, subject, right)


def _add_accuracy(findings: Findings, made: _Hits, held: _Hits, key: SampleKey) -> None:
    for style in np.unique(made.style):
        mine = made.style == style
        for what in ("modality", "dataset"):
            title = f"{style}: {what} recognised"
            asked = getattr(made, what)[mine][0]
            if asked == UNKNOWN:
                findings.refuse(title, f"the {what} of the style is not known")
                continue
            same = held.style == style
            if not same.any():
                same = getattr(held, what) == asked
            if not same.any():
                findings.refuse(title, "no held-out real images of that kind")
                continue
            subjects = np.unique(held.subject[same])
            findings.add(
                f"style/{what}/{style}",
                title,
                partial(
                    _accuracy,
                    made.right[what][mine],
                    held.right[what][same],
                    held.subject[same],
                    key,
                ),
                "higher",
                ideal=_PERCENT,
                unit="%",
                provenance={
                    "reference": f"{int(same.sum())} held-out images of {len(subjects)} subjects"
                },
            )


def _accuracy(
    hits: npt.NDArray[np.bool_],
    reference: npt.NDArray[np.bool_],
    subjects: Sequence[str],
    key: SampleKey,
) -> Floor:
    if len(hits) < AT_LEAST or len(reference) < AT_LEAST:
        raise RequestError(
            f"needs at least {AT_LEAST} images a side, got {min(len(hits), len(reference))}"
        )
    return _in_percent(accuracy_floor(hits, reference, subjects, key))


def _in_percent(floor: Floor) -> Floor:
    value, reference, low, high = (
        _PERCENT * v for v in (floor.value, floor.reference, floor.low, floor.high)
    )
    return Floor(value, reference, low, high, floor.n)


def _add_contrast(
    findings: Findings, made: ContrastTable, real: ContrastTable, key: SampleKey
) -> Table:
    """Add the contrast of every modality that both sets have; return the table of intensities."""
    lines: list[tuple[str, ...]] = []
    how = {"pixels": f"PV above {PURE:g}, at least {MIN_PIXELS} a tissue"}
    common = sorted({*made.modality} & {*real.modality} - {UNKNOWN})
    if not common:
        findings.refuse("Tissue contrast", "the sets have no modality in common")
    for modality in common:
        sides = made.modality == modality, real.modality == modality
        subjects = real.subject[sides[1]].tolist()
        for name, title in (("mean", "tissue means"), ("spread", "spreads inside tissues")):
            first, second = (
                filled(getattr(t, name)[side][:, 1:])
                for t, side in zip((made, real), sides, strict=True)
            )
            findings.add(
                f"style/{name}/{modality}",
                f"{modality}: distance of {title}",
                partial(
                    with_floor,
                    with_gaps(wasserstein),
                    first,
                    second,
                    subjects,
                    key,
                    at_least=AT_LEAST,
                ),
                provenance={"distance": "Wasserstein-1, mean of all tissues", **how},
            )
        for tissue, anchor in cnr_pairs(made.schema):
            a, b = (
                t.cnr(tissue, anchor)[side] for t, side in zip((made, real), sides, strict=True)
            )
            if not np.isfinite(a).any() and not np.isfinite(b).any():
                continue
            pair = f"{made.schema.names[tissue]}-{made.schema.names[anchor]}"
            findings.add(
                f"style/cnr/{modality}/{pair}",
                f"{modality}: contrast-to-noise ratio {pair}",
                partial(_cnr_floor, a, b, real.subject[sides[1]], key),
                "equal",
                provenance=how,
            )
        lines += _intensities(modality, made, real, sides)
    return Table(
        "Intensities in pure tissue: mean ± spread", ("", "generated", "real"), tuple(lines)
    )


def cnr_pairs(schema: LabelSchema) -> list[tuple[int, int]]:
    """Return the pairs of channels whose contrast is measured: every tissue against one.

    That one is white matter, or the last healthy tissue of a schema without it.

    Examples:
        >>> from synthgen.core.schema import BRAIN9
        >>> cnr_pairs(BRAIN9)[:2]
        [(1, 3), (2, 3)]
    """
    healthy = [c for c in range(1, schema.channels) if c not in schema.lesion_channels]
    if not healthy:
        return []
    anchor = schema.index(_ANCHOR) if _ANCHOR in schema.names else healthy[-1]
    return [(c, anchor) for c in range(1, schema.channels) if c != anchor]


def _cnr_floor(made: Column, real: Column, subject: npt.NDArray[np.str_], key: SampleKey) -> Floor:
    there = np.isfinite(real)
    return with_floor(
        with_gaps(own_mean),
        filled(made[np.isfinite(made)][:, None]),
        filled(real[there][:, None]),
        subject[there].tolist(),
        key,
        at_least=AT_LEAST,
    )


def _intensities(
    modality: str,
    made: ContrastTable,
    real: ContrastTable,
    sides: tuple[npt.NDArray[np.bool_], npt.NDArray[np.bool_]],
) -> list[tuple[str, ...]]:
    lines = []
    for channel in range(1, made.schema.channels):
        cells = []
        for table, side in zip((made, real), sides, strict=True):
            mean, spread = table.mean[side, channel], table.spread[side, channel]
            there = np.isfinite(mean)
            cells.append(
                f"{mean[there].mean():.3f} ± {spread[there].mean():.3f}" if there.any() else "none"
            )
        if cells != ["none", "none"]:
            lines.append((f"{modality}, {made.schema.names[channel]}", *cells))
    return lines


def _add_swaps(findings: Findings, made: SwapTable, real: SwapTable, key: SampleKey) -> None:
    common = {*made.kinds} & {*real.kinds}
    columns: tuple[tuple[str, str, Better, str], ...] = (
        ("edges", "Edges that move when the style changes", "lower", "px"),
        ("change", "Change of tissue means when the style changes", "equal", ""),
    )
    for name, title, better, unit in columns:
        first, _ = _pairs(made, name, common)
        second, subjects = _pairs(real, name, common)
        findings.add(
            f"style/swap/{name}",
            title,
            partial(
                with_floor, with_gaps(own_mean), first, second, subjects, key, at_least=AT_LEAST
            ),
            better,
            unit=unit,
            provenance={"reference": "real scans of one slice in two modalities"},
        )


def _pairs(table: SwapTable, name: str, common: set[frozenset[str]]) -> tuple[Rows, list[str]]:
    """Return values of the pairs of common kinds, or of all pairs, and their subjects."""
    values = table.displacement if name == "edges" else table.change
    keep = [
        i
        for i, kind in enumerate(table.kinds)
        if np.isfinite(values[i]) and (kind in common or not common)
    ]
    return filled(values[keep][:, None]), [table.subject[i] for i in keep]


def _add_probes(findings: Findings, codes: StyleCodes, key: SampleKey) -> None:
    style, subject = np.asarray(codes.style), np.asarray(codes.subject)
    for name in np.unique(style):
        mine = style == name
        for what, score in (("subject", "balanced accuracy"), ("position", "correlation")):
            target = subject[mine] if what == "subject" else codes.position[mine]
            groups = None if what == "subject" else subject[mine].tolist()
            title = f"{name}: {what} read from the style code"
            try:
                floor = probe_accuracy(codes.codes[mine], target, key, groups=groups)
            except RequestError as error:
                findings.refuse(title, str(error))
                continue
            findings.add(
                f"style/leak/{what}/{name}",
                title,
                partial(_same, floor),
                ideal=floor.reference,
                provenance={"score": score, "reference": "chance: permuted targets"},
            )


def _same(floor: Floor) -> Floor:
    return floor
