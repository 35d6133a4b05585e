"""The training store: one HDF5 file of real slices, label maps, images and lesion masks.

Layout of format `synthgen-store/1` (P slices, N images, L lesion slices, C channels):

    pv            (P, C, X, Y) uint8, sums to 255 exactly over C
    images        (N, 1, X, Y) float16 in [0, 1], exactly 0 outside the brain
    lesions       (L, X, Y)    uint8, soft masks of lesions without an image (value / 255)
    slices/       subject, dataset, split, z, position (P,), fractions (P, C)
    rows/         pv_index, modality (N,)
    lesion_rows/  subject, position, split (L,)

Attributes: `format`, `schema` (JSON), `spacing_mm`, `fingerprint` (SHA-256 of all arrays).
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

import numpy as np
import numpy.typing as npt

from synthgen.core.errors import RequestError, StoreError, SynthgenError
from synthgen.core.schema import LabelSchema
from synthgen.core.workspace import safe_name
from synthgen.data.hdf5_file import open_hdf5
from synthgen.data.store_writer import FORMAT, SPLITS, STORE, StoreWriter, check_split

if TYPE_CHECKING:
    import h5py

__all__ = ["FORMAT", "SPLITS", "STORE", "SliceTable", "StoreWriter", "TrainingStore"]


@dataclass(frozen=True)
class SliceTable:
    """Where each of the P slices comes from.

    Attributes:
        subject: `dataset/sub-XX` of each slice.
        dataset: dataset of each slice.
        split: "train", "val" or "test"; one per subject.
        z: `(P,)` slice index in the prepared volume.
        position: `(P,)` place in the brain, 0 at the foot, 1 at the top.
        fractions: `(P, C)` share of each tissue in the brain of the slice.
    """

    subject: list[str]
    dataset: list[str]
    split: list[str]
    z: npt.NDArray[np.int64]
    position: npt.NDArray[np.float64]
    fractions: npt.NDArray[np.float64]

    def __len__(self) -> int:
        return len(self.subject)


class TrainingStore:
    """Read a training store. Picklable; each process opens the file for itself, when needed.

    Attributes:
        path: the HDF5 file.
        schema: label schema of the PV channels.
        shape: in-plane size (X, Y).
        fingerprint: hash of the store's contents.
        slices: table of the P slices.
        image_pv_index: `(N,)` slice that each image shows.
        image_modality: modality of each image.
        lesion_subject: subject of each lesion slice.
        lesion_position: `(L,)` place in the brain of each lesion slice.
        lesion_split: split of each lesion slice.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._file: h5py.File | None = None
        self._pid = -1
        try:
            with open_hdf5(path) as file:
                self._read_tables(file)
        except FileNotFoundError as error:
            raise StoreError(
                f"{path}: no such training store; make one with `synthgen prepare SOURCE`"
            ) from error
        except SynthgenError:
            raise
        except (OSError, LookupError, RuntimeError, TypeError, ValueError) as error:
            raise StoreError(
                f"{path}: not a readable training store, truncated or not HDF5 ({error}); "
                "make it again with `synthgen prepare`"
            ) from error

    @classmethod
    def open(cls, path: Path, schema: LabelSchema | None = None) -> Self:
        """Open a store.

        Args:
            path: `store.h5` or the folder that holds it.
            schema: the schema that the caller works with, if it must be that one.

        Raises:
            StoreError: absent, damaged, or of another format.
            SchemaError: a store of another label schema.
        """
        path = Path(path)
        store = cls(path / STORE if path.is_dir() else path)
        if schema is not None:
            schema.require_same(store.schema, str(store.path))
        return store

    def _read_tables(self, file: h5py.File) -> None:
        found = file.attrs.get("format")
        if found != FORMAT:
            raise StoreError(f"{self.path}: expected format '{FORMAT}', got {found!r}")
        self.schema = LabelSchema.from_json(str(file.attrs["schema"]))
        self.fingerprint = str(file.attrs["fingerprint"])
        self.spacing_mm = float(file.attrs["spacing_mm"])
        self.shape = (int(file["pv"].shape[2]), int(file["pv"].shape[3]))
        self.slices = SliceTable(
            _strings(file["slices/subject"]),
            _strings(file["slices/dataset"]),
            _strings(file["slices/split"]),
            file["slices/z"][:].astype(np.int64),
            file["slices/position"][:].astype(np.float64),
            file["slices/fractions"][:].astype(np.float64),
        )
        self.image_pv_index: npt.NDArray[np.int64] = file["rows/pv_index"][:].astype(np.int64)
        self.image_modality = _strings(file["rows/modality"])
        self.lesion_subject = _strings(file["lesion_rows/subject"])
        self.lesion_position: npt.NDArray[np.float64] = file["lesion_rows/position"][:]
        self.lesion_split = _strings(file["lesion_rows/split"])
        self._require_consistent(file)

    def _require_consistent(self, file: h5py.File) -> None:
        """Refuse tables and arrays that do not belong together.

        Raises:
            StoreError: naming the first of them.
        """
        count, pictures, masks = len(self.slices), len(self.image_pv_index), len(self.lesion_split)
        wanted = {
            "pv": (count, self.schema.channels, *self.shape),
            "images": (pictures, 1, *self.shape),
            "lesions": (masks, *self.shape),
            "slices/fractions": (count, self.schema.channels),
            **{f"slices/{name}": (count,) for name in ("dataset", "split", "z", "position")},
            "rows/modality": (pictures,),
            **{f"lesion_rows/{name}": (masks,) for name in ("subject", "position")},
        }
        for name, shape in wanted.items():
            if file[name].shape != shape:
                raise StoreError(
                    f"{self.path}: damaged, '{name}' has the shape {file[name].shape} and not "
                    f"{shape}; make the store again with `synthgen prepare`"
                )
        for name in {*self.image_modality, *self.slices.dataset}:  # parts of names of files
            try:
                safe_name(name)
            except RequestError as error:
                raise StoreError(
                    f"{self.path}: a modality or dataset is {error}; make the store again with "
                    "`synthgen prepare`"
                ) from error
        shown = self.image_pv_index
        if shown.size and not (shown.min() >= 0 and shown.max() < count):
            raise StoreError(
                f"{self.path}: damaged, its images show slices {shown.min()} .. {shown.max()} of "
                f"{count}; make the store again with `synthgen prepare`"
            )

    @property
    def modalities(self) -> tuple[str, ...]:
        """Modalities that any image has, sorted."""
        return tuple(sorted(set(self.image_modality)))

    @property
    def datasets(self) -> tuple[str, ...]:
        """Datasets that have images, sorted."""
        return tuple(sorted({self.slices.dataset[i] for i in self.image_pv_index}))

    def subjects(self, split: str) -> tuple[str, ...]:
        """Return the subjects of one split, sorted: those with slices and those with lesions."""
        check_split(split)
        pairs = [
            *zip(self.slices.subject, self.slices.split, strict=True),
            *zip(self.lesion_subject, self.lesion_split, strict=True),
        ]
        return tuple(sorted({subject for subject, where in pairs if where == split}))

    def slice_indices(self, split: str) -> npt.NDArray[np.int64]:
        """Return the slices of one split."""
        check_split(split)
        return np.flatnonzero(np.asarray(self.slices.split) == split)

    def image_rows(
        self, split: str, modality: str | None = None, dataset: str | None = None
    ) -> npt.NDArray[np.int64]:
        """Return the images of one split, of one modality and dataset if given."""
        check_split(split)
        keep = np.asarray(self.slices.split)[self.image_pv_index] == split
        if modality is not None:
            keep = keep & (np.asarray(self.image_modality) == modality)
        if dataset is not None:
            keep = keep & (np.asarray(self.slices.dataset)[self.image_pv_index] == dataset)
        return np.flatnonzero(keep)

    def pv(self, index: int) -> npt.NDArray[np.float32]:
        """Return the PV map `(C, X, Y)` of one slice, in [0, 1], summing to 1."""
        return self._read("pv", index).astype(np.float32) / np.float32(255)

    def image(self, row: int) -> npt.NDArray[np.float32]:
        """Return one image `(1, X, Y)` in [0, 1], exactly 0 outside the brain."""
        return self._read("images", row).astype(np.float32)

    def lesion(self, index: int) -> npt.NDArray[np.float32]:
        """Return one soft lesion mask `(X, Y)` in [0, 1]."""
        return self._read("lesions", index).astype(np.float32) / np.float32(255)

    def _read(self, name: str, index: int) -> npt.NDArray[Any]:
        if self._file is None or self._pid != os.getpid():
            self._file, self._pid = open_hdf5(self.path), os.getpid()
        data = self._file[name]
        if not 0 <= index < data.shape[0]:
            raise RequestError(
                f"{self.path}: '{name}' index must lie in 0 .. {data.shape[0] - 1}, got {index}"
            )
        try:
            values: npt.NDArray[Any] = data[int(index)]
        except (OSError, RuntimeError, ValueError) as error:
            raise StoreError(
                f"{self.path}: '{name}' row {index} is damaged ({error}); "
                "make the store again with `synthgen prepare`"
            ) from error
        return values

    def close(self) -> None:
        """Close this process's file handle; reading opens it again."""
        if self._file is not None and self._pid == os.getpid():
            self._file.close()
        self._file = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_file": None, "_pid": -1}


def _strings(data: h5py.Dataset) -> list[str]:
    return [value.decode() for value in data[:]]
