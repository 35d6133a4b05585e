"""BIDS derivatives: images, label maps and partial volumes (`probseg`) as NIfTI.

Format: BIDS 1.10, imaging derivatives (Gorgolewski et al. 2016, doi:10.1038/sdata.2016.44). A
generated sample is a subject whose volumes are one slice thick; the slices of a real subject are
stacked to volumes again where they are evenly spaced. Affines are RAS with the source's spacing;
slices do not record where the scanner had them, so the middle of the plane lies at 0.
"""

from __future__ import annotations

import re
from collections import defaultdict
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from synthgen.core.errors import RequestError
from synthgen.core.manifest import provenance
from synthgen.export.card import card
from synthgen.export.encode import nifti as nifti_bytes
from synthgen.export.tree import json_bytes
from synthgen.export.wording import wording
from synthgen.export.writer import Closing, Unit

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence
    from pathlib import Path

    from synthgen.core.schema import Tissue
    from synthgen.data.rows import Entry, Source
    from synthgen.export.options import ExportOptions

BIDS_VERSION = "1.10.0"
_SUFFIXES = {
    "t1": "T1w", "t2": "T2w", "flair": "FLAIR", "t1ce": "ce-gadolinium_T1w", "pd": "PDw",
}  # fmt: skip
_LABELS = {"background": "BG", "deep_gm": "DGM", "brainstem": "BS"}
"""`label-` of tissues whose name in capitals will not do."""
UNKNOWN_SUFFIX = "image"


@dataclass(frozen=True)
class _Volume:
    """Slices that become one volume: evenly spaced slices of a subject, or one slice.

    Attributes:
        stem: path inside the tree up to the entities of the file: `sub-X/anat/sub-X`.
        entries: the slices, upwards.
        acquisition: entity value that tells lone slices of a subject apart.
    """

    stem: str
    entries: tuple[Entry, ...]
    acquisition: str = ""

    @property
    def participant(self) -> str:
        """The subject, `sub-X`."""
        return self.stem.partition("/")[0]

    def file(self, suffix: str, acquisition: str = "") -> str:
        """Return the name of one of its files."""
        acquired = f"_acq-{self.acquisition}{acquisition}" if self.acquisition + acquisition else ""
        return f"{self.stem}{acquired}_{suffix}.nii.gz"


