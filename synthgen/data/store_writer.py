"""Writing a training store: beside an older one, and into its place only when complete.

The layout of format `synthgen-store/1` is described in `synthgen.data.store`.
"""

from __future__ import annotations

import hashlib
import io
import os
from contextlib import ExitStack
from typing import TYPE_CHECKING, Any, Self

import h5py
import numpy as np
import numpy.typing as npt

from synthgen.core.errors import LeakageError, RequestError, SchemaError, StoreError
from synthgen.core.lock import file_lock
from synthgen.core.manifest import temporary_of

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from _typeshed import WriteableBuffer as Buffer

    from synthgen.core.schema import LabelSchema

FORMAT = "synthgen-store/1"
STORE = "store.h5"
SPLITS = ("train", "val", "test")

_FLOAT_TABLES = ("slices/position", "slices/fractions", "lesion_rows/position")


class _SteadyFile(io.RawIOBase):
    """A file that reports a failed write later: HDF5 crashes the process on a full disk.

    The first error is kept; from then on writes are dropped. Whoever owns the file must look at
    `error` before trusting what was written.
    """

    def __init__(self, path: Path) -> None:
        self.error: OSError | None = None
        self._raw = path.open("w+b", buffering=0)

    def write(self, data: Buffer) -> int:
        view = memoryview(data).cast("B")
        done = 0
        try:
            while self.error is None and done < len(view):
                done += self._raw.write(view[done:])
        except OSError as error:
            self.error = error
        return len(view)

    def readinto(self, data: Buffer) -> int:
        return self._raw.readinto(data) or 0

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        return self._raw.seek(offset, whence)

    def tell(self) -> int:
        return self._raw.tell()

    def truncate(self, size: int | None = None) -> int:
        try:
            return self._raw.truncate(size)
        except OSError as error:
            self.error = self.error or error
            return size or 0

    def sync(self) -> None:
        try:
            os.fsync(self._raw.fileno())
        except OSError as error:
            self.error = self.error or error

    def close(self) -> None:
        self._raw.close()
        super().close()


