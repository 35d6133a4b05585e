"""One scan's files into PV maps and images on one 1 mm grid.

Tissue maps come, in this order, from probability maps, from an integer label map, or from the
images themselves with an atlas as prior.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt
from scipy import ndimage

from synthgen.core.errors import GeometryError, RequestError, SchemaError, StoreError
from synthgen.data import tissue
from synthgen.data.atlas import align_prior, atlas_tissue_maps
from synthgen.data.label_tables import freesurfer_table, read_table
from synthgen.data.mni152 import load_mni152
from synthgen.data.nifti import Volume, read_image, read_labels, read_maps, read_mask
from synthgen.data.sources import FINE, Scan

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

    from synthgen.core.geometry import Grid
    from synthgen.core.schema import LabelSchema

PV_TOLERANCE = 0.02
"""How far given probability maps may be from [0, 1] and from a sum of 1 (uint8 rounding)."""

SOFTNESS_MM = 0.6
"""Standard deviation of the filter that softens hard lesion masks and brain rims."""

MAX_BRAIN_ML = 2400.0
"""More than any brain with its CSF: what is larger has not been skull-stripped."""

Maps = npt.NDArray[np.float32]
Mask = npt.NDArray[np.bool_]


@dataclass(frozen=True)
class Prior:
    """A tissue atlas: maps `(K, X, Y, Z)`, the tissue of each map, the affine."""

    maps: Maps
    tissues: tuple[str, ...]
    affine: npt.NDArray[np.float64]


@dataclass(frozen=True)
class Prepared:
    """One scan on a cubic grid.

    Attributes:
        pv: float32 `(C, X, Y, Z)`, sums to 1.
        images: modality -> float32 `(X, Y, Z)` in the file's own unit.
        affine: `(4, 4)` voxel to mm.
        origin: where the tissue maps come from: "maps", "labels", "atlas" or "template".
    """

    pv: Maps
    images: Mapping[str, Maps]
    affine: npt.NDArray[np.float64]
    origin: str


def load_prior(path: Path | None) -> Prior:
    """Load a tissue atlas (4-D, the maps `FINE`), or MNI152's maps if there is none.

    Raises:
        StoreError: unreadable.
        GeometryError: another number of maps than `FINE` has.
        RequestError: no atlas, and nilearn is not installed.
    """
    if path is None:
        template = load_mni152()
        return Prior(template.maps, ("csf", "gm", "wm"), template.grid.matrix())
    volume = read_maps(path)
    if len(volume.data) != len(FINE):
        raise GeometryError(
            f"{path}: expected {len(FINE)} tissue maps (CSF, CGM, CWM, DGM, BS, CBGM, CBWM), "
            f"got {len(volume.data)}"
        )
    return Prior(volume.data, FINE, volume.grid.matrix())


def load_scan(
    scan: Scan,
    schema: LabelSchema,
    *,
    spacing_mm: float = 1.0,
    table: Mapping[int, int] | None = None,
    atlas: Path | None = None,
) -> Prepared:
    """Read one scan and make its PV maps.

    Args:
        scan: the files.
        schema: the wanted PV channels.
        spacing_mm: wanted voxel size.
        table: label id -> PV channel; by default the table beside the label map, or
            FreeSurfer's.
        atlas: tissue atlas for scans without tissue maps; MNI152's maps by default.

    Raises:
        StoreError: unreadable, empty or non-finite files; an image with its skull.
        GeometryError: shapes or affines that disagree, 4-D images, no brain.
        SchemaError: unknown label ids, incomplete tissue maps, wrong probabilities.
    """
    if scan.template:
        template = load_mni152()
        pv = _compose(template.maps, ("csf", "gm", "wm"), schema)
        made = Prepared(pv, {"t1": template.t1}, template.grid.matrix(), "template")
        return _finish(made, scan, schema, spacing_mm, grid=template.grid, hard_rim=True)
    images = {name: read_image(path) for name, path in scan.images.items()}
    data = {name: volume.data for name, volume in images.items()}
    if scan.fine is not None or _complete(scan, schema):
        maps, tissues, grid = _read_tissue_maps(scan)
        origin = "maps"
        brain = _brain_mask(scan, grid)
        _check_maps(scan, maps, tissues, brain, _lesion_masks(scan, grid))
        pv = _compose(maps, tissues, schema)
    elif scan.labels is not None:
        volume, origin = read_labels(scan.labels), "labels"
        grid = volume.grid
        pv = _from_labels(scan, volume, schema, table)
    elif scan.maps:
        raise _incomplete(scan)
    else:
        grid, origin = next(iter(images.values())).grid, "atlas"
        pv = _from_atlas(images, brain_of(scan, images), grid, load_prior(atlas), schema)
    _require_grid(images, grid)
    made = Prepared(pv, data, grid.matrix(), origin)
    return _finish(made, scan, schema, spacing_mm, grid=grid, hard_rim=origin != "labels")


def _finish(
    made: Prepared,
    scan: Scan,
    schema: LabelSchema,
    spacing_mm: float,
    *,
    grid: Grid,
    hard_rim: bool,
) -> Prepared:
    """Lay the lesions on top, soften a hard rim, resample."""
    pv = made.pv
    for name, mask in _lesion_masks(scan, grid).items():
        pv = lay_lesion(pv, mask, schema.index(name), grid.spacing_mm)
    if hard_rim:
        pv = soften_rim(pv, grid.spacing_mm)
    pv, affine = tissue.resample_pv(pv, made.affine, spacing_mm)
    images = {
        name: tissue.resample_image(image, made.affine, spacing_mm)[0]
        for name, image in made.images.items()
    }
    return replace(made, pv=pv, images=images, affine=affine)


def lay_lesion(pv: Maps, mask: Mask, channel: int, spacing_mm: Sequence[float]) -> Maps:
    """Lay a hard lesion mask on PV maps, its edge softened; the sum stays 1.

    Where a mask has been cut out of the maps, the tissue around fills its softened edge.

    Args:
        pv: `(C, X, Y, Z)`.
        mask: `(X, Y, Z)`.
        channel: the lesion's channel.
        spacing_mm: voxel sizes.
    """
    if not mask.any():
        return pv
    box = _grown_box(mask, 6)
    part, inside = pv[(slice(None), *box)].copy(), mask[box]
    brain = 1 - part[0]
    # Tissue next to the lesion: what a voxel on its edge holds besides lesion.
    healthy = (brain > 0.5) & ~inside
    if healthy.any():
        index = ndimage.distance_transform_edt(
            ~healthy, sampling=spacing_mm, return_distances=False, return_indices=True
        )
        around = part[1:][:, index[0], index[1], index[2]]
        around /= np.maximum(around.sum(axis=0), 1e-6)
        part[1:, inside] = around[:, inside]
        part[0, inside] = 0
    sigma = [SOFTNESS_MM / s for s in spacing_mm]
    soft = ndimage.gaussian_filter(inside.astype(np.float32), sigma) * (1 - part[0])
    part[1:] *= (1 - part[0] - soft) / np.maximum(1 - part[0], 1e-6)
    part[channel] += soft
    out = pv.copy()
    out[(slice(None), *box)] = part
    return out


def soften_rim(pv: Maps, spacing_mm: Sequence[float]) -> Maps:
    """Soften the step that a binary brain mask left; which voxels are brain does not change.

    Maps whose rim is soft already come back as they are.
    """
    brain = pv[0] < 0.5
    if not brain.any():
        return pv
    rim = brain & ~ndimage.binary_erosion(brain)
    if np.mean(pv[0][rim] > 0.02) > 0.25:
        return pv
    box = _grown_box(brain, 4)
    part, inside = pv[(slice(None), *box)], brain[box]
    index = ndimage.distance_transform_edt(
        ~inside, sampling=spacing_mm, return_distances=False, return_indices=True
    )
    around = part[1:][:, index[0], index[1], index[2]]
    sigma = [SOFTNESS_MM / s for s in spacing_mm]
    share = ndimage.gaussian_filter(inside.astype(np.float32), sigma)
    share = np.where(inside, np.maximum(share, 0.55), np.minimum(share, 0.45))
    out = np.zeros_like(pv)
    out[0] = 1
    tissues = around * (share / np.maximum(around.sum(axis=0), 1e-6))
    out[1:][(slice(None), *box)] = tissues
    out[0][box] = 1 - share
    return out


def _grown_box(mask: Mask, margin: int) -> tuple[slice, ...]:
    box = ndimage.find_objects(mask.astype(np.uint8))[0]
    return tuple(slice(max(0, axis.start - margin), axis.stop + margin) for axis in box)


def _compose(maps: Maps, tissues: Sequence[str], schema: LabelSchema) -> Maps:
    """Sum maps into the schema's channels; background is what is left; the sum is 1."""
    pv = np.zeros((schema.channels, *maps.shape[1:]), dtype=np.float32)
    for name, one in zip(tissues, maps, strict=True):
        pv[schema.index(name)] += np.clip(one, 0, 1)
    total = pv.sum(axis=0)
    pv /= np.maximum(total, 1)
    # A sum that only rounding keeps from 1 is 1: no trace of background inside the brain.
    near = total > 1 - PV_TOLERANCE
    pv[:, near] /= pv[:, near].sum(axis=0)
    pv[0] = np.where(near, 0, 1 - np.minimum(total, 1))
    return pv


