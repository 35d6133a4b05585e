"""What a format has to provide, and what the engine tells of an export."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Protocol

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence
    from pathlib import Path

    from synthgen.data.rows import Entry


@dataclass(frozen=True)
class Unit:
    """A piece of work that is done whole: its samples, and the file of it that is written last."""

    entries: tuple[Entry, ...]
    last: str


@dataclass(frozen=True)
class Closing:
    """What is written when all units are done.

    Attributes:
        files: file name to content: tables, descriptions, the card.
        count: cases, subjects or rows that are there.
    """

    files: Mapping[str, bytes]
    count: int


class Writer(Protocol):
    """One format, for one source and its options.

    Attributes:
        folder: name of the folder inside `--out`; empty for `--out` itself.
        choices: options that decide the bytes.
        units: the work, in order.
        expected: cases, subjects or rows if none is blank.
        what: what `expected` counts.
        left_out: samples left out, by reason.
    """

    folder: str
    choices: Mapping[str, Any]
    units: Sequence[Unit]
    expected: int
    what: str
    left_out: Mapping[str, int]

    def require_place(self, out: Path) -> None:
        """Refuse an `--out` whose other contents would clash."""
        ...

    def files(self, unit: Unit) -> Iterator[tuple[str, bytes]]:
        """Yield the files of a unit, `unit.last` last; blank samples yield none."""
        ...

    def closing(self, tree: Path) -> Closing:
        """Return the closing files, for the units that stand in `tree`."""
        ...


@dataclass(frozen=True)
class Outcome:
    """What an export did, or would do.

    Attributes:
        folder: the tree.
        to: format name.
        what: what `count` counts.
        count: cases, subjects or rows in the tree.
        files: files in the tree.
        bytes: their total size.
        written: files that this run wrote.
        seconds: how long it took.
        left_out: samples left out, by reason.
    """

    folder: str
    to: str
    what: str
    count: int
    files: int
    bytes: int
    written: int = 0
    seconds: float = 0.0
    left_out: Mapping[str, int] = field(default_factory=dict)
