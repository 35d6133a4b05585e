"""nnU-Net raw folders as labelled data: 2-D or 3-D, PNG or NIfTI, hard labels or regions.

Format: nnU-Net v2 (Isensee et al. 2021, doi:10.1038/s41592-020-01008-z): `dataset.json`,
`imagesTr/CASE_0000.nii.gz`, `labelsTr/CASE.nii.gz`, and `imagesTs` with `labelsTs` where there are
labels. NIfTI is turned to RAS and scaled by `normalise`, a channel at a time; the full range of a
picture's type becomes [0, 1]. What synthgen's own folders add is read where it is there:
`metadata.jsonl` (subject, group and split of each case), and in `dataset.json`
`"synthgen": {"real": false, "subjects": [...]}`: whether these are scans, and of generated ones the
real subjects that they descend from. Without it, a folder shows scans, each of its own subject.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from synthgen.core.errors import GeometryError, RequestError, SchemaError, StoreError
from synthgen.core.input_files import is_list_of, parse_json, read_json, read_text, unusable
from synthgen.core.manifest import digest, unsealed
from synthgen.core.schema import BRAIN9, LabelSchema, Tissue
from synthgen.core.tissue_groups import TissueGroups
from synthgen.data.labelled import DATASET_JSON, Floats, LabelledCase
from synthgen.data.nifti import Volume, normalise, read_geometry, read_image, read_labels
from synthgen.data.picture_files import SUFFIXES, read_label_map, read_picture
from synthgen.data.store_writer import check_split

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

METADATA = "metadata.jsonl"
ORIGIN = "synthgen"
"""Key of `dataset.json` that says where the images come from."""

_FACTS = ("subject", "group", "split")
"""What is kept of the metadata of a case."""
_VOLUMES = (".nii.gz", ".nii")
_TAIL = 64  # bytes: checksums of gzip and PNG stand at the end


@dataclass(frozen=True)
class _Description:
    """What `dataset.json` says, checked."""

    channels: tuple[str, ...]
    labels: Mapping[str, tuple[int, ...]]  # background included
    overlapping: bool
    ending: str
    real: bool
    ancestors: tuple[str, ...]


@dataclass(frozen=True)
class _Files:
    case: LabelledCase
    images: tuple[Path, ...]
    label: Path
    thin: int | None  # of a NIfTI of one slice, the axis of length 1


@dataclass(frozen=True)
class _Folder:
    """A raw folder: where it is, and what its two tables say."""

    path: Path
    description: _Description
    facts: Mapping[str, Mapping[str, str]]  # of each case, from the metadata

    def of_split(self, split: str) -> list[tuple[str, str]]:
        """Return the cases of a split: their names, and "Tr" or "Ts"."""
        ending = self.description.ending
        found = {
            where: sorted(
                path.name.removesuffix(ending)
                for path in (self.path / f"labels{where}").glob(f"*{ending}")
                if not path.name.startswith(".")
            )
            for where in ("Tr", "Ts")
        }
        held = [stem for stem in found["Tr"] if self._fact(stem, "split") == "val"]
        if split == "train":
            return [(stem, "Tr") for stem in found["Tr"] if stem not in {*held}]
        if split == "val" and held:
            return [(stem, "Tr") for stem in held]
        return [(stem, "Ts") for stem in found["Ts"]]

    def subject(self, stem: str) -> str:
        """Return the real subject that a case shows; "" for a generated one."""
        if not self.description.real:
            return ""
        return self._fact(stem, "subject") or f"{self.path.name}/{stem}"

    def files(self, stem: str, where: str, channels: Sequence[int]) -> _Files:
        """Return the files of a case, which must be there."""
        ending = self.description.ending
        images = tuple(self.path / f"images{where}" / f"{stem}_{k:04d}{ending}" for k in channels)
        missing = [path for path in images if not path.is_file()]
        if missing:
            raise StoreError(f"{missing[0]}: no such file, but there is a label map of this case")
        label = self.path / f"labels{where}" / f"{stem}{ending}"
        spacing, thin = _geometry(label) if ending in _VOLUMES else ((1.0, 1.0), None)
        subject = self.subject(stem)
        group = self._fact(stem, "group") or subject or stem
        return _Files(LabelledCase(stem, subject, group, spacing), images, label, thin)

    def _fact(self, stem: str, name: str) -> str:
        return self.facts.get(stem, {}).get(name, "")


class NnunetRaw:
    """Cases of one split of an nnU-Net raw folder; see `LabelledData` and `open_nnunet_raw`."""

    def __init__(
        self,
        folder: _Folder,
        labels: _Labels,
        channels: tuple[str, ...],
        files: tuple[_Files, ...],
        split: str,
    ) -> None:
        self._files, self._labels = files, labels
        self.name, self.real = str(folder.path), folder.description.real
        self.tissues, self.overlapping = labels.tissues, labels.overlapping
        self.channels = channels
        self.cases = tuple(one.case for one in files)
        self.spatial_dims = len(self.cases[0].spacing_mm)
        spacings = np.asarray([case.spacing_mm for case in self.cases])
        self.spacing_mm: tuple[float, ...] = tuple(np.median(spacings, axis=0).tolist())
        shown = {case.subject for case in self.cases} - {""}
        self.subjects = tuple(sorted(shown | {*folder.description.ancestors}))
        paths = [path for one in files for path in (*one.images, one.label)]
        self.identity: Mapping[str, Any] = {
            "nnunet": digest([_fingerprint(path) for path in paths]),
            "split": split,
            "tissues": list(self.tissues),
            "overlapping": self.overlapping,
            "label_values": [list(values) for values in labels.values],
            "channels": list(channels),
        }

    def load(self, index: int) -> tuple[Floats, Floats]:
        """See `LabelledData.load`."""
        files = self._files[index]
        if files.label.name.endswith(_VOLUMES):
            label = read_labels(files.label, may_be_empty=True)
            image = np.stack([_channel(path, label) for path in files.images])
            labels: npt.NDArray[np.int32] = label.data
            if files.thin is not None:
                image, labels = image.squeeze(files.thin + 1), labels.squeeze(files.thin)
        else:
            labels = read_label_map(files.label)
            image = np.stack([_photograph(path, labels.shape) for path in files.images])
        return image, self._labels.soft(labels, files.label)


def _channel(path: Path, label: Volume) -> Floats:
    volume = read_image(path)
    label.grid.require_same(volume.grid, str(path))
    return normalise(volume.data)


def _photograph(path: Path, shape: Sequence[int]) -> Floats:
    image = read_picture(path, colour=True).grey
    if image.shape != tuple(shape):
        raise GeometryError(f"{path}: expected the size {tuple(shape)} of its labels, got "
                            f"{image.shape}")  # fmt: skip
    return image


@dataclass(frozen=True)
class _Labels:
    """From label values to soft labels."""

    tissues: tuple[str, ...]
    overlapping: bool
    values: tuple[tuple[int, ...], ...]  # of each of the tissues
    known: tuple[int, ...]

    def soft(self, labels: npt.NDArray[np.int32], path: Path) -> Floats:
        """Return `(G, *S)` of a label map, 0 or 1."""
        strange = ~np.isin(labels, self.known)
        if strange.any():
            raise SchemaError(
                f"{path}: label {int(labels[strange][0])} is not in {DATASET_JSON}, which has "
                f"{', '.join(map(str, self.known))}; mend the one or the other"
            )
        return np.stack([np.isin(labels, own) for own in self.values]).astype(np.float32)


def open_nnunet_raw(
    folder: Path,
    *,
    tissues: Sequence[str],
    split: str,
    modalities: Sequence[str],
    exclude: Sequence[str],
) -> NnunetRaw:
    """Open one split of an nnU-Net raw folder; see `synthgen.data.labelled.open_labelled`.

    "train" is `imagesTr`, the others are `imagesTs`; where the metadata name cases of `imagesTr`
    for "val", these are the validation cases and no training cases.

    Raises:
        RequestError: see `open_labelled`.
        StoreError: a damaged `dataset.json`, or missing files.
        GeometryError: 2-D beside 3-D cases.
    """
    check_split(split)
    here = _Folder(folder, _describe(folder), _metadata(folder))
    labels = _labels(folder, here.description, tissues)
    channels = _channels(folder, here.description, modalities)
    files = tuple(
        here.files(stem, where, channels)
        for stem, where in here.of_split(split)
        if here.subject(stem) not in exclude
    )
    if not files:
        raise RequestError(
            f"{folder}: no labelled case in split '{split}'; expected labelsTr (train) or labelsTs "
            f"(val, test) with files *{here.description.ending}, and not all of them excluded"
        )
    _require_one_rank(files)
    return NnunetRaw(
        here, labels, tuple(here.description.channels[k] for k in channels), files, split
    )


def _describe(folder: Path) -> _Description:
    path = folder / DATASET_JSON
    try:
        raw = read_json(path)
        channels = raw["channel_names"]
        labels = {str(name): _values(value) for name, value in raw["labels"].items()}
        overlapping = any(isinstance(value, list) for value in raw["labels"].values())
        ending = str(raw["file_ending"])
        names = tuple(str(channels[str(k)]) for k in range(len(channels)))
        origin = unsealed(raw.get(ORIGIN, {}))
        real, ancestors = bool(origin.get("real", True)), origin.get("subjects", [])
    except (OSError, ValueError, TypeError, AttributeError, LookupError, OverflowError) as error:
        raise StoreError(
            f"{path}: not nnU-Net's (version 2) description of a dataset ({error!r}); expected "
            "channel_names, labels and file_ending"
        ) from error
    if "ignore" in labels:
        raise RequestError(f"{path}: the 'ignore' label is not supported; label these voxels")
    if not is_list_of(ancestors, str):
        raise StoreError(f"{path}: '{ORIGIN}' must list 'subjects' by name, got {ancestors!r:.60}")
    if labels.get("background") != (0,) or not names:
        raise StoreError(f"{path}: expected channels, and the label 'background' with value 0")
    if ending not in (*_VOLUMES, *SUFFIXES):
        raise RequestError(
            f"{path}: file_ending '{ending}' is not read; expected one of "
            f"{', '.join((*_VOLUMES, *SUFFIXES))}"
        )
    return _Description(names, labels, overlapping, ending, real, tuple(ancestors))


def _values(value: int | str | list[int]) -> tuple[int, ...]:
    return tuple(int(v) for v in value) if isinstance(value, list) else (int(value),)


def _labels(folder: Path, description: _Description, tissues: Sequence[str]) -> _Labels:
    """Match the labels of a folder to the wanted tissues."""
    stated = description.labels
    known = tuple(sorted({0} | {v for values in stated.values() for v in values}))
    if not description.overlapping:
        with unusable(folder / DATASET_JSON, "its labels need values of their own, background 0"):
            schema = LabelSchema(
                folder.name,
                tuple(
                    Tissue(name, stated[name][0], name in BRAIN9.lesions)
                    for name in sorted(stated, key=lambda name: stated[name][0])
                ),
            )
        groups = TissueGroups.of(schema, tissues, str(folder))
        values = tuple(
            tuple(t.value for t, g in zip(schema.tissues, groups.group, strict=True) if g == place)
            for place in range(len(groups.names))
        )
        return _Labels(groups.names, overlapping=False, values=values, known=known)
    regions = [name for name in stated if name != "background"]
    strange = sorted({*tissues} ^ {*regions})
    if strange or len({*tissues}) < len(tissues):
        raise RequestError(
            f"{folder}: its overlapping regions are {', '.join(regions)}, the wanted ones "
            f"{', '.join(tissues)}; both need the same"
        )
    values = tuple(stated[name] for name in tissues)
    return _Labels(tuple(tissues), overlapping=True, values=values, known=known)


def _channels(folder: Path, description: _Description, modalities: Sequence[str]) -> list[int]:
    names = [name.lower() for name in description.channels]
    absent = [name for name in modalities if name.lower() not in names]
    if absent:
        raise RequestError(
            f"{folder}: no channel '{absent[0]}'; it has {', '.join(description.channels)}"
        )
    return [names.index(name.lower()) for name in modalities] or list(range(len(names)))


def _metadata(folder: Path) -> dict[str, dict[str, str]]:
    path = folder / METADATA
    if not path.is_file():
        return {}
    try:
        rows = map(parse_json, filter(None, read_text(path).splitlines()))
        return {
            str(row["case"]): {name: str(row.get(name) or "") for name in _FACTS} for row in rows
        }
    except (OSError, ValueError, TypeError, KeyError, AttributeError) as error:
        raise StoreError(
            f"{path}: expected one JSON object with 'case' a line ({error!r})"
        ) from error


def _geometry(path: Path) -> tuple[tuple[float, ...], int | None]:
    """Return the voxel size of a volume or slice, and which axis has length 1."""
    shape, spacing = read_geometry(path)
    thin = [axis for axis, size in enumerate(shape) if size == 1]
    if len(thin) > 1:
        raise GeometryError(f"{path}: expected a volume or a slice, got shape {shape}")
    kept = tuple(s for axis, s in enumerate(spacing) if axis not in thin)
    return kept, thin[0] if thin else None


def _require_one_rank(files: Sequence[_Files]) -> None:
    flat = next((f for f in files if len(f.case.spacing_mm) == 2), None)
    deep = next((f for f in files if len(f.case.spacing_mm) == 3), None)
    if flat is not None and deep is not None:
        raise GeometryError(
            f"mixed 2D and 3D data: {flat.label} is a slice, {deep.label} a volume; "
            "put them into folders of their own"
        )


def _fingerprint(path: Path) -> list[str | int]:
    with path.open("rb") as stream:
        size = stream.seek(0, 2)
        stream.seek(max(0, size - _TAIL))
        return [path.name, size, stream.read().hex()]
