"""Real pictures without contrast agent or vessels, to paint drawn trees on.

A chest is used as it is. A photograph of the fundus is moved so that its field of view and its
optic disc fall on those of the drawn tree: turned, then mapped by the Moebius transformation of
the unit disc that takes one inner point to another. It keeps circles and angles, and the field
stays the field, so that no drawn vessel is cut off and no label changes.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from scipy import ndimage

from synthgen.core.errors import RequestError

if TYPE_CHECKING:
    from synthgen.core.vessels import Floats
    from synthgen.images.angiogram.fields import Circle

_FARTHEST = 0.75  # of a disc from the middle, in field radii: beyond, the map would blur too much


@dataclass(frozen=True)
class Background:
    """A real picture that shows no contrasted vessel.

    Attributes:
        image: float32 `(X, Y)` in [0, 1].
        name: of its file, for messages.
        field: circle of view in pixels; zeros where the whole frame is seen.
        disc: optic disc in pixels; zeros if there is none or nobody knows.
        subject: whom it shows; empty if unknown.

    Raises:
        RequestError: an image that is not `(X, Y)` or not within [0, 1].
    """

    image: Floats
    name: str
    field: Circle = (0.0, 0.0, 0.0)
    disc: Circle = (0.0, 0.0, 0.0)
    subject: str = ""

    def __post_init__(self) -> None:
        if self.image.ndim != 2:
            raise RequestError(
                f"background '{self.name}': expected one grey picture (X, Y), got the shape "
                f"{self.image.shape}; take the green channel of a colour photograph"
            )
        low, high = float(self.image.min()), float(self.image.max())
        if not (low >= 0 and high <= 1):
            raise RequestError(
                f"background '{self.name}': expected values in [0, 1], got {low:g} .. {high:g}; "
                "divide 8-bit pictures by 255"
            )

    @property
    def digest(self) -> str:
        """Of all that decides what is painted on it."""
        text = f"{self.image.shape} {tuple(self.field)} {tuple(self.disc)}".encode()
        pixels = np.ascontiguousarray(self.image, dtype="<f4").tobytes()
        return hashlib.blake2b(text + pixels, digest_size=8).hexdigest()


def chest_from(background: Background, shape: tuple[int, int], *, mirrored: bool) -> Floats:
    """Return a real chest, left and right swapped if `mirrored`.

    Raises:
        RequestError: a picture of another size than the trees.
    """
    if background.image.shape != shape:
        raise RequestError(
            f"background '{background.name}' is {background.image.shape[0]} x "
            f"{background.image.shape[1]} pixels but the trees are drawn on {shape[0]} x "
            f"{shape[1]}: resize the picture, or draw the trees in its size"
        )
    return background.image[:, ::-1] if mirrored else background.image


def fundus_from(
    background: Background,
    shape: tuple[int, int],
    field: Circle,
    disc: Circle,
    *,
    turn: float,
    mirrored: bool,
) -> Floats:
    """Move a photograph of the fundus onto a drawn tree.

    Args:
        background: of any size.
        shape: (X, Y) of the result.
        field: circle of view of the tree, in pixels.
        disc: optic disc of the tree; radius 0 for none.
        turn: angle in radians by which the photograph is turned where a disc is not known.
        mirrored: swap left and right.

    Returns:
        float32 `(X, Y)` in [0, 1]; beyond the field, whatever was nearest.
    """
    own = background.field if background.field[2] > 0 else _inscribed(background.image.shape)
    x = (np.arange(shape[0])[:, None] - field[0]) / field[2]
    y = (np.arange(shape[1])[None] - field[1]) / field[2]
    z = x + 1j * y
    z = z / np.maximum(np.abs(z), 1)
    source: complex | None = None
    if disc[2] > 0 and background.disc[2] > 0:
        source = complex(*(np.subtract(background.disc[:2], own[:2]) / own[2]))
        source = source.conjugate() if mirrored else source
        target = complex(*(np.subtract(disc[:2], field[:2]) / field[2]))
        turn = float(np.angle(target) - np.angle(source))
        near, far = (min(abs(point), _FARTHEST) for point in (source, target))
        shift = (far - near) / (1 - near * far) * np.exp(1j * np.angle(target))
        z = (z - shift) / (1 - np.conj(shift) * z)
    z *= np.exp(-1j * turn)
    z = np.conj(z) if mirrored else z
    places = np.stack([z.real, z.imag]) * (own[2] - 1) + np.reshape(own[:2], (2, 1, 1))
    moved: Floats = ndimage.map_coordinates(background.image, places, order=1, mode="nearest")
    return moved


def _inscribed(shape: tuple[int, ...]) -> Circle:
    """The largest circle inside a frame."""
    return ((shape[0] - 1) / 2, (shape[1] - 1) / 2, min(shape) / 2)
