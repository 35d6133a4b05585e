"""Finding subjects in folders of NIfTI: BIDS-like names, derivatives joined to their subjects.

A name is read as BIDS reads it (Gorgolewski et al. 2016, doi:10.1038/sdata.2016.44): entities
`key-value` joined by `_`, then a suffix. Files that mean nothing here are passed over.
"""

from __future__ import annotations

import csv
import itertools
import re
from collections import defaultdict
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from synthgen.core.errors import RequestError, StoreError
from synthgen.core.input_files import read_json, read_text
from synthgen.data import mni152
from synthgen.data.label_tables import tissue_of

if TYPE_CHECKING:
    from collections.abc import Collection, Mapping, Sequence

MODALITIES: Mapping[str, str] = {
    "t1w": "t1", "t1": "t1", "t1n": "t1", "t2w": "t2", "t2": "t2", "flair": "flair", "t2f": "flair",
    "t1ce": "t1ce", "t1c": "t1ce", "t1gd": "t1ce", "pd": "pd", "pdw": "pd",
}  # fmt: skip
"""File suffix, lower case, to modality."""

FINE = ("csf", "gm", "wm", "deep_gm", "brainstem", "gm", "wm")
"""Tissue of each map in a `desc-fine_probseg` or an atlas: CSF CGM CWM DGM BS CBGM CBWM."""

_LABEL_SUFFIXES = ("dseg", "seg", "aseg")
_NOT_DATASET = ("derivatives", "anat", "atlas")


@dataclass(frozen=True)
class Scan:
    """The files of one visit of one subject, all on one grid.

    Attributes:
        dataset: dataset name, a slug.
        subject: `sub-XX`, or the file's own subject prefix.
        session: `ses-XX`, or empty.
        images: modality -> file.
        maps: tissue -> probability map, one file each.
        fine: 4-D probability map with the tissues `FINE`.
        labels: integer label map.
        table: label table that lies beside `labels`.
        lesions: lesion tissue -> mask.
        brain: brain mask.
        template: the built-in MNI152 source.
    """

    dataset: str
    subject: str
    session: str = ""
    images: Mapping[str, Path] = field(default_factory=dict)
    maps: Mapping[str, Path] = field(default_factory=dict)
    fine: Path | None = None
    labels: Path | None = None
    table: Path | None = None
    lesions: Mapping[str, Path] = field(default_factory=dict)
    brain: Path | None = None
    template: bool = False

    @property
    def id(self) -> str:
        """The subject's unique id, `dataset/subject`."""
        return f"{self.dataset}/{self.subject}"

    @property
    def lesions_only(self) -> bool:
        """Whether there are lesion masks and nothing that shows the brain."""
        return not (self.template or self.images or self.maps or self.fine or self.labels)


@dataclass(frozen=True)
class Sources:
    """What was found: scans in a fixed order, the tissue atlas if there is one, remarks."""

    scans: tuple[Scan, ...]
    atlas: Path | None
    notes: tuple[str, ...]


@dataclass
class _Found:
    """Files of one (folder, subject, session, space) while the tree is walked."""

    images: dict[str, Path] = field(default_factory=dict)
    maps: dict[str, Path] = field(default_factory=dict)
    fine: Path | None = None
    labels: Path | None = None
    lesions: dict[str, Path] = field(default_factory=dict)
    automatic: dict[str, Path] = field(default_factory=dict)
    brain: Path | None = None


def discover(sources: Sequence[str]) -> Sources:
    """Find the scans in folders, or `mni152`.

    Args:
        sources: dataset folders, folders that hold several, or the name "mni152".

    Returns:
        The scans, sorted by id; the first atlas (`atlas/*desc-tissue_probseg*`); remarks on
        what was chosen or passed over.

    Raises:
        RequestError: a source does not exist, or a subject id stands for two subjects.
        StoreError: a folder without any usable NIfTI file.
    """
    scans: list[Scan] = []
    atlases: list[Path] = []
    notes: list[str] = []
    for source in sources:
        path = Path(source)
        if source == mni152.NAME and not path.is_dir():
            scans.append(Scan(mni152.NAME, "sub-template", template=True))
            continue
        if not path.is_dir():
            raise RequestError(
                f"{source}: no such folder; expected a folder of NIfTI files or '{mni152.NAME}'"
            )
        found = _walk(path, atlases, notes)
        if not found:
            raise StoreError(
                f"{path}: no usable NIfTI file; expected names like "
                "sub-01_T1w.nii.gz, sub-01_dseg.nii.gz or sub-01_label-GM_probseg.nii.gz"
            )
        scans += found
    scans.sort(key=lambda scan: (scan.id, scan.session))
    _refuse_twins(scans)
    return Sources(tuple(scans), atlases[0] if atlases else None, tuple(notes))


