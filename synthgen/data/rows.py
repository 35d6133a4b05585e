"""Samples to export or to train on: those of a generated dataset or of a training store.

A `Source` is a table in memory and two readers that fetch pixels when asked, so that 20 000
slices need no more memory than one. Arrays are `(C, X, Y)` and `(X, Y)` in RAS.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from synthgen.core.errors import RequestError, StoreError
from synthgen.core.manifest import MANIFEST, canonical_json
from synthgen.data.shards import Arrays, Shards, dataset_digest
from synthgen.data.sources import MODALITIES, style_modality
from synthgen.data.store import SPLITS, STORE, TrainingStore

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence
    from pathlib import Path

    from synthgen.core.schema import LabelSchema

Pv = npt.NDArray[np.uint8]
Pixels = npt.NDArray[np.float32]

DEFAULT_SPACING_MM = 1.0
"""Voxel size of a generated dataset, which does not record it: stores are prepared at 1 mm."""

_NOT_STATED = "not stated; the licences of the data behind it apply"


@dataclass(frozen=True)
class Picture:
    """One image of a sample: its style, and that style's modality ("" where unknown)."""

    style: str
    modality: str


@dataclass(frozen=True)
class Entry:
    """One sample, without its pixels.

    Attributes:
        index: place in the source.
        name: unique plain name.
        subject: `dataset/sub-XX`; empty for a generated sample.
        dataset: dataset of the subject; empty for a generated sample.
        split: "train", "val" or "test"; generated samples train.
        group: samples of one group show one subject, or one generated label map: a fold that
            tears them apart leaks.
        z: slice index in the prepared volume; 0 for a generated sample.
        position: place in the brain, 0 at the foot, 1 at the top; None of what is no slice of one.
        lesions: share of the brain that each lesion tissue has.
        pictures: its images, in the order of `Source.image`.
    """

    index: int
    name: str
    subject: str
    dataset: str
    split: str
    group: str
    z: int
    position: float | None
    lesions: Mapping[str, float]
    pictures: tuple[Picture, ...]


@dataclass(frozen=True)
class Source:
    """Samples to export.

    Attributes:
        name: what messages and cards call it.
        schema: label schema of the PV channels.
        shape: in-plane size (X, Y).
        spacing_mm: voxel size.
        real: scans of real subjects, not generated.
        entries: the samples.
        identity: all that decides the samples' bytes.
        ancestors: real subjects that any model behind a generated dataset saw.
        facts: (what, value) lines for a dataset's card: origin, seed, licence.
        read_pv: returns the PV map of a sample as stored.
        read_image: returns one image of a sample as stored.
    """

    name: str
    schema: LabelSchema
    shape: tuple[int, int]
    spacing_mm: float
    real: bool
    entries: tuple[Entry, ...]
    identity: Mapping[str, str | int | float | list[str]]
    ancestors: tuple[str, ...]
    facts: tuple[tuple[str, str], ...]
    read_pv: Callable[[Entry], Pv]
    read_image: Callable[[Entry, int], Pixels]

    def pv(self, entry: Entry) -> Pv:
        """Return the PV map `(C, X, Y)` of a sample: uint8, value / 255.

        Raises:
            StoreError: its shard or store is damaged.
            SchemaError: the map breaks the schema.
        """
        pv = self.read_pv(entry)
        self.schema.check(pv, f"{self.name} {entry.name}")
        return pv

    def image(self, entry: Entry, picture: int, pv: Pv) -> Pixels:
        """Return one image `(X, Y)` in [0, 1] of a sample with the PV map `pv`.

        Raises:
            StoreError: damaged; or values outside [0, 1], not finite, or not exactly 0 where
                there is only background, which nnU-Net's normalisation would not survive
                (angiograms show a background: nothing is asked of theirs).
        """
        image = self.read_image(entry, picture)
        where = f"{self.name} {entry.name} {entry.pictures[picture].style}"
        if not ((image >= 0) & (image <= 1)).all():  # NaN fails both comparisons
            raise StoreError(
                f"{where}: image values must be finite and lie in [0, 1]; "
                "`synthgen verify` lists every bad sample"
            )
        if self.schema.is_picture:
            return image
        stray = (image != 0) & (pv[0] == 255)
        if stray.any():
            voxel = tuple(int(i) for i in np.argwhere(stray)[0])
            raise StoreError(
                f"{where}: the image is {float(image[voxel]):.3g} at voxel {voxel}, which is all "
                "background; it must be exactly 0 there; make the dataset again"
            )
        return image


