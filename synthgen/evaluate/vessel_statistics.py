"""Statistics of binary vessel masks, and the bands in which drawn masks must lie.

Widths, lengths, junctions and box-counting dimension of the pruned skeleton, as in the table of
real masks (DRIVE, CHASE_DB1, XCAD) to which the presets of the vessel trees were fitted. Lengths
are native pixels: compare masks of one resolution only.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, NamedTuple

import numpy as np
import numpy.typing as npt
from scipy import ndimage, stats

from synthgen.core.errors import GeometryError, RequestError
from synthgen.evaluate.skeletons import neighbours, pruned_skeleton, skeleton_length, trace

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from synthgen.evaluate.skeletons import Graph

Mask = npt.NDArray[np.bool_]
Floats = npt.NDArray[np.float64]
GatedPreset = Literal["coronary", "retina"]

_BOXES = (2, 4, 8, 16, 32, 64)
_SEGMENT_PX, _TORTUOUS_PX = 5, 30
_CHORD_PX = 5
_DIRECTION_PX, _SHORTEST_PX = 12, 6
_RADIUS_FROM, _RADIUS_TO = 5, 15
_CORNERS = np.ones((3, 3), dtype=np.int64)


@dataclass(frozen=True)
class VesselStatistics:
    """What one mask looks like; lengths in pixels, angles in degrees.

    Attributes:
        foreground: share of the frame that is vessel.
        field_foreground: share of the field of view that is vessel.
        dimension: box-counting dimension of the mask, boxes of 2 to 64 pixels.
        skeleton_dimension: the same of the pruned skeleton.
        length: of the pruned skeleton.
        bifurcations: junctions for each 1000 pixels of length.
        ends: free ends for each 1000 pixels of length.
        components: pieces of the mask, corners touch.
        widths: 2 x distance to the background - 1, at each pixel of the skeleton.
        segments: lengths between junctions or ends, from 5 pixels on.
        tortuosity: arc over chord of segments from 30 pixels on.
        angles: between the two narrower branches of junctions of three.
        area_ratios: (r1^2 + r2^2) / r0^2 there, r0 the widest.
        branch_ratios: r2 / r1 there, r2 the narrowest.
    """

    foreground: float
    field_foreground: float
    dimension: float
    skeleton_dimension: float
    length: float
    bifurcations: float
    ends: float
    components: int
    widths: Floats
    segments: Floats
    tortuosity: Floats
    angles: Floats
    area_ratios: Floats
    branch_ratios: Floats

    @property
    def excess(self) -> float:
        """Junctions minus ends for each 1000 pixels: crossings and loops raise it."""
        return self.bifurcations - self.ends


def statistics(mask: Mask, field: Mask | None = None) -> VesselStatistics:
    """Measure a mask `(X, Y)`.

    Args:
        mask: the vessels.
        field: the field of view; None where the whole frame is seen.

    Raises:
        GeometryError: the field has another shape, or no pixel.
        RequestError: the mask shows no vessel longer than a pixel.
    """
    if field is not None and (field.shape != mask.shape or not field.any()):
        raise GeometryError(
            f"expected a field of view of {mask.shape} with pixels in it, got {field.shape} with "
            f"{int(field.sum())}"
        )
    radius = ndimage.distance_transform_edt(np.pad(mask, 1))[1:-1, 1:-1]
    skeleton = pruned_skeleton(mask, radius)
    length = skeleton_length(skeleton)
    if not length:
        raise RequestError(
            f"vessel statistics need a vessel; the mask has {int(mask.sum())} vessel pixels and a "
            "skeleton of no length"
        )
    graph = trace(skeleton)
    angles, areas, branches = _forks(graph, radius)
    per_1000 = 1000 / length
    return VesselStatistics(
        foreground=float(mask.mean()),
        field_foreground=float(mask.mean() if field is None else mask[field].mean()),
        dimension=box_dimension(mask),
        skeleton_dimension=box_dimension(skeleton),
        length=length,
        bifurcations=len(graph.junctions) * per_1000,
        ends=int((neighbours(skeleton) == 1).sum()) * per_1000,
        components=int(ndimage.label(mask, _CORNERS)[1]),
        widths=2 * radius[skeleton] - 1,
        segments=graph.length[graph.length >= _SEGMENT_PX],
        tortuosity=_tortuosity(graph),
        angles=angles,
        area_ratios=areas,
        branch_ratios=branches,
    )


def box_dimension(mask: Mask) -> float:
    """Return the box-counting dimension of a mask `(X, Y)` that is not empty.

    The least-squares slope of log(boxes that are not empty) over -log(side), sides 2, 4, ... 64.
    """
    boxes = mask
    counts = []
    for _ in _BOXES:
        x, y = boxes.shape
        even = np.pad(boxes, ((0, x % 2), (0, y % 2)))
        boxes = even[::2, ::2] | even[1::2, ::2] | even[::2, 1::2] | even[1::2, 1::2]
        counts.append(int(boxes.sum()))
    return -float(np.polyfit(np.log(_BOXES), np.log(counts), 1)[0])


def _tortuosity(graph: Graph) -> Floats:
    """Return arc over chord of long segments; the arc through every fifth pixel and the last.

    Steps from pixel to pixel would make each oblique straight line up to 8 % too long.
    """
    first, last = graph.first[:-1], graph.first[1:] - 1
    path = np.repeat(np.arange(len(first)), last - first + 1)
    rank = np.arange(len(path)) - first[path]
    kept = np.flatnonzero((rank % _CHORD_PX == 0) | (rank == (last - first)[path]))
    pixels, of = graph.pixels[kept], path[kept]
    steps = np.hypot(*np.diff(pixels, axis=0).T) * (of[1:] == of[:-1])
    arc = np.bincount(of[1:], weights=steps, minlength=len(first))
    chord = np.hypot(*(graph.pixels[last] - graph.pixels[first]).T)
    long = (graph.length >= _TORTUOUS_PX) & ~graph.ring & (chord > 0)
    found: Floats = arc[long] / chord[long]
    return found


def _forks(graph: Graph, radius: Floats) -> tuple[Floats, Floats, Floats]:
    """Return angles, area ratios and branch ratios of junctions of three branches.

    A branch points from the junction's centre to its 12th pixel, or its last; its radius is half
    the median width of its 6th to 15th pixel, outside the blob where branches meet. Junctions
    with a branch of fewer than 6 pixels are left out.
    """
    size = np.diff(graph.first)[graph.path]
    three = np.bincount(graph.junction, minlength=len(graph.junctions)) == 3
    three[graph.junction[size < _SHORTEST_PX]] = False
    rows = np.flatnonzero(three[graph.junction])
    rows = rows[np.argsort(graph.junction[rows], kind="stable")]
    size = size[rows, None]
    start = np.where(graph.at_end[rows], graph.first[graph.path[rows] + 1] - 1,
                     graph.first[graph.path[rows]])[:, None]  # fmt: skip
    away = np.where(graph.at_end[rows], -1, 1)[:, None]
    tip = graph.pixels[(start + away * np.minimum(_DIRECTION_PX, size - 1))[:, 0]]
    window = np.minimum(np.arange(_RADIUS_FROM, _RADIUS_TO), size - 1)
    near = graph.pixels[start + away * window]
    half = (np.median(radius[near[..., 0], near[..., 1]], axis=1) - 0.5).reshape(-1, 3)
    direction = (tip - graph.junctions[graph.junction[rows]]).reshape(-1, 3, 2)
    order = np.argsort(-half, axis=1, kind="stable")
    r0, r1, r2 = np.take_along_axis(half, order, axis=1).T
    unit = direction / np.linalg.norm(direction, axis=2, keepdims=True)
    _, one, other = np.moveaxis(np.take_along_axis(unit, order[..., None], axis=1), 1, 0)
    cosine = np.clip((one * other).sum(axis=1), -1, 1)
    return np.degrees(np.arccos(cosine)), (r1**2 + r2**2) / r0**2, r2 / r1


def table_row(masks: Sequence[VesselStatistics]) -> dict[str, float]:
    """Return the numbers of a table of masks: means over masks of each mask's own.

    Raises:
        RequestError: there is no mask.
    """
    if not masks:
        raise RequestError("expected the statistics of one mask or more, got none")

    def quantile(name: str, percent: float) -> float:
        values = [getattr(m, name) for m in masks]
        return _mean(float(np.percentile(v, percent)) for v in values if v.size)

    single = ("foreground", "field_foreground", "dimension", "skeleton_dimension", "length")
    row = {name: _mean(getattr(m, name) for m in masks) for name in single}
    row["length_sd"] = float(np.std([m.length for m in masks]))
    for name in ("bifurcations", "ends", "excess", "components"):
        row[name] = _mean(getattr(m, name) for m in masks)
    row["width"] = _mean(float(m.widths.mean()) for m in masks)
    row |= {"width_p95": quantile("widths", 95), "width_max": quantile("widths", 100)}
    row["segment"] = quantile("segments", 50)
    row |= {"tortuosity": quantile("tortuosity", 50), "tortuosity_p90": quantile("tortuosity", 90)}
    row |= {f"angle_p{p}": quantile("angles", p) for p in (25, 50, 75)}
    row |= {
        "area_ratio": quantile("area_ratios", 50),
        "branch_ratio": quantile("branch_ratios", 50),
    }
    return row


def _mean(values: Iterable[float]) -> float:
    """Return the mean, NaN without values."""
    found = [*values]
    return math.fsum(found) / len(found) if found else math.nan


def distance(
    first: Sequence[VesselStatistics],
    second: Sequence[VesselStatistics],
    name: Literal["widths", "angles", "segments"],
) -> float:
    """Return the Wasserstein-1 distance of two sets' pooled samples; NaN if one has none."""
    pooled = [np.concatenate([getattr(m, name) for m in masks]) for masks in (first, second)]
    if not all(p.size for p in pooled):
        return math.nan
    return float(stats.wasserstein_distance(*pooled))