class StoreWriter:
    """Write a training store beside an older one and put it in its place when complete.

    Use as a context manager: leaving it without `commit` deletes the unfinished file, and an
    older store at `path` stays as it was.

    Raises:
        RequestError: another process writes this store.
        StoreError: the folder cannot be written.
    """

    def __init__(
        self, path: Path, schema: LabelSchema, shape: Sequence[int], *, spacing_mm: float = 1.0
    ) -> None:
        self.path = path
        self.fingerprint = ""
        self.schema = schema
        self.shape = (int(shape[0]), int(shape[1]))
        self.spacing_mm = spacing_mm
        self._split: dict[str, str] = {}
        self._columns: dict[str, list[Any]] = {
            name: []
            for name in (
                "slices/subject", "slices/dataset", "slices/split", "slices/z", "slices/position",
                "slices/fractions", "rows/pv_index", "rows/modality", "lesion_rows/subject",
                "lesion_rows/position", "lesion_rows/split",
            )
        }  # fmt: skip
        self._hash = hashlib.sha256()
        self._temporary = temporary_of(path)
        self._lock = ExitStack()
        self._lock.enter_context(file_lock(path, "training store"))
        try:
            self._sink = _SteadyFile(self._temporary)
        except OSError as error:
            self._lock.close()
            raise self._error(error) from error
        self._file = h5py.File(self._sink, "w", libver=("v110", "v110"))
        self._create("pv", (schema.channels, *self.shape), np.dtype(np.uint8))
        self._create("images", (1, *self.shape), np.dtype(np.float16))
        self._create("lesions", self.shape, np.dtype(np.uint8))

    def _create(self, name: str, shape: tuple[int, ...], dtype: np.dtype[Any]) -> None:
        self._file.create_dataset(
            name,
            shape=(0, *shape),
            maxshape=(None, *shape),
            chunks=(1, *shape),
            dtype=dtype,
            compression="gzip",
            compression_opts=1,
            shuffle=True,
            fletcher32=True,
            track_times=False,
        )

    def add_slices(
        self,
        subject: str,
        *,
        dataset: str,
        split: str,
        z: Sequence[int],
        position: Sequence[float],
        pv: npt.NDArray[np.uint8],
    ) -> list[int]:
        """Add slices of one subject.

        Args:
            subject: unique id, `dataset/sub-XX`.
            dataset: dataset name.
            split: "train", "val" or "test".
            z: slice index of each slice.
            position: place in the brain of each slice, in [0, 1].
            pv: `(n, C, X, Y)` uint8 that sums to 255.

        Returns:
            The slices' indices, for `add_image`.

        Raises:
            LeakageError: the subject stands in another split already.
            SchemaError: wrong channels, or a sum that is not 255.
            StoreError: the file cannot be written.
        """
        self._claim(subject, split)
        if pv.dtype != np.uint8 or pv.shape != (len(z), self.schema.channels, *self.shape):
            raise SchemaError(
                f"{subject}: expected uint8 PV slices of shape "
                f"{(len(z), self.schema.channels, *self.shape)}, got {pv.dtype} {pv.shape}"
            )
        for index, one in zip(z, pv, strict=True):
            self.schema.check(one, f"{subject} slice z={index}")
        first = self._append("pv", pv)
        columns = self._columns
        columns["slices/subject"] += [subject] * len(z)
        columns["slices/dataset"] += [dataset] * len(z)
        columns["slices/split"] += [split] * len(z)
        columns["slices/z"] += [int(i) for i in z]
        columns["slices/position"] += [float(p) for p in position]
        columns["slices/fractions"] += [self.schema.fractions(one) for one in pv]
        return list(range(first, first + len(z)))

    def add_image(
        self, pv_index: Sequence[int], modality: str, images: npt.NDArray[np.floating[Any]]
    ) -> None:
        """Add the images `(n, 1, X, Y)` in [0, 1] of slices already added, in one modality.

        Raises:
            SchemaError: a wrong shape, or values outside [0, 1] or not finite.
            StoreError: the file cannot be written.
        """
        if images.shape != (len(pv_index), 1, *self.shape):
            raise SchemaError(
                f"{modality}: expected images of shape {(len(pv_index), 1, *self.shape)}, "
                f"got {images.shape}"
            )
        if images.size and not (images.min() >= 0 and images.max() <= 1):
            raise SchemaError(
                f"{modality}: image values must lie in [0, 1], got "
                f"{float(images.min()):.4g} .. {float(images.max()):.4g}"
            )
        self._append("images", images.astype(np.float16))
        self._columns["rows/pv_index"] += [int(i) for i in pv_index]
        self._columns["rows/modality"] += [modality] * len(pv_index)

    def add_lesions(
        self,
        subject: str,
        *,
        split: str,
        position: Sequence[float],
        masks: npt.NDArray[np.uint8],
    ) -> None:
        """Add lesion slices `(n, X, Y)` uint8 (255 is all lesion) of a subject without an image.

        Raises:
            LeakageError: the subject stands in another split already.
            SchemaError: a wrong shape or dtype.
            StoreError: the file cannot be written.
        """
        self._claim(subject, split)
        if masks.dtype != np.uint8 or masks.shape != (len(position), *self.shape):
            raise SchemaError(
                f"{subject}: expected uint8 lesion slices of shape "
                f"{(len(position), *self.shape)}, got {masks.dtype} {masks.shape}"
            )
        self._append("lesions", masks)
        self._columns["lesion_rows/subject"] += [subject] * len(position)
        self._columns["lesion_rows/position"] += [float(p) for p in position]
        self._columns["lesion_rows/split"] += [split] * len(position)

    def _claim(self, subject: str, split: str) -> None:
        check_split(split)
        if self._split.setdefault(subject, split) != split:
            raise LeakageError(
                f"subject '{subject}' stands in '{self._split[subject]}' and in '{split}'; "
                "a subject belongs to one split"
            )

    def _append(self, name: str, values: npt.NDArray[Any]) -> int:
        data = self._file[name]
        first = int(data.shape[0])
        self._hash.update(f"{name}{values.shape}".encode())
        self._hash.update(np.ascontiguousarray(values).tobytes())
        data.resize(first + len(values), axis=0)
        data[first:] = values
        self._require_written()
        return first

    def commit(self) -> Path:
        """Finish the file and put it at `path`, whole; return `path`.

        Raises:
            RequestError: no slice was added.
            StoreError: the file cannot be written; an older store stays.
        """
        if not self._columns["slices/subject"]:
            raise RequestError(f"{self.path}: no slice to store; the source has no usable subject")
        for name, values in self._columns.items():
            self._write_column(name, values)
        self.fingerprint = self._hash.hexdigest()
        self._file.attrs["format"] = FORMAT
        self._file.attrs["schema"] = self.schema.to_json()
        self._file.attrs["spacing_mm"] = self.spacing_mm
        self._file.attrs["fingerprint"] = self.fingerprint
        self._file.close()
        self._sink.sync()
        self._require_written()
        self._sink.close()
        try:
            self._temporary.replace(self.path)
        except OSError as error:
            raise self._error(error) from error
        return self.path

    def _write_column(self, name: str, values: list[Any]) -> None:
        if name in _FLOAT_TABLES:
            column = np.asarray(values, dtype=np.float64)
            if name == "slices/fractions":
                column = column.reshape(len(values), self.schema.channels)
        elif name in ("slices/z", "rows/pv_index"):
            column = np.asarray(values, dtype=np.int64)
        else:
            column = np.asarray([text.encode() for text in values], dtype=np.bytes_)
            column = column if len(values) else np.zeros(0, dtype="S1")
        self._hash.update(f"{name}{column.dtype}{column.shape}".encode())
        self._hash.update(column.tobytes())
        # Chunked, for only chunks have checksums; h5py chunks no empty one that cannot grow.
        self._file.create_dataset(
            name,
            data=column,
            maxshape=(None, *column.shape[1:]),
            chunks=(max(1, len(column)), *column.shape[1:]),
            fletcher32=True,
            track_times=False,
        )

    def _require_written(self) -> None:
        if self._sink.error is not None:
            raise self._error(self._sink.error) from self._sink.error

    def _error(self, error: OSError) -> StoreError:
        return StoreError(
            f"{self.path}: could not be written ({error.strerror or error}); an older store "
            "there is untouched; free space or choose another --out, then run it again"
        )

    def discard(self) -> None:
        """Delete the unfinished file. Harmless after `commit`."""
        if self._file.id.valid:
            self._file.close()
        self._sink.close()
        self._temporary.unlink(missing_ok=True)
        self._lock.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.discard()


def check_split(split: str) -> None:
    """Refuse a name that is no split.

    Raises:
        RequestError: naming the splits there are.
    """
    if split not in SPLITS:
        raise RequestError(f"split must be one of {', '.join(SPLITS)}, got '{split}'")
