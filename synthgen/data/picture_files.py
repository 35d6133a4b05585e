"""Picture files read with suspicion: photographs, X-ray frames and masks as `(X, Y)` arrays.

Rows of the file are X and columns are Y, as Pillow and NumPy read them; nothing is turned, and a
camera's orientation tag is not applied. The header is looked at before anything is decoded.
"""

from __future__ import annotations

import io
import warnings
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt
from PIL import Image, UnidentifiedImageError

from synthgen.core.errors import StoreError, SynthgenError
from synthgen.core.input_files import read_bytes
from synthgen.core.vessels import COVERED

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from pathlib import Path

Floats = npt.NDArray[np.float32]
Bools = npt.NDArray[np.bool_]

SUFFIXES = (".png", ".jpg", ".jpeg", ".tif", ".tiff", ".gif", ".bmp", ".pgm", ".ppm")
"""File name endings that are taken for pictures, in lower case."""
LARGEST_SIDE = 8192
"""Longest side, in pixels, of a picture that is decoded."""
MAX_BYTES = 2**29
"""Largest file of a picture: three channels of 16 bits of the longest sides, unpacked."""
SMALLEST_SIDE = 16
"""Shortest side, in pixels, of a picture that is decoded."""

_FORMATS = ("PNG", "JPEG", "TIFF", "GIF", "BMP", "PPM")
_SOFT_SHARE = 0.2
"""Largest share of grey pixels in a drawn mask with soft edges; photographs have nearly all."""


@dataclass(frozen=True)
class Picture:
    """One decoded picture.

    Attributes:
        grey: `(X, Y)` in [0, 1]; of a colour photograph its green channel, where vessels have the
            highest contrast.
        red: the red channel `(X, Y)` in [0, 1] of a colour photograph, else None.
    """

    grey: Floats
    red: Floats | None


def read_picture(path: Path, *, colour: bool) -> Picture:
    """Read a picture of 8 or 16 bits; the full range of its type becomes [0, 1].

    Args:
        path: the file.
        colour: whether a colour photograph is meant to be here. Three equal channels are grey.

    Raises:
        StoreError: missing, unreadable, too large or small, several frames, transparent, of
            another pixel type, or coloured where it should not be.
    """
    pixels = _decode(path)
    if pixels.ndim == 2:
        return Picture(_unit_range(pixels, path), None)
    red, green, blue = np.moveaxis(pixels, -1, 0)
    if np.array_equal(red, green) and np.array_equal(green, blue):
        return Picture(_unit_range(green, path), None)
    if not colour:
        raise StoreError(
            f"{path}: expected a single-channel grey picture, got three channels that differ; "
            "convert it to grey, or read a folder of photographs with layout 'plain'"
        )
    return Picture(_unit_range(green, path), _unit_range(red, path))


def read_mask(path: Path, shape: Sequence[int]) -> Bools:
    """Read a binary mask `(X, Y)` that belongs to a picture.

    Args:
        path: the file: zero and one other grey value.
        shape: the picture's `(X, Y)`.

    Raises:
        StoreError: unreadable, of another size, or not binary.
    """
    grey = read_picture(path, colour=False).grey
    if grey.shape != tuple(shape):
        raise StoreError(
            f"{path}: a mask of {_size(grey.shape)} for a picture of {_size(shape)} pixels; "
            "both need one size"
        )
    values = np.unique(grey)
    if values[0] != 0 or values.size > 2:
        raise StoreError(
            f"{path}: a mask holds 0 and one other grey value, got {_values(values)}; threshold "
            "it and save it as PNG (JPEG blurs masks)"
        )
    return grey > 0


def read_drawn_mask(path: Path) -> Floats:
    """Read a procedural mask `(X, Y)` as coverage in [0, 1]; soft edges are welcome.

    Raises:
        StoreError: unreadable, or a picture rather than a mask.
    """
    coverage = read_picture(path, colour=False).grey
    values = np.unique(coverage)
    soft = float(((coverage > 0) & (coverage < 1)).mean())
    if values.size <= 2 and values[0] == 0:
        coverage = (coverage > 0).astype(np.float32)
    elif soft > _SOFT_SHARE:
        raise StoreError(
            f"{path}: a vessel mask is 0 or 255 but for soft edges, got {_values(values)} with "
            f"{soft:.0%} of the pixels in between; is this an image?"
        )
    if not (coverage * 255 >= COVERED).any():
        raise StoreError(f"{path}: this mask shows no vessel; take it out of the folder")
    return coverage


