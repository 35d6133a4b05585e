"""The job that draws vessel trees: label maps of the schema `vessel`, and arrays beside them."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
import numpy.typing as npt

from synthgen.core.errors import RequestError, SchemaError
from synthgen.core.rng import SampleKey
from synthgen.data.shard_checks import GRAPH, PAST_THE_END, PICTURE_EXTRAS, Arrays, graph_problem
from synthgen.generate.jobs import GenerationSettings, common_identity
from synthgen.labels.vessels.growth import CAP

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from synthgen.core.schema import LabelSchema
    from synthgen.core.vessels import VesselMaps

EXTRAS = (*PICTURE_EXTRAS, GRAPH)
"""Arrays that `VesselJob` can write beside the maps."""
MOST_NODES = 2 * CAP
"""Rows of `graph`: arteries and veins grow apart, each up to its cap."""


class Tree(Protocol):
    """The nodes of a vessel tree, children after parents, `visible` ones closed under parents."""

    @property
    def nodes(self) -> npt.NDArray[np.float32]:
        """Place `(n, 3)`: x, y, depth, in pixels."""

    @property
    def radius(self) -> npt.NDArray[np.float32]:
        """Radius `(n,)` in pixels."""

    @property
    def parent(self) -> npt.NDArray[np.int32]:
        """Index `(n,)` of each node's parent, -1 at a root."""

    @property
    def branch(self) -> npt.NDArray[np.int32]:
        """Branch `(n,)` that each node is part of."""

    @property
    def visible(self) -> npt.NDArray[np.bool_]:
        """Whether each node `(n,)` is labelled."""


class VesselDrawer(Protocol):
    """Draws vessel trees; sample *i* depends on its key alone."""

    @property
    def schema(self) -> LabelSchema:
        """The schema `vessel`."""

    @property
    def shape(self) -> tuple[int, int]:
        """Size (X, Y) of the maps."""

    @property
    def identity(self) -> Mapping[str, Any]:
        """All that decides the trees: preset, its numbers, shape."""

    @property
    def subjects(self) -> tuple[str, ...]:
        """Real subjects that it saw."""

    def draw(self, keys: Sequence[SampleKey]) -> VesselMaps:
        """Draw B trees, each from its own key."""

    def extras(
        self, keys: Sequence[SampleKey], names: Sequence[str]
    ) -> Mapping[str, npt.NDArray[Any]]:
        """Return arrays `(B, X, Y)` of the same trees by name."""

    def tree(self, key: SampleKey) -> Tree:
        """Return the same tree as nodes; raises RequestError where masks have no tree."""


@dataclass(frozen=True)
class VesselJob:
    """Draw vessel trees. Nothing is conditioned and nothing is drawn again.

    Attributes:
        generator: draws the trees.
        extras: names of `EXTRAS` to write beside the maps, in any order.
        settings: seed, sizes, threads, worker.
    """

    generator: VesselDrawer
    extras: Sequence[str] = ()
    settings: GenerationSettings = field(default_factory=GenerationSettings)
    kind: str = "labels"

    def __post_init__(self) -> None:
        for name in self.extras:
            if name not in EXTRAS:
                raise RequestError(f"unknown extra '{name}'; there are {', '.join(EXTRAS)}")
        if len(set(self.extras)) != len(self.extras):
            raise RequestError(f"an extra stands twice: {', '.join(self.extras)}")
        if self.extras:
            self.generator.tree(SampleKey(self.settings.seed, 0))  # refuses masks without a tree

    @property
    def schema(self) -> LabelSchema:
        """Label schema of the generator."""
        return self.generator.schema

    @property
    def condition_names(self) -> Sequence[str]:
        """None: trees are not asked for anything."""
        return ()

    @property
    def subjects(self) -> Sequence[str]:
        """Real subjects that the generator saw."""
        return sorted(self.generator.subjects)

    @property
    def identity(self) -> dict[str, Any]:
        """Settings, generator, extras."""
        return common_identity(self.settings, self.schema, self.generator.identity) | {
            "shape": list(self.generator.shape),
            "extras": sorted(self.extras),
        }

    def rows(self, batch: range) -> Arrays:
        """Compute one full batch of trees.

        Raises:
            SchemaError: the generator returned something that is no tree, by sample.
        """
        keys = [SampleKey(self.settings.seed, index) for index in batch]
        maps = self.generator.draw(keys)
        return tree_rows(maps, keys, self.generator.shape) | self._extras(keys)

    def _extras(self, keys: Sequence[SampleKey]) -> Arrays:
        names = [name for name in self.extras if name != GRAPH]
        arrays: Arrays = dict(self.generator.extras(keys, names)) if names else {}
        for name, array in arrays.items():
            expected = (len(keys), *self.generator.shape)
            problem = PICTURE_EXTRAS[name].problem(array)
            if array.shape != expected or problem:
                raise SchemaError(
                    f"vessel generator, samples from {keys[0].index}, {name}: "
                    f"{problem or f'expected shape {expected}, got {array.shape}'}"
                )
        if GRAPH in self.extras:
            arrays[GRAPH] = np.stack([self._graph(key) for key in keys])
        return arrays

    def _graph(self, key: SampleKey) -> npt.NDArray[np.float32]:
        """Return the node table of what is labelled, filled up to the most nodes of a tree."""
        nodes = labelled_nodes(self.generator.tree(key))
        problem = graph_problem(nodes)
        if problem or len(nodes) > MOST_NODES:
            raise SchemaError(
                f"vessel generator, sample {key.index}, graph: "
                f"{problem or f'{len(nodes)} nodes of at most {MOST_NODES}'}"
            )
        table = np.full((MOST_NODES, nodes.shape[1]), PAST_THE_END, np.float32)
        table[: len(nodes)] = nodes
        return table


def labelled_nodes(tree: Tree) -> npt.NDArray[np.float32]:
    """Return the table `(nodes, 6)` of a tree's labelled nodes, numbered anew from 0.

    Columns as `GRAPH_COLUMNS`; whole numbers below 2**24 are exact.
    """
    kept = tree.visible
    number = np.cumsum(kept) - 1
    parent = np.where(tree.parent < 0, tree.parent, number[tree.parent])
    table = np.column_stack([tree.nodes, tree.radius, parent, tree.branch])
    labelled: npt.NDArray[np.float32] = table[kept].astype(np.float32)
    return labelled


def tree_rows(maps: VesselMaps, keys: Sequence[SampleKey], shape: tuple[int, int]) -> Arrays:
    """Return drawn trees as every dataset of them stores them.

    Raises:
        SchemaError: another shape, or coverage outside [0, 1].
    """
    coverage = maps.coverage
    expected = (len(keys), *shape)
    if coverage.shape != expected or not ((coverage >= 0) & (coverage <= 1)).all():
        raise SchemaError(
            f"vessel generator, samples from {keys[0].index}: expected coverage in [0, 1] of "
            f"shape {expected}, got {coverage.min():g} .. {coverage.max():g} of {coverage.shape}"
        )
    vessel = np.rint(coverage * 255).astype(np.uint8)
    nothing = np.zeros((len(keys), 0), dtype=np.float32)
    return {
        "pv": np.stack([255 - vessel, vessel], axis=1),
        "index": np.asarray([key.index for key in keys], dtype=np.int64),
        "attempt": np.asarray([key.attempt for key in keys], dtype=np.int64),
        "condition": nothing,
        "realised": nothing,
    }