def open_source(
    path: Path, *, splits: Sequence[str] = (), spacing_mm: float | None = None
) -> Source:
    """Open a generated dataset or a training store for export.

    Args:
        path: a dataset folder, `store.h5`, or the folder that holds it.
        splits: the store's splits to take; all by default.
        spacing_mm: voxel size of a generated dataset.

    Raises:
        RequestError: neither of the two, empty, or an option that does not fit it.
        StoreError: incomplete or damaged.
        SchemaError: a damaged label schema.
    """
    source = _open(path, tuple(splits), spacing_mm)
    twins = [name for name, count in Counter(e.name for e in source.entries).items() if count > 1]
    if twins:
        raise StoreError(
            f"{path}: two slices would be called '{twins[0]}'; subjects need names that differ"
        )
    return source


def _open(path: Path, splits: tuple[str, ...], spacing_mm: float | None) -> Source:
    if (path / MANIFEST).is_file():
        if splits:
            raise RequestError(f"--split: {path} is a generated dataset, which has no splits")
        return _from_shards(Shards(path), DEFAULT_SPACING_MM if spacing_mm is None else spacing_mm)
    if path.is_file() or (path / STORE).is_file():
        if spacing_mm is not None:
            raise RequestError(f"--spacing-mm: {path} is a training store, which states its own")
        return _from_store(TrainingStore.open(path), splits or SPLITS)
    raise RequestError(
        f"{path}: nothing to export; expected a dataset made by `synthgen labels`, `images`, "
        f"`vessels` or `angiograms` ({MANIFEST}) or a training store made by `synthgen prepare` "
        f"({STORE})"
    )


def _from_shards(shards: Shards, spacing_mm: float) -> Source:
    if not len(shards):
        raise RequestError(f"{shards.folder}: the dataset is empty; expected at least one sample")
    missing = shards.missing()
    if missing:
        raise StoreError(
            f"{shards.folder}: {len(missing)} of {shards.plan.num_shards} shards are missing or "
            f"incomplete (first: {missing[0]:05d}); run the command that makes the dataset again"
        )
    last = _LastRow(shards)
    shape = last.row(0)["pv"].shape[1:]
    manifest = shards.manifest
    return Source(
        name=str(shards.folder),
        schema=shards.schema,
        shape=(int(shape[0]), int(shape[1])),
        spacing_mm=spacing_mm,
        real=False,
        entries=_shard_entries(shards),
        identity={
            "dataset": dataset_digest(manifest.kind, manifest.identity),
            "n": len(shards),
            "spacing_mm": spacing_mm,
        },
        ancestors=tuple(sorted(manifest.subjects)),
        facts=_shard_facts(shards),
        read_pv=lambda entry: np.asarray(last.row(entry.index)["pv"]),
        read_image=lambda entry, k: last.row(entry.index)["images"][k].astype(np.float32),
    )


class _LastRow:
    """Rows of a dataset; the one read last stays, because map and images are asked for in turn."""

    def __init__(self, shards: Shards) -> None:
        self._shards = shards
        self._held: tuple[int, Arrays] | None = None

    def row(self, index: int) -> Arrays:
        held = self._held
        if held is None or held[0] != index:
            raw = self._shards.raw([index])
            held = index, {name: array[0] for name, array in raw.items()}
            self._held = held  # whole at once: another thread may read at the same time
        return held[1]


