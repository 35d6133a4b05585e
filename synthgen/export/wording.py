"""What cards say of the pictures: slices of a brain in RAS, or photographs that lie as they are."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from synthgen.data.rows import Source


@dataclass(frozen=True)
class Wording:
    """Words on a source's pictures.

    Attributes:
        tags: tags of a dataset card.
        subject: what the pictures show, for titles.
        axes: what rows and columns of a picture are.
        volume_axes: what the axes of a NIfTI file are.
        zero: what the value 0 of an image means.
    """

    tags: tuple[str, ...]
    subject: str
    axes: str
    volume_axes: str
    zero: str


def wording(source: Source) -> Wording:
    """Return the words for a source."""
    pixels = f"pixels of {source.spacing_mm:g} mm"
    if source.schema.is_picture:
        return Wording(
            ("medical", "vessels", "angiography"),
            "Vessel pictures",
            "Rows of a picture run down it, columns to the right: pictures, masks and arrays lie "
            f"alike. Files that need a pixel size state {source.spacing_mm:g} mm",
            "The first axis runs down the picture, the second to the right; they have no place in "
            f"a patient, and viewers show them transposed. {pixels.capitalize()}",
            "Images lie in [0, 1] and show a background everywhere",
        )
    return Wording(
        ("medical", "brain", "mri"),
        "Brain slices",
        "Rows of a picture are X (left to right), columns Y (posterior to anterior), " + pixels,
        f"Axes in RAS, {pixels}",
        "Images lie in [0, 1] and are 0 outside the brain",
    )
