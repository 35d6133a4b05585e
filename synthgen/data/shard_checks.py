"""What can be wrong inside a shard whose checksum is right: names, rows, values, ranges."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from synthgen.core.errors import SchemaError
from synthgen.core.input_files import is_list_of
from synthgen.core.workspace import safe_name

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping
    from pathlib import Path

    from synthgen.core.schema import LabelSchema

Arrays = dict[str, npt.NDArray[Any]]

_OUTSIDE = 128
"""Stored background PV from which a pixel lies outside the brain: more than 0.5 of 255."""
_ONE, _MINUS_ZERO = 0x3C00, 0x8000
"""Bits of float16; as integers, those of positive numbers are in the order of the numbers."""


@dataclass(frozen=True)
class Values:
    """What an array may hold.

    Attributes:
        dtype: its number format.
        low: smallest value.
        high: largest value.
    """

    dtype: str
    low: float
    high: float = np.inf

    def problem(self, array: npt.NDArray[Any]) -> str:
        """Return what is wrong with an array, or ""."""
        if array.dtype != self.dtype:
            return f"expected {self.dtype}, got {array.dtype}"
        good = np.isfinite(array) & (array >= self.low) & (array <= self.high)
        if good.all():
            return ""
        place = tuple(int(i) for i in np.argwhere(~good)[0])
        span = f"in [{self.low:g}, {self.high:g}]" if np.isfinite(self.high) else f">= {self.low:g}"
        return f"expected finite values {span}, got {float(array[place]):g} at {place}"


PICTURE_EXTRAS: Mapping[str, Values] = {
    "centreline": Values("uint8", 0, 1),
    "path_length": Values("float16", 0),
    "radius": Values("float16", 0),
    "branches": Values("int16", 0),
    "bifurcations": Values("uint8", 0, 1),
}
"""Arrays `(n, X, Y)` that a dataset of vessel trees may hold beside its maps."""

GRAPH = "graph"
GRAPH_COLUMNS = ("x", "y", "depth", "radius", "parent", "branch")
"""Columns of `graph (n, N, 6)`: one row for each node of a vessel tree, children after parents."""
ROOT, PAST_THE_END = -1, -2
"""What stands as the parent of a root, and of rows past the last node."""

_ALWAYS = ("attempt", "condition", "index", "pv", "realised")
_OF_KIND = {"labels": (), "images": ("images", "label_index"), "angiograms": ("images",)}


def expected_names(kind: str, identity: Mapping[str, Any]) -> list[str]:
    """Return the names of the arrays that a shard of a dataset holds, sorted."""
    names = [*_ALWAYS, *_OF_KIND.get(kind, ()), *identity.get("extras", ())]
    return sorted([*names, *(["gate"] if identity.get("gate") else [])])


def file_names(identity: Mapping[str, Any], key: str) -> tuple[str, ...]:
    """Return a list of names, which become parts of names of files, from a dataset's identity.

    Raises:
        TypeError: it is no list of texts.
        RequestError: one of them cannot be a part of a file's name.
    """
    names = identity.get(key, [])
    if not is_list_of(names, str):
        raise TypeError(f"'{key}' must be a list of names, got {names!r:.60}")
    return tuple(safe_name(name) for name in names)


def row_problems(
    path: Path, arrays: Arrays, wanted: range, schema: LabelSchema, styles: int
) -> Iterator[str]:
    """Yield what is wrong with the rows of a shard that holds the arrays it should.

    Args:
        path: the shard's file.
        arrays: what it holds.
        wanted: the sample indices that it should hold.
        schema: label schema of the PV channels.
        styles: images of one sample.
    """
    short = {name: len(array) for name, array in arrays.items() if len(array) != len(wanted)}
    if short:
        yield (
            f"{path}: expected {len(wanted)} rows, got {short}; "
            "run the command that makes this dataset again to complete it"
        )
        return
    if not np.array_equal(arrays["index"], wanted):
        yield f"{path}: expected the indices {wanted[0]} .. {wanted[-1]}, got {arrays['index']}"
    for index, row in zip(wanted, arrays["pv"], strict=True):
        try:
            schema.check(row, f"{path} sample {index}")
        except SchemaError as error:
            yield str(error)
    if "images" in arrays:
        yield from _image_problems(path, arrays, styles, black_outside=not schema.is_picture)
    if "gate" in arrays:
        yield from _gate_problems(path, arrays["gate"])
    yield from _extra_problems(path, arrays)


def _image_problems(
    path: Path, arrays: Arrays, styles: int, *, black_outside: bool
) -> Iterator[str]:
    for index, image, pv in zip(arrays["index"], arrays["images"], arrays["pv"], strict=True):
        where = f"{path} sample {index}"
        wanted = (styles, *pv.shape[1:])
        if image.shape != wanted or image.dtype != np.float16:
            got = f"{image.dtype} of {image.shape}"
            yield f"{where}: expected images as float16 of shape {wanted}, got {got}"
            continue
        bits = image.view(np.uint16)  # ten times faster to compare than float16
        if not ((bits <= _ONE) | (bits == _MINUS_ZERO)).all():
            yield f"{where}: image values must be finite and lie in [0, 1]"
        elif black_outside and np.logical_and(bits << 1, pv[0] >= _OUTSIDE).any():
            yield f"{where}: image is not exactly 0 outside the brain"


def _gate_problems(path: Path, gate: npt.NDArray[Any]) -> Iterator[str]:
    if gate.shape[1:] != (2,):
        yield f"{path} gate: expected (n, 2), Dice and painted outside, got {gate.shape}"
        return
    for column, name, high in ((0, "Dice", 1.0), (1, "painted outside", np.inf)):
        if problem := Values("float32", 0, high).problem(gate[:, column]):
            yield f"{path} gate, {name}: {problem}"


def _extra_problems(path: Path, arrays: Arrays) -> Iterator[str]:
    shape = arrays["pv"].shape[2:]
    for name, values in PICTURE_EXTRAS.items():
        for index, array in zip(arrays["index"], arrays.get(name, ()), strict=False):
            problem = values.problem(array)
            if array.shape != shape:
                problem = f"expected an array of shape {shape}, got {array.shape}"
            if problem:
                yield f"{path} sample {index} {name}: {problem}"
    for index, graph in zip(arrays["index"], arrays.get(GRAPH, ()), strict=False):
        if problem := graph_problem(graph):
            yield f"{path} sample {index} {GRAPH}: {problem}"


def graph_problem(graph: npt.NDArray[Any]) -> str:
    """Return what is wrong with the node table `(N, 6)` of one vessel tree, or ""."""
    if graph.ndim != 2 or graph.shape[1] != len(GRAPH_COLUMNS) or graph.dtype != np.float32:
        return f"expected float32 (nodes, {len(GRAPH_COLUMNS)}), got {graph.dtype} of {graph.shape}"
    if not np.isfinite(graph).all():
        return "expected finite values"
    parent = graph[:, GRAPH_COLUMNS.index("parent")]
    past = parent == PAST_THE_END
    if (np.diff(past.astype(np.int8)) < 0).any():
        return f"a node stands after the end (parent {PAST_THE_END})"
    place = np.arange(len(graph))
    wrong = ~past & ((parent < ROOT) | (parent >= place) | (parent != np.floor(parent)))
    if wrong.any():
        node = int(np.flatnonzero(wrong)[0])
        return f"node {node} has the parent {parent[node]:g}; parents stand before their children"
    if (graph[~past, GRAPH_COLUMNS.index("radius")] <= 0).any():
        return "a node has a radius that is not positive"
    return ""
