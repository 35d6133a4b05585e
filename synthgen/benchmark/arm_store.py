"""Cases ready to train on: one HDF5 file of normalised slices, labels and soft labels.

Layout of format `synthgen-cases/1` (N cases, G groups):

    images   (N, X, Y)    float16, z-scored inside the brain of the slice, exactly 0 outside
    labels   (N, X, Y)    int8, group of each pixel; -1 where there is no brain (nnU-Net's sign)
    soft     (N, G, X, Y) uint8, partial volumes of the groups, sum 255
    subject, slice, modality (N,) strings; z (N,) int64

Attributes: `format`, `digest` of all that decides the file, `tissues`, `spacing_mm`.

The brain of a slice is where its image is not 0, holes filled: the one mask that is known for real,
synthetic and test slices alike. nnU-Net's own z-score fails when the background of one source is
not exactly zero, so normalisation is done here, the same way for all.
"""

from __future__ import annotations

import json
import os
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import h5py
import numpy as np
import numpy.typing as npt
from scipy import ndimage

from synthgen.core.errors import StoreError
from synthgen.core.input_files import parse_json
from synthgen.core.manifest import temporary_of
from synthgen.data.hdf5_file import open_hdf5

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from synthgen.core.tissue_groups import TissueGroups
    from synthgen.data.rows import Entry, Pixels, Pv, Source

    Paint = Callable[["Case", Pv], Pixels]

FORMAT = "synthgen-cases/1"
_SUFFIX = ".h5"
_BRAINLESS = -1


@dataclass(frozen=True)
class Case:
    """One slice in one modality: picture `picture` of `entry`, -1 for one yet to be painted."""

    entry: Entry
    picture: int
    modality: str


@dataclass(frozen=True)
class Recording:
    """What a file of cases is made of.

    Attributes:
        source: where the label maps come from.
        cases: which of its slices, in which modality.
        paint: returns the image `(X, Y)` of a case, given its PV map as stored.
        groups: tissues of the labels.
        digest: identifies all of this.
    """

    source: Source
    cases: Sequence[Case]
    paint: Paint
    groups: TissueGroups
    digest: str


def store_path(out: Path, name: str) -> Path:
    """Return the file of the store `name` of a benchmark."""
    return out / "stores" / f"{name}{_SUFFIX}"


def normalise(image: npt.NDArray[np.float32]) -> tuple[npt.NDArray[np.float32], npt.NDArray[Any]]:
    """Z-score one slice inside its brain.

    Args:
        image: `(X, Y)`, 0 outside the brain.

    Returns:
        The slice, float32 and exactly 0 outside; and the brain mask, bool.
    """
    brain = ndimage.binary_fill_holes(image != 0)
    out = np.zeros_like(image, dtype=np.float32)
    values = image[brain]
    if values.size:
        out[brain] = (values - values.mean()) / max(float(values.std()), 1e-6)
    return out, brain


def write_cases(
    path: Path, recording: Recording, progress: Callable[[int, int], None] | None = None
) -> bool:
    """Write a file of cases, unless the same one is there already.

    Slices whose image is blank are left out. The file takes its place only when complete.

    Returns:
        Whether it was written.

    Raises:
        StoreError: a damaged source, images that break its promises, or nothing but blank slices.
    """
    if path.is_file() and _digest(path) == recording.digest:
        return False
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = temporary_of(path)
    try:
        with h5py.File(temporary, "w") as file:
            _write(file, recording, progress)
        temporary.replace(path)
    except OSError as error:
        if isinstance(error, StoreError):
            raise
        raise StoreError(
            f"{path}: could not be written ({error}); free space and repeat"
        ) from error
    finally:
        temporary.unlink(missing_ok=True)
    return True


def _write(
    file: h5py.File, recording: Recording, progress: Callable[[int, int], None] | None
) -> None:
    source, count, groups = recording.source, len(recording.cases), recording.groups
    for name, depth, dtype in (
        ("images", (), np.float16),
        ("labels", (), np.int8),
        ("soft", (len(groups.names),), np.uint8),
    ):
        shape = (*depth, *source.shape)
        file.create_dataset(
            name, (count, *shape), dtype, maxshape=(count, *shape), chunks=(1, *shape),
            compression="gzip", compression_opts=1, shuffle=True,
        )  # fmt: skip
    kept: list[Case] = []
    for done, case in enumerate(recording.cases, start=1):
        pv = source.pv(case.entry)
        image, brain = normalise(recording.paint(case, pv))
        if image.any():
            soft = groups.merge(pv)
            labels = groups.harden(soft)
            labels[(labels == 0) & ~brain] = _BRAINLESS
            for name, array in (("images", image), ("labels", labels), ("soft", soft)):
                file[name][len(kept)] = array
            kept.append(case)
        if progress is not None:
            progress(done, count)
    if not kept:
        raise StoreError(f"{source.name}: all {count} images are blank")
    for name in ("images", "labels", "soft"):
        file[name].resize(len(kept), axis=0)
    text = h5py.string_dtype()
    file.create_dataset("subject", data=[c.entry.subject for c in kept], dtype=text)
    file.create_dataset("slice", data=[c.entry.name for c in kept], dtype=text)
    file.create_dataset("modality", data=[c.modality for c in kept], dtype=text)
    file.create_dataset("z", data=np.asarray([c.entry.z for c in kept], dtype=np.int64))
    file.attrs.update(
        format=FORMAT,
        digest=recording.digest,
        tissues=json.dumps(groups.names),
        spacing_mm=source.spacing_mm,
    )