def _complete(scan: Scan, schema: LabelSchema) -> bool:
    return {"csf", "gm", "wm"} & set(schema.names) <= set(scan.maps)


def _incomplete(scan: Scan) -> SchemaError:
    missing = [name for name in ("csf", "gm", "wm") if name not in scan.maps]
    there = next(iter(scan.maps.values()))
    return SchemaError(
        f"{there}: tissue maps of {scan.id} are incomplete, label-"
        f"{', label-'.join(m.upper() for m in missing)}_probseg is missing; "
        "expected CSF, GM and WM side by side"
    )


def _read_tissue_maps(scan: Scan) -> tuple[Maps, tuple[str, ...], Grid]:
    """Read the 4-D map, or the single ones, on one grid."""
    if scan.fine is not None:
        volume = read_maps(scan.fine)
        if len(volume.data) != len(FINE):
            raise GeometryError(
                f"{scan.fine}: expected {len(FINE)} tissue maps on the last axis, "
                f"got {len(volume.data)}"
            )
        return volume.data, FINE, volume.grid
    volumes = {name: read_maps(path) for name, path in scan.maps.items()}
    grid = next(iter(volumes.values())).grid
    for volume in volumes.values():
        grid.require_same(volume.grid, str(volume.path))
        if len(volume.data) != 1:
            raise GeometryError(
                f"{volume.path}: expected a 3-D tissue map, got {len(volume.data)} maps"
            )
    return np.concatenate([v.data for v in volumes.values()]), tuple(volumes), grid


