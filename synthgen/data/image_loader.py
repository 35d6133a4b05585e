"""Stateless batches of (label, image, style images): batch s is a function of (seed, s).

The style images are other slices of the content image's own volume and modality, so that a
style code can carry contrast but not the anatomy of the target (Fernandez et al. 2022, section
2.2, arXiv:2209.08256). Content and style images share one draw of acquisition, gamma, bias field
and noise: the style must have the contrast that the generator is asked for. Their warps are
independent.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from synthgen.core.errors import RequestError, StoreError
from synthgen.core.rng import SampleKey, Stream
from synthgen.data.acquisition import AcquisitionAugment, move_contrast
from synthgen.data.augment import ImageAugment, PvAugment, augment_image, augment_pair

if TYPE_CHECKING:
    from collections.abc import Sequence

    from synthgen.core.acquisition import Acquisition
    from synthgen.data.store import TrainingStore

LESION_FRACTION = 1e-3
"""A slice counts as showing a lesion from this share of the brain on."""

_CONTRAST, _CONTENT, _STYLE, _SECOND_STYLE, _ACQUISITION = range(5)
_VIEWS = (_CONTENT, _STYLE, _SECOND_STYLE)


@dataclass(frozen=True)
class ImageBatch:
    """One batch.

    Attributes:
        pv: float32 `(B, C, X, Y)` in [0, 1], sums to 1.
        image: float32 `(B, 1, X, Y)` in [-1, 1], -1 where background pv > 0.5.
        style_image: another slice of the same volume and modality, like `image`.
        second_style_image: one more, like `image`.
        modality: long `(B,)`, index into `ImageBatches.modalities`.
        dataset: long `(B,)`, index into `ImageBatches.datasets`.
        rows: long `(B, 3)`, store rows of image, style image and second style image.
    """

    pv: Tensor
    image: Tensor
    style_image: Tensor
    second_style_image: Tensor
    modality: Tensor
    dataset: Tensor
    rows: Tensor

    def to(self, device: torch.device) -> ImageBatch:
        """Return the batch on `device`."""
        return ImageBatch(*(getattr(self, name).to(device) for name in self.__annotations__))


class ImageBatches:
    """Batches of one split, balanced over modalities and lesions.

    Modalities take turns, a data set is drawn for each, and with `lesion_probability` the slice
    is drawn among those that show a lesion.

    Args:
        store: the training store.
        split: "train", "val" or "test".
        batch_size: B.
        seed: with the step it decides a batch.
        pv_augment: warp of label and image together; lesions are never pasted, since the image
            would not show them.
        image_augment: change of contrast, one draw per sample.
        acquisition_augment: move to another MR acquisition, one draw per sample.
        lesion_probability: see above.

    Raises:
        StoreError: the split has no images.
    """

    def __init__(
        self,
        store: TrainingStore,
        split: str,
        batch_size: int,
        seed: int,
        pv_augment: PvAugment | None,
        image_augment: ImageAugment | None,
        acquisition_augment: AcquisitionAugment | None = None,
        *,
        lesion_probability: float = 0.5,
    ) -> None:
        self._store, self._split = store, split
        self._batch_size, self._seed = batch_size, seed
        self._warp, self._contrast = pv_augment, image_augment
        self._moves = acquisition_augment or AcquisitionAugment()
        self._lesion_probability = lesion_probability
        self.modalities: tuple[str, ...] = tuple(store.modalities)
        self.datasets: tuple[str, ...] = tuple(store.datasets)
        self._index()

    def __len__(self) -> int:
        """Number of images in the split."""
        return len(self.rows)

    @property
    def styles(self) -> tuple[tuple[str, str], ...]:
        """The (dataset, modality) pairs that have images in the split, in a fixed order."""
        return tuple(
            (dataset, modality) for modality, groups in self._groups.items() for dataset in groups
        )

    def rows_of(self, dataset: str, modality: str) -> npt.NDArray[np.int64]:
        """Return the image rows of one style, ascending."""
        return self._groups[modality][dataset][0]

    @property
    def subjects(self) -> tuple[str, ...]:
        """Subjects that have images in the split, sorted."""
        return tuple(sorted({subject for _, subject, _ in self._volume_of.values()}))

    def brain_share(self, rows: npt.NDArray[np.int64]) -> npt.NDArray[np.float64]:
        """Return the share of the field of view that is brain, per row."""
        share: npt.NDArray[np.float64] = self._store.slices.fractions[:, 0]
        return share[self._store.image_pv_index[rows]]

    def images(self, rows: Sequence[int]) -> Tensor:
        """Return chosen images `(n, 1, X, Y)` in [-1, 1], unwarped and unchanged."""
        pv, image = self._read(np.asarray(rows, dtype=np.int64))
        return torch.where(pv[:, :1] > 0.5, -1.0, 2 * image - 1)

    def sources(self, modality: str) -> tuple[str, ...]:
        """Return the data sets whose acquisition of a modality is known, so that it can move."""
        groups = self._groups.get(modality, {})
        return tuple(dataset for dataset in groups if (dataset, modality) in self._moves.known)

    def moved_images(self, rows: Sequence[int], target: Acquisition) -> Tensor:
        """Return chosen images like `images`, each moved from its acquisition to another one.

        Raises:
            RequestError: an image whose own acquisition is unknown.
        """
        moved = []
        for row in rows:
            dataset, _, modality = self._volume_of[row]
            source = self._moves.known.get((dataset, modality))
            if source is None:
                raise RequestError(f"the acquisition of '{dataset}_{modality}' is not known")
            pv, image = self._read(np.asarray([row], dtype=np.int64))
            image = move_contrast(image, pv, self._store.schema.names, source, target)
            moved.append(torch.where(pv[:, :1] > 0.5, -1.0, 2 * image - 1))
        return torch.cat(moved)

    def batch(self, step: int) -> ImageBatch:
        """Return batch `step`."""
        first = step * self._batch_size
        keys = [SampleKey(self._seed, first + i) for i in range(self._batch_size)]
        return self._load(np.stack([self._draw(key) for key in keys]), keys)

    def fixed(self, rows: Sequence[int]) -> ImageBatch:
        """Return chosen images unwarped and unchanged, with style images as in training."""
        keys = [SampleKey(self._seed, int(row), 1) for row in rows]
        chosen = [self._with_styles(int(r), k) for r, k in zip(rows, keys, strict=True)]
        return self._load(np.stack(chosen), None)

    def _index(self) -> None:
        """Group the split's image rows by modality and data set, and by volume."""
        store, table = self._store, self._store.slices
        self.rows = np.asarray(store.image_rows(self._split), dtype=np.int64)
        if not self.rows.size:
            raise StoreError(
                f"the store has no images in split '{self._split}'; "
                "prepare a source with images, or choose other --val and --test subjects"
            )
        lesions = list(store.schema.lesion_channels)
        self._groups: dict[str, dict[str, tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]]]
        grouped: dict[str, dict[str, tuple[list[int], list[int]]]] = {}
        volumes: dict[tuple[str, str, str], list[int]] = {}
        self._volume_of: dict[int, tuple[str, str, str]] = {}
        for row in self.rows.tolist():
            p, modality = int(store.image_pv_index[row]), store.image_modality[row]
            subject, dataset = table.subject[p], table.dataset[p]
            everything, lesioned = grouped.setdefault(modality, {}).setdefault(dataset, ([], []))
            everything.append(row)
            if lesions and float(table.fractions[p][lesions].sum()) > LESION_FRACTION:
                lesioned.append(row)
            volume = (dataset, subject, modality)
            volumes.setdefault(volume, []).append(row)
            self._volume_of[row] = volume
        self._groups = {
            modality: {
                dataset: (np.asarray(a, dtype=np.int64), np.asarray(b, dtype=np.int64))
                for dataset, (a, b) in sorted(grouped[modality].items())
            }
            for modality in self.modalities
            if modality in grouped
        }
        self._volumes = {v: np.asarray(rows, dtype=np.int64) for v, rows in volumes.items()}

    def _draw(self, key: SampleKey) -> npt.NDArray[np.int64]:
        rng = key.numpy(Stream.TRAIN)
        modality = list(self._groups)[key.index % len(self._groups)]
        groups = list(self._groups[modality].values())
        everything, lesioned = groups[int(rng.integers(len(groups)))]
        want_lesion = rng.random() < self._lesion_probability
        rows = lesioned if want_lesion and lesioned.size else everything
        return self._with_styles(int(rng.choice(rows)), key)

    def _with_styles(self, row: int, key: SampleKey) -> npt.NDArray[np.int64]:
        """Add two other slices of the volume; the same slice only where there is no other."""
        others = self._volumes[self._volume_of[row]]
        others = others[others != row]
        drawn = key.numpy(Stream.STYLE).permutation(others)[:2].tolist()
        first = drawn[0] if drawn else row
        return np.asarray([row, first, drawn[-1] if drawn else row], dtype=np.int64)

    def _load(self, rows: npt.NDArray[np.int64], keys: list[SampleKey] | None) -> ImageBatch:
        names = [self._volume_of[int(row)] for row in rows[:, 0]]
        drawn = None if keys is None else self._draw_moves(names, keys)
        views = []
        for column, view in enumerate(_VIEWS):
            pv, image = self._read(rows[:, column])
            if drawn is not None:
                image = self._move(image, pv, drawn)
            if view != _CONTENT:  # a style image needs background and brain only
                pv = torch.cat([pv[:, :1], 1 - pv[:, :1]], dim=1)
            views.append((pv, image) if keys is None else self._augment(pv, image, keys, view))
        images = [torch.where(p[:, :1] > 0.5, -1.0, 2 * i - 1) for p, i in views]
        return ImageBatch(
            pv=views[0][0],
            image=images[0],
            style_image=images[1],
            second_style_image=images[2],
            modality=torch.tensor([self.modalities.index(m) for _, _, m in names]),
            dataset=torch.tensor([self.datasets.index(d) for d, _, _ in names]),
            rows=torch.from_numpy(rows),
        )

    def _draw_moves(
        self, names: list[tuple[str, str, str]], keys: list[SampleKey]
    ) -> list[tuple[Acquisition, Acquisition] | None]:
        """Draw each sample's acquisitions, from and to."""
        drawn = []
        for (dataset, _, modality), key in zip(names, keys, strict=True):
            own = SampleKey(key.seed, key.index, key.attempt + _ACQUISITION)
            drawn.append(self._moves.draw(dataset, modality, own.numpy(Stream.AUGMENT)))
        return drawn

    def _move(
        self, image: Tensor, pv: Tensor, drawn: list[tuple[Acquisition, Acquisition] | None]
    ) -> Tensor:
        """Move each image before it is warped: only then do its own labels lie on it."""
        tissues = self._store.schema.names
        return torch.cat(
            [
                image[i : i + 1]
                if pair is None
                else move_contrast(image[i : i + 1], pv[i : i + 1], tissues, *pair)
                for i, pair in enumerate(drawn)
            ]
        )

    def _read(self, rows: npt.NDArray[np.int64]) -> tuple[Tensor, Tensor]:
        store = self._store
        pv = torch.from_numpy(np.stack([store.pv(int(store.image_pv_index[r])) for r in rows]))
        image = torch.from_numpy(np.stack([store.image(int(r)) for r in rows]))
        return pv.float(), image.float()

    def _augment(
        self, pv: Tensor, image: Tensor, keys: list[SampleKey], view: int
    ) -> tuple[Tensor, Tensor]:
        """Warp with draws of this view, then change contrast with draws shared by all views."""
        if self._warp is not None:
            pv, image = augment_pair(pv, image, _generators(keys, view), self._warp)
        if self._contrast is not None:
            brain = (pv[:, :1] <= 0.5).to(image.dtype)
            image = augment_image(image, brain, _generators(keys, _CONTRAST), self._contrast)
        return pv, image.clamp(0, 1)


def _generators(keys: list[SampleKey], view: int) -> list[torch.Generator]:
    """Return fresh generators, one per sample; `attempt` separates the views' draws."""
    return [SampleKey(k.seed, k.index, k.attempt + view).torch(Stream.AUGMENT) for k in keys]
