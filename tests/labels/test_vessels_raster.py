import numpy as np
import pytest

from synthgen.labels.vessels import maps, raster
from synthgen.labels.vessels.raster import HIDDEN, Edges
from synthgen.labels.vessels.tree import Branches, VesselTree

NONE = np.zeros(3, np.float32)


def tree_of(nodes, radius, parent, *, shape=(40, 40), vein=None, visible=None, field=NONE):
    parent = np.asarray(parent)
    n = len(parent)
    return VesselTree(
        np.asarray(nodes, np.float32),
        np.asarray(radius, np.float32),
        parent.astype(np.int32),
        Branches.of(parent).of_node.astype(np.int32),
        np.zeros(n, bool) if vein is None else np.asarray(vein),
        np.ones(n, bool) if visible is None else np.asarray(visible),
        shape,
        NONE,
        np.asarray(field, np.float32),
    )


def drawn(tree, draw=raster.draw):
    out = np.zeros((4, *tree.shape), np.float32)
    draw(Edges.of(tree), *out)
    return dict(zip(("coverage", "path", "hidden", "vein"), out, strict=True))


def random_tree(seed, n=60, *, shape=(48, 40)):
    rng = np.random.default_rng(seed)
    parent = np.concatenate([[-1], [rng.integers(max(0, i - 4), i) for i in range(1, n)]])
    nodes = np.zeros((n, 3))
    nodes[0] = 20, 20, 0
    for i in range(1, n):
        nodes[i] = nodes[parent[i]] + rng.normal(0, 3, 3)
    visible = np.ones(n, bool)
    for i in range(1, n):
        visible[i] = visible[parent[i]] and rng.random() > 0.02
    vein = np.zeros(n, bool)
    return tree_of(nodes, rng.uniform(0.4, 3, n), parent, shape=shape, vein=vein, visible=visible)


def slow_coverage(tree):
    """Distance of every pixel to every labelled edge, one by one."""
    out = np.zeros(tree.shape)
    edges = Edges.of(tree)
    for (ax, ay, _, ar), (bx, by, _, br), layer in zip(
        edges.start, edges.end, edges.layer, strict=True
    ):
        if layer == HIDDEN:
            continue
        for x in range(tree.shape[0]):
            for y in range(tree.shape[1]):
                along = np.array([bx - ax, by - ay])
                t = np.clip(np.dot([x - ax, y - ay], along) / max(along @ along, 1e-12), 0, 1)
                distance = np.hypot(x - ax - t * along[0], y - ay - t * along[1])
                share = np.clip(0.5 + ar + t * (br - ar) - distance, 0, 1)
                out[x, y] = max(out[x, y], np.rint(share * 255) / 255)
    return out


@pytest.mark.parametrize("seed", range(3))
def test_coverage_is_the_distance_to_the_segments(seed):
    tree = random_tree(seed, 14, shape=(28, 26))
    np.testing.assert_allclose(drawn(tree)["coverage"], slow_coverage(tree), atol=1e-7)


def test_a_straight_tube_has_the_chords_of_a_cylinder():
    length = np.arange(2, 38)
    nodes = np.column_stack([length, np.full(len(length), 20), np.zeros(len(length))])
    out = drawn(tree_of(nodes, np.full(len(length), 5.0), np.arange(len(length)) - 1))
    across = np.arange(40) - 20.0
    expected = 2 * np.sqrt(np.maximum(25 - across**2, 0))
    np.testing.assert_allclose(out["path"][20], expected, atol=1e-5)
    assert out["path"][20, 20] == pytest.approx(10)
    assert out["hidden"].max() == out["vein"].max() == 0
    np.testing.assert_array_equal(out["coverage"][20] >= 0.5, np.abs(across) <= 5)


