"""The dataset card: Hugging Face front matter, then what a reader must know."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

from synthgen.core.manifest import provenance
from synthgen.export.wording import wording

if TYPE_CHECKING:
    from collections.abc import Collection, Mapping, Sequence

    from synthgen.core.schema import LabelSchema
    from synthgen.data.rows import Source

_SIZES = ((1_000, "n<1K"), (10_000, "1K<n<10K"), (100_000, "10K<n<100K"), (10**6, "100K<n<1M"))


def card(
    source: Source,
    *,
    title: str,
    count: int,
    subjects: Collection[str],
    data_files: Mapping[str, Sequence[str] | str],
    sections: Sequence[tuple[str, str]],
) -> bytes:
    """Return the bytes of `README.md`.

    Args:
        source: what was exported.
        title: name of the dataset.
        count: rows that `datasets.load_dataset` sees.
        subjects: real subjects whose slices were exported.
        data_files: split to its files, if `load_dataset` needs to be told.
        sections: (heading, text) on this format.
    """
    facts = "\n".join(f"- {what}: {value}" for what, value in source.facts)
    version = provenance()["synthgen"]
    kind = "real scans" if source.real else "generated"
    text = (
        f"{_front(source, count, data_files)}\n# {title}\n\n"
        f"{kind.capitalize()}, exported by synthgen {version}. {_warning(source)}\n\n"
        + "\n\n".join(f"## {heading}\n{body}" for heading, body in sections)
        + f"\n\n## Origin\n{facts}\n- real subjects {_relation(source)}: "
        f"{', '.join(sorted(subjects if source.real else source.ancestors)) or 'none stated'}\n"
    )
    return text.encode()


def label_lines(schema: LabelSchema, values: Sequence[int]) -> str:
    """Return a Markdown table of label values."""
    rows = [
        f"| {value} | {tissue.name} | {'yes' if tissue.lesion else ''} |"
        for value, tissue in zip(values, schema.tissues, strict=True)
    ]
    return "\n".join(["| value | tissue | lesion |", "|---|---|---|", *rows])


def _front(source: Source, count: int, data_files: Mapping[str, Sequence[str] | str]) -> str:
    size = next((name for limit, name in _SIZES if count < limit), "n>1M")
    listed = [{"split": split, "path": path} for split, path in data_files.items()]
    configs = [{"config_name": "default", "data_files": listed}]
    tags = [*wording(source).tags, *([] if source.real else ["synthetic"])]
    # JSON values are YAML values.
    lines = [
        "license: other",
        f"task_categories: {json.dumps(['image-segmentation'])}",
        f"tags: {json.dumps(tags)}",
        f"size_categories: {json.dumps([size])}",
        *([f"configs: {json.dumps(configs)}"] if listed else []),
    ]
    return "\n".join(["---", *lines, "---", ""])


def _warning(source: Source) -> str:
    if source.real:
        return "These are scans of people: keep to the licence and consent under which they came."
    return (
        "Synthetic is not a synonym of private, and not fit for diagnosis. Do not test on the "
        "real subjects named under Origin what was trained on these data."
    )


def _relation(source: Source) -> str:
    return "shown" if source.real else "that any model behind the data saw"