class Gate(NamedTuple):
    """One number of a set of drawn masks, and the band in which it must lie.

    Attributes:
        name: what is measured.
        value: what was found.
        low: lower end of the band, or -inf.
        high: upper end, or inf.
    """

    name: str
    value: float
    low: float
    high: float

    @property
    def passed(self) -> bool:
        """Whether the value lies in the band; NaN does not."""
        return self.low <= self.value <= self.high


class _Bands(NamedTuple):
    """Bands of one preset; shares as shares, lengths in pixels, angles in degrees."""

    width: float
    segment: float
    foreground: tuple[float, float]
    dimension: tuple[float, float]
    excess: float


_BANDS: dict[GatedPreset, _Bands] = {
    "coronary": _Bands(1.2, 16.0, (0.042, 0.062), (1.40, 1.50), -1.0),
    "retina": _Bands(0.4, 2.5, (0.11, 0.14), (1.39, 1.45), 3.0),
}
_ANGLE, _COMPONENTS, _TORTUOSITY = 6.5, 5.0, (1.02, 1.05)
_SKELETON_DIMENSION, _ENDS = 0.03, 0.25


def gates(
    preset: GatedPreset,
    drawn: Sequence[VesselStatistics],
    reference: Sequence[VesselStatistics] = (),
) -> list[Gate]:
    """Compare drawn masks with the bands of their preset.

    Args:
        preset: which bands.
        drawn: statistics of drawn masks; 200 make the numbers steady.
        reference: statistics of real masks of the same resolution. Without them the distances to
            real masks, the ends and the skeleton's dimension are not compared.

    Raises:
        RequestError: no mask was drawn.
    """
    bands, row = _BANDS[preset], table_row(drawn)
    found = [
        Gate("foreground", row["field_foreground"], *bands.foreground),
        Gate("dimension", row["dimension"], *bands.dimension),
        Gate("junction excess", row["excess"], bands.excess, math.inf),
        Gate("components", row["components"], 0, _COMPONENTS),
        Gate("tortuosity", row["tortuosity"], *_TORTUOSITY),
    ]
    if not reference:
        return found
    real = table_row(reference)
    found += [
        Gate("width W1", distance(drawn, reference, "widths"), 0, bands.width),
        Gate("angle W1", distance(drawn, reference, "angles"), 0, _ANGLE),
        Gate("segment W1", distance(drawn, reference, "segments"), 0, bands.segment),
        Gate("ends", row["ends"], real["ends"] * (1 - _ENDS), real["ends"] * (1 + _ENDS)),
    ]
    if preset == "retina":
        middle, reach = real["skeleton_dimension"], _SKELETON_DIMENSION
        found.append(
            Gate("skeleton dimension", row["skeleton_dimension"], middle - reach, middle + reach)
        )
    return found
