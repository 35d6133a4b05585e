"""Cases of a foreign dataset, label map and images in files, read as slices.

Arrays are `(X, Y)` in RAS: rows of a PNG are X, its columns Y; NIfTI files are turned by their
headers. Hard labels become one-hot partial-volume maps. Pixels that a case's own labels call
background are 0, as in the real data. Nothing is resampled.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Self

import nibabel as nib
import numpy as np
import numpy.typing as npt
from scipy import ndimage

from synthgen.core.errors import GeometryError, SchemaError, StoreError
from synthgen.core.geometry import Grid, choose_slices, crop_or_pad, slice_position
from synthgen.data.nifti import (
    Volume,
    open_nifti,
    read_image,
    read_labels,
    readable,
    require_intact,
)
from synthgen.data.picture_files import opened_picture
from synthgen.data.sources import MODALITIES, slug
from synthgen.data.tissue import robust_scale
from synthgen.evaluate.sets import UNKNOWN, Floats

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

    from synthgen.core.schema import LabelSchema
    from synthgen.data.store import TrainingStore

MIN_BRAIN = 0.04
"""Smallest share of the field of view that is brain in a slice taken from a volume."""

MAX_PIXELS = 2**26
_TOP = {"1": 1, "L": 255, "I;16": 65535, "I;16B": 65535, "I": 65535}  # PNG modes, largest value
SPACING_TOLERANCE = 0.05
"""How far, as a share, an in-plane voxel size may be from the real data's."""


@dataclass(frozen=True)
class Frame:
    """What a set must fit to be compared.

    Attributes:
        schema: label schema of the real data.
        shape: their in-plane size (X, Y).
        spacing_mm: their voxel size.
        modalities: their modalities.
    """

    schema: LabelSchema
    shape: tuple[int, int]
    spacing_mm: float = 1.0
    modalities: tuple[str, ...] = ()

    @classmethod
    def of(cls, store: TrainingStore) -> Self:
        """Return the frame of a training store."""
        return cls(store.schema, store.shape, store.spacing_mm, store.modalities)


@dataclass(frozen=True)
class Case:
    """The files of one case.

    Attributes:
        name: what errors and reports call it.
        labels: integer label map.
        images: (channel name, file) of each image on the same grid.
        table: label id to PV channel.
    """

    name: str
    labels: Path
    images: tuple[tuple[str, Path], ...]
    table: Mapping[int, int]


class CaseReader:
    """Read slices of cases; the case read last stays in memory.

    Attributes:
        slices: (case, z) of each slice.
        positions: place in the brain of each slice, NaN where a case is one slice.
        images: (slice, image of its case) of each image.
    """

    def __init__(self, cases: Sequence[Case], frame: Frame) -> None:
        self._cases, self._frame = tuple(cases), frame
        self._last: tuple[int, _Loaded] | None = None
        self.slices: list[tuple[int, int]] = []
        self.positions: list[float] = []
        self.images: list[tuple[int, int]] = []
        for number, case in enumerate(self._cases):
            flat = _is_flat(case.labels)
            if flat and number:
                chosen, extent = [0], (0, 0)  # its pixels are read, and checked, when needed
            else:
                chosen, extent = self._chosen(number)
            for z in chosen:
                self.images += [(len(self.slices), k) for k in range(len(case.images))]
                self.slices.append((number, z))
                self.positions.append(np.nan if flat else slice_position(z, *extent))

    def pv(self, index: int) -> Floats:
        """Return the one-hot PV map `(C, X, Y)` of a slice."""
        number, z = self.slices[index]
        plane = self._case(number).channels[..., z]
        one_hot: Floats = (np.arange(self._frame.schema.channels)[:, None, None] == plane).astype(
            np.float32
        )
        return one_hot

    def image(self, row: int) -> Floats:
        """Return an image `(1, X, Y)` in [0, 1]."""
        index, kind = self.images[row]
        number, z = self.slices[index]
        return self._case(number).images[kind][None, ..., z]

    def style(self, row: int) -> str:
        """Return the style name of an image: its channel's name as a slug."""
        return slug(self._channel(row)) or "image"

    def modality(self, row: int) -> str:
        """Return the modality of an image, `UNKNOWN` if the real data have none of that name."""
        name = self._channel(row).lower()
        modality = MODALITIES.get(name, name)
        return modality if modality in self._frame.modalities else UNKNOWN

    def _channel(self, row: int) -> str:
        index, kind = self.images[row]
        return self._cases[self.slices[index][0]].images[kind][0]

    def _chosen(self, number: int) -> tuple[list[int], tuple[int, int]]:
        channels = self._case(number).channels
        if channels.shape[2] == 1:
            return [0], (0, 0)
        area = round(MIN_BRAIN * self._frame.shape[0] * self._frame.shape[1])
        path = self._cases[number].labels
        try:
            chosen, extent = choose_slices(channels > 0, min_area=area)
        except GeometryError as error:
            raise GeometryError(f"{path}: {error}") from error
        if not chosen:
            raise GeometryError(f"{path}: no axial slice has {area} voxels of brain or more")
        return chosen, extent

    def _case(self, number: int) -> _Loaded:
        if self._last is None or self._last[0] != number:
            self._last = number, _load(self._cases[number], self._frame)
        return self._last[1]


@dataclass(frozen=True)
class _Loaded:
    """One case on the frame's grid: channel of each voxel `(X, Y, Z)`, images `(X, Y, Z)`."""

    channels: npt.NDArray[np.uint8]
    images: tuple[Floats, ...]


