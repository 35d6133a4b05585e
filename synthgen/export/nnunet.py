"""`DatasetXXX_Name`: nnU-Net's raw folder, which Hugging Face's folder builders read as well.

Format: nnU-Net v2 (Isensee et al. 2021, doi:10.1038/s41592-020-01008-z). Label values are
the channels of the label schema, all of them, whether they occur or not: every set of one schema
then has the same mapping, and a network trained on one can be tested on the other.
"""

from __future__ import annotations

import json
import re
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np

from synthgen.core.errors import RequestError
from synthgen.core.manifest import sealed
from synthgen.export.card import card, label_lines
from synthgen.export.cases import Case, case_table, facts_of
from synthgen.export.encode import nifti, png, to_grey
from synthgen.export.tree import json_bytes
from synthgen.export.wording import wording
from synthgen.export.writer import Closing, Unit

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence
    from pathlib import Path

    from synthgen.data.rows import Entry, Pixels, Pv, Source
    from synthgen.export.options import ExportOptions

_Chosen = TypeVar("_Chosen", str, int)

DEFAULT_ID = 901
DEFAULT_NAME = "Synthgen"
FOLDS = 5
OUT_OF_PLANE_MM = 999.0
"""Thickness of a slice in a NIfTI: the axis of the largest spacing is nnU-Net's slice axis."""


class NnunetWriter:
    """Write cases of one slice; see `Writer`."""

    what = "cases"

    def __init__(self, source: Source, options: ExportOptions) -> None:
        self.folder = _folder_name(options)
        self._ending = _choice("file-ending", options.file_ending or ".png", (".png", ".nii.gz"))
        if self._ending != ".png" and options.bits is not None:
            raise RequestError("--bits is for --file-ending .png; NIfTI holds float32")
        self._bits = _choice("bits", options.bits or 8, (8, 16))
        self._source = source
        self._table = case_table(source, options.channels)
        if not self._table.channels:
            raise RequestError(
                f"{source.name}: label maps without images; `synthgen images` paints them, "
                "--to nifti and --to hf export them as they are"
            )
        if all(entry.split == "test" for entry, _ in self._table.cases):
            raise RequestError(
                f"{source.name}: only test cases; nnU-Net needs training cases, name more --split"
            )
        self._cases = {entry.name: cases for entry, cases in self._table.cases}
        self.units: Sequence[Unit] = [
            Unit((entry,), self._label_file(entry, cases[-1])) for entry, cases in self._table.cases
        ]
        self.expected = self._table.count
        self.left_out: Mapping[str, int] = self._table.left_out
        self.choices: Mapping[str, Any] = {
            "channels": list(options.channels),
            "file_ending": self._ending,
            "bits": self._bits,
        }

    def require_place(self, out: Path) -> None:
        """Refuse an id that another dataset in `out` has.

        Raises:
            RequestError: naming it; nnU-Net would refuse both.
        """
        prefix = self.folder.partition("_")[0]
        taken = [p.name for p in sorted(out.glob(f"{prefix}_*")) if p.name != self.folder]
        if taken:
            raise RequestError(
                f"{out}: id {prefix[-3:]} is taken by {taken[0]}; choose another --dataset-id"
            )

    def files(self, unit: Unit) -> Iterator[tuple[str, bytes]]:
        """Yield the channels of each case, then its label map."""
        (entry,) = unit.entries
        pv = self._source.pv(entry)
        labels = np.argmax(pv, axis=0).astype(np.uint8)
        if not labels.any():
            return
        for case in self._cases[entry.name]:
            images = [self._source.image(entry, k, pv) for k in case.pictures]
            if all(image.any() for image in images):
                names = self._image_files(entry, case)
                yield from zip(names, map(self._image, images), strict=True)
                yield self._label_file(entry, case), self._labels(labels)

    def _image(self, image: Pixels) -> bytes:
        return png(to_grey(image, self._bits)) if self._ending == ".png" else self._nifti(image)

    def _labels(self, labels: Pv) -> bytes:
        return png(labels) if self._ending == ".png" else self._nifti(labels)

    def _nifti(self, array: Pixels | Pv) -> bytes:
        spacing = self._source.spacing_mm
        return nifti(array[..., None], (spacing, spacing, OUT_OF_PLANE_MM))

    def _image_files(self, entry: Entry, case: Case) -> list[str]:
        folder = "imagesTs" if entry.split == "test" else "imagesTr"
        return [f"{folder}/{case.name}_{k:04d}{self._ending}" for k in range(len(case.pictures))]

    def _label_file(self, entry: Entry, case: Case) -> str:
        folder = "labelsTs" if entry.split == "test" else "labelsTr"
        return f"{folder}/{case.name}{self._ending}"

    def closing(self, tree: Path) -> Closing:
        """Return dataset.json, splits_final.json, metadata.jsonl and the card."""
        there = [
            (entry, case)
            for entry, cases in self._table.cases
            for case in cases
            if (tree / self._label_file(entry, case)).is_file()
        ]
        training = [(entry, case) for entry, case in there if entry.split != "test"]
        splits = folds([(case.name, e.group, e.split == "val") for e, case in training])
        files = {
            "dataset.json": json_bytes(self._description(training)),
            "metadata.jsonl": b"".join(self._line(entry, case) for entry, case in there),
            "README.md": self._card(there, folded=bool(splits)),
        }
        if splits:
            files["splits_final.json"] = json_bytes(splits)
        return Closing(files, len(there))

    def _description(self, training: Sequence[tuple[Entry, Case]]) -> dict[str, Any]:
        facts = dict(self._source.facts)
        return {
            "name": self.folder.partition("_")[2],
            "description": "; ".join(f"{what}: {value}" for what, value in self._source.facts),
            "licence": facts["licence"],
            "channel_names": {str(k): name for k, name in enumerate(self._table.channels)},
            "labels": {name: value for value, name in enumerate(self._source.schema.names)},
            "numTraining": len(training),
            "file_ending": self._ending,
            # A training that reads this folder must know whom its images descend from.
            "synthgen": sealed(
                {"real": self._source.real, "subjects": list(self._source.ancestors)}
            ),
            # Without it nnU-Net lists the folder once for every case.
            "dataset": {
                case.name: {
                    "images": self._image_files(entry, case),
                    "label": self._label_file(entry, case),
                }
                for entry, case in training
            },
        }

    def _line(self, entry: Entry, case: Case) -> bytes:
        names = self._image_files(entry, case)
        if len(names) == 1:
            columns = {"file_name": names[0]}
        else:
            columns = {
                f"{channel.lower()}_file_name": name
                for channel, name in zip(self._table.channels, names, strict=True)
            }
        line = columns | {"label_file_name": self._label_file(entry, case)} | facts_of(entry, case)
        return json.dumps(line).encode() + b"\n"

    def _card(self, there: Sequence[tuple[Entry, Case]], *, folded: bool) -> bytes:
        schema, words = self._source.schema, wording(self._source)
        channels = ", ".join(f"{k} = {name}" for k, name in enumerate(self._table.channels))
        axes = (
            f"{words.axes}. {words.zero}, stored with {self._bits} bits."
            if self._ending == ".png"
            else f"{words.volume_axes}. {words.zero}. The "
            f"{OUT_OF_PLANE_MM:g} mm between slices only tell nnU-Net which axis that is. "
            "nnU-Net sees these files transposed to the PNG form: do not mix the two."
        )
        use = (
            f"{len(there)} cases, channels: {channels}. Copy or link this folder into "
            "`nnUNet_raw`. "
            '`datasets.load_dataset("imagefolder", data_dir=...)` reads it as well'
            f"{'' if self._ending == '.png' else ' (as `niftifolder`)'}; "
            "`metadata.jsonl` says what each case is. " + axes
        )
        advice = (
            "`splits_final.json` keeps a subject, or a label map painted several times, in one "
            "fold. Copy it to nnU-Net's preprocessed folder of this dataset before training; "
            "nnU-Net's own split tears them apart."
        )
        return card(
            self._source,
            title=self.folder,
            count=len(there),
            subjects={entry.subject for entry, _ in there},
            data_files={"train": ["metadata.jsonl", "images*/*", "labels*/*"]},
            sections=[
                ("Use", use),
                ("Labels", label_lines(schema, range(schema.channels))),
                *([("Folds", advice)] if folded else []),
            ],
        )


