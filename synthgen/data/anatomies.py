"""Real brains as volumes of partial volumes, and real lesion masks, one subject at a time.

Reads what `synthgen prepare` reads. A few brains stay in memory, as 8-bit maps of the box around
the brain.
"""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt
from scipy import ndimage

from synthgen.core.errors import RequestError
from synthgen.core.manifest import digest, file_digest
from synthgen.data.nifti import read_mask
from synthgen.data.prepare import (
    MNI_BRAIN_CENTER_MM,
    MNI_BRAIN_Z_MM,
    drop_known_lesions,
    find_subject,
)
from synthgen.data.real_volumes import brain_box
from synthgen.data.sources import Scan, discover
from synthgen.data.subject import SOFTNESS_MM, load_scan, require_tissues

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from synthgen.core.schema import LabelSchema

CACHE_BYTES = 2**29
FINEST_MM = 1.0
"""Voxel size of the brains in memory; output that is finer than this is interpolated."""

_MARGIN = 3  # voxels of background kept around a brain


@dataclass(frozen=True)
class Anatomy:
    """One real brain.

    Attributes:
        subject: `dataset/sub-XX`.
        maps: uint8 `(K, X, Y, Z)` in RAS, value / 255: the tissues that it has, without the
            background, inside the box around the brain.
        channels: schema channel of each map.
        spacing_mm: size of the cubic voxels.
        extent_mm: field of view of the scan, whose middle need not be the brain's.
    """

    subject: str
    maps: npt.NDArray[np.uint8]
    channels: tuple[int, ...]
    spacing_mm: float
    extent_mm: tuple[float, float, float]


@dataclass(frozen=True)
class LesionMask:
    """One patient's lesions in rigid MNI space.

    Attributes:
        subject: `dataset/patientXX`.
        tissue: lesion tissue.
        mask: soft float32 `(X, Y, Z)` in [0, 1], the box around the lesions.
        affine: `(4, 4)` voxel to mm from the middle of a brain.
    """

    subject: str
    tissue: str
    mask: npt.NDArray[np.float32]
    affine: npt.NDArray[np.float64]


class Anatomies:
    """The brains and the lesion masks of some sources.

    Args:
        sources: folders of NIfTI, as `synthgen prepare` reads them, or "mni152".
        schema: the wanted PV channels.
        exclude: subjects to leave out, `sub-XX` or `dataset/sub-XX`.

    Attributes:
        scans: scans that show a brain.
        lesions: (scan, lesion tissue) of each mask without a brain.
        schema: the PV channels.
        atlas: tissue atlas of the sources, if there is one.
        notes: remarks on what was chosen or passed over.

    Raises:
        RequestError: a source or a subject to exclude does not exist, or no brain is left.
        StoreError: unreadable files.
    """

    def __init__(
        self, sources: Sequence[str], schema: LabelSchema, *, exclude: Sequence[str] = ()
    ) -> None:
        require_tissues(schema)
        found = discover(sources)
        notes = list(found.notes)
        # Twins are found before subjects are left out, so that none comes back by its twin.
        scans = drop_known_lesions(found, notes)
        known = {scan.id: scan.dataset for scan in scans}
        left_out = {find_subject(name, known) for name in exclude}
        scans = [scan for scan in scans if scan.id not in left_out]
        self.scans = tuple(scan for scan in scans if not scan.lesions_only)
        self.lesions = tuple(
            (scan, tissue) for scan in scans if scan.lesions_only for tissue in scan.lesions
        )
        self.notes = tuple(notes)
        self._datasets = known
        self.schema, self.atlas = schema, found.atlas
        self._cache: OrderedDict[int, Anatomy] = OrderedDict()
        if not self.scans:
            raise RequestError(
                f"{', '.join(sources)}: no brain is left to paint, only "
                f"{len(self.lesions)} lesion masks; name a folder of label or tissue maps"
            )

    @property
    def subjects(self) -> tuple[str, ...]:
        """Real subjects behind the brains and the masks."""
        return tuple(sorted({scan.id for scan in (*self.scans, *(s for s, _ in self.lesions))}))

    def find(self, name: str) -> str:
        """Return the id of the subject that `sub-XX` or `dataset/sub-XX` names.

        Raises:
            RequestError: it names none, or several.
        """
        return find_subject(name, self._datasets)

    def fingerprint(self) -> str:
        """Return a digest of every file behind the brains and the masks.

        Raises:
            StoreError: a file cannot be read.
        """
        scans = [*self.scans, *(scan for scan, _ in self.lesions)]
        atlas = [] if self.atlas is None else [file_digest(self.atlas)]
        return digest([[_digests(scan) for scan in scans], atlas, self.schema.fingerprint])

    def load(self, number: int) -> Anatomy:
        """Return the brain of `scans[number]`.

        Raises:
            StoreError: unreadable files.
            GeometryError: files on different grids, or no brain.
            SchemaError: labels or maps that do not fit the schema.
        """
        if number in self._cache:
            self._cache.move_to_end(number)
            return self._cache[number]
        scan = self.scans[number]
        made = load_scan(scan, self.schema, spacing_mm=FINEST_MM, atlas=self.atlas)
        x, y, z = (n * FINEST_MM for n in made.pv.shape[1:])
        box = brain_box(made.pv[0] < 0.5, _MARGIN)
        channels = tuple(c for c in range(1, len(made.pv)) if made.pv[c].any())
        maps = np.stack([np.rint(255 * made.pv[c][box]).astype(np.uint8) for c in channels])
        anatomy = Anatomy(scan.id, maps, channels, FINEST_MM, (x, y, z))
        self._cache[number] = anatomy
        while len(self._cache) > 1 and self._cached() > CACHE_BYTES:
            self._cache.popitem(last=False)
        return anatomy

    def _cached(self) -> int:
        return sum(anatomy.maps.nbytes for anatomy in self._cache.values())

    def load_lesions(self, number: int) -> LesionMask:
        """Return the mask of `lesions[number]`, its edge softened.

        Raises:
            StoreError: unreadable files.
            GeometryError: not 3-D.
        """
        scan, tissue = self.lesions[number]
        volume = read_mask(scan.lesions[tissue])
        sigma = [SOFTNESS_MM / s for s in volume.grid.spacing_mm]
        mask = ndimage.gaussian_filter(volume.data.astype(np.float32), sigma)
        box = brain_box(mask > 0, 1)
        middle = np.eye(4)
        middle[:3, 3] = [-m for m in (*MNI_BRAIN_CENTER_MM, sum(MNI_BRAIN_Z_MM) / 2)]
        corner = np.eye(4)
        corner[:3, 3] = [axis.start for axis in box]
        affine = middle @ volume.grid.matrix() @ corner
        return LesionMask(scan.id, tissue, mask[box], affine)


def _digests(scan: Scan) -> Mapping[str, object]:
    """Return what a scan is made of: names, and the digest of each file."""

    def content(value: object) -> object:
        if isinstance(value, Path):
            return file_digest(value)
        if isinstance(value, dict):
            return {key: content(inner) for key, inner in value.items()}
        return value

    return {field.name: content(getattr(scan, field.name)) for field in fields(scan)}
