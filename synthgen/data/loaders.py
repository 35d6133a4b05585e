"""Stateless batches: batch `s` of a training is a function of (seed, s), nothing else.

No loader state is saved, none needs to be: after a kill the loop asks for batch `s` again.
"""

from __future__ import annotations

import queue
import threading
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import TYPE_CHECKING, Generic, Protocol, TypeVar

import numpy as np
import numpy.typing as npt
import torch

from synthgen.core.errors import StoreError
from synthgen.core.rng import SampleKey, Stream
from synthgen.data.augment import PvAugment, augment_lesions, augment_pv, paste_lesions

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from synthgen.data.store import TrainingStore

Batch_co = TypeVar("Batch_co", covariant=True)
NEAR_LESIONS = 48
"""A pasted lesion comes from one of this many slices nearest in position."""


class Batches(Protocol[Batch_co]):
    """Anything with a `batch(step)`."""

    def batch(self, step: int) -> Batch_co:
        """Return batch `step`."""
        ...


@dataclass(frozen=True)
class LabelBatch:
    """A batch of label maps.

    Attributes:
        pv: `(B, C, X, Y)` float32, sums to 1.
        fractions: `(B, L)` lesion shares of the brain, measured after augmentation.
        position: `(B,)` slice positions, 0 at the foot of the brain, 1 at the top.
        csf: `(B,)` the CSF's share of the brain, measured after augmentation; 0 where the schema
            has no `csf`.
    """

    pv: torch.Tensor
    fractions: torch.Tensor
    position: torch.Tensor
    csf: torch.Tensor


def brain_shares(pv: torch.Tensor) -> torch.Tensor:
    """Return each channel's share `(B, C)` of the brain (all that is not background)."""
    totals = pv.float().flatten(2).sum(dim=2)
    return totals / totals[:, 1:].sum(dim=1, keepdim=True).clamp_min(1e-6)


class LabelBatches:
    """Augmented label maps of one split.

    Args:
        store: where the slices come from.
        split: "train", "val" or "test".
        batch_size: samples a batch.
        seed: seed of order and augmentation.
        augment: settings; None leaves the maps as they are.
        lesion_share: share of each batch drawn from the slices that show a lesion, if any does.

    Raises:
        StoreError: the split has no slices.
    """

    def __init__(
        self,
        store: TrainingStore,
        split: str,
        batch_size: int,
        seed: int,
        augment: PvAugment | None,
        *,
        lesion_share: float = 0.0,
    ) -> None:
        self.store = store
        self._augment = augment
        self._seed = seed
        self._indices = np.asarray(store.slice_indices(split))
        if self._indices.size == 0:
            raise StoreError(f"the store has no slices in split '{split}'; prepare more subjects")
        lesions = list(store.schema.lesion_channels)
        shows = store.slices.fractions[self._indices][:, lesions].max(axis=1, initial=0) > 1e-4
        self._with_lesion = self._indices[shows]
        self._num_lesion = round(lesion_share * batch_size) if self._with_lesion.size else 0
        self._num_any = batch_size - self._num_lesion
        self._pasteable = np.asarray(
            [i for i, s in enumerate(store.lesion_split) if s == split], dtype=np.int64
        )

    def batch(self, step: int) -> LabelBatch:
        """Return batch `step`; the same for the same (seed, step)."""
        chosen = [
            *draw_shuffled(self._indices, self._seed, 0, step * self._num_any, self._num_any),
            *draw_shuffled(
                self._with_lesion, self._seed, 1, step * self._num_lesion, self._num_lesion
            ),
        ]
        first = step * len(chosen)
        return self.augmented(
            chosen, [SampleKey(self._seed, first + i) for i in range(len(chosen))]
        )

    def augmented(self, indices: list[int], keys: list[SampleKey]) -> LabelBatch:
        """Return the slices `indices`, augmented with one key each."""
        pv = torch.stack([torch.as_tensor(self.store.pv(i)) for i in indices])
        position = torch.as_tensor(self.store.slices.position[indices], dtype=torch.float32)
        if self._augment is not None:
            if self._augment.lesion_paste_probability > 0 and self._pasteable.size:
                pv = self._paste(pv, position, keys, self._augment)
            pv = augment_pv(pv, [key.torch(Stream.AUGMENT) for key in keys], self._augment)
        shares, schema = brain_shares(pv), self.store.schema
        csf = shares[:, schema.index("csf")] if "csf" in schema.names else torch.zeros(len(pv))
        return LabelBatch(pv, shares[:, list(schema.lesion_channels)], position, csf)

    def _paste(
        self, pv: torch.Tensor, position: torch.Tensor, keys: list[SampleKey], settings: PvAugment
    ) -> torch.Tensor:
        """Paste a real lesion shape of a near slice position, warped on its own, into some maps."""
        soft = torch.zeros(pv.shape[0], *pv.shape[2:])
        places = self.store.lesion_position[self._pasteable]
        for row, key in enumerate(keys):
            rng = key.numpy(Stream.AUGMENT)
            if rng.random() >= settings.lesion_paste_probability:
                continue
            near = np.argsort(np.abs(places - float(position[row])), kind="stable")[:NEAR_LESIONS]
            lesion = self._pasteable[near[rng.integers(near.size)]]
            soft[row] = torch.as_tensor(self.store.lesion(int(lesion)))
        # Another attempt gives the lesion another warp than its host slice.
        own = [replace(key, attempt=key.attempt + 1).torch(Stream.AUGMENT) for key in keys]
        soft = augment_lesions(soft, own, settings)
        return paste_lesions(pv, soft, self.store.schema.lesion_channels[0])


