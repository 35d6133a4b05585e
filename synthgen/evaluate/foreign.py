"""Any dataset folder as a slice set: synthgen's own, an nnU-Net raw folder, a folder of NIfTI.

Formats: nnU-Net v2 (Isensee et al. 2021, doi:10.1038/s41592-020-01008-z), BIDS names (Gorgolewski
et al. 2016, doi:10.1038/sdata.2016.44). How files become slices: `synthgen.evaluate.cases`.
"""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import numpy as np

from synthgen.core.errors import GeometryError, RequestError, SchemaError, StoreError
from synthgen.core.input_files import read_object
from synthgen.core.manifest import MANIFEST
from synthgen.data.label_tables import read_table, tissue_of
from synthgen.data.shards import Shards, dataset_digest
from synthgen.data.sources import discover
from synthgen.evaluate.cases import Case, CaseReader, Frame
from synthgen.evaluate.sets import UNKNOWN, ImageTable, SliceSet, SliceTable, from_shards

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from synthgen.core.schema import LabelSchema

_ENDINGS = (".png", ".nii.gz", ".nii")
_NOT_STATED = "not stated by the dataset"


def open_set(path: Path, frame: Frame) -> SliceSet:
    """Open a dataset folder, whatever it is.

    Args:
        path: a dataset that synthgen made, an nnU-Net raw folder (`DatasetXXX_Name`) or a folder
            of NIfTI with BIDS-like names.
        frame: what it must fit.

    Raises:
        RequestError: no such folder, of none of these kinds, or empty.
        SchemaError: another label schema, or labels that the schema has no tissue for.
        GeometryError: another slice size or voxel size.
        StoreError: files that are missing or damaged.
    """
    if not path.is_dir():
        raise RequestError(f"{path}: no such folder; expected a dataset folder")
    if (path / MANIFEST).is_file():
        return _open_shards(path, frame)
    if (path / "dataset.json").is_file():
        return from_nnunet(path, frame)
    if next(path.rglob("*.nii*"), None) is not None:
        return from_nifti(path, frame)
    raise RequestError(
        f"{path}: not a dataset; expected {MANIFEST} (made by `synthgen labels` or `images`), "
        "dataset.json with labelsTr (nnU-Net raw), or NIfTI files such as sub-01_dseg.nii.gz"
    )


def _open_shards(path: Path, frame: Frame) -> SliceSet:
    shards = Shards(path, frame.schema)
    if not len(shards):
        raise RequestError(f"{path}: the dataset is empty; expected at least one sample")
    opened = from_shards(shards, frame.modalities)
    if opened.shape != frame.shape:
        raise GeometryError(
            f"{path}: expected slices of {frame.shape[0]} x {frame.shape[1]} as the real data, "
            f"got {opened.shape[0]} x {opened.shape[1]}"
        )
    return opened


def from_nnunet(folder: Path, frame: Frame) -> SliceSet:
    """Return the training cases of an nnU-Net raw folder as a set.

    Args:
        folder: holds `dataset.json`, `labelsTr` and, unless it is a set of labels, `imagesTr`.
        frame: what it must fit. Label names of `dataset.json` are matched to its tissues.

    Raises:
        StoreError: `dataset.json` is not readable, or a case lacks a file.
        SchemaError: label names that are no tissue of the schema.
        RequestError: no case, or another file ending than PNG and NIfTI.
    """
    about = read_object(folder / "dataset.json")
    ending = str(about.get("file_ending", ""))
    if ending not in _ENDINGS:
        raise RequestError(
            f"{folder / 'dataset.json'}: expected the file_ending {', '.join(_ENDINGS)}, "
            f"got '{ending}'"
        )
    table = _nnunet_table(folder / "dataset.json", about.get("labels"), frame.schema)
    channels = about.get("channel_names", {})
    if not isinstance(channels, dict) or not all(str(c).isdecimal() for c in channels):
        raise StoreError(
            f"{folder / 'dataset.json'}: 'channel_names' must map '0', '1', ... to names"
        )
    with_images = (folder / "imagesTr").is_dir()
    cases = []
    for labels in sorted((folder / "labelsTr").glob(f"*{ending}")):
        name = labels.name.removesuffix(ending)
        images = tuple(
            (str(channel), folder / "imagesTr" / f"{name}_{int(number):04d}{ending}")
            for number, channel in sorted(channels.items(), key=lambda item: int(item[0]))
            if with_images
        )
        missing = next((file for _, file in images if not file.is_file()), None)
        if missing is not None:
            raise StoreError(f"{missing}: no such file, but {labels} is there; complete the case")
        cases.append(Case(name, labels, images, table))
    if not cases:
        raise RequestError(f"{folder / 'labelsTr'}: no *{ending} file; expected one for each case")
    return _from_cases(folder, cases, frame)