def entities(path: Path) -> tuple[dict[str, str], str]:
    """Return the BIDS entities of a NIfTI file name, and its suffix in lower case.

    Examples:
        >>> entities(Path("sub-01_ce-gadolinium_T1w.nii.gz"))
        ({'sub': '01', 'ce': 'gadolinium'}, 't1w')
    """
    *parts, suffix = _stem(path).split("_")
    pairs = dict(part.split("-", 1) for part in parts if "-" in part)
    return pairs, suffix.lower()


def modality_of(path: Path) -> str | None:
    """Return the modality that a NIfTI file's name tells, or None.

    Examples:
        >>> modality_of(Path("sub-01_ce-gadolinium_T1w.nii.gz")), modality_of(Path("scan.nii"))
        ('t1ce', None)
    """
    pairs, suffix = entities(path)
    modality = MODALITIES.get(suffix)
    return "t1ce" if modality == "t1" and "ce" in pairs else modality


def slug(text: str) -> str:
    """Return a name of lower-case letters, digits and hyphens.

    Examples:
        >>> slug("Lesjak 2017, cross-sectional")
        'lesjak-2017-cross-sectional'
    """
    return re.sub(r"[^a-z0-9]+", "-", text.lower()).strip("-")


def style_modality(style: str, modalities: Collection[str]) -> str:
    """Return the longest modality that a style's name ends with, or "".

    Examples:
        >>> style_modality("oasis_t1ce", ["t1", "t1ce"]), style_modality("sharp", ["t1"])
        ('t1ce', '')
    """
    fitting = [m for m in modalities if style == m or style.endswith(f"_{m}")]
    return max(fitting, key=len, default="")


def _stem(path: Path) -> str:
    return re.sub(r"\.nii(\.gz)?$", "", path.name)


def _walk(root: Path, atlases: list[Path], notes: list[str]) -> list[Scan]:
    groups: dict[tuple[Path, str, str], dict[str, _Found]] = defaultdict(dict)
    for path in sorted(root.rglob("*.nii*")):
        inside = path.relative_to(root)
        if not re.search(r"\.nii(\.gz)?$", path.name) or _hidden(inside):
            continue
        pairs, suffix = entities(path)
        if suffix == "probseg" and pairs.get("desc") == "tissue" and "atlas" in inside.parts:
            atlases.append(path)
            continue
        subject = subject_of(path)
        if subject is None:
            notes.append(f"{inside}: passed over, no subject in the name")
            continue
        session = f"ses-{pairs['ses']}" if "ses" in pairs else ""
        space = pairs.get("space", "T1w")
        spaces = groups[(_dataset_folder(root, path), subject, session)]
        _place(spaces.setdefault(space, _Found()), path, notes)
    scans = []
    for (folder, subject, session), spaces in sorted(groups.items()):
        usable = {name: found for name, found in spaces.items() if _usable(found)}
        if not usable:
            continue
        name = max(sorted(usable), key=lambda n: _worth(usable[n]))
        if len(usable) > 1:
            notes.append(f"{folder.name} {subject}: space '{name}' used of {', '.join(usable)}")
        scans.append(_scan(folder, subject, session, usable[name], notes))
    return scans


def _hidden(path: Path) -> bool:
    return any(part.startswith(".") or part in ("sourcedata", "code") for part in path.parts)


def subject_of(path: Path) -> str | None:
    """Return the subject that a NIfTI file's name or folders tell, or None.

    Examples:
        >>> subject_of(Path("sub-01_T1w.nii.gz")), subject_of(Path("sub-02/anat/T1w.nii"))
        ('sub-01', 'sub-02')
    """
    first = _stem(path).split("_")[0]
    if re.fullmatch(r"sub-[A-Za-z0-9]+|[A-Za-z]+\d+", first):
        return first
    folders = [part for part in path.parts if re.fullmatch(r"sub-[A-Za-z0-9]+", part)]
    return folders[-1] if folders else None


def _dataset_folder(root: Path, path: Path) -> Path:
    """Return the folder that holds a file's dataset: above `derivatives` and `sub-XX`."""
    folder = root
    for part in path.relative_to(root).parts[:-1]:
        if part in _NOT_DATASET or part.startswith("sub-"):
            break
        folder = folder / part
    return folder


