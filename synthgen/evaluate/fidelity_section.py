"""The fidelity part of a report: feature vectors of generated and of real slices, compared.

Features are standardised and projected on the main axes of the real ones, so that a covariance can
be estimated from some dozens of slices; generated slices never decide what they are measured by.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import numpy.typing as npt
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure as Canvas

from synthgen.core.rng import Stream
from synthgen.evaluate.fidelity import (
    PER_DIMENSION,
    frechet_distance,
    kernel_distance,
    manifolds,
    median_bandwidth,
    rbf_mmd,
)
from synthgen.evaluate.findings import Findings
from synthgen.evaluate.metric import Figure, Section, with_floor
from synthgen.evaluate.plots import png
from synthgen.evaluate.sets import require_comparable

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from synthgen.core.rng import SampleKey
    from synthgen.evaluate.features import Features, FeatureSpace
    from synthgen.evaluate.metric import Better, Rows
    from synthgen.evaluate.sets import Indices, SliceSet

DIMENSIONS = 16
"""Main axes of the real features that are kept."""

AT_LEAST = 2 * PER_DIMENSION * DIMENSIONS
"""Fewest slices a side that a number is given for."""

MOST = 500
"""Most generated slices, of a modality, whose features are computed."""

_BINS = 10
_LACKING = 0.1
_BATCH = 32
_QUIET = 0.1
_TINY = 1e-9
_LABELS = "label maps"
_TEXT = (
    "Could generated slices be real ones? Each is turned into a vector by an encoder, and the two "
    "clouds of vectors are compared: distances (0 is best), and how far each cloud covers the "
    "other (1 is best; density may exceed it). Generated slices are drawn so that they lie as "
    "high in the brain as the real ones."
)


def fidelity_section(
    synthetic: SliceSet,
    real: SliceSet,
    *,
    spaces: Sequence[FeatureSpace],
    key: SampleKey,
) -> Section:
    """Compare a generated set with a real one in several feature spaces.

    Args:
        synthetic: the generated set.
        real: the real set.
        spaces: encoders of images or of label maps.
        key: decides splits and draws.

    Raises:
        SchemaError: different label schemas.
        GeometryError: different picture sizes.
    """
    require_comparable(synthetic, real)
    findings, clouds = Findings(), []
    for space in spaces:
        for group, made, true in _groups(synthetic, real, space, key, findings):
            cloud = _Cloud.of(space, group, synthetic, made, real, true)
            _add(findings, cloud, key)
            clouds.append(cloud)
    names = dict.fromkeys(cloud.space.name for cloud in clouds)
    return Section(
        "fidelity",
        "Fidelity",
        _TEXT,
        tuple(findings.metrics),
        tuple(_figure([c for c in clouds if c.space.name == name]) for name in names),
        refused=findings.refused,
    )


class Matched(NamedTuple):
    """Rows of two sets that lie at the same heights of the brain; ascending indices."""

    generated: Indices
    real: Indices


def matched_positions(
    generated: npt.NDArray[np.float64],
    real: npt.NDArray[np.float64],
    rng: np.random.Generator,
) -> Matched:
    """Choose generated rows that are spread over the brain's height as the real ones are.

    Real rows in tenths of the height without any generated one are left out. Of the other tenths,
    each has a share of the real rows; as many generated rows are drawn as keep those shares, where
    a tenth of the shares may run short.

    Args:
        generated: slice positions `(n,)` in [0, 1].
        real: slice positions `(m,)` in [0, 1].
        rng: draws the rows.

    Returns:
        All rows where a position is not known.
    """
    if not (np.isfinite(generated).all() and np.isfinite(real).all()):
        return Matched(np.arange(len(generated)), np.arange(len(real)))
    bins = [np.minimum((p * _BINS).astype(np.int64), _BINS - 1) for p in (generated, real)]
    have = np.bincount(bins[0], minlength=_BINS)
    kept = np.flatnonzero(have[bins[1]] > 0)
    if not kept.size:
        return Matched(kept, kept)
    share = np.bincount(bins[1][kept], minlength=_BINS) / len(kept)
    asked = np.flatnonzero(share)
    reach = have[asked] / share[asked]
    order = np.argsort(reach, kind="stable")
    total = reach[order][np.searchsorted(np.cumsum(share[asked][order]), _LACKING)]
    chosen = [
        rng.permutation(np.flatnonzero(bins[0] == b))[: round(share[b] * total)] for b in asked
    ]
    return Matched(np.sort(np.concatenate(chosen)), kept)


@dataclass(frozen=True)
class _Cloud:
    """Features of one space and modality, projected.

    Attributes:
        space: what made them.
        group: the modality, or "label maps".
        generated: `(n, k)`.
        real: `(m, k)`.
        subject: `(m,)` of each real row.
        means: features as the space gives them, mean over generated and over real rows.
    """

    space: FeatureSpace
    group: str
    generated: Features
    real: Features
    subject: tuple[str, ...]
    means: tuple[Features, Features]
    facts: Mapping[str, str] = field(default_factory=dict)

    @classmethod
    def of(
        cls,
        space: FeatureSpace,
        group: str,
        synthetic: SliceSet,
        made: Indices,
        real: SliceSet,
        true: Indices,
    ) -> _Cloud:
        """Extract the features of chosen rows and project them on the real ones' main axes."""
        generated, known = extract(space, synthetic, made), extract(space, real, true)
        owners = real.table.subject if space.what == "labels" else real.image_subjects()
        mean, spread = known.mean(axis=0), known.std(axis=0)
        # A feature that hardly varies among real rows must not become the largest of all.
        spread = np.maximum(spread, _QUIET * np.median(spread) + _TINY)
        scaled = [(rows - mean) / spread for rows in (generated, known)]
        axes = np.linalg.svd(scaled[1], full_matrices=False)[2][:DIMENSIONS].T
        return cls(
            space,
            group,
            scaled[0] @ axes,
            scaled[1] @ axes,
            tuple(owners[i] for i in true),
            (generated.mean(axis=0), mean),
            {
                **space.facts,
                "dimensions": f"{axes.shape[1]} main axes of {len(known)} real rows, of "
                f"{known.shape[1]} features",
            },
        )


