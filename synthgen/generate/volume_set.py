"""Labelled volumes as nnU-Net's raw folder: resumable, extensible, on any number of workers.

Format: nnU-Net v2 (Isensee et al. 2021, doi:10.1038/s41592-020-01008-z). Volumes are dealt to
workers by number; each is a function of its number alone, so that worker count, kill and resume
change no byte. A worker makes its own volumes, then those of others that nobody is making. A
volume's note in `.cases` is written after its files: what has a note is whole. The worker that
finds every note there writes the tables.
"""

from __future__ import annotations

import json
import time
from contextlib import closing
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np

from synthgen.core.errors import RequestError, StoreError
from synthgen.core.input_files import read_json
from synthgen.core.lock import folder_lock
from synthgen.core.manifest import provenance, sealed, sweep
from synthgen.core.plan import ShardPlan
from synthgen.export.cases import ALONE
from synthgen.export.encode import nifti
from synthgen.export.nnunet import folds
from synthgen.export.tree import Tree, json_bytes
from synthgen.generate.engine import intra_op_threads

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Generator, Mapping, Sequence
    from pathlib import Path

    from synthgen.core.lock import FolderLock
    from synthgen.data.real_volumes import VolumeLayout, VolumeSample

_NOTES = ".cases"
_STEPS = 2047
"""Whole grey values of an image: exact in float16 as well."""
_ENDING = ".nii.gz"
_THREADS = 1


class Volumes(Protocol):
    """What is written: volume i is a function of i alone.

    Attributes:
        real: scans, not generated.
        styles: style names.
        modalities: the styles' modalities.
        label_names: name of each label value, background first.
        layout: grid and labels.
    """

    real: bool
    styles: tuple[str, ...]
    modalities: tuple[str, ...]
    layout: VolumeLayout

    @property
    def label_names(self) -> tuple[str, ...]:
        """Name of each label value, background first."""

    @property
    def subjects(self) -> tuple[str, ...]:
        """Real subjects behind the volumes."""

    @property
    def identity(self) -> Mapping[str, Any]:
        """All that decides the volumes besides layout and styles."""

    def name(self, index: int) -> str:
        """Return the plain name of a volume."""

    def styles_of(self, index: int) -> tuple[str, ...]:
        """Return the styles in which there is an image of a volume."""

    def sample(self, index: int) -> VolumeSample:
        """Return a volume."""


@dataclass(frozen=True)
class VolumeOutcome:
    """What one worker did, or would do.

    Attributes:
        folder: the dataset folder.
        n: volumes in the whole dataset.
        generated: volumes that this worker made, or would make.
        kept: volumes of this worker that it did not have to make.
        files: files that it wrote.
        bytes: their size.
        seconds: how long it took.
        complete: whether the whole dataset is there.
    """

    folder: str
    n: int
    generated: int
    kept: int
    files: int
    bytes: int
    seconds: float
    complete: bool


