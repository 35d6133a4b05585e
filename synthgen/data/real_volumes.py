"""Labelled volumes: what one is, and those of real scans with tissue maps, cropped and scaled."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
from scipy import ndimage

from synthgen.core.errors import RequestError
from synthgen.core.tissue_groups import DEFAULT_TISSUES, TissueGroups
from synthgen.data.subject import load_scan
from synthgen.data.tissue import robust_scale

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from synthgen.core.schema import LabelSchema
    from synthgen.data.anatomies import Anatomies
    from synthgen.data.sources import Scan

SPACINGS_MM = (0.5, 4.0)
"""Finest and coarsest voxels."""

_MARGIN_MM = 4.0


@dataclass(frozen=True)
class VolumeLayout:
    """The grid and the labels of volumes.

    Attributes:
        tissues: groups of tissues that the label maps tell apart.
        spacing_mm: size of the cubic voxels.
        crop: keep the box around the brain alone, with 4 mm to each side, instead of the scan's
            field of view.

    Raises:
        RequestError: a wrong spacing.
    """

    tissues: tuple[str, ...] = DEFAULT_TISSUES
    spacing_mm: float = 1.0
    crop: bool = False

    def __post_init__(self) -> None:
        low, high = SPACINGS_MM
        if not low <= self.spacing_mm <= high:
            raise RequestError(
                f"--spacing-mm: expected {low:g} to {high:g}, got {self.spacing_mm:g}"
            )

    def box(self, pv: npt.NDArray[np.float32]) -> tuple[slice, ...]:
        """Return which part of partial volumes `(C, X, Y, Z)` is kept."""
        if not self.crop:
            return tuple(slice(0, n) for n in pv.shape[1:])
        return brain_box(pv[0] <= 0.5, _MARGIN_MM / self.spacing_mm)

    def harden(self, pv: npt.NDArray[np.float32], schema: LabelSchema) -> npt.NDArray[np.int8]:
        """Return the label map of partial volumes: places in the groups' names.

        Raises:
            RequestError: the schema does not have the tissues.
        """
        groups = TissueGroups.of(schema, self.tissues)
        soft = np.zeros((len(groups.names), *pv.shape[1:]), dtype=np.float32)
        for channel, group in enumerate(groups.group):
            soft[group] += pv[channel]
        return groups.harden(soft)


@dataclass(frozen=True)
class VolumeSample:
    """One labelled volume.

    Attributes:
        images: style to float32 `(X, Y, Z)` in [0, 1], 0 outside the brain.
        labels: int8 `(X, Y, Z)`.
        origin_mm: where the first voxel's middle lies.
        subject: the real subject that it shows; "" for a generated volume.
        group: the real subject whose brain it is, deformed or not.
        slices_mm: style to slice thickness; of a scan the voxel size, its own being unknown.
        facts: what else a table says of it.
    """

    images: Mapping[str, npt.NDArray[np.float32]]
    labels: npt.NDArray[np.int8]
    origin_mm: tuple[float, float, float]
    subject: str
    group: str
    slices_mm: Mapping[str, float]
    facts: Mapping[str, str | float]


class RealVolumes:
    """The scans of some sources, their own images beside labels of their tissue maps.

    Args:
        anatomies: the scans; those without an image of any style are passed over.
        styles: modalities.
        layout: grid and labels.

    Raises:
        RequestError: no style or one twice, no scan with such an image.
    """

    real = True

    def __init__(self, anatomies: Anatomies, styles: Sequence[str], layout: VolumeLayout) -> None:
        self._anatomies, self.styles, self.layout = anatomies, tuple(styles), layout
        self.modalities = self.styles
        require_styles(self.styles)
        self._scans = [s for s in anatomies.scans if _modalities(s) & {*styles}]
        if not self._scans:
            there = {name for scan in anatomies.scans for name in _modalities(scan)}
            raise RequestError(
                f"--style: no scan has an image of {', '.join(styles)}; there are "
                f"{', '.join(sorted(there)) or 'none, only labels'}"
            )

    def __len__(self) -> int:
        return len(self._scans)

    @property
    def label_names(self) -> tuple[str, ...]:
        """Name of each label value, background first."""
        return TissueGroups.of(self._anatomies.schema, self.layout.tissues).names

    @property
    def subjects(self) -> tuple[str, ...]:
        """Subjects that the volumes show."""
        return tuple(sorted({scan.id for scan in self._scans}))

    @property
    def identity(self) -> Mapping[str, Any]:
        """All that decides the volumes."""
        return {"source": "scans", "version": 1, "files": self._anatomies.fingerprint()}

    def name(self, index: int) -> str:
        """Return the plain name of a volume."""
        scan = self._scans[index]
        return re.sub(r"[^A-Za-z0-9-]+", "-", f"{scan.id}-{scan.session}").strip("-")

    def styles_of(self, index: int) -> tuple[str, ...]:
        """Return the styles of which a scan has an image."""
        there = _modalities(self._scans[index])
        return tuple(style for style in self.styles if style in there)

    def sample(self, index: int) -> VolumeSample:
        """Read one scan.

        Raises:
            StoreError: unreadable files.
            GeometryError: files on different grids, or no brain.
            SchemaError: labels or maps that do not fit the schema.
        """
        scan, layout, schema = self._scans[index], self.layout, self._anatomies.schema
        made = load_scan(scan, schema, spacing_mm=layout.spacing_mm, atlas=self._anatomies.atlas)
        box = layout.box(made.pv)
        brain = made.pv[0] <= 0.5
        images = {
            style: robust_scale(made.images[style], brain, where=scan.id)[0][box]
            for style in self.styles_of(index)
        }
        corner = made.affine @ [*(axis.start for axis in box), 1.0]
        lesion_ml = made.pv[list(schema.lesion_channels)].sum(dtype=np.float64)
        return VolumeSample(
            images,
            layout.harden(made.pv[(slice(None), *box)], schema),
            (float(corner[0]), float(corner[1]), float(corner[2])),
            scan.id,
            scan.id,
            dict.fromkeys(images, layout.spacing_mm),
            {"lesion_ml": round(float(lesion_ml) * layout.spacing_mm**3 / 1000, 2)},
        )


def brain_box(mask: npt.NDArray[np.bool_], margin: float) -> tuple[slice, ...]:
    """Return the box around a mask, grown by a margin in voxels; all of an empty one."""
    boxes = ndimage.find_objects(mask.astype(np.uint8))
    if not boxes:
        return tuple(slice(0, n) for n in mask.shape)
    grown = round(margin)
    return tuple(
        slice(max(0, axis.start - grown), min(axis.stop + grown, n))
        for axis, n in zip(boxes[0], mask.shape, strict=True)
    )


def require_styles(styles: Sequence[str]) -> None:
    """Refuse styles that are none, or not different.

    Raises:
        RequestError: they are.
    """
    if not styles or len({*styles}) < len(styles):
        raise RequestError(f"--style: expected different styles, got '{','.join(styles)}'")


def _modalities(scan: Scan) -> set[str]:
    return {"t1"} if scan.template else {*scan.images}
