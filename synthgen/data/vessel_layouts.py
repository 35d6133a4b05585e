"""Folders of vessel images as their publishers lay them out: what each file is, and whose.

- `xcad`: `trainA` drawn masks, `trainB` angiograms, `trainC` backgrounds, `test/images` with
  `test/masks` (Kim et al. 2023, DARL, arXiv:2209.14566); also under plain names, `XCAD` below.
- `drive`: `training` and `test`, each with `images`, `1st_manual`, `2nd_manual` and `mask`, the
  field of view (Staal et al. 2004, doi:10.1109/TMI.2004.825627).
- `chase`: `Image_01L.jpg` with `Image_01L_1stHO.png` and `_2ndHO` (Fraz et al. 2012,
  doi:10.1109/TBME.2012.2205687), in one folder or in `images`, `1stHO` and `2ndHO`.
- `plain`: pictures in the folder itself or in `images`, binary masks of the same names in `masks`.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, assert_never

from synthgen.core.errors import RequestError, StoreError
from synthgen.data.picture_files import SUFFIXES

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

Role = Literal["angiograms", "backgrounds", "masks", "test"]
Layout = Literal["auto", "xcad", "drive", "chase", "plain"]
Known = Literal["xcad", "drive", "chase", "plain"]

XCAD: Mapping[Role, tuple[str, ...]] = {
    "angiograms": ("trainB", "angiograms"),
    "backgrounds": ("trainC", "backgrounds"),
    "masks": ("trainA", "fractals"),
    "test": ("test/images", "test_images"),
}
"""Where the XCAD layout keeps each role; test masks stand where `images` reads `masks`."""

_DRIVE: Mapping[Role, str] = {"angiograms": "training", "test": "test"}
_DRIVE_OBSERVERS = {"1st": "1st_manual", "2nd": "2nd_manual"}
_CHASE_OBSERVERS = {"1st": "1stHO", "2nd": "2ndHO"}
_CHASE_NAME = re.compile(r"Image_(\d+)[LR]", re.IGNORECASE)


@dataclass(frozen=True)
class PictureFiles:
    """The files of one picture.

    Attributes:
        image: the picture.
        subject: whose it is, as far as the name tells; else the file's own name.
        masks: observer to mask file.
        field: mask of the field of view, if the data set has one.
    """

    image: Path
    subject: str
    masks: Mapping[str, Path]
    field: Path | None = None


def layout_of(folder: Path) -> Known:
    """Tell the layout of a folder from the names in it.

    Raises:
        RequestError: no such folder.
    """
    if not folder.is_dir():
        raise RequestError(f"{folder}: no such folder; expected a folder of vessel images")
    if (folder / "training" / "images").is_dir() or (folder / "test" / "mask").is_dir():
        return "drive"
    if any((folder / name).is_dir() for names in XCAD.values() for name in names):
        return "xcad"
    flat = [p for p in folder.iterdir() if _CHASE_NAME.fullmatch(p.stem)]
    if flat or (folder / "1stHO").is_dir():
        return "chase"
    return "plain"


def find_pictures(folder: Path, layout: Layout, role: Role) -> tuple[Known, list[PictureFiles]]:
    """Return the layout and the pictures of one role, by name.

    Raises:
        RequestError: no such folder, or the layout has nothing in this role.
        StoreError: a folder without pictures, two pictures of one name, a missing mask.
    """
    known = layout_of(folder) if layout == "auto" else layout
    if not folder.is_dir():
        raise RequestError(f"{folder}: no such folder; expected a folder of vessel images")
    match known:
        case "xcad":
            found = _xcad(folder, role)
        case "drive":
            found = _drive(folder, role)
        case "chase":
            found = _chase(folder, role)
        case "plain":
            found = _plain(folder, role)
        case _:
            assert_never(known)
    return known, found


def _xcad(folder: Path, role: Role) -> list[PictureFiles]:
    chosen = _one_of(folder, XCAD[role], role)
    masks: dict[str, Path] = {}
    if role == "test":
        beside = chosen.with_name(chosen.name.replace("images", "masks"))
        masks = {"1st": beside} if beside.is_dir() else {}
    return [
        PictureFiles(path, _xcad_subject(path.stem), _named_alike(path, masks))
        for path in _pictures(chosen).values()
    ]


def _xcad_subject(name: str) -> str:
    """Return the leading number: patient of `000_PPA_44_PSA_00_8`, sequence of `01251_32`."""
    number, rest, _ = name.partition("_")
    return number if rest and number.isdigit() else name


def _one_of(folder: Path, names: Sequence[str], role: str) -> Path:
    there = [folder / name for name in names if (folder / name).is_dir()]
    if len(there) != 1:
        told = f"found {len(there)} of them" if there else "found none"
        raise RequestError(
            f"{folder}: expected one folder '{' or '.join(names)}' for {role}, {told}"
        )
    return there[0]


def _drive(folder: Path, role: Role) -> list[PictureFiles]:
    if role not in _DRIVE:
        raise _no_role(folder, "DRIVE", role)
    part = folder / _DRIVE[role]
    observers = {k: part / name for k, name in _DRIVE_OBSERVERS.items() if (part / name).is_dir()}
    numbered = {k: _by_number(where) for k, where in observers.items()}
    fields = _by_number(part / "mask")
    found = []
    for number, image in _by_number(part / "images").items():
        masks = {k: _partner(image, number, paths, k) for k, paths in numbered.items()}
        field = _partner(image, number, fields, "field of view")
        found.append(PictureFiles(image, number, masks, field))
    return found


def _by_number(folder: Path) -> dict[str, Path]:
    """Return the pictures of a folder by their leading number, such as `21` of `21_training`."""
    found: dict[str, Path] = {}
    for path in _pictures(folder).values():
        number = path.stem.partition("_")[0]
        if not number.isdigit() or number in found:
            raise StoreError(f"{path}: expected names that begin with a number of their own")
        found[number] = path
    return found


def _partner(image: Path, number: str, paths: Mapping[str, Path], kind: str) -> Path:
    if number not in paths:
        raise StoreError(f"{image}: no '{kind}' mask numbered {number}; add it or take this out")
    return paths[number]


def _chase(folder: Path, role: Role) -> list[PictureFiles]:
    if role != "angiograms":
        raise _no_role(folder, "CHASE", role)
    split = (folder / "images").is_dir()
    pictures = _pictures(folder / "images" if split else folder)
    found = []
    for name, path in pictures.items():
        child = _CHASE_NAME.fullmatch(name)
        if child is None:
            if split:
                raise StoreError(f"{path}: expected names like Image_01L.jpg")
            continue
        if split:
            told = {k: folder / n for k, n in _CHASE_OBSERVERS.items() if (folder / n).is_dir()}
            masks = _named_alike(path, told)
        else:
            masks = _suffixed(path, pictures)
        found.append(PictureFiles(path, child[1], masks))
    if not found:
        raise StoreError(f"{folder}: no picture named like Image_01L.jpg")
    return found


def _suffixed(path: Path, pictures: Mapping[str, Path]) -> dict[str, Path]:
    """Return `Image_01L_1stHO.png` and so on; an observer who marked any picture marked all."""
    masks = {}
    for observer, suffix in _CHASE_OBSERVERS.items():
        if any(name.endswith(f"_{suffix}") for name in pictures):
            name = f"{path.stem}_{suffix}"
            if name not in pictures:
                raise StoreError(f"{path}: no mask {name}.png; add it or take this picture out")
            masks[observer] = pictures[name]
    return masks


def _plain(folder: Path, role: Role) -> list[PictureFiles]:
    inner = folder / "images"
    masks = {"1st": folder / "masks"} if (folder / "masks").is_dir() and role != "masks" else {}
    return [
        PictureFiles(path, path.stem, _named_alike(path, masks))
        for path in _pictures(inner if inner.is_dir() else folder).values()
    ]


def _named_alike(path: Path, folders: Mapping[str, Path]) -> dict[str, Path]:
    """Return each observer's mask of the same name; the ending may differ."""
    found = {}
    for observer, folder in folders.items():
        alike = [folder / f"{path.stem}{end}" for end in SUFFIXES]
        there = [candidate for candidate in alike if candidate.is_file()]
        if not there:
            raise StoreError(
                f"{path}: no mask {path.stem}.png in {folder}; add it or take this picture out"
            )
        found[observer] = there[0]
    return found