def _check_maps(
    scan: Scan, maps: Maps, tissues: Sequence[str], brain: Mask | None, lesions: Mapping[str, Mask]
) -> None:
    """Refuse probabilities outside [0, 1], and sums that are not 1 in the brain."""
    where = scan.fine or next(iter(scan.maps.values()))
    bad = (maps < -PV_TOLERANCE) | (maps > 1 + PV_TOLERANCE)
    if bad.any():
        channel, *voxel = (int(i) for i in np.argwhere(bad)[0])
        raise SchemaError(
            f"{where}: '{tissues[channel]}' has value {float(maps[(channel, *voxel)]):.6g} "
            f"at voxel {tuple(voxel)}; partial volumes must lie in [0, 1]"
        )
    total = maps.sum(axis=0)
    wrong = total > 1 + PV_TOLERANCE
    if brain is not None:
        # The outermost voxels of a mask are often cut by what made the maps.
        inner = ndimage.binary_erosion(brain, iterations=2)
        lesion = np.zeros(brain.shape, dtype=bool)
        for mask in lesions.values():
            lesion |= mask
        wrong |= inner & ~lesion & (total < 1 - PV_TOLERANCE)
    if wrong.any():
        at = tuple(int(i) for i in np.argwhere(wrong)[0])
        raise SchemaError(
            f"{where}: the tissue maps of {scan.id} sum to {float(total[at]):.6g} at voxel {at} "
            f"({int(wrong.sum())} such voxels); partial volumes must sum to 1 in the brain"
        )


