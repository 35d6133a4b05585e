"""Does an image show its own label? A segmenter, trained on real slices, and the label itself say.

Both measures of `agreement_scores` stand beside the same on real slices of subjects that the
segmenter never saw, since it errs on real images too.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from synthgen.core.errors import LeakageError, RequestError
from synthgen.core.rng import SampleKey, Stream
from synthgen.evaluate.agreement_gallery import draw_gallery
from synthgen.evaluate.agreement_scores import Numbers, Scores, Segmenter, score_images
from synthgen.evaluate.metric import Metric, Section, Table
from synthgen.evaluate.sets import UNKNOWN

if TYPE_CHECKING:
    from collections.abc import Sequence

    from synthgen.evaluate.sets import Indices, SliceSet

MOST_IMAGES = 400
FEWEST_IMAGES = 10
LEAST_DICE = 0.3
"""Where the segmenter's Dice on held-out real images is below this, it cannot judge the tissue."""

_WORST = 6
_BOOTSTRAPS = 500


def agreement_section(
    synthetic: SliceSet,
    real_holdout: SliceSet,
    *,
    segmenter: Segmenter,
    key: SampleKey,
) -> Section:
    """Measure how well generated images show their labels, beside held-out real ones.

    Means are taken over images first, then over the modalities that both sets have. The
    reference's interval is a bootstrap over real subjects; with a single one it is over slices.

    Args:
        synthetic: the generated set.
        real_holdout: real slices of subjects that the segmenter never saw.
        segmenter: trained on other real slices.
        key: decides which images are measured, and the bootstrap.

    Raises:
        SchemaError: a set has another schema than the segmenter.
        LeakageError: the segmenter was trained on a subject of the held-out set.
        RequestError: the shapes differ, or a set has no images.
    """
    _check(synthetic, real_holdout, segmenter)
    modalities, refused = _shared_modalities(synthetic, real_holdout)
    made, real = (
        score_images(part, _choose(part, modalities, key), segmenter)
        for part in (synthetic, real_holdout)
    )
    pair = _Pair(made, real, modalities, *_interval(real, modalities, key))
    facts = _provenance(segmenter, real_holdout, real, modalities)
    metrics, judged = [], []
    for column, name in enumerate(synthetic.schema.names):
        if column == 0:
            continue  # images are 0 in the background: it says nothing
        problem = pair.problem(column, name, known=segmenter.known[column])
        if problem:
            refused += [problem] * bool(made.shown[:, column].any())
            continue
        judged.append(column)
        metrics.append(pair.metric(column, f"agreement/dice/{name}", f"Dice of {name}", facts))
    problem = pair.problem(synthetic.schema.channels, "border fit", known=True)
    if problem:
        refused.append(problem)
    else:
        title = "Fit of image and label at tissue borders"
        metrics.append(pair.metric(synthetic.schema.channels, "agreement/border_fit", title, facts))
    worst = worst_images(made, real, judged)
    slices = synthetic.images.slices[made.rows[worst]]
    worst = worst[np.sort(np.unique(slices, return_index=True)[1])][:_WORST]  # a slice once
    return Section(
        "agreement",
        "Agreement of image and label",
        "A segmenter, trained on real slices alone, names the tissues of each generated image; "
        "Dice compares them with the image's own label. Border fit is the share of the image's "
        "variance near tissue borders that the label explains. The reference is the same on real "
        "slices that the segmenter never saw; above it, generated images are easier than real "
        "ones.",
        tuple(metrics),
        draw_gallery(synthetic, made.rows[worst], segmenter.segment),
        _tables(synthetic, pair, judged, worst),
        tuple(refused),
    )


