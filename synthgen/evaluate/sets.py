"""Slices to compare: label maps with their images, real or generated, read when needed.

A `SliceSet` is all that the metrics know of a dataset. It is a table of slices and images in
memory, and two readers that fetch pixels, so that 20 000 slices need no more memory than one
batch.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import partial
from typing import TYPE_CHECKING, Self

import numpy as np
import numpy.typing as npt

from synthgen.core.errors import GeometryError, RequestError, SchemaError
from synthgen.core.rng import Stream
from synthgen.data.sources import style_modality

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from synthgen.core.rng import SampleKey
    from synthgen.core.schema import LabelSchema
    from synthgen.data.shards import Shards
    from synthgen.data.store import TrainingStore

Floats = npt.NDArray[np.float32]
Indices = npt.NDArray[np.int64]
UNKNOWN = ""
"""Subject, modality or dataset that nobody stated."""


@dataclass(frozen=True)
class SliceTable:
    """What is known of P slices.

    Attributes:
        subject: `(P,)` real subject of each slice; `UNKNOWN` for a generated one.
        position: `(P,)` place in the brain, 0 at the foot, 1 at the top; NaN where unknown.
        requested: `(P, L)` lesion shares that were asked for; NaN where nothing was asked.
    """

    subject: tuple[str, ...]
    position: npt.NDArray[np.float64]
    requested: npt.NDArray[np.float64]


@dataclass(frozen=True)
class ImageTable:
    """What is known of N images.

    Attributes:
        slices: `(N,)` slice that each image shows.
        style: `(N,)` style name; `dataset_modality` for a real image.
        modality: `(N,)`, in small letters, or `UNKNOWN`.
        dataset: `(N,)`, or `UNKNOWN`.
    """

    slices: Indices
    style: tuple[str, ...] = ()
    modality: tuple[str, ...] = ()
    dataset: tuple[str, ...] = ()


@dataclass(frozen=True)
class SliceSet:
    """Slices and their images.

    Attributes:
        name: what to call the set in a report.
        schema: label schema of the PV channels.
        shape: in-plane size (X, Y).
        table: one row a slice.
        images: one row an image; none in a set of labels.
        read_pv: returns the PV map `(C, X, Y)` float32 of a slice.
        read_image: returns an image `(1, X, Y)` float32 in [0, 1].
        ancestors: real subjects that any model behind the set saw in training.
    """

    name: str
    schema: LabelSchema
    shape: tuple[int, int]
    table: SliceTable
    images: ImageTable
    read_pv: Callable[[int], Floats]
    read_image: Callable[[int], Floats]
    ancestors: frozenset[str] = frozenset()

    def __len__(self) -> int:
        return len(self.table.subject)

    @property
    def subjects(self) -> tuple[str, ...]:
        """Real subjects, sorted."""
        return tuple(sorted({*self.table.subject} - {UNKNOWN}))

    @property
    def modalities(self) -> tuple[str, ...]:
        """Modalities that any image has, sorted."""
        return tuple(sorted({*self.images.modality} - {UNKNOWN}))

    @property
    def styles(self) -> tuple[str, ...]:
        """Style names that any image has, sorted."""
        return tuple(sorted({*self.images.style}))

    def pv(self, slices: Sequence[int] | Indices) -> Floats:
        """Return PV maps `(n, C, X, Y)` in [0, 1] that sum to 1."""
        return np.stack([self.read_pv(int(i)) for i in slices])

    def image(self, rows: Sequence[int] | Indices) -> Floats:
        """Return images `(n, 1, X, Y)` in [0, 1]."""
        return np.stack([self.read_image(int(i)) for i in rows])

    def image_rows(self, modality: str | None = None, style: str | None = None) -> Indices:
        """Return the rows of the images of one modality and style, if given."""
        keep = np.ones(len(self.images.slices), dtype=bool)
        if modality is not None:
            keep &= np.asarray(self.images.modality) == modality
        if style is not None:
            keep &= np.asarray(self.images.style) == style
        return np.flatnonzero(keep)

    def image_subjects(self) -> tuple[str, ...]:
        """Return the subject of each image."""
        return tuple(self.table.subject[i] for i in self.images.slices)

    def take(self, slices: Sequence[int] | Indices) -> Self:
        """Return the set of some slices, in that order, with their images."""
        chosen = np.asarray(slices, dtype=np.int64)
        place = {int(old): new for new, old in enumerate(chosen)}
        rows = [r for r, s in enumerate(self.images.slices) if int(s) in place]
        images = self.images
        return replace(
            self,
            table=SliceTable(
                tuple(self.table.subject[i] for i in chosen),
                self.table.position[chosen],
                self.table.requested[chosen],
            ),
            images=ImageTable(
                np.asarray([place[int(images.slices[r])] for r in rows], dtype=np.int64),
                *(
                    tuple(c[r] for r in rows)
                    for c in (images.style, images.modality, images.dataset)
                ),
            ),
            read_pv=partial(_redirected, self.read_pv, chosen),
            read_image=partial(_redirected, self.read_image, np.asarray(rows, dtype=np.int64)),
        )

    def sample(self, count: int, key: SampleKey) -> Self:
        """Return `count` slices drawn without replacement, or the whole set if it is smaller."""
        if count >= len(self):
            return self
        rng = key.numpy(Stream.EVALUATE)
        return self.take(np.sort(rng.choice(len(self), count, replace=False)))

    def of_subjects(self, subjects: Sequence[str]) -> Self:
        """Return the slices of some subjects."""
        wanted = {*subjects}
        return self.take([i for i, s in enumerate(self.table.subject) if s in wanted])


def from_arrays(  # noqa: PLR0913 - one array for each column
    pv: Floats,
    schema: LabelSchema,
    *,
    name: str = "arrays",
    images: Floats | None = None,
    image_slices: Sequence[int] | None = None,
    subject: Sequence[str] | None = None,
    position: Sequence[float] | None = None,
    requested: npt.ArrayLike | None = None,
    modality: Sequence[str] | None = None,
    dataset: Sequence[str] | None = None,
    style: Sequence[str] | None = None,
) -> SliceSet:
    """Return a set of arrays in memory.

    Args:
        pv: `(P, C, X, Y)` in [0, 1], summing to 1 over C.
        schema: label schema of the channels.
        name: what to call the set.
        images: `(N, 1, X, Y)` in [0, 1].
        image_slices: slice that each image shows; image i shows slice i by default.
        subject: subject of each slice.
        position: place of each slice in the brain.
        requested: `(P, L)` lesion shares asked for.
        modality: modality of each image.
        dataset: dataset of each image.
        style: style of each image; `dataset_modality` by default.

    Raises:
        SchemaError: the channels do not fit the schema.
        RequestError: columns whose lengths disagree.
    """
    if pv.ndim != 4 or pv.shape[1] != schema.channels:
        raise SchemaError(f"{name}: expected PV maps (P, {schema.channels}, X, Y), got {pv.shape}")
    count, total = len(pv), 0 if images is None else len(images)
    rows = np.asarray(range(total) if image_slices is None else image_slices, dtype=np.int64)
    modality, dataset = modality or (UNKNOWN,) * total, dataset or (UNKNOWN,) * total
    style = style or [style_name(d, m) for d, m in zip(dataset, modality, strict=True)]
    table = SliceTable(
        tuple(subject or (UNKNOWN,) * count),
        np.full(count, np.nan) if position is None else np.asarray(position, dtype=np.float64),
        np.full((count, len(schema.lesions)), np.nan)
        if requested is None
        else np.asarray(requested, dtype=np.float64),
    )
    lengths = {len(table.subject), len(table.position), len(table.requested), count}
    if len(lengths) > 1 or {len(rows), len(modality), len(dataset), len(style)} != {total}:
        raise RequestError(
            f"{name}: expected {count} subjects, positions and requests and {total} styles, "
            f"modalities and datasets, got {len(table.subject)}, {len(table.position)}, "
            f"{len(table.requested)}, {len(style)}, {len(modality)}, {len(dataset)}"
        )
    return SliceSet(
        name,
        schema,
        (int(pv.shape[2]), int(pv.shape[3])),
        table,
        ImageTable(rows, tuple(style), tuple(modality), tuple(dataset)),
        partial(_row, pv),
        partial(_row, np.zeros((0, 1, *pv.shape[2:]), np.float32) if images is None else images),
    )


def from_store(store: TrainingStore, splits: Sequence[str]) -> SliceSet:
    """Return the slices of some splits of a training store, images included.

    Raises:
        RequestError: those splits have no slices.
    """
    slices = np.concatenate([store.slice_indices(split) for split in splits])
    if not slices.size:
        raise RequestError(
            f"{store.path}: no slices in split {' or '.join(splits)}; name another with PATH:SPLIT"
        )
    wanted = {*slices.tolist()}
    rows = [r for r, s in enumerate(store.image_pv_index) if int(s) in wanted]
    place = {int(old): new for new, old in enumerate(slices)}
    dataset = [store.slices.dataset[int(store.image_pv_index[r])] for r in rows]
    modality = [store.image_modality[r] for r in rows]
    lesions = len(store.schema.lesions)
    return SliceSet(
        f"{store.path.parent.name or store.path.stem} ({'+'.join(splits)})",
        store.schema,
        store.shape,
        SliceTable(
            tuple(store.slices.subject[i] for i in slices),
            store.slices.position[slices],
            np.full((len(slices), lesions), np.nan),
        ),
        ImageTable(
            np.asarray([place[int(store.image_pv_index[r])] for r in rows], dtype=np.int64),
            tuple(style_name(d, m) for d, m in zip(dataset, modality, strict=True)),
            tuple(modality),
            tuple(dataset),
        ),
        partial(_redirected, store.pv, slices),
        partial(_redirected, store.image, np.asarray(rows, dtype=np.int64)),
        frozenset(store.slices.subject[i] for i in slices),
    )


def from_shards(shards: Shards, modalities: Sequence[str] = ()) -> SliceSet:
    """Return a generated dataset as a set: every style of every sample is an image.

    Args:
        shards: the dataset.
        modalities: modalities that the real data have; a style's is the longest one that its
            name ends with (`oasis_flair` is of modality `flair`).

    Raises:
        RequestError: vessel trees or angiograms, which are no slices of a brain.
    """
    if shards.schema.is_picture:
        raise RequestError(
            f"{shards.folder} holds vessel trees; expected label maps or images of the brain. "
            "`synthgen verify` checks its rows, `synthgen preview` shows them"
        )
    count, styles = len(shards), shards.styles
    conditions, lesions = shards.column("condition"), len(shards.schema.lesions)
    shape = shards[0].pv.shape[1:]
    known = [(style, style_modality(style, modalities)) for style in styles]
    return SliceSet(
        shards.folder.name,
        shards.schema,
        (int(shape[0]), int(shape[1])),
        SliceTable(
            (UNKNOWN,) * count,
            conditions[:, lesions].astype(np.float64),
            conditions[:, :lesions].astype(np.float64),
        ),
        ImageTable(
            np.repeat(np.arange(count), len(styles)),
            tuple(style for _ in range(count) for style, _ in known),
            tuple(modality for _ in range(count) for _, modality in known),
            tuple(_dataset_of(style, modality) for _ in range(count) for style, modality in known),
        ),
        partial(_shard_pv, shards),
        partial(_shard_image, shards, len(styles)),
        frozenset(shards.manifest.subjects),
    )


def require_comparable(synthetic: SliceSet, real: SliceSet, relation: str = "against") -> None:
    """Refuse sets of different schemas or picture sizes.

    Raises:
        SchemaError: different label schemas.
        GeometryError: different picture sizes.
    """
    real.schema.require_same(synthetic.schema, f"{synthetic.name} {relation} {real.name}")
    if synthetic.shape != real.shape:
        raise GeometryError(
            f"{synthetic.name}: expected slices of {real.shape} pixels as in {real.name}, "
            f"got {synthetic.shape}"
        )


def joined(first: SliceSet, second: SliceSet) -> SliceSet:
    """Return the slices of two sets of one schema and size, one after the other.

    Raises:
        SchemaError: different label schemas.
        GeometryError: different slice sizes.
    """
    require_comparable(second, first, "beside")
    tables, images = (first.table, second.table), (first.images, second.images)
    return SliceSet(
        f"{first.name} and {second.name}",
        first.schema,
        first.shape,
        SliceTable(
            (*tables[0].subject, *tables[1].subject),
            np.concatenate([t.position for t in tables]),
            np.concatenate([t.requested for t in tables]),
        ),
        ImageTable(
            np.concatenate([images[0].slices, images[1].slices + len(first)]),
            (*images[0].style, *images[1].style),
            (*images[0].modality, *images[1].modality),
            (*images[0].dataset, *images[1].dataset),
        ),
        partial(_either, first.read_pv, second.read_pv, len(first)),
        partial(_either, first.read_image, second.read_image, len(images[0].slices)),
        first.ancestors | second.ancestors,
    )


def style_name(dataset: str, modality: str) -> str:
    """Return `dataset_modality`, or what is known of it."""
    return "_".join(part for part in (dataset, modality) if part != UNKNOWN)


def _dataset_of(style: str, modality: str) -> str:
    return style.removesuffix(modality).rstrip("_") if modality else style


def _row(array: Floats, index: int) -> Floats:
    return np.asarray(array[index], dtype=np.float32)


def _redirected(read: Callable[[int], Floats], indices: Indices, index: int) -> Floats:
    return read(int(indices[index]))


def _either(
    first: Callable[[int], Floats], second: Callable[[int], Floats], count: int, index: int
) -> Floats:
    return first(index) if index < count else second(index - count)


def _shard_pv(shards: Shards, index: int) -> Floats:
    return shards[index].pv


def _shard_image(shards: Shards, styles: int, row: int) -> Floats:
    images = shards[row // styles].images
    if images is None:
        raise RequestError(f"{shards.folder}: a dataset of labels has no images")
    image: Floats = images[row % styles][None]
    return image
