"""Real scans into one training store: find, split by subject, crop, scale, choose slices, write."""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
from scipy import ndimage

from synthgen.core.errors import GeometryError, LeakageError, RequestError
from synthgen.core.geometry import SLICE_SHAPE, choose_slices, crop_or_pad, slice_position
from synthgen.core.manifest import digest
from synthgen.core.rng import SampleKey, Stream
from synthgen.core.schema import BRAIN9, LabelSchema
from synthgen.data import tissue
from synthgen.data.label_tables import read_table
from synthgen.data.nifti import read_mask
from synthgen.data.sources import Scan, Sources, discover
from synthgen.data.store import STORE, StoreWriter
from synthgen.data.subject import SOFTNESS_MM, load_scan, require_tissues

if TYPE_CHECKING:
    from pathlib import Path

VAL_SHARE = 0.1
"""Share of subjects held out for validation when none are named."""

MNI_BRAIN_CENTER_MM = (0.0, -18.0)
"""X, Y of the middle of a brain in rigid MNI space: where masks without an image are centred."""

MNI_BRAIN_Z_MM = (-58.0, 70.0)
"""Foot and top of a brain in rigid MNI space (mean of four patients), for slice positions."""

_SAME_LESIONS = 0.99  # Dice from which two masks show the same patient
_MIN_LESION_AREA = 10  # mm2 of lesion in a slice of the lesion bank

Progress = Callable[[str], None]


@dataclass(frozen=True)
class PrepareSettings:
    """What decides a store, besides the files.

    Attributes:
        schema: PV channels.
        shape: in-plane size (X, Y).
        spacing_mm: voxel size.
        step: take every `step`-th axial slice.
        min_area: fewest brain voxels in a slice.
        seed: seed of the automatic split.
        val: subjects for validation; automatic if none are named.
        test: subjects kept for tests.
        atlas: tissue atlas; the source's own, else MNI152's, by default.
        label_table: label table; the one beside the label map, else FreeSurfer's, by default.
    """

    schema: LabelSchema = BRAIN9
    shape: tuple[int, int] = SLICE_SHAPE
    spacing_mm: float = 1.0
    step: int = 1
    min_area: int = 2000
    seed: int = 0
    val: tuple[str, ...] = ()
    test: tuple[str, ...] = ()
    atlas: Path | None = None
    label_table: Path | None = None


@dataclass(frozen=True)
class SubjectRow:
    """What one scan gave: a line of the summary."""

    subject: str
    dataset: str
    split: str
    modalities: tuple[str, ...]
    origin: str
    slices: int = 0
    lesion_slices: int = 0
    brain_ml: float = 0.0
    lesion_ml: float = 0.0


@dataclass(frozen=True)
class Report:
    """What `prepare` found or wrote; in a dry run the bytes are estimated."""

    rows: tuple[SubjectRow, ...]
    notes: tuple[str, ...]
    path: str = ""
    bytes: int = 0
    seconds: float = 0.0
    fingerprint: str = ""

    def to_dict(self) -> dict[str, Any]:
        """Return the report as JSON-able values."""
        return asdict(self)


@dataclass
class _Job:
    """The work in progress."""

    settings: PrepareSettings
    table: Mapping[int, int] | None
    atlas: Path | None
    split: Mapping[str, str]
    progress: Progress
    notes: list[str] = field(default_factory=list)