def test_crossings_add_up_and_forks_do_not():
    line = np.arange(4, 37, 2)
    n = len(line)
    one = np.column_stack([line, np.full(n, 20), np.zeros(n)])
    other = np.column_stack([np.full(n, 20), line, np.full(n, 30)])
    parent = np.concatenate([np.arange(n) - 1, np.arange(n) - 1 + n])
    parent[n] = -1
    crossing = drawn(tree_of(np.vstack([one, other]), np.full(2 * n, 3.0), parent))
    assert crossing["path"][20, 20] == pytest.approx(12, abs=1e-4)
    assert crossing["path"][10, 20] == pytest.approx(6, abs=1e-4)
    fork = np.column_stack([np.full(n, 20), line, np.zeros(n)])[n // 2 + 1 :]
    parent = np.concatenate([np.arange(n) - 1, [n // 2], n + np.arange(len(fork) - 1)])
    joined = drawn(tree_of(np.vstack([one, fork]), np.full(n + len(fork), 3.0), parent))
    assert joined["path"].max() == pytest.approx(6, abs=1e-4)


def test_layers_are_kept_apart():
    line = np.arange(4, 37, 2)
    n = len(line)
    nodes = [np.column_stack([line, np.full(n, y), np.zeros(n)]) for y in (8, 20, 32)]
    parent = np.concatenate([np.arange(n) - 1 + k * n for k in range(3)])
    parent[[n, 2 * n]] = -1
    kind = np.repeat([0, 1, 2], n)
    tree = tree_of(np.vstack(nodes), np.full(3 * n, 2.0), parent, vein=kind == 1, visible=kind < 2)
    out = drawn(tree)
    assert out["path"][20, [8, 20, 32]].tolist() == [4, 4, 0]
    assert out["vein"][20, [8, 20, 32]].tolist() == [0, 4, 0]
    assert out["hidden"][20, [8, 20, 32]].tolist() == [0, 0, 4]
    assert out["coverage"][20, [8, 20, 32]].tolist() == [1, 1, 0]


def test_nothing_is_drawn_outside_the_field_or_the_picture():
    tree = random_tree(1)
    far = tree_of(tree.nodes + np.float32(500), tree.radius, tree.parent, shape=tree.shape)
    assert all(not array.any() for array in drawn(far).values())
    seen = tree_of(tree.nodes, tree.radius, tree.parent, shape=tree.shape, field=(20, 20, 6))
    x, y = np.ogrid[:48, :40]
    inside = (x - 20) ** 2 + (y - 20) ** 2 <= 36
    whole = tree_of(tree.nodes, tree.radius, tree.parent, shape=tree.shape)
    for name, array in drawn(seen).items():
        np.testing.assert_array_equal(array, np.where(inside, drawn(whole)[name], 0))
    extras = maps.draw_extras([seen], list(maps.EXTRAS), seen.shape)
    assert all(not array[0][~inside].any() for array in extras.values())
    assert extras["centreline"].any()


def test_coverage_is_whole_255ths():
    coverage = drawn(random_tree(2))["coverage"]
    np.testing.assert_array_equal(coverage, np.rint(coverage * 255).astype(np.float32) / 255)


def test_a_side_branch_does_not_open_like_a_trumpet():
    nodes = [[4, 20, 0], [20, 20, 0], [36, 20, 0], [20, 28, 0], [20, 36, 0]]
    tree = tree_of(nodes, [6, 6, 6, 1, 1], [-1, 0, 1, 1, 3])
    assert drawn(tree)["coverage"][17, 27] == 0


@pytest.mark.parametrize("seed", range(4))
def test_numba_draws_the_same_bits(seed):
    accelerated = pytest.importorskip("synthgen.labels.vessels.accelerated", exc_type=ImportError)
    tree = random_tree(seed, 200)
    slow, fast = drawn(tree), drawn(tree, accelerated.draw)
    for name, array in slow.items():
        np.testing.assert_array_equal(array, fast[name])


def test_extras_of_a_known_tree():
    nodes = [[5, 20, 0], [15, 20, 0], [25, 20, 0], [25, 30, 0], [35, 20, 0], [30, 5, 0]]
    visible = [True, True, True, True, True, False]
    tree = tree_of(nodes, [3, 3, 3, 1, 2, 1], [-1, 0, 1, 2, 2, 1], visible=visible)
    out = {k: v[0] for k, v in maps.draw_extras([tree], list(maps.EXTRAS), tree.shape).items()}
    assert {k: v.dtype for k, v in out.items()} == maps.EXTRAS
    assert np.argwhere(out["bifurcations"]).tolist() == [[25, 20]]
    assert out["centreline"].sum() == 31 + 10
    assert out["centreline"][5:36, 20].all()
    assert out["radius"][10, 20] == 3
    assert out["radius"][35, 20] == 2
    assert out["path_length"][10, 20] == 6
    mask = drawn(tree)["coverage"] >= 0.5
    np.testing.assert_array_equal(out["branches"] > 0, mask)
    np.testing.assert_array_equal(out["radius"] > 0, mask)
    assert len({int(out["branches"][x, y]) for x, y in [(10, 20), (34, 20), (25, 29)]}) == 3
