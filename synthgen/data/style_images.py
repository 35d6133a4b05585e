"""Images that a style is fitted on: found, skull-stripped, on the model's grid, slice by slice."""

from __future__ import annotations

import os
from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from synthgen.core.errors import RequestError, StoreError
from synthgen.core.geometry import choose_slices, crop_or_pad
from synthgen.data import tissue
from synthgen.data.nifti import Volume, read_image
from synthgen.data.prepare import brain_center
from synthgen.data.sources import Scan, discover, modality_of, subject_of
from synthgen.data.subject import brain_of

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

FULL_SLICE = 0.5
"""Smallest brain area of a slice, relative to its volume's largest: the contrast of a slice that
shows little of the brain is uncertain, and so is its style code."""


def find_images(sources: Sequence[Path], dataset: str, modality: str) -> list[Scan]:
    """Return the images of one modality, each as a scan, in an order of their own.

    Args:
        sources: NIfTI files, taken as they are, and folders, where the names tell modality and
            subject as in `synthgen.data.sources`.
        dataset: the data set that the images stand for.
        modality: their modality.

    Raises:
        RequestError: no such file, or its name tells another modality.
        StoreError: a folder without images of this modality.
    """
    scans: dict[str, Scan] = {}
    for source in sources:
        if source.is_dir():
            found = [s for s in discover([str(source)]).scans if modality in s.images]
            if not found:
                raise StoreError(
                    f"{source}: no {modality} image; expected names like sub-01_FLAIR.nii.gz, "
                    "or name the files themselves"
                )
        else:
            found = [_one_file(source, modality)]
        for scan in found:
            # Not Path.resolve, which fails on a link to itself; reading it will say so.
            scans.setdefault(os.path.realpath(scan.images[modality]), scan)
    return sorted(
        (replace(scan, dataset=dataset) for scan in scans.values()),
        key=lambda scan: (scan.id, scan.session, scan.images[modality].name),
    )


def _one_file(path: Path, modality: str) -> Scan:
    if not path.is_file():
        raise RequestError(f"{path}: no such file or folder; expected NIfTI images")
    told = modality_of(path)
    if told not in (None, modality):
        raise RequestError(f"{path}: its name says {told}, but the style is one of {modality}")
    return Scan("", subject_of(path) or path.name.partition(".")[0], images={modality: path})


def read_slices(scan: Scan, modality: str, shape: Sequence[int]) -> npt.NDArray[np.float32]:
    """Read the axial slices of a skull-stripped image, as in a training store.

    Args:
        scan: holds the image, and its brain mask if there is one; else the brain is where the
            image is not 0.
        modality: which image.
        shape: in-plane size (X, Y).

    Returns:
        float32 `(N, 1, X, Y)` in [-1, 1] at 1 mm, scaled by volume, -1 outside the brain: the
        slices that show enough of it (`FULL_SLICE`).

    Raises:
        StoreError: unreadable, or the image has its skull.
        GeometryError: not 3-D, a mask on another grid, or a brain that does not fit.
    """
    volume = read_image(scan.images[modality])
    mask = brain_of(scan, {modality: volume}).astype(np.float32)
    affine = _slice_affine(volume)
    pv, _ = tissue.resample_pv(np.stack([1 - mask, mask]), affine)
    image, _ = tissue.resample_image(volume.data, affine)
    brain = pv[0] < 0.5
    where = str(volume.path)
    center = brain_center(brain, shape, where=where)
    largest = int(brain.sum(axis=(0, 1)).max())
    chosen, _ = choose_slices(brain, min_area=max(1, int(FULL_SLICE * largest)))
    scaled, _ = tissue.robust_scale(image, brain, where=where)
    slices = crop_or_pad(np.moveaxis(scaled[..., chosen], -1, 0), shape, center=center)
    return (2 * slices - 1)[:, None]


def _slice_affine(volume: Volume) -> npt.NDArray[np.float64]:
    """Return the affine; a single slice counts as 1 mm thick, so that it stays one slice."""
    affine = volume.grid.matrix()
    if volume.data.shape[2] == 1:
        affine[:3, 2] /= np.linalg.norm(affine[:3, 2])
    return affine