class NiftiWriter:
    """Write one volume after another; see `Writer`."""

    what = "subjects"
    folder = ""

    def __init__(self, source: Source, _: ExportOptions) -> None:
        self._source = source
        self._volumes = {volume.file("dseg"): volume for volume in _volumes(source)}
        self.units: Sequence[Unit] = [
            Unit(volume.entries, last) for last, volume in self._volumes.items()
        ]
        self.expected = len({volume.participant for volume in self._volumes.values()})
        self.left_out: Mapping[str, int] = {}
        self.choices: Mapping[str, Any] = {}
        self._image_names(next(iter(self._volumes.values())))

    def require_place(self, out: Path) -> None:
        """Any place will do."""

    def _image_names(self, volume: _Volume) -> list[str]:
        """Return a volume's image files, in the order of its pictures."""
        names = []
        for picture in volume.entries[0].pictures:
            style = "" if self._source.real else _alphanumeric(picture.style)
            names.append(volume.file(_SUFFIXES.get(picture.modality, UNKNOWN_SUFFIX), style))
        if len({*names}) < len(names):
            raise RequestError(
                f"{self._source.name}: two styles would share a file name: {', '.join(names)}"
            )
        return names

    def files(self, unit: Unit) -> Iterator[tuple[str, bytes]]:
        """Yield images, then partial volumes, then the label map."""
        volume, source = self._volumes[unit.last], self._source
        pv = np.stack([source.pv(entry) for entry in volume.entries], axis=-1)  # (C, X, Y, Z)
        if not pv[1:].any():
            return
        spacing, origin = self._geometry(volume)
        for k, name in enumerate(self._image_names(volume)):
            slices = [source.image(e, k, pv[..., z]) for z, e in enumerate(volume.entries)]
            yield name, nifti_bytes(np.stack(slices, axis=-1), spacing, origin_mm=origin)
        for channel, tissue in enumerate(source.schema.tissues[1:], start=1):
            if pv[channel].any():
                name = volume.file(f"label-{_label(tissue)}_probseg")
                yield name, nifti_bytes(pv[channel], spacing, origin_mm=origin, slope=1 / 255)
        labels = source.schema.to_labels(pv)
        yield unit.last, nifti_bytes(labels, spacing, origin_mm=origin)

    def _geometry(
        self, volume: _Volume
    ) -> tuple[tuple[float, float, float], tuple[float, float, float]]:
        spacing, entries = self._source.spacing_mm, volume.entries
        step = entries[1].z - entries[0].z if len(entries) > 1 else 1
        x, y = (-spacing * (size // 2) for size in self._source.shape)
        return (spacing, spacing, step * spacing), (x, y, entries[0].z * spacing)

    def closing(self, tree: Path) -> Closing:
        """Return the description, the tables, the sidecars and the card."""
        there = [v for last, v in self._volumes.items() if (tree / last).is_file()]
        participants = {volume.participant: volume for volume in there}
        rows = [self._participant_row(name, v) for name, v in sorted(participants.items())]
        modalities = {p.modality for e in self._source.entries for p in e.pictures}
        suffixes = {_SUFFIXES.get(m, UNKNOWN_SUFFIX).rpartition("_")[2] for m in modalities}
        files = {
            "dataset_description.json": json_bytes(self._description()),
            "participants.tsv": _tsv(rows),
            "dseg.tsv": _tsv(
                [
                    {"index": t.value, "name": t.name, "abbreviation": _label(t)}
                    for t in self._source.schema.tissues
                ]
            ),
            "README.md": self._card(participants),
        }
        if not self._source.schema.is_picture:
            stripped = json_bytes({"SkullStripped": True})
            files |= {f"{suffix}.json": stripped for suffix in sorted(suffixes)}
        return Closing(files, len(participants))

    def _participant_row(self, name: str, volume: _Volume) -> dict[str, str | int | float]:
        entry = volume.entries[0]
        if self._source.real:
            return {
                "participant_id": name,
                "dataset": entry.dataset,
                "subject": entry.subject,
                "split": entry.split,
            }
        return {
            "participant_id": name,
            "group": entry.group,
            **({} if entry.position is None else {"position": round(entry.position, 6)}),
            **{f"lesion_{tissue}": share for tissue, share in entry.lesions.items()},
        }

    def _description(self) -> dict[str, Any]:
        return {
            "Name": "synthgen slices" if not self._source.real else "synthgen store",
            "BIDSVersion": BIDS_VERSION,
            "DatasetType": "derivative",
            "License": dict(self._source.facts)["licence"],
            "GeneratedBy": [
                {
                    "Name": "synthgen",
                    "Version": provenance()["synthgen"],
                    "Description": "; ".join(f"{k}: {value}" for k, value in self._source.facts),
                }
            ],
        }

    def _card(self, participants: Mapping[str, _Volume]) -> bytes:
        words = wording(self._source)
        use = (
            f"{len(participants)} subjects, BIDS derivatives. `probseg` files hold partial "
            "volumes in [0, 1] (the header's slope applied); they sum to 1 with the background, "
            "and a tissue without a file is absent. `dseg` is the tissue with the largest one; "
            f"dseg.tsv names its values. {words.volume_axes}; the middle of the plane lies at 0, "
            f"which is not where the scanner had it. {words.zero}."
        )
        return card(
            self._source,
            title=f"{words.subject} with partial volumes",
            count=len(participants),
            subjects={volume.entries[0].subject for volume in participants.values()},
            data_files={},
            sections=[("Use", use)],
        )


def _volumes(source: Source) -> Iterator[_Volume]:
    groups: dict[str, list[Entry]] = defaultdict(list)
    for entry in source.entries:
        groups[entry.subject or entry.name].append(entry)
    owner: dict[str, str] = {}
    for group, entries in groups.items():
        participant = f"sub-{_alphanumeric(group.replace('/sub-', '/'))}"
        if owner.setdefault(participant, group) != group:
            raise RequestError(
                f"{source.name}: '{owner[participant]}' and '{group}' would both be {participant}"
            )
        stem = f"{participant}/anat/{participant}"
        upwards = sorted(entries, key=lambda entry: entry.z)
        if _even(upwards):
            yield _Volume(stem, tuple(upwards))
        else:
            yield from (_Volume(stem, (e,), f"z{e.z:03d}") for e in upwards)


def _even(entries: Sequence[Entry]) -> bool:
    """Return whether slices are equally far apart and have the same images."""
    steps = {int(step) for step in np.diff([entry.z for entry in entries])}
    return len(steps) <= 1 and len({entry.pictures for entry in entries}) == 1


def _label(tissue: Tissue) -> str:
    return _LABELS.get(tissue.name) or _alphanumeric(tissue.name).upper()


def _alphanumeric(text: str) -> str:
    return re.sub(r"[^A-Za-z0-9]", "", text)


def _tsv(rows: Sequence[Mapping[str, str | int | float]]) -> bytes:
    lines = ["\t".join(rows[0]), *("\t".join(str(v) for v in row.values()) for row in rows)]
    return "\n".join(lines).encode() + b"\n"