def worst_images(made: Scores, real: Scores, channels: Sequence[int]) -> Indices:
    """Return positions in `made` of the images that show their label worst, worst first.

    Images are compared by their mean shortfall: the Dice of each tissue against the mean of real
    images of the same modality, so that a slice of difficult tissues is not bad for that alone.

    Args:
        made: scores of generated images.
        real: scores of held-out real images.
        channels: tissues that count; images without any of them are left out.
    """
    shortfall = np.full(len(made.rows), np.nan)
    chosen = list(channels)
    for modality in {*made.modality}:
        of_made = np.asarray([m == modality for m in made.modality])
        of_real = np.asarray([m == modality for m in real.modality])
        expected = _means(real.dice[of_real if of_real.any() else slice(None)][:, chosen])
        shortfall[of_made] = _means((expected - made.dice[of_made][:, chosen]).T)
    order = np.argsort(-shortfall, kind="stable")
    return np.asarray(order[np.isfinite(shortfall[order])], dtype=np.int64)


@dataclass(frozen=True)
class _Pair:
    """Scores of generated and of real images, and the interval of the real ones' means."""

    made: Scores
    real: Scores
    modalities: tuple[str, ...]
    low: Numbers
    high: Numbers

    def problem(self, column: int, name: str, *, known: bool) -> str | None:
        """Return why a measure is not reported, if so."""
        if not known:
            return f"{name}: the segmenter's real training images do not show it"
        counts = [int(np.isfinite(s.measures[:, column]).sum()) for s in (self.made, self.real)]
        if min(counts) < FEWEST_IMAGES:
            return (
                f"{name}: needs {FEWEST_IMAGES} generated and {FEWEST_IMAGES} held-out real "
                f"images that show it, got {counts[0]} and {counts[1]}"
            )
        reference = float(_balanced(self.real, self.modalities)[column])
        if reference < LEAST_DICE and column < self.real.dice.shape[1]:
            return (
                f"{name}: the segmenter finds it badly on real images (Dice {reference:.2f}, "
                f"needs {LEAST_DICE}), so that its word on generated ones means nothing"
            )
        return None

    def metric(self, column: int, name: str, title: str, facts: dict[str, str]) -> Metric:
        """Return one measure as a number beside its reference."""
        return Metric(
            name=name,
            title=title,
            value=float(_balanced(self.made, self.modalities)[column]),
            reference=float(_balanced(self.real, self.modalities)[column]),
            low=float(self.low[column]),
            high=float(self.high[column]),
            better="higher",
            n=int(np.isfinite(self.made.measures[:, column]).sum()),
            ideal=1.0,
            provenance=facts,
        )


def _check(synthetic: SliceSet, real: SliceSet, segmenter: Segmenter) -> None:
    for subset in (synthetic, real):
        segmenter.schema.require_same(subset.schema, subset.name)
        if not len(subset.images.slices):
            raise RequestError(f"{subset.name}: agreement needs images, and the set has none")
    if synthetic.shape != real.shape:
        raise RequestError(
            f"agreement needs slices of one size, got {synthetic.shape} in {synthetic.name} and "
            f"{real.shape} in {real.name}"
        )
    seen = sorted({*segmenter.subjects} & {*real.subjects})
    if seen:
        raise LeakageError(
            f"{real.name}: the segmenter was trained on {', '.join(seen)}; the reference needs "
            "real subjects that it never saw"
        )


def _shared_modalities(synthetic: SliceSet, real: SliceSet) -> tuple[tuple[str, ...], list[str]]:
    """Return the modalities to compare; none of them means all images together."""
    if not synthetic.modalities or not real.modalities:
        return (), []
    shared = tuple(m for m in synthetic.modalities if m in real.modalities)
    if not shared:
        raise RequestError(
            f"no modality in common: {synthetic.name} has {', '.join(synthetic.modalities)}, "
            f"{real.name} has {', '.join(real.modalities)}"
        )
    alone = [m for m in synthetic.modalities if m not in shared]
    return shared, [f"agreement of {m}: {real.name} has no images of it" for m in alone]


def _choose(subset: SliceSet, modalities: tuple[str, ...], key: SampleKey) -> Indices:
    """Return at most `MOST_IMAGES` image rows, as many of each modality as possible."""
    rng = key.numpy(Stream.EVALUATE)
    groups = [subset.image_rows(modality=m) for m in modalities] or [subset.image_rows()]
    most = MOST_IMAGES // len(groups)
    return np.sort(np.concatenate([rng.permutation(rows)[:most] for rows in groups]))


