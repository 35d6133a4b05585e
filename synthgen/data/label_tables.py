"""Which tissue an integer label is: FreeSurfer and SynthSeg ids, and tables beside the data.

Ids and names are those of FreeSurfer's colour table (Fischl 2012, doi:10.1016/j.neuroimage.2012.
01.021) for `aseg`, and of SynthSeg (Billot et al. 2023, doi:10.1016/j.media.2023.102789).
"""

from __future__ import annotations

import csv
import re
from typing import TYPE_CHECKING

from synthgen.core.errors import SchemaError, StoreError
from synthgen.core.input_files import parse_json, read_text

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

    from synthgen.core.schema import LabelSchema

ALIASES: Mapping[str, str] = {
    "background": "background", "bg": "background", "unknown": "background", "air": "background",
    "csf": "csf", "cerebrospinal-fluid": "csf", "ventricle": "csf", "ventricles": "csf",
    "gm": "gm", "cgm": "gm", "cortical-gm": "gm", "grey-matter": "gm", "gray-matter": "gm",
    "cortical-grey-matter": "gm", "cortex": "gm", "cbgm": "gm", "cerebellar-grey-matter": "gm",
    "wm": "wm", "cwm": "wm", "white-matter": "wm", "cerebral-white-matter": "wm", "cbwm": "wm",
    "cerebellar-white-matter": "wm",
    "dgm": "deep_gm", "deep-gm": "deep_gm", "sgm": "deep_gm", "deep-grey-matter": "deep_gm",
    "subcortical-grey-matter": "deep_gm", "basal-ganglia": "deep_gm",
    "bs": "brainstem", "brainstem": "brainstem", "brain-stem": "brainstem",
    "wmh": "wmh", "lesion": "wmh", "lesions": "wmh", "l": "wmh", "wm-hypointensities": "wmh",
    "white-matter-lesion": "wmh", "white-matter-hyperintensity": "wmh",
    "tumour": "tumour", "tumor": "tumour", "oedema": "oedema", "edema": "oedema",
}  # fmt: skip
"""Class names, lower case with hyphens, to tissue names of `brain9`."""

_SIDED: Mapping[str, str] = {
    "cerebral-exterior": "background", "cerebral-white-matter": "wm", "cerebral-cortex": "gm",
    "lateral-ventricle": "csf", "inf-lat-vent": "csf", "inferior-lateral-ventricle": "csf",
    "cerebellum-exterior": "background", "cerebellum-white-matter": "wm",
    "cerebellum-cortex": "gm", "thalamus": "deep_gm", "thalamus-proper": "deep_gm",
    "caudate": "deep_gm", "putamen": "deep_gm", "pallidum": "deep_gm", "hippocampus": "deep_gm",
    "amygdala": "deep_gm", "insula": "gm", "operculum": "gm", "lesion": "wmh",
    "accumbens-area": "deep_gm", "substancia-nigra": "deep_gm", "ventraldc": "deep_gm",
    "ventral-dc": "deep_gm", "undetermined": "background", "vessel": "csf",
    "choroid-plexus": "csf", "wm-hypointensities": "wmh", "white-matter-lesion": "wmh",
}  # fmt: skip
_MIDLINE: Mapping[str, str] = {
    "3rd-ventricle": "csf", "4th-ventricle": "csf", "5th-ventricle": "csf", "csf": "csf",
    "brain-stem": "brainstem", "wm-hypointensities": "wmh", "non-wm-hypointensities": "gm",
    "optic-chiasm": "wm", "fornix": "wm", "corpus-callosum": "wm", "cc-posterior": "wm",
    "cc-mid-posterior": "wm", "cc-central": "wm", "cc-mid-anterior": "wm", "cc-anterior": "wm",
}  # fmt: skip
_EXTRACEREBRAL = (
    "artery", "eye-balls", "other-soft-tissue", "rectus-muscles", "mucosa", "skin", "spinal-cord",
    "vein", "cortical-bone", "cancellous-bone", "optic-nerve", "skull", "bone", "soft-tissue",
    "head", "extra-cerebral", "extracerebral", "scalp", "air",
)  # fmt: skip

# id: name, right-hand id or None. Left and right halves share a tissue.
_ASEG: tuple[tuple[int, int | None, str], ...] = (
    (1, 40, "background"), (2, 41, "wm"), (3, 42, "gm"), (4, 43, "csf"), (5, 44, "csf"),
    (6, 45, "background"), (7, 46, "wm"), (8, 47, "gm"), (9, 48, "deep_gm"), (10, 49, "deep_gm"),
    (11, 50, "deep_gm"), (12, 51, "deep_gm"), (13, 52, "deep_gm"), (14, None, "csf"),
    (15, None, "csf"), (16, None, "brainstem"), (17, 53, "deep_gm"), (18, 54, "deep_gm"),
    (19, 55, "gm"), (20, 56, "gm"), (24, None, "csf"), (25, 57, "wmh"), (26, 58, "deep_gm"),
    (27, 59, "deep_gm"), (28, 60, "deep_gm"), (29, 61, "background"), (30, 62, "csf"),
    (31, 63, "csf"), (72, None, "csf"), (77, None, "wmh"), (78, 79, "wmh"), (80, None, "gm"),
    (81, 82, "gm"), (85, None, "wm"), (192, None, "wm"), (250, None, "wm"), (251, 252, "wm"),
    (253, 254, "wm"), (255, None, "wm"),
)  # fmt: skip


