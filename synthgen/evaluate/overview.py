"""A generated dataset in tables and a contact sheet, with nothing real beside it.

What a dataset says of itself: the anatomy of its maps, whether lesion requests were met, how bright
each tissue is in each style. Whether that is like real data only `evaluate quality` can tell.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from synthgen.core.manifest import provenance
from synthgen.data.preview import draw_preview
from synthgen.evaluate import label_metrics
from synthgen.evaluate.foreign import facts_of
from synthgen.evaluate.label_metrics import PRESENT, LabelDescriptors, describe_labels
from synthgen.evaluate.metric import Figure, Section, Table
from synthgen.evaluate.report import Report
from synthgen.evaluate.sets import from_shards

if TYPE_CHECKING:
    from synthgen.data.shards import Shards
    from synthgen.evaluate.sets import SliceSet

SHOWN = 8
"""Samples on the contact sheet."""
_PURE = 0.9
_FEW = 20


def overview(shards: Shards, n_max: int = 2000) -> Report:
    """Describe a generated dataset.

    Args:
        shards: the dataset.
        n_max: most slices to read, spread evenly.

    Raises:
        RequestError: vessel trees or angiograms; see `from_shards`.
        StoreError: a missing or damaged shard.
    """
    whole = from_shards(shards)
    chosen = np.unique(np.linspace(0, len(whole) - 1, min(n_max, len(whole))).round().astype(int))
    slices = whole.take(chosen)
    described = describe_labels(slices)
    sections = [_labels(described)]
    if slices.styles:
        sections.append(_images(slices))
    caption = f"{min(SHOWN, len(shards))} samples, spread evenly over the dataset."
    return Report(
        "overview",
        f"Overview of {whole.name}",
        tuple(sections),
        (Figure("samples", caption, draw_preview(shards, SHOWN)),),
        (
            *facts_of(shards.folder),
            ("read", f"{len(slices)} of {len(whole)} samples"),
            *provenance().items(),
        ),
        ("No real data stand beside these tables; `synthgen evaluate quality` compares.",),
    )


def _labels(described: LabelDescriptors) -> Section:
    tables = [_shares(described), _shapes(described)]
    if requests := _requests(described):
        tables.append(requests)
    text = "Shares are of the brain's area in the slice, over all slices that were read."
    return Section("labels", "Label maps", text, tables=tuple(tables))


def _shares(described: LabelDescriptors) -> Table:
    rows = []
    for channel, name in enumerate(described.schema.names):
        share = described.fractions[:, channel]
        if not channel or share.max() <= PRESENT:
            continue
        low, middle, high = np.percentile(share, [5, 50, 95])
        there = (share > PRESENT).mean()
        rows.append((name, f"{middle:.1%}", f"{low:.1%} to {high:.1%}", f"{there:.0%}"))
    columns = ("tissue", "median share", "5 to 95 % of slices", "slices that show it")
    return Table("Tissues", columns, tuple(rows))


def _shapes(described: LabelDescriptors) -> Table:
    rows = (
        ("brains of one piece", f"{(described.pieces == 1).mean():.1%}"),
        ("brains without holes", f"{(described.holes == 0).mean():.1%}"),
        ("mean of the largest partial volume", f"{described.sharpness.mean():.3f}"),
    )
    return Table("Shape", ("what", "of the slices"), rows)


def _requests(described: LabelDescriptors) -> Table | None:
    """Return how requests were met; None if nothing was asked for."""
    rows = []
    for lesion, name in enumerate(described.schema.lesions):
        requested, realised = described.requested[:, lesion], described.realised[:, lesion]
        asked = requested > PRESENT
        if not asked.any():
            continue
        right = label_metrics.presence_right(requested, realised)
        ratio = np.median(realised[asked] / requested[asked])
        varied = asked.sum() >= _FEW and np.ptp(requested[asked]) > 0
        rank = label_metrics.rank_agreement(requested[asked], realised[asked]) if varied else None
        rows.append(
            (
                name,
                f"{asked.sum()} of {len(asked)}",
                f"{right:.1%}",
                f"{ratio:.2f}",
                f"{rank:.2f}" if rank is not None else f"needs {_FEW} different requests",
            )
        )
    columns = (
        "lesion",
        "slices asked",
        "there where asked, only there",
        "made / asked, median",
        "rank correlation",
    )
    return Table("Lesion requests", columns, tuple(rows)) if rows else None


def _images(slices: SliceSet) -> Section:
    names = slices.schema.names[1:]
    rows = []
    for style in slices.styles:
        means = _brightness(slices, slices.image_rows(style=style))
        cells = ["none" if np.isnan(value) else f"{value:.2f}" for value in means]
        rows.append((style, *cells))
    table = Table("Brightness of each tissue", ("style", *names), tuple(rows))
    text = (
        "Median intensity, 0 to 1, of the pixels of which at least "
        f"{_PURE:.0%} are of one tissue; mean over slices."
    )
    return Section("images", "Images", text, tables=(table,))


def _brightness(slices: SliceSet, rows: npt.NDArray[np.int64]) -> npt.NDArray[np.float64]:
    """Return the mean over images of each tissue's median, `(C - 1,)`, NaN where none is pure."""
    medians = np.full((len(rows), slices.schema.channels - 1), np.nan)
    for number, row in enumerate(rows):
        image = slices.image([row])[0, 0]
        pure = slices.pv([slices.images.slices[row]])[0, 1:] >= _PURE
        for channel, mask in enumerate(pure):
            if mask.sum() >= _FEW:
                medians[number, channel] = np.median(image[mask])
    seen = np.isfinite(medians)
    total = np.where(seen, medians, 0.0).sum(axis=0)
    return np.where(seen.any(axis=0), total / np.maximum(seen.sum(axis=0), 1), np.nan)
