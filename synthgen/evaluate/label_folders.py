"""A folder of label maps: NAME.png, NAME.nii.gz and such, and what their values mean.

Values get their names from a `dataset.json` in nnU-Net's form (Isensee et al. 2021,
doi:10.1038/s41592-020-01008-z), in the folder or, for `labelsTr` and `labelsTs`, above it: a tissue
is one value, or a list of values for regions that overlap; 0 is background; nobody judges `ignore`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from synthgen.core.errors import GeometryError, RequestError, SchemaError, StoreError
from synthgen.core.input_files import read_json
from synthgen.data.nifti import read_labels
from synthgen.data.picture_files import SUFFIXES
from synthgen.data.picture_files import read_label_map as read_picture

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

    from synthgen.core.geometry import Grid

TABLE = "dataset.json"
_VOLUMES = (".nii.gz", ".nii")
_RAW_FOLDERS = ("labelsTr", "labelsTs")
_IGNORED = "ignore"

Labels = npt.NDArray[np.int32]


@dataclass(frozen=True)
class LabelTable:
    """What the values of a folder's label maps mean.

    Attributes:
        values: of each tissue; no values stand for the one value that is not 0.
        ignored: value of voxels that nobody judges, None if there is none.

    Examples:
        >>> table = LabelTable({"whole": (1, 2), "core": (2,)})
        >>> table.mask(np.asarray([0, 1, 2]), "whole").tolist()
        [False, True, True]
    """

    values: Mapping[str, tuple[int, ...]]
    ignored: int | None = None

    def mask(self, labels: Labels, tissue: str) -> npt.NDArray[np.bool_]:
        """Return where a label map shows a tissue."""
        values = self.values[tissue]
        return np.isin(labels, values) if values else labels != 0

    def check(self, labels: Labels, path: Path) -> None:
        """Refuse values without a meaning.

        Raises:
            SchemaError: naming them.
        """
        there = {int(value) for value in np.unique(labels)} - {0, self.ignored}
        known = {value for values in self.values.values() for value in values}
        if not known:
            if len(there) > 1:
                raise SchemaError(
                    f"{path}: expected a mask of one value beside 0, got {_listed(there)}; a "
                    f"{TABLE} in its folder says what they mean"
                )
        elif there - known:
            raise SchemaError(
                f"{path}: label {_listed(there - known)} has no name; those with names are "
                f"{_listed(known)}"
            )


@dataclass(frozen=True)
class LabelMap:
    """One file.

    Attributes:
        labels: `(X, Y)` or `(X, Y, Z)`.
        spacing: of a pixel or voxel along each axis, in `unit`.
        unit: "mm" or "px".
        grid: of a volume, in RAS.
    """

    labels: Labels
    spacing: tuple[float, ...]
    unit: str
    grid: Grid | None


def read_label_map(path: Path) -> LabelMap:
    """Read a label map; axes of a single voxel are dropped, so that a slice is 2-D.

    Raises:
        StoreError: unreadable.
        GeometryError: neither 2-D nor 3-D.
        SchemaError: values that are no integers.
    """
    if not path.name.lower().endswith(_VOLUMES):
        return LabelMap(read_picture(path), (1.0, 1.0), "px", None)
    volume = read_labels(path, may_be_empty=True)
    labels = volume.data
    long = [axis for axis, size in enumerate(labels.shape) if size > 1]
    if len(long) < 2:
        raise GeometryError(f"{path}: expected a slice or a volume, got shape {labels.shape}")
    spacing = tuple(volume.grid.spacing_mm[axis] for axis in long)
    return LabelMap(labels.squeeze(), spacing, "mm", volume.grid)


def cases_of(folder: Path, suffix: str = "") -> dict[str, Path]:
    """Return the label maps of a folder by the name of their case.

    Args:
        folder: holds them; other files are not looked at.
        suffix: what file names have after the case's; files without it are not looked at.

    Raises:
        RequestError: no such folder, no label map, or two of one case.
    """
    if not folder.is_dir():
        raise RequestError(f"{folder}: no such folder; expected a folder of label maps")
    found: dict[str, Path] = {}
    for path in sorted(folder.iterdir()):
        ending = next((e for e in (*_VOLUMES, *SUFFIXES) if path.name.lower().endswith(e)), "")
        stem = path.name.removesuffix(path.name[len(path.name) - len(ending) :])
        if not ending or path.name.startswith(".") or not stem.endswith(suffix):
            continue
        name = stem.removesuffix(suffix)
        if name in found:
            raise RequestError(f"{found[name]} and {path} are both of case {name}; keep one")
        found[name] = path
    if not found:
        named = f" whose names end in '{suffix}'" if suffix else ""
        raise RequestError(f"{folder}: no label maps{named}; expected NAME.png or NAME.nii.gz")
    return found


def tables_of(folders: Sequence[Path], files: Sequence[Sequence[Path]]) -> list[LabelTable]:
    """Return what the values of two folders mean, in the order of the second one.

    A folder without a table shares the other's; where that names one tissue, a mask of any one
    value shows it. Without any table, masks of one value show a foreground, and the values of
    label maps name themselves.

    Args:
        folders: of the predictions and of the reference.
        files: their label maps.

    Raises:
        SchemaError: both have a table, of other tissues.
        StoreError: a table is not readable.
    """
    found, wanted = (_read_table(folder) for folder in folders)
    if found is not None and wanted is not None and {*found.values} != {*wanted.values}:
        raise SchemaError(
            f"{folders[0]}: its {TABLE} names {', '.join(found.values)}, that of {folders[1]} "
            f"{', '.join(wanted.values)}; both need the same tissues"
        )
    known = wanted or found
    if known is not None:
        (only, *more) = known.values
        shared = known if more else LabelTable({only: ()})
        return [found or shared, wanted or shared]
    values = [
        {int(v) for file in side for v in np.unique(read_label_map(file).labels)} - {0}
        for side in files
    ]
    if max(len(side) for side in values) <= 1:
        return [LabelTable({"foreground": ()})] * 2
    return [LabelTable({f"label {v}": (v,) for v in sorted(values[0] | values[1])})] * 2


def _read_table(folder: Path) -> LabelTable | None:
    above = folder.resolve().name in _RAW_FOLDERS
    places = [folder / TABLE, *([folder.resolve().parent / TABLE] if above else [])]
    path = next((place for place in places if place.is_file()), None)
    if path is None:
        return None
    try:
        labels = read_json(path)["labels"]
        values = {
            str(name): tuple(int(v) for v in (value if isinstance(value, list) else [value]))
            for name, value in labels.items()
        }
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise StoreError(
            f"{path}: expected 'labels' with the value, or values, of each name ({error!r})"
        ) from error
    ignored = values.pop(_IGNORED, None)
    tissues = {name: value for name, value in values.items() if value != (0,)}
    if not tissues:
        raise StoreError(f"{path}: 'labels' names no tissue beside the background")
    return LabelTable(tissues, ignored[0] if ignored else None)


def _listed(values: set[int]) -> str:
    shown = [str(v) for v in sorted(values)[:8]] + (["..."] if len(values) > 8 else [])
    return ", ".join(shown)
