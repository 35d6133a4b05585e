"""A folder that `datasets.load_dataset(path)` reads: Parquet shards that keep the PV maps.

A row is one case: `image` (or one column for each channel) and `label` as PNG, `pv`
`(C, X, Y)` uint8 (value / 255), and what the case is.
"""

from __future__ import annotations

import io
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
from pyarrow import parquet

from synthgen.export.card import card, label_lines
from synthgen.export.cases import Case, CaseTable, case_table, facts_of
from synthgen.export.encode import png, to_grey
from synthgen.export.wording import wording
from synthgen.export.writer import Closing, Unit

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence
    from pathlib import Path

    from synthgen.data.rows import Entry, Pv, Source
    from synthgen.export.options import ExportOptions

ROWS_PER_FILE = 64
_GREY_BITS = 16
_SPLITS = {"train": "train", "val": "validation", "test": "test"}
_SUFFIX = ".parquet"


class HfWriter:
    """Write Parquet shards; see `Writer`."""

    what = "rows"
    folder = ""

    def __init__(self, source: Source, options: ExportOptions) -> None:
        self._source = source
        table = case_table(source, options.channels)
        names = table.channels
        self._columns = ("image",) if len(names) == 1 else tuple(n.lower() for n in names)
        self._cases = {entry.name: cases for entry, cases in table.cases}
        self.expected = table.count
        self.left_out: Mapping[str, int] = table.left_out
        self.choices: Mapping[str, Any] = {"channels": list(options.channels)}
        self.units: Sequence[Unit] = list(_units(table))

    def require_place(self, out: Path) -> None:
        """Any place will do."""

    def files(self, unit: Unit) -> Iterator[tuple[str, bytes]]:
        """Yield one Parquet file."""
        columns: dict[str, list[Any]] = {}
        maps: list[Pv] = []
        for entry in unit.entries:
            pv = self._source.pv(entry)
            for row in self._rows(entry, pv):
                maps.append(pv)
                for name, value in row.items():
                    columns.setdefault(name, []).append(value)
        if not maps:
            return
        schema = self._schema()
        arrays = [
            _nested(maps, schema.field(name).type)
            if name == "pv"
            else pa.array(columns[name], schema.field(name).type)
            for name in schema.names
        ]
        buffer = io.BytesIO()
        table = pa.Table.from_arrays(arrays, schema=schema)
        parquet.write_table(table, buffer, compression="zstd", row_group_size=ROWS_PER_FILE)
        yield unit.last, buffer.getvalue()

    def _rows(self, entry: Entry, pv: Pv) -> Iterator[dict[str, Any]]:
        labels = np.argmax(pv, axis=0).astype(np.uint8)
        if not labels.any():
            return
        label = {"bytes": png(labels), "path": None}
        for case in self._cases[entry.name]:
            images = [self._source.image(entry, k, pv) for k in case.pictures]
            if all(image.any() for image in images):
                pictures = [
                    {"bytes": png(to_grey(image, _GREY_BITS)), "path": None} for image in images
                ]
                named = dict(zip(self._columns, pictures, strict=True))
                yield named | {"label": label} | facts_of(entry, case)

    def _schema(self) -> Any:  # noqa: ANN401 - pyarrow has no types
        """Return the Arrow schema with the feature types that `datasets` looks for."""
        from datasets import Array3D, Features, Image, Value  # noqa: PLC0415 - takes seconds

        shape = (self._source.schema.channels, *self._source.shape)
        facts: Mapping[str, object] = facts_of(
            self._source.entries[0], Case(name="", style="", modality="", pictures=())
        )
        kinds = {str: "string", int: "int64", float: "float64"}
        features = Features(
            {name: Image() for name in (*self._columns, "label")}
            | {"pv": Array3D(shape, "uint8")}
            | {name: Value(kinds[type(value)]) for name, value in facts.items()}
        )
        return features.arrow_schema

    def closing(self, tree: Path) -> Closing:
        """Return the card."""
        there = [unit for unit in self.units if (tree / unit.last).is_file()]
        count = sum(parquet.read_metadata(tree / unit.last).num_rows for unit in there)
        entries = [entry for unit in there for entry in unit.entries]
        splits = [name for split, name in _SPLITS.items() if split in {e.split for e in entries}]
        schema, words = self._source.schema, wording(self._source)
        use = (
            f"`datasets.load_dataset(path)`. {count} rows. `label` is the tissue with the largest "
            "partial volume; "
            f"`pv` holds {schema.channels} partial-volume maps (channel, X, Y), uint8, "
            f"value / 255, summing to 255, in the order of the table. {words.zero}, stored with "
            f"{_GREY_BITS} bits. {words.axes}. Rows "
            "with the same `group` show one subject or one label map: keep them in one fold."
        )
        readme = card(
            self._source,
            title=f"{words.subject} with partial-volume maps",
            count=count,
            subjects={entry.subject for entry in entries},
            data_files={split: f"data/{split}-*{_SUFFIX}" for split in splits},
            sections=[("Use", use), ("Labels", label_lines(schema, range(schema.channels)))],
        )
        return Closing({"README.md": readme}, count)


def _units(table: CaseTable) -> Iterator[Unit]:
    """Deal samples to files: as many as fill the rows, at least one."""
    most = max((len(cases) for _, cases in table.cases), default=1)
    count = max(1, ROWS_PER_FILE // most)
    for split, name in _SPLITS.items():
        chosen = [entry for entry, _ in table.cases if entry.split == split]
        parts = [tuple(chosen[first : first + count]) for first in range(0, len(chosen), count)]
        for number, part in enumerate(parts):
            yield Unit(part, f"data/{name}-{number:05d}-of-{len(parts):05d}{_SUFFIX}")


def _nested(maps: list[Pv], kind: Any) -> Any:  # noqa: ANN401 - pyarrow has no types
    """Return `(C, X, Y)` arrays as an Arrow array of `datasets`' extension type `kind`.

    Underneath are lists of lists of lists, which other Parquet readers understand.
    """
    nested = pa.array(np.stack(maps).reshape(-1))
    for size in reversed(maps[0].shape):
        offsets = np.arange(0, len(nested) + 1, size, dtype=np.int32)
        nested = pa.ListArray.from_arrays(offsets, nested)
    return pa.ExtensionArray.from_storage(kind, nested)
