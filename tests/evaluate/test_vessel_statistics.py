import math
from dataclasses import replace

import numpy as np
import pytest
from scipy import ndimage

from synthgen.core.errors import GeometryError, RequestError
from synthgen.evaluate.vessel_statistics import (
    box_dimension,
    distance,
    gates,
    statistics,
    table_row,
)


def capsules(*parts, shape=(200, 200)):
    """Draw straight vessels (from, to, radius)."""
    grid = np.stack(np.meshgrid(*map(np.arange, shape), indexing="ij"), axis=-1).astype(float)
    mask = np.zeros(shape, bool)
    for start, end, radius in parts:
        axis = np.subtract(end, start)
        along = np.clip(((grid - start) @ axis) / (axis @ axis), 0, 1)
        mask |= np.linalg.norm(grid - start - along[..., None] * axis, axis=-1) <= radius
    return mask


def fork(opening, radii=(5, 4, 3), centre=(100, 100)):
    """Draw a trunk that opens by so many degrees into two branches."""
    half = math.radians(opening) / 2
    ends = [(centre[0] + s * 80 * math.sin(half), centre[1] + 80 * math.cos(half)) for s in (1, -1)]
    trunk, one, other = radii
    return capsules(
        ((centre[0], 15), centre, trunk), (centre, ends[0], one), (centre, ends[1], other)
    )


def test_a_bar_has_its_width_and_no_junction():
    mask = np.zeros((60, 160), bool)
    mask[20:27, 10:150] = True
    found = statistics(mask)
    assert np.median(found.widths) == 7
    assert found.widths.max() == 7
    assert found.foreground == pytest.approx(7 * 140 / 9600)
    assert (found.bifurcations, found.components) == (0, 1)
    assert found.ends == pytest.approx(2000 / found.length)
    assert found.excess == -found.ends
    assert found.length == pytest.approx(140, abs=8)
    assert found.tortuosity == pytest.approx([1], abs=0.01)


@pytest.mark.parametrize("opening", [60, 90, 120])
def test_the_angle_of_a_fork(opening):
    found = statistics(fork(opening, (2.5, 2, 1)))
    assert found.angles == pytest.approx([opening], abs=8)
    assert found.bifurcations * found.length == pytest.approx(1000)
    assert found.ends * found.length == pytest.approx(3000)
    assert len(found.segments) == 3


def test_ratios_of_a_fork():
    """Along oblique vessels the pixels lie up to one off the axis: widths come out too small."""
    found = statistics(fork(90, (11, 9, 6)))
    assert found.area_ratios == pytest.approx([(81 + 36) / 121], rel=0.2)
    assert found.branch_ratios == pytest.approx([6 / 9], rel=0.1)


def test_tortuosity_of_half_a_circle():
    rows, columns = np.ogrid[:200, :200]
    ring = abs(np.hypot(rows - 100, columns - 100) - 70) < 2.5
    half = ring & (rows < 100)
    assert statistics(half).tortuosity == pytest.approx([math.pi / 2], rel=0.03)


def test_a_crossing_raises_the_excess_and_has_no_angle():
    cross = capsules(((20, 20), (180, 180), 3), ((20, 180), (180, 20), 3))
    found = statistics(cross)
    assert found.angles.size == 0
    assert found.ends * found.length == pytest.approx(4000)
    loop = capsules(
        ((50, 50), (50, 150), 3), ((150, 50), (150, 150), 3),
        ((50, 50), (150, 50), 3), ((50, 150), (150, 150), 3), ((100, 50), (100, 150), 3),
    )  # fmt: skip
    assert statistics(loop).excess > 0


def test_the_field_of_view_bounds_the_share():
    mask = fork(80)
    field = np.zeros_like(mask)
    field[:, :100] = True
    found = statistics(mask, field)
    assert found.field_foreground == pytest.approx(mask[:, :100].mean())
    assert found.foreground == pytest.approx(mask.mean())