@dataclass(frozen=True)
class VolumeSet:
    """A folder of volumes, made or to be made.

    Args:
        volumes: what to write.
        n: volumes in all; more than before continues the folder.
        folder: nnU-Net's raw folder of this dataset.
        stack: styles become the channels of one case; otherwise each image is a case of its own.
        held: real subjects whose cases are for validation.
        worker: rank of this worker.
        num_workers: how many workers share the folder.

    Raises:
        RequestError: n below 1, or no such worker.
    """

    volumes: Volumes
    n: int
    folder: Path
    stack: bool = False
    held: Collection[str] = ()
    worker: int = 0
    num_workers: int = 1

    def __post_init__(self) -> None:
        self._mine()

    def write(self, progress: Callable[[int, int], None] | None = None) -> VolumeOutcome:
        """Make what is missing.

        Args:
            progress: called with (volumes done, volumes to do) of this worker.

        Raises:
            RequestError: the folder holds something else, or more than n volumes, or another
                process writes there.
            StoreError: an unreadable source, or the disk is full; what is done stays.
            GeometryError: a source on different grids.
            SchemaError: a source's labels that do not fit.
        """
        started = time.perf_counter()
        what = f"volumes, {self.n} in all"
        with folder_lock(
            self.folder, what, worker=self.worker, num_workers=self.num_workers
        ) as lock:
            tree, todo = self._surveyed()
            alone = self.num_workers == 1
            tree.claim(lambda _name: alone)
            if todo:
                tree.reopen()
            made, taken, files, size = set[int](), 0, 0, 0
            with intra_op_threads(_THREADS), closing(self._claimed(lock, todo)) as claimed:
                for index in claimed:
                    made.add(index)
                    taken += index not in todo
                    for name, data in self._files(index):
                        tree.put(name, data)
                        files, size = files + 1, size + len(data)
                    if progress is not None:
                        progress(len(made), len(todo) + taken)
            with lock.alone("tables"):
                complete = not self._missing(range(self.n))
                for name, data in self._tables().items() if complete else ():
                    if tree.renew(name, data):
                        files, size = files + 1, size + len(data)
                if complete:
                    tree.seal()
        seconds = time.perf_counter() - started
        kept = len(set(self._mine()) - made)
        return VolumeOutcome(
            str(self.folder), self.n, len(made), kept, files, size, seconds, complete
        )

    def _claimed(self, lock: FolderLock, todo: Sequence[int]) -> Generator[int]:
        """Yield volumes to make, held while they are made: of this worker, then of others."""
        others = [i for i in reversed(range(self.n)) if i not in self._mine()]
        for index in [*todo, *(others if lock.enforced else ())]:
            name = self.volumes.name(index)
            claim = lock.claim(name) if self._missing([index]) else None
            if claim is None:
                continue
            try:
                if self._missing([index]):  # the one who held it may have just made it
                    if lock.enforced:
                        sweep(self.folder, f"**/.{name}[._]*.tmp")
                    yield index
            finally:
                claim.release()

    def forecast(self) -> VolumeOutcome:
        """Return what `write` would do, measured on one volume; writes nothing.

        Raises:
            RequestError: as `write`.
            StoreError: as `write`.
            GeometryError: as `write`.
            SchemaError: as `write`.
        """
        _, todo = self._surveyed()
        kept = len(self._mine()) - len(todo)
        if not todo:
            return VolumeOutcome(str(self.folder), self.n, 0, kept, 0, 0, 0.0, complete=True)
        seconds = []
        with intra_op_threads(_THREADS):
            for _ in range(2):  # the second finds the brain in memory
                started = time.perf_counter()
                sizes = [len(data) for _, data in self._files(todo[0])]
                seconds.append(time.perf_counter() - started)
        count, brains = len(todo), len(self.volumes.subjects)
        reading = max(0.0, seconds[0] - seconds[1]) * min(count, brains)
        return VolumeOutcome(
            str(self.folder),
            self.n,
            count,
            kept,
            count * len(sizes),
            count * sum(sizes),
            count * seconds[1] + reading,
            complete=False,
        )

    def _mine(self) -> range:
        return ShardPlan(self.n, 1, 1).shards_of(self.worker, self.num_workers)

    def _surveyed(self) -> tuple[Tree, list[int]]:
        """Look at the folder without touching it; return what this worker has to make."""
        volumes, layout = self.volumes, self.volumes.layout
        identity = {
            "kind": "volumes",
            **volumes.identity,
            "styles": volumes.styles,
            "tissues": layout.tissues,
            "spacing_mm": layout.spacing_mm,
            "crop": layout.crop,
            "stack": self.stack,
            "held": sorted(self.held),
        }
        tree = Tree(self.folder, identity)
        tree.require_free()
        there = {path.stem for path in (self.folder / _NOTES).glob("*.json")}
        surplus = there - {volumes.name(index) for index in range(self.n)}
        if surplus:
            raise RequestError(
                f"{self.folder} already holds {len(there)} volumes and --n is the total; ask for "
                f"at least as many, got {self.n}"
            )
        return tree, self._missing(self._mine())

    def _missing(self, indices: Sequence[int]) -> list[int]:
        notes = self.folder / _NOTES
        return [i for i in indices if not (notes / f"{self.volumes.name(i)}.json").is_file()]

    def _files(self, index: int) -> list[tuple[str, bytes]]:
        """Return the files of one volume, its note last."""
        sample, name = self.volumes.sample(index), self.volumes.name(index)
        spacing = (self.volumes.layout.spacing_mm,) * 3
        labels = nifti(sample.labels.astype(np.uint8), spacing, origin_mm=sample.origin_mm)
        split = "val" if sample.subject in self.held else "train"
        files, rows = [], []
        for case, styles in self._cases(name, self.volumes.styles_of(index)):
            paths = [f"imagesTr/{case}_{k:04d}{_ENDING}" for k in range(len(styles))]
            for path, style in zip(paths, styles, strict=True):
                grey = np.rint(sample.images[style] * _STEPS).astype(np.int16)
                # nnU-Net normalises inside the nonzero mask.
                grey = np.maximum(grey, sample.images[style] > 0)
                data = nifti(grey, spacing, origin_mm=sample.origin_mm, slope=1 / _STEPS)
                files.append((path, data))
            files.append((f"labelsTr/{case}{_ENDING}", labels))
            rows.append(
                {
                    "case": case,
                    "file_names": paths,
                    "label_file_name": f"labelsTr/{case}{_ENDING}",
                    "style": "+".join(styles),
                    "subject": sample.subject,
                    "split": split,
                    "group": sample.group,
                    "index": index,
                    "slices_mm": [sample.slices_mm[style] for style in styles],
                    **sample.facts,
                }
            )
        return [*files, (f"{_NOTES}/{name}.json", json_bytes(rows))]

    def _cases(self, name: str, styles: Sequence[str]) -> list[tuple[str, tuple[str, ...]]]:
        """Return each case of a volume with the styles that are its channels."""
        if not self.stack:
            return [(f"{name}_{style}", (style,)) for style in styles]
        absent = [style for style in self.volumes.styles if style not in styles]
        if absent:
            raise RequestError(
                f"--stack: {name} has no image of {absent[0]}; leave it out with --exclude, or "
                "leave out --stack"
            )
        return [(name, tuple(styles))]

    def _tables(self) -> dict[str, bytes]:
        """Return the files that describe the whole dataset."""
        rows = [row for index in range(self.n) for row in self._note(index)]
        splits = folds([(row["case"], row["group"], row["split"] == "val") for row in rows])
        lines = b"".join(json.dumps(row).encode() + b"\n" for row in rows)
        files = {
            "dataset.json": json_bytes(self._description(rows)),
            "metadata.jsonl": lines,
            "README.md": self._card(len(rows)).encode(),
        }
        return files | ({"splits_final.json": json_bytes(splits)} if splits else {})

    def _note(self, index: int) -> list[dict[str, Any]]:
        path = self.folder / _NOTES / f"{self.volumes.name(index)}.json"
        try:
            rows: list[dict[str, Any]] = read_json(path)
        except (OSError, ValueError) as error:
            raise StoreError(
                f"{path}: not readable ({error}); delete it and run the command again"
            ) from error
        return rows

    def _channels(self) -> list[str]:
        modalities = self.volumes.modalities
        names = [modality.upper() for modality in modalities]
        if len({*names}) < len(names):
            names = list(self.volumes.styles)
        if self.stack or len(names) == 1:
            return names
        return [ALONE]

    def _description(self, rows: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
        volumes = self.volumes
        return {
            "name": self.folder.resolve().name,
            "description": self._what(),
            "licence": "not stated; the licences of the data behind it apply",
            "channel_names": {str(k): name for k, name in enumerate(self._channels())},
            "labels": {name: value for value, name in enumerate(volumes.label_names)},
            "numTraining": len(rows),
            "file_ending": _ENDING,
            "synthgen": sealed({"real": volumes.real, "subjects": list(volumes.subjects)}),
            # Without it nnU-Net lists the folder once for every case.
            "dataset": {
                row["case"]: {"images": row["file_names"], "label": row["label_file_name"]}
                for row in rows
            },
        }

    def _what(self) -> str:
        if self.volumes.real:
            return "Scans of real subjects with labels of their tissue maps"
        return "Real brains, deformed and painted by MR physics; no images of anyone"

    def _card(self, count: int) -> str:
        volumes, spacing = self.volumes, self.volumes.layout.spacing_mm
        warning = (
            "These are scans of people: keep to the licence and consent under which they came."
            if volumes.real
            else "The label maps are deformed maps of the people named below: synthetic is not a "
            "synonym of private. Do not test on them what was trained on these data."
        )
        labels = ", ".join(f"{value} = {name}" for value, name in enumerate(volumes.label_names))
        return (
            f"# {self.folder.resolve().name}\n\n{self._what()}, made by synthgen "
            f"{provenance()['synthgen']}. {warning}\n\n"
            f"{count} cases in nnU-Net's raw format, voxels of {spacing:g} mm, axes RAS, images in "
            f"[0, 1] and 0 outside the brain. Channels: {', '.join(self._channels())}. Labels: "
            f"{labels}. `metadata.jsonl` says what each case is. `splits_final.json` keeps a "
            "subject's brain in one fold.\n\n"
            f"Real subjects: {', '.join(volumes.subjects)}\n"
        )