def _groups(scores: Scores, modalities: tuple[str, ...]) -> list[npt.NDArray[np.bool_]]:
    if not modalities:
        return [np.ones(len(scores.rows), dtype=bool)]
    return [np.asarray([m == modality for m in scores.modality]) for modality in modalities]


def _balanced(scores: Scores, modalities: tuple[str, ...]) -> Numbers:
    """Return the mean of every measure over images, then over modalities, `(C + 1,)`."""
    return _means(np.stack([_means(scores.measures[g]) for g in _groups(scores, modalities)]))


def _means(values: Numbers) -> Numbers:
    """Return the mean of each column without its NaNs; NaN where nothing else is there."""
    found = np.isfinite(values)
    total, count = np.where(found, values, 0).sum(axis=0), found.sum(axis=0)
    return np.where(count > 0, total / np.maximum(count, 1), np.nan)


def _interval(
    scores: Scores, modalities: tuple[str, ...], key: SampleKey
) -> tuple[Numbers, Numbers]:
    """Return 5 % and 95 % of `_balanced` when clusters are drawn with replacement."""
    names = sorted({*scores.cluster})
    member = np.asarray([[c == name for c in scores.cluster] for name in names])
    draws = key.numpy(Stream.EVALUATE).multinomial(
        len(names), np.full(len(names), 1 / len(names)), _BOOTSTRAPS
    )
    found = np.isfinite(scores.measures)
    filled = np.where(found, scores.measures, 0)
    by_group = []
    for group in _groups(scores, modalities):
        total, count = (draws @ ((member & group) @ part) for part in (filled, found.astype(float)))
        by_group.append(np.where(count > 0, total / np.maximum(count, 1), np.nan))
    means = _means(np.stack(by_group))  # (draws, C + 1)
    known = np.where(np.isfinite(means), means, _means(means))
    low, high = np.percentile(known, [5, 95], axis=0)
    return low, high


def _provenance(
    segmenter: Segmenter, holdout: SliceSet, real: Scores, modalities: tuple[str, ...]
) -> dict[str, str]:
    owners = {holdout.table.subject[s] for s in holdout.images.slices[real.rows]}
    clusters = len({*real.cluster})
    return {
        "segmenter": f"{segmenter.digest[:12]}, trained on {len(segmenter.subjects)} real subjects",
        "reference": f"{len(real.rows)} held-out real images",
        "interval": f"bootstrap over {clusters} real subjects"
        if len(owners) > 1
        else f"bootstrap over {clusters} slices of one real subject: narrower than over subjects",
        "modalities": ", ".join(modalities) or "not known: all images together",
    }


def _tables(
    synthetic: SliceSet, pair: _Pair, judged: Sequence[int], worst: Indices
) -> tuple[Table, ...]:
    names = [synthetic.schema.names[c] for c in judged]
    modalities = pair.modalities or (UNKNOWN,)
    rows = []
    for label, made, real in zip(
        modalities,
        _groups(pair.made, pair.modalities),
        _groups(pair.real, pair.modalities),
        strict=True,
    ):
        sides = [_means(s.measures[g]) for s, g in ((pair.made, made), (pair.real, real))]
        cells = [" / ".join(_cell(side[c]) for side in sides) for c in (*judged, -1)]
        rows.append((label or "all", *cells))
    listed = [
        (
            str(int(synthetic.images.slices[pair.made.rows[i]])),
            synthetic.images.style[pair.made.rows[i]],
            *(_cell(pair.made.measures[i, c]) for c in (*judged, -1)),
        )
        for i in worst
    ]
    return (
        Table(
            "Generated / held-out real, by modality",
            ("modality", *(f"Dice {name}" for name in names), "border fit"),
            tuple(rows),
        ),
        Table(
            "Images that show their label worst, one of each slice",
            ("slice", "style", *(f"Dice {name}" for name in names), "border fit"),
            tuple(listed),
        ),
    )


def _cell(value: float) -> str:
    return f"{value:.2f}" if np.isfinite(value) else "-"