@pytest.mark.parametrize("turn", [np.flipud, np.fliplr, np.transpose, np.rot90])
def test_turning_a_mask_hardly_changes_it(turn):
    mask = fork(100)
    one, other = statistics(mask), statistics(np.ascontiguousarray(turn(mask)))
    assert other.length == pytest.approx(one.length, rel=0.02)
    assert other.angles == pytest.approx(one.angles, abs=6)
    assert other.widths.mean() == pytest.approx(one.widths.mean(), rel=0.03)


def test_box_dimension_of_an_area_and_of_a_line():
    assert box_dimension(np.ones((128, 128), bool)) == pytest.approx(2)
    row = np.zeros((128, 128), bool)
    row[5] = True
    assert box_dimension(row) == pytest.approx(1)


@pytest.mark.parametrize("shape", [(100, 130), (64, 64), (37, 129)])
def test_box_dimension_equals_the_slow_way(shape):
    rng = np.random.default_rng(1)
    mask = ndimage.gaussian_filter(rng.normal(size=shape), 2) > 0.1
    sides = (2, 4, 8, 16, 32, 64)
    counts = [
        sum(
            mask[x : x + side, y : y + side].any()
            for x in range(0, shape[0], side)
            for y in range(0, shape[1], side)
        )
        for side in sides
    ]
    slope = np.polyfit(np.log(sides), np.log(counts), 1)[0]
    assert box_dimension(mask) == pytest.approx(-slope)


def test_a_table_row_is_the_mean_over_masks():
    masks = [statistics(fork(60)), statistics(fork(120))]
    row = table_row(masks)
    assert row["length"] == pytest.approx(np.mean([m.length for m in masks]))
    assert row["angle_p50"] == pytest.approx(np.mean([np.median(m.angles) for m in masks]))
    assert row["width"] == pytest.approx(np.mean([m.widths.mean() for m in masks]))
    assert row["excess"] == pytest.approx(row["bifurcations"] - row["ends"])


def test_distances_of_pooled_samples():
    narrow, wide = statistics(fork(90, (4, 3, 3))), statistics(fork(90, (6, 5, 5)))
    assert distance([narrow, wide], [wide, narrow], "widths") == 0
    shifted = replace(narrow, widths=narrow.widths + 2.5)
    assert distance([narrow], [shifted], "widths") == pytest.approx(2.5)
    assert math.isnan(distance([narrow], [replace(wide, angles=np.zeros(0))], "angles"))


def test_a_set_passes_the_distances_to_itself():
    masks = [statistics(fork(opening)) for opening in (60, 90)]
    found = {gate.name: gate for gate in gates("retina", masks, masks)}
    assert all(found[f"{name} W1"].passed for name in ("width", "angle", "segment"))
    assert found["ends"].passed
    assert found["skeleton dimension"].passed
    assert not found["junction excess"].passed
    assert found["junction excess"].low == 3
    assert found["width W1"].high == 0.4


def test_bands_of_the_presets_differ():
    masks = [replace(statistics(fork(60)), field_foreground=0.05)]
    coronary = {gate.name: gate for gate in gates("coronary", masks, masks)}
    assert coronary["width W1"].high == 1.2
    assert coronary["foreground"].passed
    assert "skeleton dimension" not in coronary
    assert not {g.name: g for g in gates("retina", masks)}["foreground"].passed


def test_without_a_reference_only_bands_are_compared():
    names = [gate.name for gate in gates("coronary", [statistics(fork(60))])]
    assert names == ["foreground", "dimension", "junction excess", "components", "tortuosity"]


def test_what_is_undefined_does_not_pass():
    straight = replace(statistics(fork(60)), tortuosity=np.zeros(0))
    found = {gate.name: gate for gate in gates("coronary", [straight])}
    assert math.isnan(found["tortuosity"].value)
    assert not found["tortuosity"].passed


def test_what_cannot_be_measured_is_refused():
    with pytest.raises(RequestError, match="0 vessel pixels"):
        statistics(np.zeros((20, 20), bool))
    dot = np.zeros((20, 20), bool)
    dot[5, 5] = True
    with pytest.raises(RequestError, match="1 vessel pixels"):
        statistics(dot)
    with pytest.raises(GeometryError, match=r"\(200, 200\).*\(20, 20\) with 1"):
        statistics(fork(60), dot)
    with pytest.raises(RequestError, match="got none"):
        table_row([])
