"""Which files are the images to segment: pictures or NIfTI volumes, and the channels of each."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch

from synthgen.core.errors import GeometryError, RequestError, StoreError
from synthgen.core.rng import SampleKey
from synthgen.data.picture_files import SUFFIXES, read_picture
from synthgen.segment.volumes import require_volumes

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    import numpy.typing as npt

    from synthgen.segment import TrainedSegmenter
    from synthgen.segment.use import SegmenterUse

VOLUMES = (".nii.gz", ".nii")
_CHANNEL = re.compile(r"(.+)_(\d{4})")


@dataclass(frozen=True)
class ImageCase:
    """One image.

    Attributes:
        name: of its files, without ending and number of the channel.
        files: one for each channel.
        volume: NIfTI, or else a picture.
    """

    name: str
    files: tuple[Path, ...]
    volume: bool


def find_cases(paths: Sequence[Path], use: SegmenterUse) -> list[ImageCase]:
    """Return the images that are named, and those in the folders that are, in order.

    The channels of an image have its name and their number, as nnU-Net writes it: NAME_0000.png,
    NAME_0001.png. A model of one channel takes such names as they are, unless all end in _0000.

    Args:
        paths: files and folders.
        use: of the model: how many channels, and of which rank.

    Raises:
        RequestError: a path that is not there, one name twice, pictures beside volumes, either of
            them for a model of the other kind, or an image that lacks channels.
        StoreError: a folder without images.
    """
    files = [file for path in paths for file in _files(path)]
    volumes = [file for file in files if _stem(file)[1] in VOLUMES]
    if volumes and len(volumes) < len(files):
        picture = next(file for file in files if file not in volumes)
        raise RequestError(
            f"{picture} is a picture, {volumes[0]} a volume; segment them into folders of their own"
        )
    if volumes:
        require_volumes(use, volumes[0])
    elif use.spatial_dims == 3:
        raise RequestError(f"{files[0]}: the model segments 3-D volumes (NIfTI), got a picture")
    found: dict[str, dict[int, Path]] = {}
    for file, (name, number) in zip(files, _numbered(files, use), strict=True):
        channels = found.setdefault(name, {})
        if number in channels:
            raise RequestError(
                f"{channels[number]} and {file} would share the mask of {name}; rename one, or "
                "segment them into two folders"
            )
        channels[number] = file
    wanted = {*range(len(use.channels))}
    for name, channels in found.items():
        if {*channels} != wanted:
            there = ", ".join(f"{number:04d}" for number in sorted(channels))
            raise RequestError(
                f"{next(iter(channels.values()))}: the model needs {len(wanted)} channels of "
                f"{name} ({', '.join(use.channels)}), numbered from 0000, got {there}"
            )
    return [
        ImageCase(name, tuple(channels[k] for k in sorted(channels)), bool(volumes))
        for name, channels in found.items()
    ]


def segment_picture(
    segmenter: TrainedSegmenter, case: ImageCase, seed: int = 0
) -> npt.NDArray[np.float32]:
    """Return the probabilities `(C, X, Y)` of a picture, whose rows are X.

    Args:
        segmenter: what finds the tissues; pictures are taken at its scale.
        case: the picture; of colour photographs the green channel counts.
        seed: of segmenters that draw.

    Raises:
        StoreError: unreadable.
        GeometryError: channels of different sizes.
        RequestError: pictures that the segmenter does not take.
    """
    channels = [read_picture(file, colour=True).grey for file in case.files]
    for file, channel in zip(case.files, channels, strict=True):
        if channel.shape != channels[0].shape:
            raise GeometryError(
                f"{file}: expected the size {channels[0].shape} of {case.files[0]}, got "
                f"{channel.shape}"
            )
    batch = torch.from_numpy(np.stack(channels)[None])
    found: npt.NDArray[np.float32] = segmenter.predict(batch, [SampleKey(seed, 0)])[0].numpy()
    return found


def _files(path: Path) -> list[Path]:
    if not path.exists():
        raise RequestError(f"{path}: no such file or folder")
    if path.is_file():
        return [path]
    inside = [
        file
        for file in sorted(path.iterdir())
        if file.is_file() and _stem(file)[1] and not file.name.startswith(".")
    ]
    if not inside:
        raise StoreError(f"{path}: holds no images; expected files like NAME.png or NAME.nii.gz")
    return inside


def _stem(path: Path) -> tuple[str, str]:
    """Return a file's name without its ending, and the ending, "" if it is of no known kind."""
    lower = path.name.lower()
    ending = next((e for e in (*VOLUMES, *SUFFIXES) if lower.endswith(e)), "")
    return path.name[: len(path.name) - len(ending)] if ending else path.stem, ending


def _numbered(files: Sequence[Path], use: SegmenterUse) -> list[tuple[str, int]]:
    """Return the name of each file's image, and the number of its channel."""
    stems = [_stem(file)[0] for file in files]
    matches = [_CHANNEL.fullmatch(stem) for stem in stems]
    numbered = [(m[1], int(m[2])) if m else (s, 0) for s, m in zip(stems, matches, strict=True)]
    if len(use.channels) > 1 or all(m and m[2] == "0000" for m in matches):
        return numbered
    return [(stem, 0) for stem in stems]