def _load(case: Case, frame: Frame) -> _Loaded:
    volume = _read(case.labels, frame, labels=True)
    _require_spacing(volume, frame)
    ids, places = np.unique(volume.data, return_inverse=True)
    unknown = [int(i) for i in ids if int(i) not in case.table]
    if unknown:
        raise SchemaError(
            f"{case.labels}: label id {', '.join(map(str, unknown[:8]))} has no name; "
            f"the ids with names are {', '.join(map(str, sorted(case.table)))}"
        )
    channel_of = np.asarray([case.table[int(i)] for i in ids], dtype=np.uint8)
    channels = channel_of[places.reshape(volume.data.shape)]
    brain = channels > 0
    center = _center(case.labels, brain, frame)
    images = []
    for _, path in case.images:
        image = _read(path, frame, labels=False)
        volume.grid.require_same(image.grid, str(path))
        images.append(_fit(_intensities(image, brain), frame, center))
    return _Loaded(_fit(channels, frame, center), tuple(images))


def _fit(array: npt.NDArray[Any], frame: Frame, center: tuple[int, int] | None) -> npt.NDArray[Any]:
    """Return `(X, Y, Z)` cropped or padded in the plane, as it is if it fits already."""
    if center is None:
        return array
    return np.moveaxis(crop_or_pad(np.moveaxis(array, 2, 0), frame.shape, center=center), 0, 2)


def _center(path: Path, brain: npt.NDArray[np.bool_], frame: Frame) -> tuple[int, int] | None:
    """Return the middle of the brain's box, or None if the slices have the wanted size."""
    if brain.shape[:2] == frame.shape:
        return None
    boxes = ndimage.find_objects(brain.astype(np.uint8))
    if not boxes:
        raise GeometryError(f"{path}: only background; expected some tissue")
    x, y, _ = boxes[0]
    size = (x.stop - x.start, y.stop - y.start)
    if size[0] > frame.shape[0] or size[1] > frame.shape[1]:
        raise GeometryError(
            f"{path}: the brain measures {size[0]} x {size[1]} pixels (X x Y) and does not fit "
            f"into the {frame.shape[0]} x {frame.shape[1]} of the real data; rows of a PNG are X "
            "(left to right), columns Y (posterior to anterior)"
        )
    return (x.start + x.stop) // 2, (y.start + y.stop) // 2


def _require_spacing(volume: Volume, frame: Frame) -> None:
    got, wanted = volume.grid.spacing_mm[:2], frame.spacing_mm
    if max(abs(s - wanted) for s in got) > SPACING_TOLERANCE * wanted:
        raise GeometryError(
            f"{volume.path}: expected in-plane voxels of {wanted:g} mm as the real data, got "
            f"{got[0]:.4g} x {got[1]:.4g} mm; resample it first"
        )


def _intensities(volume: Volume, brain: npt.NDArray[np.bool_]) -> Floats:
    """Return an image in [0, 1], 0 outside the brain; other ranges are scaled case by case."""
    data = volume.data
    if data.min() >= 0 and data.max() <= 1:
        return np.where(brain, data, 0).astype(np.float32)
    return robust_scale(data, brain, where=str(volume.path))[0]


def _is_flat(path: Path) -> bool:
    """Return whether a file holds one slice, by its header."""
    if path.suffix == ".png":
        return True
    return len(shape := _header(path)) == 2 or 1 in shape


def _header(path: Path) -> tuple[int, ...]:
    with readable(path):
        return tuple(int(s) for s in open_nifti(path).shape)


def _read(path: Path, frame: Frame, *, labels: bool) -> Volume:
    """Read a label map or an image as `(X, Y, Z)`."""
    if path.suffix == ".png":
        return _read_png(path, frame, labels=labels)
    if len(_header(path)) == 2:
        return _read_plane(path, labels=labels)
    volume = read_labels(path) if labels else read_image(path)
    if 1 in volume.data.shape[:2]:
        raise GeometryError(
            f"{path}: expected axial slices (X, Y, Z), got shape {volume.data.shape} in RAS"
        )
    return volume


def _read_plane(path: Path, *, labels: bool) -> Volume:
    """Read a NIfTI file whose header says two dimensions."""
    with readable(path):
        loaded = open_nifti(path)
        require_intact(path, loaded)
        plane = np.asarray(loaded.dataobj, dtype=np.float32)[..., None]
        turned = nib.as_closest_canonical(  # type: ignore[no-untyped-call]
            nib.Nifti1Image(plane, loaded.affine)  # type: ignore[no-untyped-call]
        )
        data = np.asarray(turned.dataobj, dtype=np.float32)
    if data.ndim != 3 or data.shape[2] != 1 or not np.isfinite(data).all():
        raise StoreError(
            f"{path}: expected one axial slice of finite values, got shape {data.shape}"
        )
    if labels:
        whole = np.rint(data)
        if np.abs(whole - data).max() > 1e-3:
            raise SchemaError(f"{path}: label ids must be integers")
        data = whole.astype(np.int32)
    return Volume(data, Grid.from_affine(data.shape, turned.affine), path)


def _read_png(path: Path, frame: Frame, *, labels: bool) -> Volume:
    """Read a grey PNG, rows X; images are divided by the largest value of their 8 or 16 bits."""
    with opened_picture(path, ("PNG",)) as picture:
        size, mode = picture.size, picture.mode
        if size[0] * size[1] > MAX_PIXELS:
            raise GeometryError(f"{path}: {size[1]} x {size[0]} pixels are too many")
        if mode not in _TOP and not (labels and mode == "P"):
            raise StoreError(f"{path}: expected one grey channel, got mode {mode}")
        data = np.asarray(picture).astype(np.int32)
    spacing = frame.spacing_mm
    grid = Grid.from_affine((*data.shape, 1), np.diag([spacing, spacing, spacing, 1.0]))
    if labels:
        return Volume(data[..., None], grid, path)
    return Volume((data[..., None] / _TOP[mode]).astype(np.float32), grid, path)