def _nnunet_table(path: Path, labels: object, schema: LabelSchema) -> dict[int, int]:
    """Return the PV channel of each label id."""
    if not isinstance(labels, dict) or not all(isinstance(i, int) for i in labels.values()):
        raise SchemaError(
            f"{path}: 'labels' must map a name to one integer each; regions are not understood"
        )
    table, unknown = {}, []
    for name, value in labels.items():
        tissue = name if name in schema.names else tissue_of(str(name))
        if tissue in schema.names:
            table[int(value)] = schema.index(str(tissue))
        else:
            unknown.append(f"'{name}'")
    if unknown:
        raise SchemaError(
            f"{path}: no tissue of schema '{schema.name}' is called {', '.join(unknown)}; "
            f"use {', '.join(schema.names)}"
        )
    return table


def from_nifti(folder: Path, frame: Frame) -> SliceSet:
    """Return a folder of NIfTI with BIDS-like names as a set.

    Args:
        folder: holds `sub-XX_dseg.nii.gz`, a table of its ids (`dseg.tsv` or `labels.json`) and
            images such as `sub-XX_T1w.nii.gz`, 2-D or 3-D.
        frame: what it must fit.

    Raises:
        StoreError: no usable file, or damaged ones.
        SchemaError: ids without a name, or names that are no tissue.
        RequestError: a subject without a label map.
    """
    cases: list[Case] = []
    tables: dict[Path, dict[int, int]] = {}
    for scan in discover([str(folder)]).scans:
        if scan.labels is None:
            raise RequestError(
                f"{folder}: {scan.id} has no label map; expected {scan.subject}_dseg.nii.gz"
            )
        if scan.table is None:
            raise SchemaError(
                f"{scan.labels}: no table says what its ids are; "
                "put a dseg.tsv with the columns index and name beside it"
            )
        if scan.table not in tables:
            tables[scan.table] = {0: 0} | read_table(scan.table, frame.schema)
        name = f"{scan.id} {scan.session}".rstrip()
        cases.append(Case(name, scan.labels, tuple(scan.images.items()), tables[scan.table]))
    return _from_cases(folder, cases, frame)


def _from_cases(folder: Path, cases: Sequence[Case], frame: Frame) -> SliceSet:
    reader = CaseReader(cases, frame)
    count = len(reader.slices)
    return SliceSet(
        folder.name or str(folder),
        frame.schema,
        frame.shape,
        SliceTable(
            (UNKNOWN,) * count,
            np.asarray(reader.positions, dtype=np.float64),
            np.full((count, len(frame.schema.lesions)), np.nan),
        ),
        ImageTable(
            np.asarray([s for s, _ in reader.images], dtype=np.int64),
            tuple(reader.style(row) for row in range(len(reader.images))),
            tuple(reader.modality(row) for row in range(len(reader.images))),
            (UNKNOWN,) * len(reader.images),
        ),
        reader.pv,
        reader.image,
    )


def facts_of(path: Path) -> tuple[tuple[str, str], ...]:
    """Return what a dataset folder says of itself: origin, identity, licence.

    Raises:
        StoreError: its description is not readable.
    """
    if (path / MANIFEST).is_file():
        return _facts_of_shards(Shards(path))
    about: dict[str, Any] = {}
    for name in ("dataset.json", "dataset_description.json"):
        if (path / name).is_file():
            about = {key.lower(): value for key, value in read_object(path / name).items()}
            break
    told = [
        (key, str(about[key])) for key in ("name", "description", "reference") if about.get(key)
    ]
    licence = about.get("license") or about.get("licence") or _NOT_STATED
    return (("dataset", str(path)), *told, ("licence", str(licence)))


def _facts_of_shards(shards: Shards) -> tuple[tuple[str, str], ...]:
    manifest = shards.manifest
    identity = manifest.identity
    shown = [key for key in identity if key.startswith("generator.")]
    shown += [key for key in ("seed", "styles", "per_label", "conditions") if key in identity]
    made = [key for key in ("model", "labels", "synthgen", "torch") if key in manifest.provenance]
    licence = manifest.provenance.get("licence") or identity.get("licence") or _NOT_STATED
    return (
        ("dataset", f"{shards.folder}, {len(shards)} samples of {manifest.kind}"),
        ("dataset identity", dataset_digest(manifest.kind, identity)),
        *((f"made with: {key}", str(manifest.provenance[key])) for key in made),
        *((key.replace("generator.", "generator "), _short(identity[key])) for key in shown),
        ("real subjects behind it", ", ".join(sorted(manifest.subjects)) or "none stated"),
        ("licence", str(licence)),
    )


def _short(value: object) -> str:
    return value if isinstance(value, str) else json.dumps(value, sort_keys=True)
