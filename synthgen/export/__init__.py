"""Datasets in the formats of others: nnU-Net and Hugging Face folders, BIDS derivatives, Parquet.

Streams: few samples (one subject's volumes, one Parquet file) are in memory at a time. A killed
export is completed by the same call; equal input gives equal bytes.
"""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

from synthgen.core.errors import RequestError, StoreError
from synthgen.core.lock import folder_lock
from synthgen.data.rows import Source, open_source
from synthgen.export.hf import HfWriter
from synthgen.export.nifti import NiftiWriter
from synthgen.export.nnunet import NnunetWriter
from synthgen.export.options import ExportOptions
from synthgen.export.tree import Tree, TreeWriter
from synthgen.export.writer import Outcome, Writer

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from pathlib import Path

__all__ = ["FORMATS", "ExportOptions", "Outcome", "Source", "export", "forecast", "open_source"]

FORMATS: Mapping[str, Callable[[Source, ExportOptions], Writer]] = {
    "nnunet": NnunetWriter,
    "nifti": NiftiWriter,
    "hf": HfWriter,
}
"""Format name to its writer."""

_UNDERSTOOD = {
    "nnunet": ("dataset_id", "name", "channels", "file_ending", "bits"),
    "nifti": (),
    "hf": ("channels",),
}
_PROBES = 8
"""Units that a forecast encodes to measure bytes."""


def export(
    source: Source,
    to: str,
    out: Path,
    options: ExportOptions,
    *,
    progress: Callable[[int, int], None] | None = None,
) -> Outcome:
    """Export samples. Files that a killed run has written stay.

    Args:
        source: what to export; see `open_source`.
        to: a name of `FORMATS`.
        out: the folder, empty, absent or of the same export; for "nnunet" the folder that holds
            `DatasetXXX_Name`, such as `nnUNet_raw`.
        options: the format's options.
        progress: called with (units done, units).

    Raises:
        RequestError: unknown format, an option that does not fit, an `out` that holds
            something else, or into which another process writes.
        StoreError: damaged samples, all of them blank, or a disk that is full.
        SchemaError: label maps that break their schema.
    """
    started = time.perf_counter()
    writer, tree = _prepared(source, to, out, options)
    with folder_lock(tree.folder, f"export to {to}"):
        tree.claim()
        with TreeWriter(tree) as background:
            for number, unit in enumerate(writer.units, start=1):
                if not (tree.folder / unit.last).is_file():
                    background.put(list(writer.files(unit)))
                if progress is not None:
                    progress(number, len(writer.units))
        closing = writer.closing(tree.folder)
        if not closing.count:
            raise StoreError(f"{source.name}: every sample is blank; nothing to export")
        renewed = sum(tree.renew(name, data) for name, data in closing.files.items())
        tree.seal()
    files, size = tree.size()
    blank = writer.expected - closing.count
    return Outcome(
        folder=str(tree.folder),
        to=to,
        what=writer.what,
        count=closing.count,
        files=files,
        bytes=size,
        written=background.written + renewed,
        seconds=time.perf_counter() - started,
        left_out={**writer.left_out, **({f"blank {writer.what}": blank} if blank else {})},
    )


def forecast(source: Source, to: str, out: Path, options: ExportOptions) -> Outcome:
    """Return what `export` would make, measured on a few samples; writes nothing.

    Raises:
        RequestError: whatever `export` would refuse before it starts.
        StoreError: the samples looked at are damaged.
        SchemaError: their label maps break the schema.
    """
    writer, tree = _prepared(source, to, out, options)
    started = time.perf_counter()
    probes = writer.units[:: max(1, len(writer.units) // _PROBES)][:_PROBES]
    sizes = [len(data) for unit in probes for _, data in writer.files(unit)]
    share = sum(len(unit.entries) for unit in probes) / sum(len(u.entries) for u in writer.units)
    return Outcome(
        folder=str(tree.folder),
        to=to,
        what=writer.what,
        count=writer.expected,
        files=round(len(sizes) / share),
        bytes=round(sum(sizes) / share),
        seconds=(time.perf_counter() - started) / share,
        left_out=writer.left_out,
    )


def _prepared(source: Source, to: str, out: Path, options: ExportOptions) -> tuple[Writer, Tree]:
    if to not in FORMATS:
        raise RequestError(f"--to: expected one of {', '.join(FORMATS)}, got '{to}'")
    options.require_only(_UNDERSTOOD[to], to)
    writer = FORMATS[to](source, options)
    identity = {"to": to, **source.identity, **writer.choices}
    tree = Tree(out / writer.folder, identity)
    writer.require_place(out)
    tree.require_free()
    return writer, tree
