"""Training patches of labelled data: one interpolation crops, resamples, turns, scales and shifts.

Batch `number` is a function of (seed, number) alone, and each patch of its own key: its neighbours
never change a draw. Turns happen in millimetres, so that what is rigid stays rigid in thick slices;
ImgX composes its affine likewise (Fu et al. 2023, arXiv:2308.16355). Labels move as soft maps,
linearly; the background is what the tissues leave, so that they sum to 1 also where a patch reaches
beyond its volume. A chosen share of the patches is placed to show a tissue, all tissues of the case
being equally likely, as in nnU-Net (Isensee et al. 2021, doi:10.1038/s41592-020-01008-z).
"""

from __future__ import annotations

import logging
import threading
from collections import OrderedDict
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
import torch

from synthgen.core.errors import RequestError, StoreError
from synthgen.core.geometry import crop_or_pad
from synthgen.core.rng import SampleKey, Stream
from synthgen.data.patch_augment import PatchAugmentation, change_appearance, draw_pose, sample

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from torch import Tensor

    from synthgen.data.mixture import Mixture
    from synthgen.data.patch_augment import Pose

__all__ = ["PatchAugmentation", "PatchSettings", "Patches"]

CACHE_BYTES = 2**30
"""Memory for cases that were read, 1 GiB: some thirty heads, or four thousand slices."""

_TRIES = 100  # cases looked at for one that shows a tissue
_PLACES = 4096  # voxels remembered for each tissue of a case
_FULL = 255

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class PatchSettings:
    """What patches are drawn.

    Attributes:
        patch: size along each axis, in voxels of the mixture's spacing.
        batch_size: patches in a batch.
        foreground: share of the patches that are placed to show a tissue.
        augmentation: how far they are changed.

    Raises:
        RequestError: sizes below 1, or a share outside [0, 1].
    """

    patch: tuple[int, ...]
    batch_size: int
    foreground: float
    augmentation: PatchAugmentation

    def __post_init__(self) -> None:
        if min(*self.patch, self.batch_size) < 1 or not 0 <= self.foreground <= 1:
            raise RequestError(
                "patches: expected sizes of at least 1 and foreground in [0, 1], got patch "
                f"{self.patch}, batch_size {self.batch_size}, foreground {self.foreground}"
            )


@dataclass(frozen=True)
class _Held:
    """A case in memory, compact."""

    image: npt.NDArray[np.float16]  # (Ci, *S)
    tissues: npt.NDArray[np.uint8]  # (T, *S), 255ths; without the background
    spacing_mm: npt.NDArray[np.float64]
    places: tuple[npt.NDArray[np.int64], ...]  # flat indices of voxels, for each tissue there

    @property
    def nbytes(self) -> int:
        return self.image.nbytes + self.tissues.nbytes + sum(p.nbytes for p in self.places)