def _place(found: _Found, path: Path, notes: list[str]) -> None:
    """Put one file where its name says it belongs; the first of equals stays."""
    pairs, suffix = entities(path)
    label = pairs.get("label", "")
    modality = modality_of(path)
    if modality is not None:
        _keep_first(found.images, modality, path, notes)
    elif suffix == "probseg" and pairs.get("desc") == "fine":
        found.fine = found.fine or path
    elif suffix == "probseg" and label:
        tissue = tissue_of(label)
        if tissue is None:
            notes.append(f"{path.name}: passed over, label '{label}' is no tissue")
        else:
            _keep_first(found.maps, tissue, path, notes)
    elif suffix in _LABEL_SUFFIXES:
        found.labels = found.labels or path
    elif suffix == "mask" and "brain" in (pairs.get("desc"), label):
        found.brain = found.brain or path
    elif suffix == "mask" and tissue_of(label) in ("wmh", "tumour", "oedema"):
        automatic = pairs.get("desc", "").startswith("auto")
        masks = found.automatic if automatic else found.lesions
        _keep_first(masks, str(tissue_of(label)), path, notes)


def _keep_first(files: dict[str, Path], key: str, path: Path, notes: list[str]) -> None:
    if key in files:
        notes.append(f"{path.name}: passed over, {files[key].name} serves as '{key}'")
    files.setdefault(key, path)


def _usable(found: _Found) -> bool:
    return bool(
        found.images or found.maps or found.fine or found.labels or found.lesions or found.automatic
    )


def _worth(found: _Found) -> int:
    """Prefer a space with tissue maps, then with labels, then with images."""
    return 4 * bool(found.fine or found.maps) + 2 * bool(found.labels) + bool(found.images)


def _scan(folder: Path, subject: str, session: str, found: _Found, notes: list[str]) -> Scan:
    lesions = dict(found.lesions)
    for tissue, path in found.automatic.items():
        if tissue in lesions:
            notes.append(f"{path.name}: passed over, the expert mask is preferred")
        else:
            notes.append(f"{path.name}: automatic lesion mask, no expert mask there")
            lesions[tissue] = path
    return Scan(
        dataset=_dataset_name(folder, subject),
        subject=subject,
        session=session,
        images=dict(sorted(found.images.items())),
        maps=found.maps,
        fine=found.fine,
        labels=found.labels,
        table=None if found.labels is None else _table_beside(folder, found.labels),
        lesions=lesions,
        brain=found.brain,
    )


def _dataset_name(folder: Path, subject: str) -> str:
    """Return the `dataset` of participants.tsv, else a short `Name`, else the folder's name."""
    participants = folder / "participants.tsv"
    if participants.is_file():
        try:
            for row in csv.DictReader(read_text(participants).splitlines(), delimiter="\t"):
                if row.get("participant_id") == subject and row.get("dataset"):
                    return slug(str(row["dataset"]))
        except (OSError, ValueError, csv.Error) as error:
            raise StoreError(f"{participants}: not a readable table ({error})") from error
    name = slug(folder.resolve().name)
    description = folder / "dataset_description.json"
    if description.is_file():
        try:
            title = slug(str(read_json(description)["Name"]))
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise StoreError(
                f"{description}: expected JSON with a 'Name', got {type(error).__name__}: {error}"
            ) from error
        # A long title reads badly in style names such as 'oasis_flair'.
        name = title if 0 < len(title) <= 24 else name
    return name or "dataset"


def _table_beside(folder: Path, labels: Path) -> Path | None:
    """Return the label table nearest to a label map, going up to the dataset folder."""
    stem = _stem(labels)
    pairs, _ = entities(labels)
    names = [f"{stem}.tsv", "dseg.tsv", "labels.json", "labels.tsv"]
    if "desc" in pairs:
        names.insert(1, f"desc-{pairs['desc']}_dseg.tsv")
    for parent in labels.parents:
        for name in names:
            if (parent / name).is_file():
                return parent / name
        if parent == folder:
            break
    return None


def _refuse_twins(scans: Sequence[Scan]) -> None:
    for one, other in itertools.pairwise(scans):
        if (one.id, one.session) == (other.id, other.session):
            raise RequestError(
                f"subject '{one.id}' was found twice; name the same folder once, "
                "and give different datasets different folder names"
            )
