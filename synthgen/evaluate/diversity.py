"""Diversity: are the slices of a generated set as different from each other as people are?

Two slices of one set are compared at nearly the same place in the brain, since slices of
different heights differ anyway. Real pairs are of two people, and each has a generated pair of the
same place and styles beside it, so that both means are over the same kind of pairs.

Duplicates are looked for among all slices, with the descriptors of the copy detector. Coverage is
measured with the fidelity.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from functools import cached_property, partial
from typing import TYPE_CHECKING

import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure as Canvas

from synthgen.core.errors import RequestError
from synthgen.evaluate.diversity_duplicates import (
    MOST,
    Duplicates,
    alarm_floor,
    distinct,
    find_duplicates,
    known_slices,
)
from synthgen.evaluate.diversity_pairs import (
    GAP,
    WINDOW,
    Names,
    Side,
    Values,
    couple_count,
    matched_pairs,
    ms_ssim,
    pair_interval,
    scale_weights,
    soft_dice,
)
from synthgen.evaluate.findings import Findings
from synthgen.evaluate.metric import Figure, Floor, Section
from synthgen.evaluate.nearest import ORIENTATIONS
from synthgen.evaluate.plots import png
from synthgen.evaluate.privacy import Pair
from synthgen.evaluate.privacy_figures import gallery_figure
from synthgen.evaluate.selection import draw
from synthgen.evaluate.sets import require_comparable

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from synthgen.core.rng import SampleKey
    from synthgen.evaluate.sets import Indices, SliceSet

SHOWN = 4
"""Most alike generated pairs in the gallery."""

_BATCH = 16
_FEW = 10
_PERCENT = 100.0
_FARTHEST = 1.6
_DISTANCE = "Distance to the nearest other one"
_STYLES = {
    False: "a generated pair has the styles of its real pair",
    True: "both of a pair have one style, but real pairs may have another than generated ones",
}
_TEXT = (
    "Are the slices of the set as different from each other as those of different people? Too "
    "high a likeness says that the set repeats itself, too low a one that it varies more than "
    "people do. Whether it covers the real variety is measured under Fidelity."
)


def diversity_section(synthetic: SliceSet, real: SliceSet, *, key: SampleKey) -> Section:
    """Compare the variety inside a generated set with the variety among real people.

    Args:
        synthetic: label maps, with images or without.
        real: real slices of at least three subjects, with images of three in each modality.
        key: decides which slices and pairs are drawn.

    Raises:
        SchemaError: different label schemas.
        GeometryError: different picture sizes.
        RequestError: an empty set.
    """
    require_comparable(synthetic, real)
    for subset in (synthetic, real):
        if not len(subset):
            raise RequestError(f"{subset.name}: the set is empty; expected at least one slice")
    comparison = _Comparison(synthetic, real, key)
    if not comparison.placed:
        comparison.findings.refuse(
            "comparison at the same place in the brain",
            "a set does not state its slice positions, so pairs from all places are compared",
        )
    comparison.add_images()
    comparison.add_labels()
    duplicates = comparison.add_duplicates()
    return Section(
        "diversity",
        "Diversity",
        _TEXT,
        tuple(comparison.findings.metrics),
        tuple(_figures(comparison.drawn, duplicates, synthetic)),
        refused=comparison.findings.refused,
    )


@dataclass
class _Comparison:
    """The two sets, and what was found so far."""

    synthetic: SliceSet
    real: SliceSet
    key: SampleKey
    findings: Findings = field(default_factory=Findings)
    drawn: dict[str, tuple[Values, Values]] = field(default_factory=dict)

    @cached_property
    def placed(self) -> bool:
        positions = (self.synthetic.table.position, self.real.table.position)
        return all(bool(np.isfinite(p).all()) for p in positions)

    @cached_property
    def unique(self) -> Indices:
        return distinct(self.synthetic, draw(self.synthetic, MOST, self.key))

    def add_images(self) -> None:
        weights = scale_weights(self.real.shape)
        facts = {
            "MS-SSIM": "Wang et al. 2003 without the finest scale, on images halved by area "
            f"averages; weights {', '.join(f'{w:.3f}' for w in weights)}, Gaussian window of "
            f"{WINDOW} px"
        }
        for modality in self.synthetic.modalities:
            title = f"Likeness of two {modality} images (MS-SSIM)"
            if weights.size:
                self._add(f"ms_ssim/{modality}", title, modality, _likeness, facts)
            else:
                shape = " x ".join(str(n) for n in self.real.shape)
                self.findings.refuse(title, f"needs {2 * WINDOW} px a side, got {shape}")

    def add_labels(self) -> None:
        facts = {"Dice": "of fuzzy sets, mean over the tissues that are there, without lesions"}
        self._add("label_dice", "Overlap of two label maps (Dice)", None, _overlap, facts)

    def _add(
        self,
        name: str,
        title: str,
        modality: str | None,
        measure: Callable[[SliceSet, Indices], Values],
        facts: dict[str, str],
    ) -> None:
        try:
            pairs = matched_pairs(
                Side.of(self.synthetic, self.unique, modality, placed=self.placed),
                Side.of(self.real, known_slices(self.real), modality, placed=self.placed),
                self.key,
            )
            made, real = measure(self.synthetic, pairs.made), measure(self.real, pairs.real)
        except RequestError as error:
            self.findings.refuse(title, str(error))
            return
        low, high = pair_interval(real, pairs.people, self.key)
        self.drawn[title] = (made, real)
        self.findings.add(
            f"diversity/{name}",
            title,
            lambda: Floor(float(made.mean()), float(real.mean()), low, high, len(made)),
            "equal",
            provenance={
                **facts,
                **({"styles": _STYLES[pairs.alike]} if modality else {}),
                "pairs": f"{len(made)} a side, "
                + (f"positions within {GAP:g}" if self.placed else "from all places"),
                "interval": _interval_text(pairs.people),
            },
        )

    def add_duplicates(self) -> Duplicates | None:
        title = "Label maps that nearly repeat another one of the set"
        try:
            found = find_duplicates(self.synthetic, self.real, key=self.key)
        except RequestError as error:
            self.findings.refuse(title, str(error))
            return None
        self.findings.add(
            "diversity/duplicates",
            title,
            partial(alarm_floor, found, self.key),
            unit="%",
            provenance={
                "duplicate": f"relative distance at most {found.threshold:.3f}, mirrored or not, "
                f"learnt from {len(found.real)} real slices",
                "searched": f"{len(found.slices)} generated label maps; both of a pair count",
                "interval": _interval_text(found.people),
            },
        )
        return found


def _likeness(subset: SliceSet, pairs: Indices) -> Values:
    parts = [pairs[start : start + _BATCH] for start in range(0, len(pairs), _BATCH)]
    values = [ms_ssim(subset.image(part[:, 0]), subset.image(part[:, 1])) for part in parts]
    return _finite(np.concatenate(values), f"{subset.name}: images")


def _overlap(subset: SliceSet, pairs: Indices) -> Values:
    schema = subset.schema
    tissues = [c for c in range(1, schema.channels) if c not in schema.lesion_channels]
    values = [
        soft_dice(subset.read_pv(int(a))[tissues], subset.read_pv(int(b))[tissues])
        for a, b in pairs
    ]
    return _finite(np.asarray(values), f"{subset.name}: label maps")


def _finite(values: Values, where: str) -> Values:
    if not np.isfinite(values).all():
        raise RequestError(f"{where} have values that are not finite")
    return values


def _interval_text(people: Names) -> str:
    count = len(np.unique(people))
    text = f"bootstrap over {count} real subjects"
    if people.ndim > 1:
        text += f", {couple_count(people)} pairs of them"
    return text + (": coarse" if count < _FEW else "")


def _figures(
    drawn: dict[str, tuple[Values, Values]], duplicates: Duplicates | None, synthetic: SliceSet
) -> Iterator[Figure]:
    panels = dict(drawn)
    if duplicates is not None:
        panels[_DISTANCE] = (duplicates.relative, duplicates.real)
    if panels:
        threshold = None if duplicates is None else duplicates.threshold
        yield Figure(
            "likeness",
            "How alike two slices are, of the generated set (orange) and of two real people "
            "(grey), in % of the pairs. Distances left of the red line are duplicates.",
            _draw_panels(panels, threshold),
        )
    if duplicates is not None:
        yield replace(
            gallery_figure("labels", _most_alike(duplicates), *_named(synthetic)),
            name="alike",
            caption="The most alike generated label maps: each column is a pair, mirrored where "
            "that fits better; 0 is a copy, 1 another person. Duplicates have red titles.",
        )


def _named(synthetic: SliceSet) -> tuple[SliceSet, SliceSet]:
    """Return the set twice, the second time with a name that a title may show."""
    table = replace(synthetic.table, subject=("generated",) * len(synthetic))
    return synthetic, replace(synthetic, table=table)


def _most_alike(duplicates: Duplicates) -> list[Pair]:
    pairs: dict[frozenset[int], Pair] = {}
    for i in np.argsort(duplicates.relative, kind="stable"):
        other = int(duplicates.found.index[i])
        first, second = int(duplicates.slices[i]), int(duplicates.slices[other])
        pair = Pair(
            first,
            second,
            float(duplicates.relative[i]),
            "labels",
            first,
            second,
            ORIENTATIONS[int(duplicates.found.orientation[i])],
            bool(duplicates.flags[i]),
        )
        pairs.setdefault(frozenset((first, second)), pair)
        if len(pairs) == SHOWN:
            break
    return list(pairs.values())


def _draw_panels(panels: dict[str, tuple[Values, Values]], threshold: float | None) -> bytes:
    columns = min(3, len(panels))
    lines = -(-len(panels) // columns)
    canvas = Canvas(figsize=(3.0 * columns, 2.0 * lines), layout="constrained")
    FigureCanvasAgg(canvas)
    for place, (title, (made, real)) in enumerate(panels.items()):
        axes = canvas.add_subplot(lines, columns, place + 1)
        low, high = min(made.min(), real.min()), max(made.max(), real.max())
        if title == _DISTANCE and threshold is not None:
            low, high = 0.0, _FARTHEST
            axes.axvline(threshold, color="tab:red", linewidth=1)
        bins = np.linspace(low, max(high, low + 0.01), 31).tolist()
        for values, colour in ((real, "0.45"), (made, "tab:orange")):
            weights = np.full(len(values), _PERCENT / len(values))
            shown = np.clip(values, bins[0], bins[-1])
            axes.hist(shown, bins, weights=weights, color=colour, alpha=0.5)
        axes.set_title(title, fontsize=8)
        axes.tick_params(labelsize=7)
    return png(canvas)
