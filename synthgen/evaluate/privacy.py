"""The privacy part of a report: copies of training data, and nearness to training people.

Label maps and images are looked at one after the other, since either may carry a person's
anatomy. Training, held-out and planted records go through the same search as the generated ones.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from synthgen.core.errors import RequestError
from synthgen.core.rng import SampleKey, Stream
from synthgen.evaluate.copies import (
    ALARMS,
    CopyDetector,
    CopyReport,
    check_in_blocks,
    check_plants,
    require_subjects,
)
from synthgen.evaluate.descriptors import What, describe, joined
from synthgen.evaluate.findings import Findings
from synthgen.evaluate.metric import Figure, Floor, Section, Table
from synthgen.evaluate.nearest import ORIENTATIONS
from synthgen.evaluate.plants import KINDS, MUST_FIND, Kind, changes
from synthgen.evaluate.privacy_figures import distance_figure, gallery_figure
from synthgen.evaluate.privacy_metrics import (
    People,
    authentic_share,
    balanced,
    dcr_floor,
    halves_floor,
    low_nndr,
    median_nndr,
    membership_floor,
)
from synthgen.evaluate.selection import require_disjoint
from synthgen.evaluate.sets import require_comparable

if TYPE_CHECKING:
    from collections.abc import Mapping

    from synthgen.evaluate.sets import Indices, SliceSet

PLANTS = 20
"""Copies that are planted of each kind."""

LISTED = 5
"""Nearest pairs in the table, of label maps and of images."""

SHOWN = 8
"""Nearest pairs in the gallery."""

_PERCENT = 100.0
_BOOTSTRAPS = 500
_NOUN: dict[What, str] = {"labels": "label maps", "images": "images"}
_TEXT = (
    "Is the set nearer to the people it was trained on than to people it never saw? Distances "
    "compare the direction of edges, whatever the contrast, mirrored or not: 0 is a copy, 1 the "
    "distance between two people. References are real people in the place of the generated set. "
    "Copies planted into the audit show what it can find."
)


class Pair(NamedTuple):
    """A generated slice and the training slice that it is nearest to.

    Attributes:
        synthetic: slice of the generated set.
        train: slice of the training set.
        distance: 0 for a copy, 1 for another person.
        what: whether label maps or images were compared.
        synthetic_row: row of the generated record: its slice, or the row of its image.
        train_row: row of the training record.
        mirrored: axes along which the training record was mirrored to fit.
        copy: whether the distance is that of a copy.
    """

    synthetic: int
    train: int
    distance: float
    what: What
    synthetic_row: int
    train_row: int
    mirrored: tuple[int, ...]
    copy: bool


@dataclass(frozen=True)
class PrivacyResult:
    """What the audit found.

    Attributes:
        section: of the report.
        flagged: generated slices that are copies, or have an image that is one; sorted.
        pairs: the nearest training slice of each generated slice, for label maps and for
            images, nearest first.
    """

    section: Section
    flagged: Indices
    pairs: tuple[Pair, ...]


@dataclass(frozen=True)
class _Part:
    """The audit of the label maps or of the images."""

    what: What
    report: CopyReport
    held: CopyReport
    held_subject: tuple[str, ...]
    plants: Mapping[Kind, CopyReport]
    people: People


def privacy_section(
    synthetic: SliceSet, train: SliceSet, holdout: SliceSet, *, key: SampleKey
) -> PrivacyResult:
    """Audit a generated set against its training data.

    Args:
        synthetic: label maps, with images or without.
        train: the real slices that its models were trained on, of at least two people.
        holdout: real slices of other people.
        key: decides the planted copies and the draws of the references.

    Raises:
        RequestError: an empty set, fewer than two training people, slices of unknown people, or
            values that are not finite.
        SchemaError: different label schemas.
        GeometryError: different slice sizes.
        LeakageError: held-out people that were trained on.
    """
    _require(synthetic, train, holdout)
    findings, parts = Findings(), []
    for what in _auditable(synthetic, train, holdout, findings):
        part = _audit(what, synthetic, train, holdout, key)
        _add_copies(findings, part, key)
        _add_distances(findings, part, key)
        parts.append(part)
    pairs = sorted((p for part in parts for p in _pairs(part)), key=lambda pair: pair.distance)
    flagged = np.unique(np.concatenate([part.report.flagged for part in parts]))
    section = Section(
        "privacy",
        "Privacy",
        _TEXT,
        tuple(findings.metrics),
        tuple(f for part in parts for f in _figures(part, pairs, synthetic, train)),
        (_plant_table(parts), _pair_table(pairs, train)),
        findings.refused,
    )
    return PrivacyResult(section, flagged.astype(np.int64), tuple(pairs))


def _require(synthetic: SliceSet, train: SliceSet, holdout: SliceSet) -> None:
    for subset in (synthetic, train, holdout):
        if not len(subset):
            raise RequestError(f"{subset.name}: the set is empty; expected at least one slice")
        require_comparable(subset, train)
    require_disjoint(train, holdout, [synthetic])
    require_subjects(train.table.subject, train.name)
    require_subjects(holdout.table.subject, holdout.name, least=1)


def _auditable(
    synthetic: SliceSet, train: SliceSet, holdout: SliceSet, findings: Findings
) -> tuple[What, ...]:
    """Return whether images can be audited beside the label maps; if not, say why."""
    lacking = [s.name for s in (synthetic, train, holdout) if not len(s.images.slices)]
    people = {*train.image_subjects()}
    if lacking:
        findings.refuse("Copies among images", f"no images in {', '.join(lacking)}")
    elif len(people) < 2:
        findings.refuse(
            "Copies among images",
            f"the images of {train.name} show one subject ({', '.join(people)}); at least 2 are "
            "needed to tell a copy from another person",
        )
    else:
        return ("labels", "images")
    return ("labels",)


def _audit(
    what: What, synthetic: SliceSet, train: SliceSet, holdout: SliceSet, key: SampleKey
) -> _Part:
    bank, held = describe(train, what), describe(holdout, what)
    detector = CopyDetector.fit(bank, key)
    report, samples = check_in_blocks(detector, synthetic)
    plants: dict[Kind, CopyReport] = {}
    for number, kind in enumerate(k for k in KINDS if changes(k, what)):
        draw = SampleKey(key.seed, key.index, key.attempt + 1 + number)
        plants[kind], _ = check_plants(detector, train, kind, PLANTS, draw)
    checked = detector.check(held)
    most = max(1, int(min(len(b) / len({*b.subject}) for b in (bank, held))))
    real = joined([balanced(b.light(), most, key) for b in (bank, held)])
    people = People.measure(joined(samples), real, {*held.subject})
    return _Part(what, report, checked, held.subject, plants, people)


def _add_copies(findings: Findings, part: _Part, key: SampleKey) -> None:
    facts = {
        "copy detector": f"relative distance at most {part.report.threshold:.3f}, which at "
        f"most {ALARMS:.1%} of training records have to those of other people"
    }
    findings.add(
        f"privacy/copies/{part.what}",
        f"Copies of training {_NOUN[part.what]}",
        lambda: _alarms(part, key),
        unit="%",
        provenance=facts,
    )
    hits = np.concatenate([part.plants[kind].flags for kind in MUST_FIND[part.what]])
    findings.add(
        f"privacy/planted/{part.what}",
        f"Planted copies found among {_NOUN[part.what]}",
        lambda: Floor(_PERCENT * float(hits.mean()), _PERCENT, _PERCENT, _PERCENT, len(hits)),
        "higher",
        ideal=_PERCENT,
        unit="%",
    )


def _alarms(part: _Part, key: SampleKey) -> Floor:
    """Return the share of copies, beside the share of held-out records taken for copies.

    The interval bootstraps people; its upper end is at least the share that none among as many
    records leaves possible (5 % level).
    """
    rng = key.numpy(Stream.EVALUATE)
    column = np.asarray(part.held_subject)
    groups = [part.held.flags[column == name] for name in sorted({*part.held_subject})]
    boots = [
        np.concatenate([groups[i] for i in rng.integers(len(groups), size=len(groups))]).mean()
        for _ in range(_BOOTSTRAPS)
    ]
    low, high = np.percentile(boots, [5, 95])
    possible = 1 - 0.05 ** (1 / len(column))
    return Floor(
        _PERCENT * float(part.report.flags.mean()),
        _PERCENT * float(part.held.flags.mean()),
        _PERCENT * float(low),
        _PERCENT * max(float(high), possible),
        len(column),
    )


def _add_distances(findings: Findings, part: _Part, key: SampleKey) -> None:
    what, people = part.what, part.people
    noun = f", {_NOUN[what]}"
    facts = {"distance": "1 - likeness of edge directions on a grid of 8 px"}
    findings.add(
        f"privacy/dcr_share/{what}",
        f"Share nearer to training than to held-out people{noun}",
        lambda: dcr_floor(people, key),
        ideal=0.5,
        provenance=facts,
    )
    for name, title, measure in (
        ("nndr", "Nearest over second nearest person, median", median_nndr),
        ("nndr_low", "Nearest over second nearest person, lowest 5 %", low_nndr),
        ("authenticity", "Authenticity", authentic_share),
    ):
        findings.add(
            f"privacy/{name}/{what}",
            f"{title}{noun}",
            lambda measure=measure: halves_floor(people, measure, key),  # type: ignore[misc]
            "higher",
            ideal=1.0,
            provenance=facts,
        )
    title = f"Membership attack, AUC{noun}"
    try:
        floor, (low, high) = membership_floor(people, key)
    except RequestError as error:
        findings.refuse(title, str(error))
        return
    facts = {**facts, "interval over people": f"{low:.3f} to {high:.3f}"}
    findings.add(
        f"privacy/membership_auc/{what}", title, lambda: floor, ideal=0.5, provenance=facts
    )


def _pairs(part: _Part) -> list[Pair]:
    """Return the nearest pair of each generated slice."""
    report = part.report
    order = np.argsort(report.distance, kind="stable")
    _, first = np.unique(report.slices[order], return_index=True)
    return [
        Pair(
            int(report.slices[i]),
            int(report.nearest[i]),
            float(report.distance[i]),
            part.what,
            int(report.rows[i]),
            int(report.nearest_row[i]),
            ORIENTATIONS[int(report.orientation[i])],
            bool(report.flags[i]),
        )
        for i in order[first]
        if report.nearest[i] >= 0
    ]


def _figures(
    part: _Part, pairs: list[Pair], synthetic: SliceSet, train: SliceSet
) -> tuple[Figure, ...]:
    nearest = [pair for pair in pairs if pair.what == part.what][:SHOWN]
    planted = np.concatenate([part.plants[kind].distance for kind in MUST_FIND[part.what]])
    figures = [
        distance_figure(
            part.what, part.report.distance, part.held.distance, planted, part.report.threshold
        )
    ]
    if nearest:
        figures.insert(0, gallery_figure(part.what, nearest, synthetic, train))
    return tuple(figures)


def _plant_table(parts: list[_Part]) -> Table:
    columns = ["planted copies"]
    for part in parts:
        columns += [f"{_NOUN[part.what]}: found", "largest distance (a copy: below)"]
    rows = []
    for kind in KINDS:
        row = [kind if any(kind in MUST_FIND[p.what] for p in parts) else f"{kind} (not required)"]
        for part in parts:
            if kind not in part.plants:
                row += ["", ""]
                continue
            report = part.plants[kind]
            row += [
                f"{int(report.flags.sum())} of {len(report.flags)}",
                f"{report.distance.max():.2f} ({report.threshold:.2f})",
            ]
        rows.append(tuple(row))
    held = ["held-out people taken for copies"]
    for part in parts:
        held += [
            f"{int(part.held.flags.sum())} of {len(part.held.flags)}",
            f"smallest {part.held.distance.min():.2f}",
        ]
    return Table("What the copy detector finds", tuple(columns), (*rows, tuple(held)))


def _pair_table(pairs: list[Pair], train: SliceSet) -> Table:
    chosen = [p for what in _NOUN for p in [q for q in pairs if q.what == what][:LISTED]]
    return Table(
        "Nearest pairs",
        (
            "compared",
            "generated slice",
            "training subject",
            "training slice",
            "distance",
            "verdict",
        ),
        tuple(
            (
                _NOUN[pair.what] + (" (mirrored)" if pair.mirrored else ""),
                str(pair.synthetic),
                train.table.subject[pair.train],
                str(pair.train),
                f"{pair.distance:.3f}",
                "copy" if pair.copy else "",
            )
            for pair in chosen
        ),
    )