def extract(space: FeatureSpace, subset: SliceSet, rows: Indices) -> Features:
    """Return the features `(n, d)` of some rows of a set's slices or images."""
    read = subset.pv if space.what == "labels" else subset.image
    parts = [space(read(rows[start : start + _BATCH])) for start in range(0, len(rows), _BATCH)]
    return np.concatenate(parts)


def _groups(
    synthetic: SliceSet, real: SliceSet, space: FeatureSpace, key: SampleKey, findings: Findings
) -> list[tuple[str, Indices, Indices]]:
    """Return what is compared: a name, generated rows, real rows."""
    if space.what == "labels":
        pairs = [(_LABELS, np.arange(len(synthetic)), np.arange(len(real)))]
    else:
        shared = [m for m in real.modalities if m in synthetic.modalities]
        pairs = [(m, synthetic.image_rows(m), real.image_rows(m)) for m in shared]
        pairs = pairs or [("images", synthetic.image_rows(), real.image_rows())]
    kept = []
    for group, generated, known in pairs:
        positions = [
            subset.table.position[rows if space.what == "labels" else subset.images.slices[rows]]
            for subset, rows in ((synthetic, generated), (real, known))
        ]
        rng = key.numpy(Stream.EVALUATE)
        matched = matched_positions(positions[0], positions[1], rng)
        made, true = generated[matched.generated], known[matched.real]
        made = made if len(made) <= MOST else np.sort(rng.choice(made, MOST, replace=False))
        if min(len(made), len(true)) < AT_LEAST:
            findings.refuse(
                f"{space.title}, {_shown(group)}",
                f"needs at least {AT_LEAST} slices a side at the same heights of the brain, got "
                f"{len(made)} generated and {len(true)} real ones",
            )
        else:
            kept.append((group, made, true))
    return kept


def _add(findings: Findings, cloud: _Cloud, key: SampleKey) -> None:
    """Add the numbers of one cloud."""
    bandwidth = median_bandwidth(cloud.real)
    measures: tuple[tuple[str, str, Callable[[Rows, Rows], float], Better, float], ...] = (
        ("frechet", "Fréchet distance", frechet_distance, "lower", 0.0),
        ("kid", "Kernel distance (KID)", kernel_distance, "lower", 0.0),
        ("mmd", "MMD, Gaussian kernel", lambda a, b: rbf_mmd(a, b, bandwidth), "lower", 0.0),
        ("precision", "Precision", lambda a, b: manifolds(a, b).precision, "higher", 1.0),
        ("recall", "Recall", lambda a, b: manifolds(a, b).recall, "higher", 1.0),
        ("density", "Density", lambda a, b: manifolds(a, b).density, "higher", 1.0),
        ("coverage", "Coverage", lambda a, b: manifolds(a, b).coverage, "higher", 1.0),
    )
    group = "labels" if cloud.group == _LABELS else cloud.group
    for name, title, measure, better, ideal in measures:
        findings.add(
            f"fidelity/{name}/{cloud.space.name}/{group}",
            f"{title}, {cloud.space.title}, {_shown(cloud.group)}",
            lambda measure=measure: with_floor(  # type: ignore[misc]
                measure, cloud.generated, cloud.real, cloud.subject, key, at_least=AT_LEAST
            ),
            better,
            ideal=ideal,
            provenance=cloud.facts,
        )


def _figure(clouds: Sequence[_Cloud]) -> Figure:
    """Draw the clouds of one space along their first two axes; spectra as curves."""
    canvas = Canvas(figsize=(2.6 * len(clouds), 2.6), layout="constrained")
    FigureCanvasAgg(canvas)
    spectrum = clouds[0].space.name == "spectrum"
    for number, cloud in enumerate(clouds, 1):
        axes = canvas.add_subplot(1, len(clouds), number)
        for rows, mean, colour, name in (
            (cloud.real, cloud.means[1], "0.45", "real"),
            (cloud.generated, cloud.means[0], "tab:orange", "generated"),
        ):
            if spectrum:
                axes.plot(np.linspace(0, 0.5, len(mean)), mean, color=colour, label=name)
            else:
                axes.scatter(rows[:, 0], rows[:, 1], s=3, color=colour, alpha=0.5, label=name)
        axes.set_title(_shown(cloud.group), fontsize=8)
        axes.tick_params(labelsize=6)
        if spectrum:
            axes.set_xlabel("cycles per pixel", fontsize=7)
        if number == 1:
            axes.legend(fontsize=7, frameon=False)
    title = clouds[0].space.title
    caption = (
        "Mean log power of generated and real images at each spatial frequency: a curve that falls "
        "early means smooth pictures, one that stays high means noise."
        if spectrum
        else f"Slices along the two main axes of the real ones: {title}. Orange should lie on grey."
    )
    return Figure(f"fidelity-{clouds[0].space.name}", caption, png(canvas))


def _shown(group: str) -> str:
    return group if group in (_LABELS, "images") else group.upper()
