import math

import numpy as np
import pytest
from scipy import ndimage
from skimage.draw import line
from skimage.morphology import skeletonize

from synthgen.evaluate.skeletons import neighbours, pruned_skeleton, skeleton_length, trace


def drawn(*lines, shape=(80, 80)):
    mask = np.zeros(shape, bool)
    for first, last in lines:
        mask[line(*first, *last)] = True
    return mask


FORK = drawn(((40, 5), (40, 40)), ((40, 40), (12, 68)), ((40, 40), (68, 68)))


def blobs(seed):
    rng = np.random.default_rng(seed)
    mask = np.zeros((90, 70), bool)
    for _ in range(8):
        points = [tuple(int(p) for p in rng.integers(0, 70, 2)) for _ in range(2)]
        mask |= drawn(points, shape=mask.shape)
    return skeletonize(mask)


def test_a_fork_has_one_junction_and_three_paths():
    graph = trace(FORK)
    assert len(graph.junctions) == 1
    assert graph.junctions[0] == pytest.approx((40, 40), abs=1)
    assert len(graph.length) == len(graph.path) == 3
    assert (neighbours(FORK) == 1).sum() == 3


@pytest.mark.parametrize("seed", range(5))
def test_paths_are_ordered_and_cover_all_pixels_once(seed):
    skeleton = blobs(seed)
    graph = trace(skeleton)
    free = skeleton & (neighbours(skeleton) < 3)
    clusters = ndimage.label(np.pad(neighbours(skeleton) >= 3, 1), np.ones((3, 3)))[0]
    assert sorted(map(tuple, graph.pixels)) == sorted(map(tuple, np.argwhere(free)))
    for number, (begin, end) in enumerate(zip(graph.first, graph.first[1:], strict=False)):
        steps = np.diff(graph.pixels[begin:end], axis=0)
        if not graph.ring[number]:
            assert (abs(steps).max(axis=1) == 1).all()
            assert graph.length[number] == pytest.approx(np.hypot(*steps.T).sum())
    for path, last, junction in zip(graph.path, graph.at_end, graph.junction, strict=True):
        tip = graph.pixels[graph.first[path + 1] - 1 if last else graph.first[path]]
        x, y = tip + 1
        assert junction + 1 in clusters[x - 1 : x + 2, y - 1 : y + 2]


@pytest.mark.parametrize("seed", range(5))
def test_neighbours_equal_the_slow_way(seed):
    skeleton = blobs(seed)
    padded = np.pad(skeleton, 1)
    count = neighbours(skeleton)
    assert not count[~skeleton].any()
    for x, y in np.argwhere(skeleton):
        assert count[x, y] == padded[x : x + 3, y : y + 3].sum() - 1


def test_lengths_count_axis_and_diagonal_steps():
    assert skeleton_length(drawn(((3, 5), (3, 25)))) == 20
    assert skeleton_length(drawn(((3, 5), (23, 25)))) == pytest.approx(20 * math.sqrt(2))
    corner = np.zeros((4, 4), bool)
    corner[1, 1] = corner[1, 2] = corner[2, 2] = True
    assert skeleton_length(corner) == 2


def test_a_ring_is_a_path_without_places():
    rows, columns = np.ogrid[:40, :40]
    away = np.hypot(rows - 20, columns - 20)
    graph = trace(skeletonize(abs(away - 12) < 2))
    assert graph.ring.tolist() == [True]
    assert graph.path.size == 0
    assert graph.length[0] == pytest.approx(2 * math.pi * 12, rel=0.1)


def test_spurs_go_and_branches_stay():
    trunk = drawn(((40, 5), (40, 70)))
    short = trunk | drawn(((40, 30), (36, 30)))
    long = trunk | drawn(((40, 30), (20, 30)))
    radius = np.ones(trunk.shape)
    assert np.argwhere(pruned_skeleton(short, radius))[:, 0].min() >= 39
    assert np.argwhere(pruned_skeleton(long, radius))[:, 0].min() == 20
    assert (np.argwhere(pruned_skeleton(long, 20 * radius))[:, 0] >= 39).all()


@pytest.mark.parametrize("shape", [(1, 1), (5, 7)])
def test_an_empty_skeleton_has_nothing(shape):
    graph = trace(np.zeros(shape, bool))
    assert [len(part) for part in graph] == [0, 1, 0, 0, 0, 0, 0, 0]
