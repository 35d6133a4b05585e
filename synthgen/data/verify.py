"""Check a dataset of generated samples: every file, every byte, every row."""

from __future__ import annotations

from typing import TYPE_CHECKING

from synthgen.core.errors import RequestError, SchemaError, StoreError
from synthgen.core.input_files import unusable
from synthgen.data.shard_checks import expected_names, row_problems
from synthgen.data.shards import DAMAGED, Shards, shard_path

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from synthgen.core.schema import LabelSchema


def verify(
    folder: Path,
    schema: LabelSchema | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> list[str]:
    """Check every byte and every row of a dataset.

    Args:
        folder: dataset folder.
        schema: the label schema that it must have, if any.
        progress: called with (samples checked, samples) after each shard.

    Returns:
        One line for each problem; empty when all is well.
    """
    try:
        shards = Shards(folder, schema)
    except (StoreError, SchemaError) as error:
        return [str(error)]
    problems: list[str] = []
    for shard in range(shards.plan.num_shards):
        try:
            problems.extend(_problems(shards, shard))
        except (StoreError, SchemaError, RequestError) as error:
            problems.append(str(error))
        if progress is not None:
            progress(shards.plan.rows(shard).stop, len(shards))
    expected = {shard_path(folder, s).name for s in range(shards.plan.num_shards)}
    problems.extend(
        f"{path}: not part of this dataset of {len(shards)} samples; delete it"
        for path in sorted((folder / "shards").glob("*"))
        if path.name not in expected and not path.name.startswith(".")
    )
    return problems


def _problems(shards: Shards, shard: int) -> list[str]:
    path, arrays = shard_path(shards.folder, shard), shards.arrays(shard)
    names = expected_names(shards.manifest.kind, shards.manifest.identity)
    if sorted(arrays) != names:
        return [f"{path}: expected arrays {', '.join(names)}, got {', '.join(sorted(arrays))}"]
    rows = shards.plan.rows(shard)
    with unusable(path, DAMAGED):
        return list(row_problems(path, arrays, rows, shards.schema, len(shards.styles)))