def folds(cases: Sequence[tuple[str, str, bool]]) -> list[dict[str, list[str]]]:
    """Return nnU-Net folds that never tear a group apart.

    Held cases and the others are the one fold; without held ones, groups are dealt in turn to at
    most five folds. One group alone gives none.

    Args:
        cases: name, group, and whether it is held for validation, of each training case.
    """
    held = {group for _, group, is_held in cases if is_held}
    groups = sorted({group for _, group, _ in cases})
    if held and len(held) < len(groups):
        parts = [held]
    elif len(groups) > 1:
        count = min(FOLDS, len(groups))
        parts = [{*groups[first::count]} for first in range(count)]
    else:
        return []
    return [
        {
            "train": [name for name, group, _ in cases if group not in part],
            "val": [name for name, group, _ in cases if group in part],
        }
        for part in parts
    ]


def _folder_name(options: ExportOptions) -> str:
    number = DEFAULT_ID if options.dataset_id is None else options.dataset_id
    name = DEFAULT_NAME if options.name is None else options.name
    if not 1 <= number <= 999:
        raise RequestError(f"--dataset-id: expected 1 to 999, got {number}")
    if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9_-]{0,99}", name):
        raise RequestError(
            f"--name: expected letters, digits, '_' and '-', at most 100, got '{name}'"
        )
    return f"Dataset{number:03d}_{name}"


def _choice(option: str, value: _Chosen, allowed: tuple[_Chosen, ...]) -> _Chosen:
    if value not in allowed:
        raise RequestError(f"--{option}: expected {' or '.join(map(str, allowed))}, got {value}")
    return value
