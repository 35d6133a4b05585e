import numpy as np
import pytest

from synthgen.labels.vessels import growth, radii
from synthgen.labels.vessels.growth import Arcade, Growth
from synthgen.labels.vessels.radii import FUNNEL, Skeleton
from synthgen.labels.vessels.tree import Branches, path_length

PLANE = Growth(3.0, 90.0, 9.0, 2.0, 0.3, 0.4)
SHELL = Growth(0.02, 0.6, 0.055, 1.5, 1.0, 0.4, axes=(1.0, 0.85, 1.3))


def planted(dims, seed=0, growth_=PLANE):
    rng = np.random.default_rng(seed)
    attractors = rng.normal(size=(80, dims))
    if growth_.axes is not None:
        attractors /= np.sqrt(((attractors / growth_.axes) ** 2).sum(axis=1))[:, None]
    else:
        attractors *= 60
    roots = np.zeros((2, dims))
    roots[1, 0] = growth_.step
    roots[:, -1] += 1.3 if growth_.axes else 0
    return attractors, roots, np.array([-1, 0]), rng.standard_normal((3000, dims))


def slow_growth(how, attractors, roots, parent, noise):
    """The textbook's loop: every attractor looks at every node in every round."""
    nodes, parents = [*roots], [*parent]
    headings = [np.zeros(2), (roots[1] - roots[0]) / np.linalg.norm(roots[1] - roots[0])]
    live = list(attractors)
    while True:
        apart = [[np.linalg.norm(a - n) for n in nodes] for a in live]
        live = [a for a, row in zip(live, apart, strict=True) if min(row) > how.kill]
        apart = [row for row in apart if min(row) > how.kill]
        if not live or len(nodes) == len(noise):
            break
        in_reach = [i for i, row in enumerate(apart) if min(row) <= how.influence]
        pulls = {}
        for i in in_reach or [int(np.argmin([min(row) for row in apart]))]:
            node = int(np.argmin(apart[i]))
            pulls.setdefault(node, []).append((live[i] - nodes[node]) / apart[i][node])
        tips = [n for n in sorted(pulls) if parents.count(n) < 2][: len(noise) - len(nodes)]
        if not tips:
            break
        made = []
        for n in tips:
            own = how.memory if parents.count(n) == 0 else how.side
            heading = np.mean(pulls[n], axis=0) + own * headings[n]
            heading = heading + how.noise * noise[len(nodes) + len(made)]
            made.append((nodes[n], n, heading / np.linalg.norm(heading)))
        for start, n, heading in made:
            nodes.append(start + how.step * heading)
            parents.append(n)
            headings.append(heading)
    return np.array(nodes), np.array(parents)


def test_growth_is_the_textbook_loop():
    attractors, roots, parent, noise = planted(2)
    attractors = attractors[:25]
    nodes, parents = growth.grow(PLANE, attractors, roots, parent, noise[:150])
    expected, expected_parents = slow_growth(PLANE, attractors, roots, parent, noise[:150])
    assert np.array_equal(parents, expected_parents)
    np.testing.assert_allclose(nodes, expected, atol=1e-9)


@pytest.mark.parametrize("how", [PLANE, SHELL])
def test_growth_reaches_its_attractors_with_steps_of_one_length(how):
    dims = 3 if how.axes else 2
    attractors, roots, parent, noise = planted(dims, growth_=how)
    nodes, parents = growth.grow(how, attractors, roots, parent, noise)
    apart = np.sqrt(((attractors[:, None] - nodes[None]) ** 2).sum(axis=2)).min(axis=1)
    assert np.mean(apart <= how.kill) > 0.8
    assert (parents < np.arange(len(parents))).all()
    assert np.bincount(parents[1:]).max() <= 2
    if how.axes:
        np.testing.assert_allclose(((nodes[2:] / how.axes) ** 2).sum(axis=1), 1)
    else:
        steps = np.sqrt(((nodes[1:] - nodes[parents[1:]]) ** 2).sum(axis=1))
        np.testing.assert_allclose(steps, how.step)


def test_arcades_bend_round_their_centre():
    centre = np.array([0.0, 0.0])
    arcade = Arcade((0.0, 0.0), (0.0, 1.0), 100.0, 50.0, 8.0)
    how = Growth(3.0, 1000.0, 9.0, 1.0, 0.0, 0.0, arcade=arcade)
    roots = np.array([[5.0, 100.0], [8.0, 100.0]])
    nodes, _ = growth.grow(
        how, np.array([[0.0, -140.0]]), roots, np.array([-1, 0]), np.zeros((200, 2))
    )
    straight, _ = growth.grow(
        Growth(3.0, 1000.0, 9.0, 1.0, 0.0, 0.0),
        np.array([[0.0, -140.0]]),
        roots,
        np.array([-1, 0]),
        np.zeros((200, 2)),
    )
    nearest = np.sqrt(((nodes - centre) ** 2).sum(axis=1)).min()
    assert nearest > 60 > 30 > np.sqrt(((straight - centre) ** 2).sum(axis=1)).min()
    assert (nodes[:40, 0] > 0).all()