def _digest(path: Path) -> str:
    try:
        with h5py.File(path, "r", locking=False) as file:
            return str(file.attrs.get("digest", ""))
    except OSError:
        return ""


class CaseStore:
    """Read a file of cases. Picklable; each process opens the file for itself, when needed.

    Attributes:
        path: the file.
        tissues: group names, background first.
        spacing_mm: voxel size.
        shape: in-plane size (X, Y).
        subject: subject of each case; "" for a generated one.
        slice: name of the slice that each case shows.
        modality: modality of each case.
        z: `(N,)` slice index in the prepared volume.

    Raises:
        StoreError: absent, damaged or of another format.
    """

    def __init__(self, path: Path) -> None:
        self.path = Path(path)
        self._file: h5py.File | None = None
        self._pid = -1
        try:
            with open_hdf5(self.path) as file:
                if file.attrs.get("format") != FORMAT:
                    raise StoreError(f"{path}: expected format '{FORMAT}'; delete it and repeat")
                self.tissues: tuple[str, ...] = tuple(parse_json(file.attrs["tissues"]))
                self.spacing_mm = float(file.attrs["spacing_mm"])
                self.shape: tuple[int, int] = file["images"].shape[1:]
                self.subject, self.slice, self.modality = (
                    [str(s) for s in file[name].asstr()[:]]
                    for name in ("subject", "slice", "modality")
                )
                self.z: npt.NDArray[np.int64] = file["z"][:]
        except (OSError, KeyError, RuntimeError, TypeError, ValueError) as error:
            if isinstance(error, StoreError):
                raise
            raise StoreError(f"{path}: not readable ({error}); delete it and repeat") from error

    def __len__(self) -> int:
        return len(self.subject)

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_file": None, "_pid": -1}

    def image(self, case: int) -> npt.NDArray[np.float32]:
        """Return the normalised image `(X, Y)` of a case."""
        return np.asarray(self._open()["images"][case], dtype=np.float32)

    def labels(self, case: int) -> npt.NDArray[np.int8]:
        """Return the label map `(X, Y)` of a case, -1 outside the brain."""
        return np.asarray(self._open()["labels"][case])

    def soft(self, case: int) -> npt.NDArray[np.float32]:
        """Return the soft labels `(G, X, Y)` of a case, in [0, 1]."""
        return np.asarray(self._open()["soft"][case], dtype=np.float32) / np.float32(255)

    def boxes(self) -> list[tuple[int, int]]:
        """Return the in-plane size of the brain of each subject, over its slices."""
        seen: dict[str, npt.NDArray[np.bool_]] = {}
        for case, subject in enumerate(self.subject):
            brain = seen.setdefault(subject, np.zeros(self.shape, dtype=np.bool_))
            brain |= self.labels(case) != _BRAINLESS
        return [(_extent(brain, 0), _extent(brain, 1)) for brain in seen.values()]

    def _open(self) -> h5py.File:
        if self._file is None or self._pid != os.getpid():
            self._file, self._pid = open_hdf5(self.path), os.getpid()
        return self._file


def _extent(brain: npt.NDArray[np.bool_], axis: int) -> int:
    return int(np.ptp(np.flatnonzero(brain.any(axis=1 - axis)))) + 1


@dataclass(frozen=True)
class Volume:
    """A test subject in one modality, restacked from its slices in the store's order.

    Attributes:
        subject: the subject.
        modality: the modality.
        cases: its cases, from the lowest slice up.
        spacing_mm: voxel size along X, Y, Z; slices lie as far apart as their indices say.
        affine: `(4, 4)`, voxel to RAS mm in the prepared frame.
    """

    subject: str
    modality: str
    cases: tuple[int, ...]
    spacing_mm: tuple[float, float, float]
    affine: npt.NDArray[np.float64]

    @property
    def name(self) -> str:
        """A plain file name."""
        return f"{plain(self.subject)}_{self.modality}"


def plain(subject: str) -> str:
    """Return a subject's id as a plain file name."""
    return subject.replace("/", "_")


def volumes(store: CaseStore) -> list[Volume]:
    """Return the volumes of a store, sorted by subject and modality."""
    found = []
    for subject, modality in sorted({*zip(store.subject, store.modality, strict=True)}):
        own = [
            case
            for case in range(len(store))
            if (store.subject[case], store.modality[case]) == (subject, modality)
        ]
        own.sort(key=lambda case: int(store.z[case]))
        z = store.z[own]
        step = float(np.median(np.diff(z))) if len(z) > 1 else 1.0
        spacing = (store.spacing_mm, store.spacing_mm, store.spacing_mm * step)
        affine = np.diag([*spacing, 1.0])
        affine[2, 3] = float(z[0]) * store.spacing_mm
        found.append(Volume(subject, modality, tuple(own), spacing, affine))
    return found
