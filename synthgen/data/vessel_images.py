"""Real angiograms and retina photographs: read, with their fields of view, masks and subjects.

Arrays are `(X, Y)` as the file's rows and columns. Vessels are darker than what surrounds them in
all of these pictures; of colour photographs the green channel is taken, as by Staal et al. (2004,
doi:10.1109/TMI.2004.825627).
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np
from scipy import ndimage

from synthgen.core.errors import RequestError, StoreError
from synthgen.data.picture_files import (
    SMALLEST_SIDE,
    Bools,
    Floats,
    read_drawn_mask,
    read_mask,
    read_picture,
)
from synthgen.data.vessel_layouts import Known, Layout, PictureFiles, Role, find_pictures

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

FIELD_RED = 40 / 255
"""Red value above which a pixel of a retina photograph belongs to the field of view."""
_HALF = 0.5 - 1e-5  # a share of exactly one half, whatever its last bits
_ROUND = 0.02
"""Median distance of a round field's border from its circle, at most this share of the radius."""
_LEAST_FIELD = 0.1
"""Share of the frame below which a field of view is taken for a failure."""


@dataclass(frozen=True)
class VesselImages:
    """Pictures of one role from one folder.

    Attributes:
        layout: how the folder is laid out.
        files: the pictures' files.
        subjects: whose each picture is: CHASE's child, XCAD's leading number, else the file.
        images: `(X, Y)` each, in [0, 1]; in the role "masks" the drawn coverage.
        fields: `(X, Y)` each: what the optics or the detector saw.
        circles: `(N, 3)` centre (x, y) and radius of a round field in pixels; zero where the whole
            frame is seen.
        masks: observer ("1st", "2nd") to one vessel mask `(X, Y)` a picture; empty without masks.
    """

    layout: Known
    files: tuple[Path, ...]
    subjects: tuple[str, ...]
    images: tuple[Floats, ...]
    fields: tuple[Bools, ...]
    circles: Floats
    masks: Mapping[str, tuple[Bools, ...]]

    def __len__(self) -> int:
        return len(self.files)

    @property
    def names(self) -> tuple[str, ...]:
        """The files' names without ending."""
        return tuple(path.stem for path in self.files)

    @property
    def identities(self) -> tuple[str, ...]:
        """The subjects with their data set in front, as manifests and leakage checks name them."""
        return tuple(f"{self.layout}/{subject}" for subject in self.subjects)


def read_vessel_images(
    folder: Path,
    layout: Layout = "auto",
    *,
    role: Role = "angiograms",
    subjects: Sequence[str] = (),
    exclude: Sequence[str] = (),
) -> VesselImages:
    """Read the pictures of one role, all into memory.

    Args:
        folder: the data set's folder; see `synthgen.data.vessel_layouts`.
        layout: how it is laid out; "auto" tells it from the names.
        role: which of its pictures.
        subjects: whose pictures to take, such as "01" of CHASE; all if empty.
        exclude: whose pictures to leave out.

    Raises:
        RequestError: no such folder, role or subject, or nobody is left.
        StoreError: a missing or unusable file.
    """
    known, found = find_pictures(folder, layout, role)
    found = _chosen(folder, found, subjects, exclude)
    read = [_read_one(files, known, role) for files in found]
    observers = found[0].masks
    return VesselImages(
        layout=known,
        files=tuple(files.image for files in found),
        subjects=tuple(files.subject for files in found),
        images=tuple(image for image, _ in read),
        fields=tuple(field for _, field in read),
        circles=np.stack([field_circle(field) for _, field in read]),
        masks={
            observer: tuple(
                read_mask(files.masks[observer], image.shape)
                for files, (image, _) in zip(found, read, strict=True)
            )
            for observer in observers
        },
    )


def _chosen(
    folder: Path,
    found: Sequence[PictureFiles],
    subjects: Sequence[str],
    exclude: Sequence[str],
) -> list[PictureFiles]:
    known = sorted({files.subject for files in found})
    for name in (*subjects, *exclude):
        if name not in known:
            shown = ", ".join(known[:8]) + (", ..." if len(known) > 8 else "")
            raise RequestError(f"{folder}: no subject '{name}'; it has {shown}")
    wanted = set(subjects or known) - set(exclude)
    if not wanted:
        raise RequestError(f"{folder}: every subject is excluded; nothing is left to read")
    return [files for files in found if files.subject in wanted]


def _read_one(files: PictureFiles, layout: Known, role: Role) -> tuple[Floats, Bools]:
    """Return a picture and its field of view."""
    if role == "masks":
        image, red = read_drawn_mask(files.image), None
    else:
        picture = read_picture(files.image, colour=layout != "xcad")
        image, red = picture.grey, picture.red
    if layout == "xcad" and image.shape[0] != image.shape[1]:
        raise StoreError(
            f"{files.image}: expected a square picture, got {image.shape[0]} x {image.shape[1]}; "
            "crop it, or read its folder with layout 'plain'"
        )
    if files.field is not None:
        field = read_mask(files.field, image.shape)
    elif red is not None:
        field = photograph_field(red)
    else:
        field = np.ones(image.shape, dtype=np.bool_)
    if field.mean() < _LEAST_FIELD:
        raise StoreError(
            f"{files.field or files.image}: a field of view of {field.mean():.1%} of the frame; "
            "expected a photograph with a bright round field"
        )
    return image, field


