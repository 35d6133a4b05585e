"""The privacy audit: is a generated set nearer to its training data than to people unseen?

A diffusion model can reproduce training images (Carlini et al. 2023, arXiv:2301.13188), so the
audit looks at the data themselves, and says when a dataset must not leave the house.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from synthgen.core.errors import RequestError
from synthgen.core.manifest import provenance
from synthgen.core.rng import SampleKey
from synthgen.evaluate.copies import ALARMS
from synthgen.evaluate.plots import contact_sheets
from synthgen.evaluate.privacy import privacy_section
from synthgen.evaluate.report import Gate, Report, facts_of_metrics, show_number
from synthgen.evaluate.selection import draw, require_disjoint, require_evaluable

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from synthgen.evaluate.metric import Metric
    from synthgen.evaluate.sets import SliceSet

N_MAX = 2000
"""Most generated slices that are audited."""

DCR_SHARE = 0.5
"""Share of samples nearer to training than to holdout data when nothing was memorised."""

DCR_SHARE_MARGIN = 0.05
"""How far that share may be from `DCR_SHARE`; farther where few real people are that far too."""

MOST_COPIES = 0
"""Samples that may match training data as closely as a planted copy does."""

_SHEETS = 9


@dataclass(frozen=True)
class Audit:
    """What the audit found.

    Attributes:
        report: the numbers and the gates.
        flagged: indices, in the whole dataset, of the samples that match training data.
        checked: number of samples that were audited.
        total: number of samples there are.
    """

    report: Report
    flagged: tuple[int, ...]
    checked: int
    total: int

    def to_json(self, dataset: str) -> dict[str, Any]:
        """Return the content of a quarantine file."""
        return {
            "dataset": dataset,
            "checked": self.checked,
            "total": self.total,
            "flagged": list(self.flagged),
        }


def audit_privacy(
    synthetic: SliceSet,
    train: SliceSet,
    holdout: SliceSet,
    *,
    seed: int = 0,
    n_max: int = N_MAX,
    facts: Sequence[tuple[str, str]] = (),
    progress: Callable[[str], None] = lambda _line: None,
) -> Audit:
    """Audit a generated set.

    Training and holdout sets are not thinned out: a copy of any training slice must be found.

    Args:
        synthetic: the generated set, of labels or with images.
        train: real slices that the models were trained on.
        holdout: real slices of other subjects.
        seed: decides draws and planted copies.
        n_max: most generated slices.
        facts: provenance of the sets, for the report.
        progress: called with what is being done.

    Raises:
        RequestError: an empty set, no modality in common, slices of unknown people, fewer than
            two training people, or values that are not finite.
        SchemaError: different label schemas.
        GeometryError: different slice sizes.
        LeakageError: the holdout shares subjects with the training data, or with what the models
            behind `synthetic` saw.
    """
    if n_max < 1:
        raise RequestError(f"n_max must be at least 1, got {n_max}")
    for real in (train, holdout):
        require_evaluable(synthetic, real)
    require_disjoint(train, holdout, [synthetic])
    chosen = draw(synthetic, n_max, SampleKey(seed, 0))
    drawn = synthetic.take(chosen)
    progress(f"Privacy: {len(drawn)} generated against {len(train)} training slices")
    result = privacy_section(drawn, train, holdout, key=SampleKey(seed, 1))
    flagged = tuple(sorted({int(chosen[i]) for i in result.flagged}))
    progress("Contact sheets")
    report = Report(
        "privacy",
        f"Privacy of {synthetic.name}",
        (result.section,),
        contact_sheets(drawn, train, SampleKey(seed, _SHEETS)),
        (
            *facts,
            ("measured", f"{len(drawn)} of {len(synthetic)} generated slices"),
            ("seed of the evaluation", str(seed)),
            *facts_of_metrics(result.section.metrics),
            *provenance().items(),
        ),
        tuple(_notes(synthetic, train, len(drawn))),
        gates(result.section.metrics, flagged, len(drawn)),
    )
    return Audit(report, flagged, len(drawn), len(synthetic))


def gates(metrics: Sequence[Metric], flagged: Sequence[int], checked: int) -> tuple[Gate, ...]:
    """Return the conditions of a release.

    Args:
        metrics: of the privacy section; those named `.../dcr_share/...` are gated.
        flagged: samples that match training data.
        checked: number of samples that were audited.
    """
    low, high = DCR_SHARE - DCR_SHARE_MARGIN, DCR_SHARE + DCR_SHARE_MARGIN
    made = [
        Gate(
            metric.name,
            metric.title,
            min(low, metric.low) <= metric.value <= max(high, metric.high),
            f"{show_number(metric.value)}, allowed {low:.2f} to {high:.2f}, or what real people "
            f"show where they are few: {show_number(metric.low)} to {show_number(metric.high)}",
        )
        for metric in metrics
        if "dcr_share" in metric.name.split("/")
    ]
    made.append(
        Gate(
            "privacy/copies",
            "Copies of training data",
            len(flagged) <= MOST_COPIES,
            f"{len(flagged)} of {checked} samples match training data as closely as a planted "
            f"copy does, allowed {MOST_COPIES}; of real slices of other people about {ALARMS:.1%} "
            "may",
        )
    )
    return tuple(made)


def _notes(synthetic: SliceSet, train: SliceSet, checked: int) -> list[str]:
    notes = []
    if checked < len(synthetic):
        notes.append(
            f"{checked} of {len(synthetic)} generated slices were drawn and audited; slice "
            "numbers in tables and pictures count the drawn ones. --n-max audits more."
        )
    unseen = sorted(synthetic.ancestors - {*train.table.subject})
    if unseen:
        more = f" and {len(unseen) - 6} more" if len(unseen) > 6 else ""
        notes.append(
            f"The models also saw {', '.join(unseen[:6])}{more}, who have no slices in the "
            "training set given here: copies of them cannot be found."
        )
    return notes