def prepare(
    sources: Sequence[str],
    out: Path,
    settings: PrepareSettings | None = None,
    *,
    dry_run: bool = False,
    progress: Progress | None = None,
) -> Report:
    """Make a training store from folders of NIfTI.

    Args:
        sources: dataset folders, folders that hold several, or "mni152".
        out: folder of the store, or the `.h5` file itself.
        settings: schema, slices, split.
        dry_run: find, check and split, write nothing.
        progress: called with one line per scan.

    Returns:
        One row per scan, remarks, and where the store is (in a dry run, an estimated size).

    Raises:
        RequestError: unknown subjects or sources.
        LeakageError: a subject named for both `val` and `test`.
        StoreError: damaged or foreign files, or the store cannot be written.
        GeometryError: shapes or affines that disagree.
        SchemaError: label ids or probabilities that do not fit the schema.
    """
    start = time.monotonic()
    settings = settings or PrepareSettings()
    require_tissues(settings.schema)
    found = discover(sources)
    notes = list(found.notes)
    scans = drop_known_lesions(found, notes)
    split = assign_splits(scans, settings)
    path = out if out.suffix == ".h5" else out / STORE
    if dry_run:
        rows = [_planned(scan, split[scan.id]) for scan in scans]
        return Report(tuple(rows), tuple(notes), str(path), _estimate(rows, settings))
    table = settings.label_table
    job = _Job(
        settings,
        None if table is None else read_table(table, settings.schema),
        settings.atlas or found.atlas,
        split,
        progress or (lambda _line: None),
        notes,
    )
    with StoreWriter(
        path, settings.schema, settings.shape, spacing_mm=settings.spacing_mm
    ) as writer:
        rows = []
        for number, scan in enumerate(scans, start=1):
            job.progress(f"{number}/{len(scans)} {scan.id} {scan.session}".rstrip())
            rows.append(_add_scan(job, writer, scan))
        writer.commit()
        seconds = time.monotonic() - start
        size = path.stat().st_size
        return Report(
            tuple(rows), tuple(notes), str(path), size, round(seconds, 1), writer.fingerprint
        )


def assign_splits(scans: Sequence[Scan], settings: PrepareSettings) -> dict[str, str]:
    """Give each subject one split.

    Named subjects go where they are named. When no validation subject is named and there are
    at least 5 subjects, about 10% (at least one) are drawn, dataset by dataset in proportion;
    a dataset with images keeps at least one training subject.

    Raises:
        RequestError: a name that fits no subject, or more than one.
        LeakageError: a subject in both lists.
    """
    datasets = {scan.id: scan.dataset for scan in scans}
    val = {find_subject(wanted, datasets) for wanted in settings.val}
    test = {find_subject(wanted, datasets) for wanted in settings.test}
    if val & test:
        raise LeakageError(
            f"subject '{min(val & test)}' is named for both --val and --test; choose one"
        )
    if not val and len(datasets) - len(test) >= 5:
        free = {name: dataset for name, dataset in datasets.items() if name not in test}
        with_images = {scan.dataset for scan in scans if scan.images or scan.template}
        val = _draw_val(free, with_images, settings.seed)
    return {
        name: "val" if name in val else "test" if name in test else "train" for name in datasets
    }


def find_subject(wanted: str, datasets: Mapping[str, str]) -> str:
    """Return the id of the subject that `sub-XX` or `dataset/sub-XX` names.

    Raises:
        RequestError: it names none, or several.
    """
    matches = [name for name in datasets if wanted in (name, name.split("/", 1)[1])]
    if len(matches) != 1:
        what = f"stands for {', '.join(matches)}" if matches else "is no subject of the sources"
        some = ", ".join(sorted(datasets)[:6])
        raise RequestError(f"'{wanted}' {what}; name one as dataset/subject, such as {some}")
    return matches[0]


def _draw_val(free: Mapping[str, str], with_images: set[str], seed: int) -> set[str]:
    """Draw the validation subjects: largest remainders over datasets, hash order within."""
    members = defaultdict(list)
    for name, dataset in free.items():
        members[dataset].append(name)
    wanted = max(1, round(VAL_SHARE * len(free)))
    quota = {}
    room = {}
    for dataset, names in members.items():
        names.sort(
            key=lambda name: (SampleKey(seed, int(digest(name)[:8], 16)).seed32(Stream.SPLIT), name)
        )
        room[dataset] = len(names) - 1 if dataset in with_images else len(names)
        quota[dataset] = min(room[dataset], int(VAL_SHARE * len(names)))
    by_remainder = sorted(
        members, key=lambda d: (-(VAL_SHARE * len(members[d]) % 1), -len(members[d]), d)
    )
    for dataset in by_remainder:
        if sum(quota.values()) < wanted and quota[dataset] < room[dataset]:
            quota[dataset] += 1
    return {name for dataset, names in members.items() for name in names[: quota[dataset]]}