def _pictures(folder: Path) -> dict[str, Path]:
    """Return the pictures of one folder by name, in order.

    Raises:
        StoreError: none, or two of one name.
    """
    paths = sorted(
        p for p in (folder.iterdir() if folder.is_dir() else ())
        if p.suffix.lower() in SUFFIXES and not p.name.startswith(".")
    )  # fmt: skip
    if not paths:
        raise StoreError(
            f"{folder}: holds no pictures; expected files like NAME.png{_inside(folder)}"
        )
    found: dict[str, Path] = {}
    for path in paths:
        if path.stem in found:
            raise StoreError(f"{path}: {found[path.stem].name} has this name too; keep one")
        found[path.stem] = path
    return found


def _inside(folder: Path) -> str:
    """Name the folders inside, in case that one of them was meant."""
    names = sorted(p.name for p in folder.iterdir() if p.is_dir()) if folder.is_dir() else []
    return f"; did you mean one of its folders {', '.join(names[:6])}?" if names else ""


def _no_role(folder: Path, data: str, role: str) -> RequestError:
    told = {
        "backgrounds": "remove the vessels from its photographs instead",
        "masks": "draw masks with `synthgen vessels`",
        "test": "choose subjects for testing",
    }
    return RequestError(f"{folder}: {data} has no {role}; {told[role]}")