def photograph_field(red: Floats) -> Bools:
    """Return the field of view `(X, Y)` of a retina photograph from its red channel in [0, 1].

    It is the largest connected part that is bright enough, its holes filled.
    """
    bright = red > FIELD_RED
    parts, count = ndimage.label(bright)
    if count > 1:
        bright = parts == 1 + np.argmax(np.bincount(parts.ravel())[1:])
    field: Bools = ndimage.binary_fill_holes(bright)
    return field


def field_circle(field: Bools) -> Floats:
    """Fit a circle to the border of a field `(X, Y)`: centre (x, y) and radius in pixels.

    Least squares (Kasa 1976, doi:10.1109/TIM.1976.6312298), repeated without the points that lie
    well inside: a dark sector makes a field look smaller than it is, nothing makes it larger. Pixel
    centres have whole coordinates. All zero where the field fills its frame or is not round.
    """
    border = np.argwhere(field & ~ndimage.binary_erosion(field, border_value=1))
    if len(border) < 16:
        return np.zeros(3, dtype=np.float32)
    points = border.astype(np.float64)
    kept = np.ones(len(points), dtype=bool)
    center, radius, inwards = np.zeros(2), 0.0, np.zeros(len(points))
    for _ in range(10):
        system = np.column_stack([2 * points[kept], np.ones(kept.sum())])
        solution, *_ = np.linalg.lstsq(system, (points[kept] ** 2).sum(axis=1), rcond=None)
        center = solution[:2]
        radius = float(np.sqrt(solution[2] + center @ center))
        inwards = radius - np.linalg.norm(points - center, axis=1)
        kept = inwards <= max(1.0, float(np.median(np.abs(inwards))))
    if np.median(np.abs(inwards)) > _ROUND * radius:
        return np.zeros(3, dtype=np.float32)
    # Border pixels lie inside: their centres are half a pixel from the rim.
    return np.asarray([*center, radius + 0.5], dtype=np.float32)


def scale_to(
    images: VesselImages, *, side: int | None = None, field_diameter: float | None = None
) -> VesselImages:
    """Shrink pictures by area averaging; masks and fields keep what is covered by half or more.

    Args:
        images: pictures.
        side: their longer side afterwards.
        field_diameter: diameter in pixels that their round field has afterwards.

    Returns:
        Pictures of one scale along both axes; less than a pixel is lost at the rim.

    Raises:
        RequestError: not exactly one target, a picture that would have to be enlarged or would
            vanish, or no round field.
    """
    if (side is None) == (field_diameter is None):
        raise RequestError("scale_to: give either the side or the diameter of the field")
    parts = [
        _shrunk(images, index, _factor(images, index, side, field_diameter))
        for index in range(len(images))
    ]
    return replace(
        images,
        images=tuple(part.image for part in parts),
        fields=tuple(part.field for part in parts),
        circles=np.stack([part.circle for part in parts]),
        masks={name: tuple(part.masks[name] for part in parts) for name in images.masks},
    )


def _factor(
    images: VesselImages, index: int, side: int | None, field_diameter: float | None
) -> float:
    path, shape = images.files[index], images.images[index].shape
    diameter = 2 * float(images.circles[index, 2])
    if field_diameter is None:
        what, now, target = "side", float(max(shape)), float(side or 0)
    else:
        what, now, target = "field diameter", diameter, field_diameter
    if now == 0:
        raise RequestError(f"{path}: has no round field of view to scale by; give a side instead")
    factor = target / now
    if not factor * min(shape) >= SMALLEST_SIDE or factor > 1:
        raise RequestError(
            f"{path}: a {what} of {now:.1f} px cannot become {target:g} px; pictures are shrunk, "
            f"never enlarged, to sides of {SMALLEST_SIDE} px or more"
        )
    return factor


@dataclass(frozen=True)
class _Shrunk:
    image: Floats
    field: Bools
    circle: Floats
    masks: Mapping[str, Bools]


def _shrunk(images: VesselImages, index: int, factor: float) -> _Shrunk:
    image, circle = images.images[index], images.circles[index]
    rows, columns = (_averaging(n, factor) for n in image.shape)

    def average(array: Floats | Bools) -> Floats:
        return (rows @ array.astype(np.float32) @ columns.T).astype(np.float32)

    shift = [(n - len(w) / factor) / 2 for n, w in zip(image.shape, (rows, columns), strict=True)]
    center = (circle[:2] + 0.5 - shift) * factor - 0.5
    return _Shrunk(
        # Sums of weights miss 1 in the last bits.
        image=average(image).clip(0, 1),
        field=average(images.fields[index]) >= _HALF,
        circle=np.asarray([*center, circle[2] * factor] if circle[2] else circle, np.float32),
        masks={name: average(masks[index]) >= _HALF for name, masks in images.masks.items()},
    )


def _averaging(size: int, factor: float) -> Floats:
    """Return weights `(out, size)`: which share of each output pixel each input pixel is."""
    out = int(size * factor + 1e-6)
    edges = (size - out / factor) / 2 + np.arange(out + 1) / factor
    pixels = np.arange(size)
    overlap = np.minimum(edges[1:, None], pixels + 1) - np.maximum(edges[:-1, None], pixels)
    return (overlap.clip(0) * factor).astype(np.float32)