def test_branches_and_path_length_of_a_known_tree():
    parent = np.array([-1, 0, 1, 1, 2, 3, 3])
    branches = Branches.of(parent)
    assert branches.of_node.tolist() == [0, 0, 1, 2, 1, 3, 4]
    assert branches.parent.tolist() == [-1, 0, 0, 2, 2]
    assert branches.count.tolist() == [2, 2, 1, 1, 1]
    nodes = np.column_stack([np.arange(7.0) * 0, [0, 1, 2, 3, 4, 5, 7]])
    assert path_length(nodes, parent).tolist() == [0, 1, 2, 3, 4, 5, 7]


@pytest.mark.parametrize("exponent", [2.0, 2.4, 3.0])
def test_radii_obey_murray_at_every_fork(exponent):
    attractors, roots, parent, noise = planted(2)
    _, parents = growth.grow(PLANE, attractors, roots, parent, noise)
    radius = radii.murray(parents, exponent, (0.8, 1.25), np.random.default_rng(1))
    children = np.zeros(len(parents))
    np.add.at(children, parents[1:], radius[1:] ** exponent)
    inner = np.bincount(parents[1:], minlength=len(parents)) > 0
    np.testing.assert_allclose(children[inner], radius[inner] ** exponent)
    assert radius[~inner].min() >= 0.8
    assert radius[~inner].max() <= 1.25


def test_pruning_drops_short_subtrees_only():
    attractors, roots, parent, noise = planted(2)
    nodes, parents = growth.grow(PLANE, attractors, roots, parent, noise)
    kept, kept_parents = radii.prune(nodes, parents, 25.0, 0.0, np.random.default_rng(0))
    along = path_length(kept, kept_parents)
    branches = Branches.of(kept_parents)
    last = np.zeros(len(branches.head))
    np.maximum.at(last, branches.of_node, along)
    leaf = ~np.isin(np.arange(len(last)), branches.parent)
    length = last - along[np.maximum(kept_parents[branches.head], 0)]
    assert length[leaf].min() >= 25
    assert path_length(nodes, parents).max() == along.max()  # the longest way stays
    everything, _ = radii.prune(nodes, parents, 25.0, 1.0, np.random.default_rng(0))
    assert len(everything) == len(nodes) > len(kept)
    assert (kept_parents < np.arange(len(kept_parents))).all()


def test_smoothing_straightens_and_a_side_branch_has_no_funnel():
    parent = np.array([-1, 0, 1, 2, 3, 2, 5, 6])
    nodes = np.array([[0, 0], [1, 1], [2, 0], [3, 1], [4, 0], [2, 2], [2, 3], [2, 4]], dtype=float)
    radius = np.array([5, 5, 5, 4.9, 4.9, 1, 1, 1], dtype=float)
    smooth = radii.smooth(Skeleton(nodes, parent, radius), 4)
    assert np.abs(smooth.nodes[1:4, 0] - [1, 2, 3]).max() < 0.2
    assert np.ptp(smooth.nodes[1:4, 1]) < np.ptp(nodes[1:4, 1])
    assert smooth.nodes[[0, 4, 7]].tolist() == nodes[[0, 4, 7]].tolist()
    assert smooth.radius[5:].max() <= FUNNEL
    assert (smooth.radius[:5] > 4.8).all()


def test_lesions_narrow_and_widen_one_chain():
    n = 200
    parent = np.arange(n) - 1
    tree = Skeleton(np.column_stack([np.arange(n), np.zeros(n)]), parent, np.full(n, 4.0))
    along = path_length(tree.nodes, parent)
    chains = radii.chains_of(parent, tree.radius)
    assert (chains == 0).all()
    rng = np.random.default_rng(0)
    narrow = radii.add_lesions(tree, along, chains, [0.6], rng)
    wide = radii.add_lesions(tree, along, chains, [-0.5], rng)
    assert narrow.radius.min() == pytest.approx(1.6)
    assert wide.radius.max() == pytest.approx(6)
    assert 8 / 2 < (narrow.radius < 4 * (1 - 0.6 / 2)).sum() < 24 * 1.2
    others = radii.add_lesions(tree, along, np.where(along > 100, 7, 0), [0.5] * 3, rng)
    assert others.radius.max() <= 4
