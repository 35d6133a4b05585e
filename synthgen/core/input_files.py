"""Files that others may have written, looked at before they are read: kind, size, nesting.

What a file claims is checked here, or by its reader, before memory is set aside for it. The limits
are far above what synthgen writes (the `dataset.json` of 200 000 cases has 40 MB) and low enough
that no file can use up a machine: a JSON document of any content takes less than 1 GiB.
"""

from __future__ import annotations

import json
import stat
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from synthgen.core.errors import StoreError, SynthgenError

if TYPE_CHECKING:
    from collections.abc import Iterator
    from io import BufferedReader
    from pathlib import Path

MAX_JSON_BYTES = 64 * 2**20
"""Largest JSON document; as Python objects a list of short strings takes twelve times its size."""
MAX_CONTAINERS = 2_000_000
"""Most lists and objects in one JSON document; `{},` takes 24 times its size."""
MAX_TABLE_BYTES = 256 * 2**20
"""Largest table of rows, TSV or JSON lines."""
MAX_DEPTH = 64
"""Deepest nesting of JSON; Python's own limit would stop whatever walks it later."""
MOST_DEFLATED = 1032
"""How many bytes one byte of a deflate stream can become at most (258 for 2 bits)."""

_INT64 = 2**63
_DAMAGE = (
    *(OSError, ValueError, TypeError, LookupError, AttributeError),
    # Numbers too large or 0, recursion too deep, what libraries find wrong with sizes and names.
    *(ArithmeticError, RuntimeError, AssertionError, ImportError),
)


@contextmanager
def unusable(path: Path, remedy: str) -> Iterator[None]:
    """Raise what goes wrong while a file's content is taken apart as one line with its name.

    Args:
        path: the file or folder that is read.
        remedy: what to do, for the message.

    Raises:
        StoreError: instead of any error that a garbled file can cause; synthgen's own pass if they
            name the file or its folder.
    """
    try:
        yield
    except SynthgenError as error:
        if str(path.parent) in str(error):
            raise
        raise StoreError(f"{path}: {error}; {remedy}") from error
    except _DAMAGE as error:
        raise StoreError(f"{path}: damaged or foreign ({one_line(error)}); {remedy}") from error


def one_line(error: BaseException) -> str:
    """Return the kind of an error and the first line of its message, shortened."""
    text = (str(error).strip().splitlines() or [""])[0]
    return f"{type(error).__name__}: {text[:200]}" if text else type(error).__name__


def require_regular(path: Path) -> None:
    """Refuse what is no file: pipes and devices may never end, or never begin.

    Raises:
        OSError: it is not there, or no regular file.
    """
    mode = path.stat().st_mode
    if stat.S_ISDIR(mode):
        raise IsADirectoryError(f"{path.name} is a folder")
    if not stat.S_ISREG(mode):
        raise OSError(f"{path.name} is no regular file")


def open_regular(path: Path) -> BufferedReader:
    """Open a regular file for reading.

    Raises:
        OSError: it cannot be opened, or is no regular file.
    """
    require_regular(path)
    return path.open("rb")


def read_bytes(path: Path, most: int = MAX_JSON_BYTES) -> bytes:
    """Read a file whole.

    Raises:
        OSError: it cannot be read, or is no regular file.
        ValueError: it is larger than `most` bytes.
    """
    with open_regular(path) as stream:
        data = stream.read(most + 1)
    if len(data) > most:
        raise ValueError(f"larger than {most // 2**10} KiB")
    return data


def read_text(path: Path, most: int = MAX_TABLE_BYTES) -> str:
    """Read a text in UTF-8, a byte order mark left out.

    Raises:
        OSError: it cannot be read, or is no regular file.
        ValueError: it is larger than `most` bytes, or not UTF-8.
    """
    return read_bytes(path, most).decode("utf-8-sig")


def read_json(path: Path) -> Any:  # noqa: ANN401 - JSON holds anything
    """Read a JSON document; see `parse_json`.

    Raises:
        OSError: it cannot be read, or is no regular file.
        ValueError: it is too large, or `parse_json` refuses it.
    """
    return parse_json(read_bytes(path))


def read_object(path: Path) -> dict[str, Any]:
    """Read a JSON document that must be an object; see `parse_json`.

    Raises:
        StoreError: it cannot be read, or is no such document.
    """
    try:
        value = read_json(path)
    except (OSError, ValueError) as error:
        raise StoreError(f"{path}: not readable as JSON ({error})") from error
    if not isinstance(value, dict):
        raise StoreError(f"{path}: expected a JSON object, got {type(value).__name__}")
    return value


def parse_json(text: bytes | str) -> Any:  # noqa: ANN401 - JSON holds anything
    """Parse JSON that can be written again: of a sane depth, integers of 64 bits, valid Unicode.

    Raises:
        ValueError: it is not such JSON.

    Examples:
        >>> parse_json('{"n": [1, 2.5]}')
        {'n': [1, 2.5]}
    """
    if isinstance(text, bytes):
        containers = text.count(b"[") + text.count(b"{")
    else:
        containers = text.count("[") + text.count("{")
    if containers > MAX_CONTAINERS:
        raise ValueError(f"more than {MAX_CONTAINERS} lists and objects")
    try:
        value = json.loads(text, parse_int=_integer)
    except RecursionError as error:
        raise ValueError(f"nested deeper than {MAX_DEPTH}") from error
    waiting = [(value, 0)]
    while waiting:
        item, depth = waiting.pop()
        if isinstance(item, str):
            item.encode()  # half a surrogate pair is a UnicodeEncodeError, a ValueError
        elif isinstance(item, list | dict):
            if depth == MAX_DEPTH:
                raise ValueError(f"nested deeper than {MAX_DEPTH}")
            if isinstance(item, dict):
                waiting += [(name, depth) for name in item]
            parts = item.values() if isinstance(item, dict) else item
            waiting += [(part, depth + 1) for part in parts]
    return value


def is_list_of(value: object, kind: type) -> bool:
    """Tell whether a JSON value is a list whose entries are all of one kind."""
    return isinstance(value, list) and all(isinstance(entry, kind) for entry in value)


def _integer(digits: str) -> int:
    if len(digits) > 20 or not -_INT64 <= (value := int(digits)) < _INT64:
        raise ValueError(f"{digits[:24]} is no integer of 64 bits")
    return value