def drop_known_lesions(found: Sources, notes: list[str]) -> list[Scan]:
    """Leave out lesion masks of a patient that is there already, under whatever name."""
    known: list[tuple[str, npt.NDArray[np.bool_]]] = []
    kept = []
    # Subjects with an image or a label map first: they keep their lesions.
    for scan in sorted(found.scans, key=lambda s: s.lesions_only):
        twin = None
        for path in scan.lesions.values():
            mask = _boxed(read_mask(path).data)
            if scan.lesions_only:
                twin = next((name for name, other in known if _same(mask, other)), None)
            if mask.size:
                known.append((scan.id, mask))
        if twin is None:
            kept.append(scan)
        else:
            notes.append(f"{scan.id}: left out, its lesion mask is that of {twin}: same patient")
    return sorted(kept, key=lambda s: (s.id, s.session))


def _boxed(mask: npt.NDArray[np.bool_]) -> npt.NDArray[np.bool_]:
    boxes = ndimage.find_objects(mask.astype(np.uint8))
    return mask[boxes[0]] if boxes else mask[:0]


def _same(one: npt.NDArray[np.bool_], other: npt.NDArray[np.bool_]) -> bool:
    if one.shape != other.shape or not one.size:
        return False
    return bool(2 * (one & other).sum() / (one.sum() + other.sum()) > _SAME_LESIONS)


def _estimate(rows: Sequence[SubjectRow], settings: PrepareSettings) -> int:
    """Return the bytes a store of these scans takes: 120 slices each, as measured."""
    slices = 120 / settings.step
    shown = [row for row in rows if row.origin != "lesion mask"]
    kilobytes = 27 * len(shown) + 17 * sum(len(row.modalities) for row in shown)
    return int(1000 * slices * (kilobytes + 1.3 * (len(rows) - len(shown))))


def _planned(scan: Scan, split: str) -> SubjectRow:
    modalities = ("t1",) if scan.template else tuple(scan.images)
    if scan.template:
        origin = "template"
    elif scan.lesions_only:
        origin = "lesion mask"
    elif scan.fine is not None or scan.maps:
        origin = "maps"
    else:
        origin = "labels" if scan.labels is not None else "atlas"
    return SubjectRow(scan.id, scan.dataset, split, modalities, origin)


def _add_scan(job: _Job, writer: StoreWriter, scan: Scan) -> SubjectRow:
    if scan.lesions_only:
        return _add_lesion_masks(job, writer, scan)
    settings = job.settings
    prepared = load_scan(
        scan, settings.schema, spacing_mm=settings.spacing_mm, table=job.table, atlas=job.atlas
    )
    if prepared.origin == "atlas":
        job.notes.append(f"{scan.id}: no tissue maps, made from its images with the atlas")
    brain = prepared.pv[0] < 0.5
    center = brain_center(brain, settings.shape, where=scan.id)
    chosen, extent = choose_slices(brain, step=settings.step, min_area=settings.min_area)
    if not chosen:
        raise GeometryError(
            f"{scan.id}: no axial slice has {settings.min_area} brain voxels or more"
        )
    pv = np.empty((len(chosen), settings.schema.channels, *settings.shape), dtype=np.uint8)
    for row, z in enumerate(chosen):
        one = crop_or_pad(prepared.pv[..., z], settings.shape, center=center)
        one[0] = 1 - one[1:].sum(axis=0).clip(0, 1)
        pv[row] = tissue.quantize_pv(one / one.sum(axis=0))
    indices = writer.add_slices(
        scan.id,
        dataset=scan.dataset,
        split=job.split[scan.id],
        z=chosen,
        position=[slice_position(z, *extent) for z in chosen],
        pv=pv,
    )
    for modality, image in prepared.images.items():
        where = str(scan.images.get(modality, scan.id))
        scaled, _ = tissue.robust_scale(image, brain, where=where)
        slices = crop_or_pad(np.moveaxis(scaled[..., chosen], -1, 0), settings.shape, center=center)
        slices[pv[:, 0] > 127] = 0
        writer.add_image(indices, modality, slices[:, None])
    voxel_ml = settings.spacing_mm**3 / 1000
    lesion = prepared.pv[list(settings.schema.lesion_channels)].sum(dtype=np.float64)
    return SubjectRow(
        scan.id,
        scan.dataset,
        job.split[scan.id],
        tuple(prepared.images),
        prepared.origin,
        slices=len(chosen),
        brain_ml=round(float(brain.sum()) * voxel_ml, 1),
        lesion_ml=round(float(lesion) * voxel_ml, 2),
    )