def _lesion_masks(scan: Scan, grid: Grid) -> dict[str, Mask]:
    masks = {}
    for name, path in scan.lesions.items():
        volume = read_mask(path)
        grid.require_same(volume.grid, str(path))
        masks[name] = volume.data
    return masks


def _brain_mask(scan: Scan, grid: Grid) -> Mask | None:
    if scan.brain is None:
        return None
    volume = read_mask(scan.brain)
    grid.require_same(volume.grid, str(scan.brain))
    if not volume.data.any():
        raise StoreError(f"{scan.brain}: the brain mask is empty; expected some brain voxels")
    mask: Mask = volume.data
    return mask


def _require_grid(images: Mapping[str, Volume], grid: Grid) -> None:
    for volume in images.values():
        grid.require_same(volume.grid, str(volume.path))


def _from_labels(
    scan: Scan, volume: Volume, schema: LabelSchema, table: Mapping[int, int] | None
) -> Maps:
    if table is None:
        table = freesurfer_table(schema) if scan.table is None else read_table(scan.table, schema)
    spacing = volume.grid.spacing_mm
    try:
        pv = tissue.labels_to_pv(
            volume.data, table, schema.channels, spacing_mm=spacing, sigma_mm=SOFTNESS_MM
        )
        return tissue.trim_csf(pv, spacing, csf=schema.index("csf"))
    except (SchemaError, GeometryError) as error:
        raise type(error)(f"{volume.path}: {error}") from error


def brain_of(scan: Scan, images: Mapping[str, Volume]) -> Mask:
    """Return the scan's brain mask, else where any of its images is not zero.

    Raises:
        StoreError: no mask, and the images have their skull; or an empty mask.
        GeometryError: files on different grids.
    """
    grid = next(iter(images.values())).grid
    _require_grid(images, grid)
    given = _brain_mask(scan, grid)
    if given is not None:
        return given
    brain = np.any([volume.data != 0 for volume in images.values()], axis=0)
    volume = next(iter(images.values()))
    litres = float(brain.sum() * np.prod(volume.grid.spacing_mm)) / 1e6
    if brain.mean() > 0.7 or 1000 * litres > MAX_BRAIN_ML:
        raise StoreError(
            f"{volume.path}: not skull-stripped ({litres:.2g} l are not zero, "
            f"{100 * brain.mean():.0f}% of the volume) and no brain mask beside it; strip the "
            "skull first, or add a desc-brain_mask file and name the folder"
        )
    filled: Mask = ndimage.binary_fill_holes(brain)
    return filled


def _from_atlas(
    images: Mapping[str, Volume], brain: Mask, grid: Grid, prior: Prior, schema: LabelSchema
) -> Maps:
    data = {name: volume.data for name, volume in images.items()}
    try:
        aligned = align_prior(prior.maps, prior.affine, brain, grid.matrix())
        posterior = atlas_tissue_maps(data, brain, aligned)
    except GeometryError as error:
        raise GeometryError(f"{next(iter(images.values())).path}: {error}") from error
    return _compose(posterior, prior.tissues, schema)


def require_tissues(schema: LabelSchema) -> None:
    """Refuse a schema that lacks the tissues that brain sources hold.

    Raises:
        RequestError: naming the missing tissues.
    """
    missing = [name for name in dict.fromkeys(FINE) if name not in schema.names]
    if missing or not schema.lesions:
        raise RequestError(
            f"schema '{schema.name}' lacks {', '.join(missing) or 'a lesion tissue'}; "
            "brain sources need csf, gm, wm, deep_gm, brainstem and wmh"
        )
