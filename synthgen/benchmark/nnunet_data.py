"""nnU-Net reads a benchmark's stores: a dataset class registered for one file, `cases.json`.

nnU-Net picks its dataset class by the file ending in the preprocessed folder. With a class of our
own there is no raw folder, no preprocessing and no file per slice, and the trainer stays the stock
one. Importing this module registers the class; a process that trains must import it first.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
from nnunetv2.training.dataloading import nnunet_dataset

from synthgen.benchmark.arm_store import CaseStore, store_path
from synthgen.benchmark.arms import Part, draws
from synthgen.core.errors import StoreError
from synthgen.core.input_files import read_json
from synthgen.core.manifest import write_atomic

if TYPE_CHECKING:
    from synthgen.benchmark.arms import Stage

CASES = "cases.json"


def write_stage(folder: Path, stage: Stage, out: Path) -> None:
    """Write the one file of a preprocessed folder: which stores a stage draws from."""
    folder.mkdir(parents=True, exist_ok=True)
    parts = [{**vars(part), "file": str(store_path(out, part.store))} for part in stage.parts]
    write_atomic(folder / CASES, json.dumps(parts, indent=1).encode())


class StoreDataset(nnunet_dataset.nnUNetBaseDataset):  # type: ignore[misc]
    """Cases of one or more stores; an identifier is a case number, see `arms.draws`."""

    def __init__(
        self,
        folder: str,
        identifiers: npt.NDArray[np.int64] | None = None,
        folder_with_segs_from_previous_stage: str | None = None,
    ) -> None:
        parts = read_json(Path(folder) / CASES)
        self._stores = [CaseStore(Path(part.pop("file"))) for part in parts]
        self._parts = [Part(**part) for part in parts]
        self._offsets = np.cumsum([0, *(len(store) for store in self._stores)])
        numbers = self._draws() if identifiers is None else identifiers
        super().__init__(folder, numbers, folder_with_segs_from_previous_stage)

    def _draws(self) -> npt.NDArray[np.int64]:
        pairs = zip(self._parts, self._stores, strict=True)
        return draws(self._parts, {part.store: store.slice for part, store in pairs})

    def load_case(self, identifier: int) -> tuple[Any, Any, None, dict[str, Any]]:
        """Return image `(1, 1, X, Y)`, labels of that shape, no earlier stage, and properties.

        The properties name pixels `(n, 4)` of each label: nnU-Net centres some patches on them.
        """
        place = int(np.searchsorted(self._offsets, identifier, side="right")) - 1
        store, case = self._stores[place], int(identifier - self._offsets[place])
        labels = store.labels(case).astype(np.int16)
        locations = {}
        for value in range(1, len(store.tissues)):
            x, y = np.nonzero(labels == value)
            zero = np.zeros_like(x)
            locations[value] = np.stack([zero, zero, x, y], axis=1)
        image = store.image(case)
        return image[None, None], labels[None, None], None, {"class_locations": locations}

    @staticmethod
    def save_case(
        data: npt.NDArray[Any],
        seg: npt.NDArray[Any],
        properties: dict[str, Any],
        output_filename_truncated: str,
    ) -> None:
        """Refuse: cases are written by `arm_store.write_cases`.

        Raises:
            StoreError: always; nnU-Net's preprocessing, which alone calls this, never runs here.
        """
        raise StoreError(
            f"{output_filename_truncated}: nnU-Net's preprocessing wants to write a case; a "
            "benchmark writes its cases before nnU-Net starts, so only train and predict with it"
        )

    @staticmethod
    def get_identifiers(folder: str) -> npt.NDArray[np.int64]:
        """Return the case numbers of a folder, repeated by the shares of its parts."""
        return np.asarray(StoreDataset(folder).identifiers)


nnunet_dataset.file_ending_dataset_mapping[CASES.rpartition(".")[2]] = StoreDataset