class Patches:
    """Batches of augmented patches; see `synthgen.data.loaders.Batches`.

    Args:
        mixture: labelled data.
        settings: what is drawn.
        seed: of all draws.
        cache_bytes: memory for cases that were read; images are held in half precision.

    Attributes:
        identity: all that decides the batches.

    Raises:
        RequestError: a patch, or mirror probabilities, of another rank than the data.
    """

    def __init__(
        self,
        mixture: Mixture,
        settings: PatchSettings,
        seed: int,
        *,
        cache_bytes: int = CACHE_BYTES,
    ) -> None:
        dims = mixture.spatial_dims
        mirror = settings.augmentation.mirror
        if len(settings.patch) != dims or len(mirror) not in (0, dims):
            raise RequestError(
                f"{mixture.parts[0].name}: the data are {dims}-D, so patch needs {dims} sides and "
                f"mirror {dims} probabilities; got {settings.patch} and {mirror}"
            )
        self._mixture, self._settings, self._seed = mixture, settings, seed
        self._budget, self._used = cache_bytes, 0
        self._cache: OrderedDict[tuple[int, int], _Held] = OrderedDict()
        self._bare: set[tuple[int, int]] = set()
        self._lock = threading.Lock()
        self._told = False

    @property
    def identity(self) -> Mapping[str, Any]:
        """All that decides the batches."""
        return {
            "data": self._mixture.identity,
            "patches": asdict(self._settings),
            "seed": self._seed,
        }

    def batch(self, number: int) -> tuple[Tensor, Tensor]:
        """Return images `(B, Ci, *S)` in [0, 1] and soft labels `(B, G, *S)`.

        Raises:
            StoreError: damaged data, or no foreground in any of many cases.
        """
        count = self._settings.batch_size
        cases = self._mixture.draw(SampleKey(self._seed, number).numpy(Stream.TRAIN), count)
        made = [
            self._patch(SampleKey(self._seed, number * count + place), case)
            for place, case in enumerate(cases)
        ]
        return torch.stack([image for image, _ in made]), torch.stack([soft for _, soft in made])

    def _patch(self, key: SampleKey, case: tuple[int, int]) -> tuple[Tensor, Tensor]:
        rng, settings = key.numpy(Stream.AUGMENT), self._settings
        if rng.random() < settings.foreground:
            held = self._with_tissue(case, rng)
            place = rng.choice(held.places[rng.integers(len(held.places))])
            voxel = np.asarray(np.unravel_index(place, held.image.shape[1:]), dtype=np.float64)
        else:
            held, voxel = self._case(case), None
        start = self._start(held, voxel, rng)
        pose = draw_pose(rng, len(settings.patch), settings.augmentation)
        joined = self._cut(held, start, pose)
        channels = len(held.image)
        image, soft = joined[:channels].clamp(0, 1), self._soft(joined[channels:])
        noise = key.torch(Stream.AUGMENT)
        return change_appearance(image, settings.augmentation, rng, noise), soft

    def _with_tissue(self, case: tuple[int, int], rng: np.random.Generator) -> _Held:
        """Return a case that shows a tissue: this one, or another of its part."""
        part = case[0]
        data = self._mixture.parts[part]
        for _ in range(_TRIES):
            if case not in self._bare:
                held = self._case(case)
                if held.places:
                    return held
                self._bare.add(case)
            case = part, int(rng.integers(len(data.cases)))
        tissues = data.tissues if data.overlapping else data.tissues[1:]
        raise StoreError(
            f"{data.name}: none of {_TRIES} cases shows any of {', '.join(tissues)}, so that no "
            "patch has foreground; check the labels, or set the recipe's foreground to 0"
        )

    def _start(
        self, held: _Held, voxel: npt.NDArray[np.float64] | None, rng: np.random.Generator
    ) -> npt.NDArray[np.int64]:
        """Draw the first voxel of a patch, in voxels of the mixture's spacing."""
        patch = np.asarray(self._settings.patch)
        ratio = held.spacing_mm / self._mixture.spacing_mm
        size = np.maximum(np.rint(np.asarray(held.image.shape[1:]) * ratio), 1).astype(np.int64)
        room = np.maximum(size - patch, 0)
        if voxel is None:
            start = rng.integers(0, room + 1)
        else:
            inside = rng.integers(patch // 4, np.maximum(patch - patch // 4, 1))
            wanted = np.rint((voxel + 0.5) * ratio - 0.5).astype(np.int64) - inside
            start = np.clip(wanted, 0, room)
        first: npt.NDArray[np.int64] = np.where(size < patch, size // 2 - patch // 2, start)
        return first

    def _cut(self, held: _Held, start: npt.NDArray[np.int64], pose: Pose) -> Tensor:
        """Return image channels and tissues `(Ci + T, *patch)`."""
        patch, target = self._settings.patch, np.asarray(self._mixture.spacing_mm)
        if pose.still and np.allclose(held.spacing_mm, target, rtol=1e-3):
            center = [int(s) + p // 2 for s, p in zip(start, patch, strict=True)]
            parts = [
                torch.from_numpy(crop_or_pad(array, patch, center=center).astype(np.float32))
                for array in (held.image, held.tissues)
            ]
            joined = torch.cat(parts)
        else:
            middle = start + (np.asarray(patch) - 1) / 2 + pose.shift * patch
            center_mm = (middle + 0.5) * target
            joined = sample(
                (held.image, held.tissues),
                patch,
                center_mm / held.spacing_mm - 0.5,
                pose.matrix * target / held.spacing_mm[:, None],
            )
        return joined.flip([axis + 1 for axis in pose.flipped])

    def _soft(self, tissues: Tensor) -> Tensor:
        shares = (tissues / _FULL).clamp(0, 1)
        if self._mixture.overlapping:
            return shares
        total = shares.sum(0, keepdim=True)
        return torch.cat([(1 - total).clamp_min(0), shares / total.clamp_min(1)])  # rounding only

    def _case(self, case: tuple[int, int]) -> _Held:
        with self._lock:
            if case in self._cache:
                self._cache.move_to_end(case)
                return self._cache[case]
            held = self._cache[case] = self._read(case)
            self._used += held.nbytes
            while self._used > self._budget and len(self._cache) > 1:
                self._used -= self._cache.popitem(last=False)[1].nbytes
            return held

    def _read(self, case: tuple[int, int]) -> _Held:
        part, index = case
        data = self._mixture.parts[part]
        image, soft = data.load(index)
        tissues = np.rint((soft if data.overlapping else soft[1:]) * _FULL).astype(np.uint8)
        found = (np.flatnonzero(tissue > _FULL // 2) for tissue in tissues)
        places = tuple(_spread(voxels) for voxels in found if voxels.size)
        spacing = data.cases[index].spacing_mm
        self._tell(data.cases[index].name, image.shape[1:], spacing)
        return _Held(image.astype(np.float16), tissues, np.asarray(spacing), places)

    def _tell(self, name: str, shape: Sequence[int], spacing_mm: Sequence[float]) -> None:
        """Say once that volumes are smaller than the patch."""
        sides = zip(shape, spacing_mm, self._settings.patch, self._mixture.spacing_mm, strict=True)
        if not self._told and any(round(n * s / t) < p for n, s, p, t in sides):
            self._told = True
            logger.warning(
                "%s: shape %s at %s mm is smaller than the patch %s; background is added around it",
                name, tuple(shape), tuple(spacing_mm), self._settings.patch,
            )  # fmt: skip


def _spread(voxels: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
    """Return at most `_PLACES` of the voxels, evenly spread."""
    if voxels.size <= _PLACES:
        return voxels
    return voxels[np.linspace(0, voxels.size - 1, _PLACES).astype(np.int64)]