def read_label_map(path: Path) -> npt.NDArray[np.int32]:
    """Read label values `(X, Y)` from a grey picture of 8 or 16 bits.

    Raises:
        StoreError: unreadable, or in colour: a palette stands for label values in some programs,
            and which values is lost.
    """
    pixels = _decode(path)
    if pixels.ndim != 2:
        raise StoreError(
            f"{path}: a label map is a grey picture whose values are labels, got colour or a "
            "palette; save it as grey PNG"
        )
    return pixels.astype(np.int32)


def _decode(path: Path) -> npt.NDArray[np.generic]:
    """Return the pixels `(X, Y)` or `(X, Y, 3)` in the file's own integer type."""
    with opened_picture(path, _FORMATS) as picture:
        _require_size(path, picture.size[::-1])
        _require_one_frame(path, picture)
        return _channels(path, picture)


@contextmanager
def opened_picture(path: Path, formats: tuple[str, ...]) -> Iterator[Image.Image]:
    """Open a picture without decoding it, and turn what goes wrong inside into one line.

    Args:
        path: the file.
        formats: Pillow's names of the formats that are read.

    Raises:
        StoreError: missing, damaged, of another format, or a decompression bomb by its header.
    """
    try:
        # From memory: Pillow asks a file for as many bytes as a chunk claims, which are allocated.
        content = io.BytesIO(read_bytes(path, MAX_BYTES))
        with warnings.catch_warnings():
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            # Decoding skips the checksums of a PNG's pixels.
            with Image.open(content, formats=formats) as picture:
                picture.verify()
            content.seek(0)
            with Image.open(content, formats=formats) as picture:
                yield picture
    except FileNotFoundError as error:
        raise StoreError(f"{path}: no such file") from error
    except SynthgenError:
        raise
    except UnidentifiedImageError as error:
        raise StoreError(f"{path}: not a picture; expected {' or '.join(formats)}") from error
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        raise StoreError(f"{path}: far too large a picture; {_size_rule()}") from error
    except (OSError, SyntaxError, ValueError, EOFError, LookupError) as error:
        raise StoreError(f"{path}: damaged ({error}); get this file again") from error


def _require_size(path: Path, shape: Sequence[int]) -> None:
    if min(shape) < SMALLEST_SIDE or max(shape) > LARGEST_SIDE:
        raise StoreError(f"{path}: {_size(shape)} pixels; {_size_rule()}")


def _require_one_frame(path: Path, picture: Image.Image) -> None:
    if getattr(picture, "is_animated", False):
        raise StoreError(f"{path}: holds several frames; save the one to use as its own file")


def _channels(path: Path, picture: Image.Image) -> npt.NDArray[np.generic]:
    if picture.mode == "P":
        picture = picture.convert("RGBA" if "transparency" in picture.info else "RGB")
    if picture.mode == "1":
        picture = picture.convert("L")
    if picture.mode in ("LA", "RGBA"):
        if np.asarray(picture.getchannel("A")).min() < 255:
            raise StoreError(f"{path}: has transparent pixels; save it without an alpha channel")
        picture = picture.convert(picture.mode[:-1])
    if picture.mode not in ("L", "RGB", "I", "I;16", "I;16B"):
        raise StoreError(
            f"{path}: pixel type '{picture.mode}'; expected grey or RGB of 8 bits, or grey of 16"
        )
    return np.array(picture)


def _unit_range(pixels: npt.NDArray[np.generic], path: Path) -> Floats:
    top = 255 if pixels.dtype == np.uint8 else 65535
    low, high = int(pixels.min()), int(pixels.max())
    if low < 0 or high > top:
        raise StoreError(f"{path}: values {low}..{high}; expected 16 bits, 0..65535")
    shares: Floats = np.ascontiguousarray(pixels, dtype=np.float32)
    shares /= np.float32(top)
    return shares


def _size(shape: Sequence[int]) -> str:
    return f"{shape[0]} x {shape[1]}"


def _size_rule() -> str:
    return f"sides of {SMALLEST_SIDE} to {LARGEST_SIDE} pixels are read"


def _values(values: Floats) -> str:
    """Name a few grey values, as whole 255ths."""
    grey = np.unique(np.rint(values * 255).astype(int))
    shown = [str(v) for v in grey[:4]] + (["..."] if grey.size > 4 else [])
    return f"{grey.size} values ({', '.join(shown)})"
