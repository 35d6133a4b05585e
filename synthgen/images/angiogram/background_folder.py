"""Real pictures in a folder, ready to paint drawn vessels on."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from synthgen.core.errors import RequestError
from synthgen.data.vessel_images import read_vessel_images, scale_to
from synthgen.data.vessel_layouts import layout_of
from synthgen.images.angiogram.backgrounds import Background
from synthgen.images.angiogram.fields import circle
from synthgen.images.angiogram.inpaint import find_disc, vessel_free

if TYPE_CHECKING:
    from pathlib import Path

    from synthgen.data.vessel_images import VesselImages

_WITH_VESSELS = ("drive", "chase")
"""Data sets that hold no vessel-free pictures: theirs are made so."""


def read_background_folder(
    folder: Path, shape: tuple[int, int], *, exact: bool
) -> list[Background]:
    """Read every background of a folder; of DRIVE and CHASE, photographs freed of their vessels.

    Args:
        folder: laid out as `synthgen.data.vessel_layouts` says; a plain one holds pictures
            without vessels.
        shape: (X, Y) of the trees; larger pictures are shrunk to its longer side.
        exact: whether pictures must then have this shape, as those that are not moved onto a
            round field of view.

    Raises:
        RequestError: no such folder, one that holds none, or a picture of another shape.
        StoreError: an unusable picture.
    """
    side = max(shape)
    freed = layout_of(folder) in _WITH_VESSELS
    pictures = read_vessel_images(folder, role="angiograms" if freed else "backgrounds")
    if any(max(image.shape) > side for image in pictures.images):
        pictures = scale_to(pictures, side=side)
    for path, image in zip(pictures.files, pictures.images, strict=True):
        if exact and image.shape != shape:
            raise RequestError(
                f"{path}: a background of {image.shape[0]} x {image.shape[1]} pixels for trees of "
                f"{shape[0]} x {shape[1]}; crop or resize it, or draw trees of its --size"
            )
    if freed:
        pictures = without_vessels(pictures)
    return [background_of(pictures, index) for index in range(len(pictures))]


def without_vessels(pictures: VesselImages) -> VesselImages:
    """Return pictures whose vessels were removed by rule."""
    pairs = zip(pictures.images, pictures.circles, strict=True)
    return replace(pictures, images=tuple(vessel_free(image, circle(row)) for image, row in pairs))


def background_of(pictures: VesselImages, index: int) -> Background:
    """Return a picture without vessels as a background; its disc is sought in round fields."""
    image, view = pictures.images[index], circle(pictures.circles[index])
    return Background(
        image=image,
        name=pictures.files[index].name,
        field=view,
        disc=find_disc(image, view) if view[2] > 0 else view,
        subject=pictures.identities[index],
    )
