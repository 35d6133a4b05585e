"""YAML as recipes need it: the YAML 1.2 core schema on top of PyYAML's safe loader.

PyYAML follows YAML 1.1, where `1e-4` is a string, `on` and `no` are booleans, `010` is 8 and a
key that stands twice silently wins. Here `1e-4` is a float, `on` a string, `010` is 10, and a
key that stands twice is refused.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any

import yaml

from synthgen.core.errors import RecipeError

if TYPE_CHECKING:
    from collections.abc import Hashable

_CORE = (
    ("tag:yaml.org,2002:null", re.compile(r"^(?:~|null|Null|NULL|)$"), ["~", "n", "N", ""]),
    (
        "tag:yaml.org,2002:bool",
        re.compile(r"^(?:true|True|TRUE|false|False|FALSE)$"),
        list("tTfF"),
    ),
    (
        "tag:yaml.org,2002:int",
        re.compile(r"^(?:[-+]?[0-9]+|0o[0-7]+|0x[0-9a-fA-F]+)$"),
        list("-+0123456789"),
    ),
    (
        "tag:yaml.org,2002:float",
        re.compile(
            r"^(?:[-+]?(?:\.[0-9]+|[0-9]+(?:\.[0-9]*)?)(?:[eE][-+]?[0-9]+)?"
            r"|[-+]?\.(?:inf|Inf|INF)|\.(?:nan|NaN|NAN))$"
        ),
        list("-+0123456789."),
    ),
    ("tag:yaml.org,2002:merge", re.compile(r"^(?:<<)$"), ["<"]),
)
"""Tag, pattern and possible first characters, most specific first (YAML 1.2.2, 10.3.2)."""


MAX_BYTES = 2**18
"""Longest document; the longest recipe that comes with synthgen has a tenth. PyYAML reads some
hundred thousand characters a second."""
MAX_NODES = 20_000
"""Most values of a document, those that an alias stands for counted each time."""


class RecipeLoader(yaml.SafeLoader):
    """PyYAML's safe loader with YAML 1.2 scalars; duplicate keys are refused."""

    def get_single_node(self) -> yaml.Node | None:
        """Return the document's node.

        Raises:
            RecipeError: its aliases stand for too much, or for what they stand in.
        """
        node: yaml.Node | None = super().get_single_node()
        if node is not None:
            _size(node, {})
        return node

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Hashable, Any]:
        """Build a mapping.

        Raises:
            RecipeError: a key stands twice, or is not a string or an integer.
        """
        seen: set[Hashable] = set()
        for key_node, _ in node.value:
            key = self.construct_object(key_node, deep=True)
            line = key_node.start_mark.line + 1
            if not isinstance(key, str | int) or isinstance(key, bool):
                raise RecipeError(f"line {line}: a key must be a name, got {key!r}")
            if key in seen:
                raise RecipeError(f"line {line}: key '{key}' stands twice in one section")
            seen.add(key)
        return super().construct_mapping(node, deep=deep)

    def construct_core_int(self, node: yaml.ScalarNode) -> int:
        """Build an integer; a leading zero does not mean octal."""
        text = self.construct_scalar(node)
        base = {"0o": 8, "0x": 16}.get(text[:2])
        return int(text[2:], base) if base else int(text, 10)


def _size(node: yaml.Node, known: dict[int, int]) -> int:
    """Return how many values a node stands for, without walking what an alias repeats.

    Raises:
        RecipeError: more than `MAX_NODES`, or a node that holds itself.
    """
    if id(node) in known:
        if known[id(node)] == 0:
            raise RecipeError(f"line {node.start_mark.line + 1}: a value holds itself")
        return known[id(node)]
    known[id(node)] = 0
    total = 1
    if isinstance(node, yaml.CollectionNode):
        for child in node.value:
            parts = child if isinstance(child, tuple) else (child,)
            total += sum(_size(part, known) for part in parts)
    if total > MAX_NODES:
        raise RecipeError(f"more than {MAX_NODES} values, aliases counted; that is no recipe")
    known[id(node)] = total
    return total


class RecipeDumper(yaml.SafeDumper):
    """Writes what `RecipeLoader` reads back equal."""

    def ignore_aliases(self, data: object) -> bool:
        """Spell every value out: a recipe reads better without anchors."""
        return True


RecipeLoader.yaml_implicit_resolvers = {}
RecipeDumper.yaml_implicit_resolvers = {}
for _tag, _pattern, _first in _CORE:
    yaml.add_implicit_resolver(_tag, _pattern, _first, Loader=RecipeLoader, Dumper=RecipeDumper)
RecipeLoader.add_constructor("tag:yaml.org,2002:int", RecipeLoader.construct_core_int)


def parse(text: str, where: str) -> Any:  # noqa: ANN401 - YAML holds anything
    """Parse one YAML document.

    Args:
        text: the document.
        where: what messages call it, usually the file.

    Raises:
        RecipeError: not YAML, a key twice, a tag that makes Python objects, or far too large.
    """
    if len(text) > MAX_BYTES:
        raise RecipeError(f"{where}: {len(text)} characters; a recipe has at most {MAX_BYTES}")
    try:
        # RecipeLoader extends the *safe* loader, which S506 cannot see.
        return yaml.load(text, Loader=RecipeLoader)  # noqa: S506
    except RecipeError as error:
        raise RecipeError(f"{where}: {error}") from error
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        line = f" line {mark.line + 1}:" if mark else ""
        raise RecipeError(f"{where}:{line} not valid YAML: {_one_line(error.problem)}") from error
    except (yaml.YAMLError, ValueError, RecursionError, OverflowError) as error:
        raise RecipeError(f"{where}: not valid YAML: {_one_line(error)}") from error


def render(value: object) -> str:
    """Return the YAML text of plain data; `parse` gives it back equal."""
    return yaml.dump(value, Dumper=RecipeDumper, sort_keys=False, allow_unicode=True)


def _one_line(text: object) -> str:
    return " ".join(str(text).split())