def freesurfer_table(schema: LabelSchema) -> dict[int, int]:
    """Return FreeSurfer `aseg`, `aparc+aseg` and SynthSeg ids as PV channels.

    Hippocampus, amygdala, accumbens and ventral DC count as deep grey matter (FreeSurfer's
    SubCortGray), choroid plexus and vessels as CSF, extra-cerebral ids (500 and above in
    SynthSeg's training maps) as background.
    """
    tissues = {0: "background"}
    for left, right, tissue in _ASEG:
        tissues[left] = tissue
        if right is not None:
            tissues[right] = tissue
    tissues |= dict.fromkeys([*range(1000, 1036), *range(2000, 2036)], "gm")
    tissues |= dict.fromkeys((136, 137, 163, 164), "csf")  # choroid plexus in SynthSeg's maps
    tissues |= dict.fromkeys(range(500, 531), "background")
    return {label: schema.index(tissue) for label, tissue in tissues.items()}


def tissue_of(name: str) -> str | None:
    """Return the `brain9` tissue of a class or structure name, None if it is unknown.

    Examples:
        >>> tissue_of("CBGM"), tissue_of("Left-Thalamus-Proper*"), tissue_of("ctx-lh-insula")
        ('gm', 'deep_gm', 'gm')
        >>> tissue_of("spleen") is None
        True
    """
    # What stands in brackets is a remark: "background (air)".
    plain = re.sub(r"\(.*?\)", "", name.lower())
    plain = re.sub(r"[^a-z0-9]+", "-", plain).strip("-")
    if plain.startswith("ctx-"):
        return "gm"
    if plain in _EXTRACEREBRAL:
        return "background"
    side = re.match(r"(left|right|l|r|lh|rh)-(.+)", plain)
    bare = side.group(2) if side else plain
    if bare.startswith("choroid-plexus"):
        return "csf"
    for table in (ALIASES, _MIDLINE, _SIDED):
        if bare in table:
            return table[bare]
    return None


def read_table(path: Path, schema: LabelSchema) -> dict[int, int]:
    """Read a label table.

    Understood are: JSON with `labels` (entries of `id` and a class index into one of the class
    lists `fine`, `tissue_alt`, `tissue`, or only a `name`); JSON of id to class name; a BIDS
    `dseg.tsv` (`index`, `name`); a FreeSurfer colour table (`id name r g b a`).

    Returns:
        PV channel of each label id.

    Raises:
        StoreError: the file cannot be read.
        SchemaError: no entry, or a name that is no tissue; all such names are listed.
    """
    try:
        text = read_text(path)
        if path.suffix == ".json":
            entries = _json_entries(path, parse_json(text))
        elif path.suffix == ".tsv":
            entries = _tsv_entries(path, text)
        else:
            entries = _colour_entries(text)
    except (OSError, ValueError, csv.Error) as error:
        if isinstance(error, SchemaError):
            raise
        raise StoreError(f"{path}: not a readable label table ({error})") from error
    return _channels(path, entries, schema)


def _channels(
    path: Path, entries: Sequence[tuple[int, str]], schema: LabelSchema
) -> dict[int, int]:
    if not entries:
        raise SchemaError(f"{path}: no label in the table; expected ids with names")
    unknown = [f"{label} '{name}'" for label, name in entries if tissue_of(name) is None]
    if unknown:
        raise SchemaError(
            f"{path}: no tissue known for label {', '.join(unknown[:8])}"
            f"{' and others' if len(unknown) > 8 else ''}; "
            f"use one of {', '.join(schema.names)} as its name"
        )
    return {label: schema.index(tissue_of(name) or "background") for label, name in entries}


def _json_entries(path: Path, raw: object) -> list[tuple[int, str]]:
    if not isinstance(raw, dict):
        raise SchemaError(f"{path}: expected a JSON object, got {type(raw).__name__}")
    labels = raw.get("labels")
    try:
        if labels is None:
            return [(int(label), str(name)) for label, name in raw.items()]
        classes = next((k for k in ("fine", "tissue_alt", "tissue") if k in raw), None)
        entries = []
        for entry in labels:
            if classes is not None and classes in entry:
                entries.append((int(entry["id"]), str(raw[classes][entry[classes]])))
            else:
                entries.append((int(entry["id"]), str(entry["name"])))
    except (AttributeError, LookupError, TypeError, ValueError, OverflowError) as error:
        raise SchemaError(
            f"{path}: not a label table; expected 'labels' with 'id' and 'name' or a class, "
            f"or ids with tissue names ({type(error).__name__}: {error})"
        ) from error
    return entries


def _tsv_entries(path: Path, text: str) -> list[tuple[int, str]]:
    rows = list(csv.DictReader(text.splitlines(), delimiter="\t"))
    if rows and not {"index", "name"} <= set(rows[0]):
        raise SchemaError(
            f"{path}: expected the columns 'index' and 'name', got {', '.join(map(str, rows[0]))}"
        )
    try:
        return [(int(row["index"]), str(row["name"] or "")) for row in rows]
    except (TypeError, ValueError) as error:
        raise SchemaError(f"{path}: column 'index' must hold integers ({error})") from error


def _colour_entries(text: str) -> list[tuple[int, str]]:
    entries = []
    for line in text.splitlines():
        fields = line.split()
        if len(fields) >= 2 and fields[0].isdecimal():
            entries.append((int(fields[0]), fields[1]))
    return entries