def brain_center(
    brain: npt.NDArray[np.bool_], shape: Sequence[int], *, where: str
) -> tuple[int, int]:
    """Return the middle voxel (X, Y) of the bounding box of a brain `(X, Y, Z)`.

    Raises:
        GeometryError: there is no brain, or it does not fit into `shape`; `where` is named.
    """
    boxes = ndimage.find_objects(brain.astype(np.uint8))
    if not boxes:
        raise GeometryError(f"{where}: holds no brain; expected some voxels")
    x, y, _ = boxes[0]
    size = (x.stop - x.start, y.stop - y.start)
    if size[0] > shape[0] or size[1] > shape[1]:
        raise GeometryError(
            f"{where}: the brain measures {size[0]} x {size[1]} voxels and does not fit into "
            f"{shape[0]} x {shape[1]}; check the voxel size in the headers"
        )
    return (x.start + x.stop) // 2, (y.start + y.stop) // 2


def _add_lesion_masks(job: _Job, writer: StoreWriter, scan: Scan) -> SubjectRow:
    """Add a patient's lesion masks to the bank, placed by MNI coordinates."""
    settings = job.settings
    lesion_ml, masks, positions = 0.0, [], []
    for path in scan.lesions.values():
        volume = read_mask(path)
        sigma = [SOFTNESS_MM / s for s in volume.grid.spacing_mm]
        soft = ndimage.gaussian_filter(volume.data.astype(np.float32), sigma)
        soft, affine = tissue.resample_image(soft, volume.grid.matrix(), settings.spacing_mm)
        lesion_ml += float(soft.sum()) * settings.spacing_mm**3 / 1000
        to_voxel = np.linalg.inv(affine)
        middle = to_voxel @ np.asarray([*MNI_BRAIN_CENTER_MM, 0, 1])
        foot, top = (to_voxel @ np.asarray([0, 0, z, 1]) for z in MNI_BRAIN_Z_MM)
        area = soft.sum(axis=(0, 1)) * settings.spacing_mm**2
        for z in np.flatnonzero(area >= _MIN_LESION_AREA)[:: settings.step]:
            one = crop_or_pad(
                soft[..., z], settings.shape, center=(round(middle[0]), round(middle[1]))
            )
            masks.append(np.rint(255 * one).astype(np.uint8))
            position = (float(z) - foot[2]) / (top[2] - foot[2])
            positions.append(float(np.clip(position, 0, 1)))
    if masks:
        writer.add_lesions(
            scan.id, split=job.split[scan.id], position=positions, masks=np.stack(masks)
        )
    else:
        job.notes.append(f"{scan.id}: no slice with {_MIN_LESION_AREA} mm2 of lesion")
    return SubjectRow(
        scan.id,
        scan.dataset,
        job.split[scan.id],
        (),
        "lesion mask",
        lesion_slices=len(masks),
        lesion_ml=round(lesion_ml, 2),
    )