def _shard_entries(shards: Shards) -> tuple[Entry, ...]:
    known = frozenset(MODALITIES.values())
    pictures = tuple(Picture(style, style_modality(style, known)) for style in shards.styles)
    positions = _positions(shards)
    realised = shards.column("realised")
    of_label = shards.column("label_index" if shards.manifest.kind == "images" else "index")
    return tuple(
        Entry(
            index=index,
            name=f"{index:06d}",
            subject="",
            dataset="",
            split="train",
            group=f"label-{int(of_label[index]):06d}",
            z=0,
            position=positions[index],
            lesions=_shares(shards.schema, realised[index]),
            pictures=pictures,
        )
        for index in range(len(shards))
    )


def _positions(shards: Shards) -> list[float] | list[None]:
    names = shards.condition_names
    if "position" not in names:
        return [None] * len(shards)
    positions: list[float] = shards.column("condition")[:, names.index("position")].tolist()
    return positions


def _shares(
    schema: LabelSchema, values: Sequence[float] | npt.NDArray[np.floating]
) -> dict[str, float]:
    return {name: round(float(v), 6) for name, v in zip(schema.lesions, values, strict=True)}


def _shard_facts(shards: Shards) -> tuple[tuple[str, str], ...]:
    manifest = shards.manifest
    identity = manifest.identity
    shown = [key for key in identity if key.startswith("generator.")]
    shown += [key for key in ("seed", "styles", "per_label", "conditions") if key in identity]
    licence = manifest.provenance.get("licence") or identity.get("licence") or _NOT_STATED
    return (
        ("samples", f"{len(shards)}, generated by synthgen ({manifest.kind})"),
        ("dataset identity (SHA-256)", dataset_digest(manifest.kind, identity)),
        *((key.replace("generator.", "generator "), _text(identity[key])) for key in shown),
        ("licence", str(licence)),
    )


def _text(value: object) -> str:
    return value if isinstance(value, str) else canonical_json(value)


def _from_store(store: TrainingStore, splits: tuple[str, ...]) -> Source:
    indices = np.concatenate([store.slice_indices(split) for split in splits])
    if not indices.size:
        raise RequestError(f"{store.path}: no slices in split {' or '.join(splits)}")
    rows: dict[int, list[int]] = defaultdict(list)
    for row, slice_index in enumerate(store.image_pv_index):
        rows[int(slice_index)].append(row)
    entries = _store_entries(store, indices.tolist(), rows)
    present = sorted({entry.split for entry in entries})
    return Source(
        name=str(store.path),
        schema=store.schema,
        shape=store.shape,
        spacing_mm=store.spacing_mm,
        real=True,
        entries=entries,
        identity={"store": store.fingerprint, "splits": present},
        ancestors=(),
        facts=(
            ("splits", f"{', '.join(present)} of a synthgen training store"),
            ("store fingerprint (SHA-256)", store.fingerprint),
            ("licence", _NOT_STATED),
        ),
        read_pv=lambda entry: np.rint(255 * store.pv(entry.index)).astype(np.uint8),
        read_image=lambda entry, k: store.image(rows[entry.index][k])[0],
    )


def _store_entries(
    store: TrainingStore, indices: Sequence[int], rows: Mapping[int, Sequence[int]]
) -> tuple[Entry, ...]:
    table, lesions = store.slices, list(store.schema.lesion_channels)
    entries = []
    for index in indices:
        subject, dataset, z = table.subject[index], table.dataset[index], int(table.z[index])
        modalities = [store.image_modality[row] for row in rows.get(index, ())]
        entries.append(
            Entry(
                index=index,
                name=f"{subject.replace('/', '_')}_z{z:03d}",
                subject=subject,
                dataset=dataset,
                split=table.split[index],
                group=subject,
                z=z,
                position=float(table.position[index]),
                lesions=_shares(store.schema, table.fractions[index][lesions]),
                pictures=tuple(Picture(f"{dataset}_{m}", m) for m in modalities),
            )
        )
    return tuple(entries)
