"""One interface to labelled images, whatever they lie in: what every segmentation trainer reads.

Shards of generated images, training stores and nnU-Net raw folders become cases: an image in
[0, 1] and soft labels of the tissues that a recipe names. Of stores and shards each picture is a
case of one channel; of an nnU-Net folder a case has all its channels.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
import numpy.typing as npt

from synthgen.core.errors import LeakageError, RequestError
from synthgen.core.manifest import MANIFEST
from synthgen.core.tissue_groups import TissueGroups
from synthgen.data.rows import open_source
from synthgen.data.store import STORE

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

    from synthgen.data.rows import Entry, Source

Floats = npt.NDArray[np.float32]

PICTURE = "image"
"""Channel name where each picture is a case, whatever its modality."""
DATASET_JSON = "dataset.json"


@dataclass(frozen=True)
class LabelledCase:
    """One case, without its pixels.

    Attributes:
        name: unique plain name in its data.
        subject: real subject that it shows, `dataset/sub-XX`; empty for a generated case.
        group: cases of one group show one subject, or one generated label map.
        spacing_mm: voxel size, one number an axis.
    """

    name: str
    subject: str
    group: str
    spacing_mm: tuple[float, ...]


class LabelledData(Protocol):
    """Labelled images of one rank, with the same channels and tissues."""

    @property
    def name(self) -> str:
        """What messages call it."""

    @property
    def tissues(self) -> tuple[str, ...]:
        """Names of the G soft labels: background first, or regions alone where they overlap."""

    @property
    def overlapping(self) -> bool:
        """Whether a voxel can belong to several of the tissues."""

    @property
    def channels(self) -> tuple[str, ...]:
        """Names of the Ci input channels."""

    @property
    def spatial_dims(self) -> int:
        """Number of spatial axes, 2 or 3."""

    @property
    def spacing_mm(self) -> tuple[float, ...]:
        """Typical voxel size, one number an axis; cases may differ."""

    @property
    def real(self) -> bool:
        """Whether these are scans of real subjects."""

    @property
    def subjects(self) -> tuple[str, ...]:
        """Real subjects that it shows or descends from, sorted."""

    @property
    def identity(self) -> Mapping[str, Any]:
        """All that decides the cases and their order."""

    @property
    def cases(self) -> tuple[LabelledCase, ...]:
        """The cases."""

    def load(self, index: int) -> tuple[Floats, Floats]:
        """Return the image `(Ci, *S)` in [0, 1] and the soft labels `(G, *S)` of a case.

        Soft labels lie in [0, 1] and sum to 1, unless they overlap.

        Raises:
            StoreError: its files are damaged.
            SchemaError: labels that break what the data state.
            GeometryError: image and labels on different grids.
        """


def open_labelled(
    path: Path,
    *,
    tissues: Sequence[str],
    split: str = "train",
    modalities: Sequence[str] = (),
    exclude: Sequence[str] = (),
) -> LabelledData:
    """Open labelled images.

    Args:
        path: a dataset folder with images, a training store, or an nnU-Net raw folder.
        tissues: groups of labels, without background, as `TissueGroups` makes them; of
            overlapping labels the regions, in the wanted order.
        split: "train", "val" or "test". A generated dataset has no splits and is taken whole;
            of an nnU-Net folder see `synthgen.data.nnunet_raw`.
        modalities: of stores and shards which pictures, by modality (by style where that is
            unknown); of an nnU-Net folder which channels, in this order. All if empty.
        exclude: real subjects to leave out.

    Raises:
        RequestError: none of the three, nothing is left of it, a tissue or modality that it
            does not have, or a class of it that belongs to none of the tissues.
        LeakageError: generated from an excluded subject.
        StoreError: incomplete or damaged.
        SchemaError: damaged labels.
        GeometryError: 2-D and 3-D cases in one folder.
    """
    if (path / DATASET_JSON).is_file():
        from synthgen.data.nnunet_raw import open_nnunet_raw  # noqa: PLC0415 - it imports this

        data: LabelledData = open_nnunet_raw(
            path, tissues=tissues, split=split, modalities=modalities, exclude=exclude
        )
    elif (path / MANIFEST).is_file():
        data = _slices(open_source(path), tissues, modalities, exclude)
    elif path.is_file() or (path / STORE).is_file():
        data = _slices(open_source(path, splits=(split,)), tissues, modalities, exclude)
    else:
        raise RequestError(
            f"{path}: no labelled images; expected a dataset of `synthgen images` or "
            f"`angiograms` ({MANIFEST}), a training store ({STORE}), or an nnU-Net raw folder "
            f"({DATASET_JSON})"
        )
    if not data.real:
        _refuse_descent(data, exclude)
    return data


def _refuse_descent(data: LabelledData, exclude: Sequence[str]) -> None:
    seen = sorted({*data.subjects} & {*exclude})
    if seen:
        raise LeakageError(
            f"{data.name}: its images descend from '{seen[0]}', which is to be left out; "
            "generate with a model that never saw it"
        )


def _slices(
    source: Source,
    tissues: Sequence[str],
    modalities: Sequence[str],
    exclude: Sequence[str],
) -> _Slices:
    groups = TissueGroups.of(source.schema, tissues, source.name)
    pictures = {_modality(entry, k) for entry in source.entries for k in range(len(entry.pictures))}
    if not pictures:
        raise RequestError(
            f"{source.name}: label maps without images; paint them with `synthgen images`"
        )
    absent = [name for name in modalities if name not in pictures]
    if absent:
        raise RequestError(
            f"{source.name}: no pictures of modality '{absent[0]}'; it has "
            f"{', '.join(sorted(pictures))}"
        )
    chosen = tuple(
        (entry, k)
        for entry in source.entries
        if entry.subject not in exclude or not entry.subject
        for k in range(len(entry.pictures))
        if not modalities or _modality(entry, k) in modalities
    )
    if not chosen:
        raise RequestError(f"{source.name}: no case is left; exclude fewer subjects")
    identity = {
        **source.identity,
        "tissues": list(groups.names),
        "modalities": sorted({*modalities}),
        "exclude": sorted({entry.subject for entry in source.entries} & {*exclude}),
    }
    return _Slices(source, groups, chosen, identity)


def _modality(entry: Entry, picture: int) -> str:
    shown = entry.pictures[picture]
    return shown.modality or shown.style


def _name(entry: Entry, picture: int) -> str:
    """Return the name that the picture's case has in an nnU-Net export, too."""
    shown = entry.pictures[picture]
    return f"{entry.name}_{shown.modality if entry.subject else shown.style}"


class _Slices:
    """Pictures of a training store or of a generated dataset."""

    overlapping = False
    channels: tuple[str, ...] = (PICTURE,)
    spatial_dims = 2

    def __init__(
        self,
        source: Source,
        groups: TissueGroups,
        pictures: tuple[tuple[Entry, int], ...],
        identity: Mapping[str, Any],
    ) -> None:
        self._source, self._groups, self._pictures = source, groups, pictures
        self.name, self.real, self.identity = source.name, source.real, identity
        self.tissues = groups.names
        self.spacing_mm: tuple[float, ...] = (source.spacing_mm, source.spacing_mm)
        shown = {entry.subject for entry, _ in pictures} - {""}
        self.subjects = tuple(sorted(shown | {*source.ancestors}))
        self.cases = tuple(
            LabelledCase(_name(entry, k), entry.subject, entry.group, self.spacing_mm)
            for entry, k in pictures
        )

    def load(self, index: int) -> tuple[Floats, Floats]:
        """See `LabelledData.load`."""
        entry, picture = self._pictures[index]
        pv = self._source.pv(entry)
        image = self._source.image(entry, picture, pv)
        soft: Floats = self._groups.merge(pv).astype(np.float32) / np.float32(255)
        return image[None], soft