def draw_shuffled(
    indices: npt.NDArray[np.int64], seed: int, stream: int, first: int, count: int
) -> list[int]:
    """Return entries `first .. first + count` of an endless sequence of shuffled epochs.

    Args:
        indices: what to shuffle.
        seed: seed of the order.
        stream: 0 or 1: two sequences of one seed that are independent.
        first: position in the sequence.
        count: how many.
    """
    drawn = []
    for position in range(first, first + count):
        epoch, place = divmod(position, indices.size)
        drawn.append(int(indices[_permutation(indices.size, seed, 2 * epoch + stream)[place]]))
    return drawn


@lru_cache(maxsize=8)
def _permutation(size: int, seed: int, epoch: int) -> npt.NDArray[np.int64]:
    return SampleKey(seed, epoch).numpy(Stream.TRAIN).permutation(size)


class Prefetch(Generic[Batch_co]):
    """Batches computed ahead in one thread; `batch(step)` must be asked in order.

    Use `prefetch`, which ends the thread.
    """

    def __init__(self, batches: Batches[Batch_co], first_step: int, depth: int) -> None:
        self._batches = batches
        self._next = first_step
        self._queue: queue.Queue[Batch_co | BaseException] = queue.Queue(depth)
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._work, args=(first_step,), daemon=True)
        self._thread.start()

    def batch(self, step: int) -> Batch_co:
        """Return batch `step`; a step out of order is computed on the spot."""
        if step != self._next:
            return self._batches.batch(step)
        self._next += 1
        item = self._queue.get()
        if isinstance(item, BaseException):
            raise item
        return item

    def close(self) -> None:
        """End the thread."""
        self._stop.set()
        while self._thread.is_alive():
            try:
                self._queue.get(timeout=0.05)
            except queue.Empty:
                continue
        self._thread.join()

    def _work(self, step: int) -> None:
        while not self._stop.is_set():
            item: Batch_co | BaseException
            try:
                item = self._batches.batch(step)
            except Exception as error:  # noqa: BLE001 - raised again in the caller's thread
                item = error
            self._queue.put(item)
            if isinstance(item, BaseException):
                return
            step += 1


@contextmanager
def prefetch(
    batches: Batches[Batch_co], first_step: int, depth: int = 2
) -> Iterator[Prefetch[Batch_co]]:
    """Compute batches ahead of their use, from `first_step` on, in one thread."""
    ahead = Prefetch(batches, first_step, depth)
    try:
        yield ahead
    finally:
        ahead.close()


def to_device(batch: Mapping[str, torch.Tensor], device: torch.device) -> dict[str, torch.Tensor]:
    """Move a batch's tensors to a device."""
    return {k: v.to(device, non_blocking=True) for k, v in batch.items()}
