"""The bands in which 200 drawn trees of a preset must lie (the gates that need no real masks)."""

import numpy as np
import pytest

from synthgen.core.rng import SampleKey
from synthgen.evaluate.vessel_statistics import gates, statistics
from synthgen.labels.vessels import VesselGenerator

TREES, AT_ONCE = 200, 20


def field_of_view(circle, shape):
    if not circle[2]:
        return None
    x, y = np.ogrid[: shape[0], : shape[1]]
    return (x - circle[0]) ** 2 + (y - circle[1]) ** 2 <= circle[2] ** 2


@pytest.mark.slow
@pytest.mark.parametrize(("preset", "shape"), [("coronary", (512, 512)), ("retina", (584, 565))])
def test_two_hundred_trees_lie_in_the_bands_of_their_preset(preset, shape):
    generator, found = VesselGenerator(preset, shape), []
    for first in range(0, TREES, AT_ONCE):
        maps = generator.draw([SampleKey(29, first + i) for i in range(AT_ONCE)])
        views = [field_of_view(circle, shape) for circle in maps.field]
        found += [statistics(mask, view) for mask, view in zip(maps.mask, views, strict=True)]
    missed = [gate for gate in gates(preset, found) if not gate.passed]
    assert not missed, missed
