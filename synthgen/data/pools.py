"""Three unpaired pools for adversarial training: angiograms, backgrounds and vessel masks.

Kim et al. 2023 (DARL, arXiv:2209.14566), section 3. Batch `s` is a function of (seed, s), and the
three pictures of a row have indices, flips and crops drawn from streams of their own: the released
code reads all three at one index, so that each mask meets one background only.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeVar

import numpy as np
import numpy.typing as npt
import torch

from synthgen.core.errors import RequestError, StoreError
from synthgen.core.rng import SampleKey, Stream
from synthgen.core.vessels import COVERED, VesselMaps

if TYPE_CHECKING:
    from pathlib import Path

    from synthgen.data.vessel_images import VesselImages

Bytes = npt.NDArray[np.uint8]
Bools = npt.NDArray[np.bool_]
Value = TypeVar("Value", np.uint8, np.bool_)

Draw = Callable[[Sequence[SampleKey]], VesselMaps]
"""A procedural generator's `draw`: masks and round fields of one batch."""

_STREAMS = {"angiograms": Stream.TRAIN, "backgrounds": Stream.BACKGROUND, "masks": Stream.AUGMENT}
_TRIES = 16
"""Crops drawn at most until one shows enough of the field of view."""
_INSIDE = 0.5
"""Share of a crop that the field of view covers, if any draw reaches it."""


@dataclass(frozen=True)
class Pool:
    """Pictures in memory, a byte a pixel.

    Attributes:
        files: where they come from, for messages.
        identities: whose they are.
        pictures: `(X, Y)` each, 0 to 255.
        fields: the field of view of each, `(X, Y)`; None where the whole frame is seen.
    """

    files: tuple[Path, ...]
    identities: tuple[str, ...]
    pictures: tuple[Bytes, ...]
    fields: tuple[Bools | None, ...]

    @classmethod
    def of(cls, images: VesselImages) -> Pool:
        """Keep pictures as whole 255ths, 8 bits being what such files hold."""
        return cls(
            files=images.files,
            identities=images.identities,
            pictures=tuple(np.rint(i * 255).astype(np.uint8) for i in images.images),
            fields=tuple(None if f.all() else f for f in images.fields),
        )


@dataclass(frozen=True)
class PoolBatch:
    """A batch: float32 `(B, 1, S, S)` in [-1, 1] each; masks are -1 or 1 and nothing else.

    Row by row the three have nothing to do with one another.
    """

    angiograms: torch.Tensor
    backgrounds: torch.Tensor
    masks: torch.Tensor


class ThreePools:
    """Batches of three independent pools.

    Args:
        angiograms: pictures with contrast agent, or retina photographs.
        backgrounds: pictures without vessels; None trains without (Kim et al. 2024, C-DARL,
            doi:10.1016/j.media.2023.103022): the angiograms take their place in every batch.
        masks: drawn masks, covered from half on, or what draws them.
        crop: side S of the crops.
        batch_size: rows a batch.
        seed: seed of every draw.
        decimate: keep one of the four pixel phases (every other row and column) of each picture,
            as DARL does; it aliases. Otherwise crops are at the pictures' own scale.
        shared_flips: flip and transpose the three pictures of a row alike, as DARL does.

    Raises:
        RequestError: an empty pool, pictures smaller than a crop.
        StoreError: a background that is one of the angiograms.

    Examples:
        >>> from pathlib import Path
        >>> grey = np.arange(1024).reshape(32, 32).astype(np.uint8)
        >>> pool = Pool((Path("a.png"),), ("xcad/000",), (grey,), (None,))
        >>> pools = ThreePools(pool, None, pool, crop=16, batch_size=2, seed=0)
        >>> pools.batch(0).masks.shape, pools.subjects
        (torch.Size([2, 1, 16, 16]), ('xcad/000',))
    """

    def __init__(
        self,
        angiograms: Pool,
        backgrounds: Pool | None,
        masks: Pool | Draw,
        *,
        crop: int,
        batch_size: int,
        seed: int,
        decimate: bool = False,
        shared_flips: bool = False,
    ) -> None:
        if crop < 1 or batch_size < 1:
            raise RequestError(
                f"expected crop and batch size of 1 or more, got {crop}, {batch_size}"
            )
        self._seed, self._batch_size, self._crop = seed, batch_size, crop
        self._step = 2 if decimate else 1
        self._shared_flips = shared_flips
        self._angiograms, self._backgrounds, self._masks = angiograms, backgrounds, masks
        for name, pool in zip(_STREAMS, (angiograms, backgrounds, masks), strict=True):
            if isinstance(pool, Pool):
                self._require(name, pool)
        if backgrounds is not None:
            _refuse_twins(angiograms, backgrounds)

    @property
    def subjects(self) -> tuple[str, ...]:
        """Real subjects that a model trained on these batches has seen."""
        real = [self._angiograms] + ([self._backgrounds] if self._backgrounds else [])
        return tuple(sorted({name for pool in real for name in pool.identities}))

    def batch(self, step: int) -> PoolBatch:
        """Return batch `step`; the same for the same (seed, step)."""
        first = step * self._batch_size
        keys = [SampleKey(self._seed, first + row) for row in range(self._batch_size)]
        angiograms = self._pictures("angiograms", self._angiograms, keys)
        if self._backgrounds is None:
            backgrounds = angiograms
        else:
            backgrounds = self._pictures("backgrounds", self._backgrounds, keys)
        if isinstance(self._masks, Pool):
            masks = self._pictures("masks", self._masks, keys) >= COVERED
        else:
            masks = self._drawn(self._masks, keys)
        return PoolBatch(
            angiograms=_to_model(angiograms),
            backgrounds=_to_model(backgrounds),
            masks=_to_model(np.uint8(255) * masks),
        )

    def _pictures(self, name: str, pool: Pool, keys: Sequence[SampleKey]) -> Bytes:
        """Return one crop `(B, S, S)` a row."""
        rows = []
        for key in keys:
            rng = key.numpy(_STREAMS[name])
            index = int(rng.integers(len(pool.pictures)))
            rows.append(self._view(pool.pictures[index], pool.fields[index], key, rng))
        return np.stack(rows)

    def _drawn(self, draw: Draw, keys: Sequence[SampleKey]) -> Bools:
        maps = draw(keys)
        self._require_size("drawn masks", maps.coverage.shape[1:])
        return np.stack(
            [
                self._view(mask, _disc(circle, mask.shape), key, key.numpy(_STREAMS["masks"]))
                for mask, circle, key in zip(maps.mask, maps.field, keys, strict=True)
            ]
        )

    def _view(
        self,
        picture: npt.NDArray[Value],
        field: Bools | None,
        key: SampleKey,
        rng: np.random.Generator,
    ) -> npt.NDArray[Value]:
        """Return a random crop, of one pixel phase if decimated, flipped at random."""
        if self._step > 1:
            down, right = rng.integers(self._step, size=2)
            picture = picture[down :: self._step, right :: self._step]
            field = None if field is None else field[down :: self._step, right :: self._step]
        flipper = key.numpy(Stream.CONDITION) if self._shared_flips else rng
        flip_x, flip_y, transpose = flipper.random(3) < 0.5
        window = self._window(picture.shape, field, rng)
        crop = picture[window]
        crop = crop[:: -1 if flip_x else 1, :: -1 if flip_y else 1]
        return crop.T if transpose else crop

    def _window(
        self, shape: tuple[int, ...], field: Bools | None, rng: np.random.Generator
    ) -> tuple[slice, slice]:
        """Draw where to crop: inside the field of view by half or more, as well as 16 draws can."""
        free = [side - self._crop + 1 for side in shape]
        corners = rng.integers(free, size=(1 if field is None else _TRIES, 2))
        windows = [(slice(x, x + self._crop), slice(y, y + self._crop)) for x, y in corners]
        if field is None:
            return windows[0]
        shares = []
        for window in windows:
            shares.append(field[window].mean())
            if shares[-1] >= _INSIDE:
                return window
        return windows[int(np.argmax(shares))]

    def _require(self, name: str, pool: Pool) -> None:
        if not pool.pictures:
            raise RequestError(f"the pool of {name} is empty; name a folder that holds some")
        for path, picture in zip(pool.files, pool.pictures, strict=True):
            self._require_size(str(path), picture.shape)

    def _require_size(self, what: str, shape: Sequence[int]) -> None:
        if min(shape) // self._step < self._crop:
            raise RequestError(
                f"{what}: {shape[0]} x {shape[1]} px, too small for crops of {self._crop} px"
                f"{' from every other row and column' if self._step > 1 else ''}; use smaller "
                "crops or larger pictures"
            )


def _refuse_twins(angiograms: Pool, backgrounds: Pool) -> None:
    seen = {
        _digest(picture): path
        for path, picture in zip(angiograms.files, angiograms.pictures, strict=True)
    }
    for path, picture in zip(backgrounds.files, backgrounds.pictures, strict=True):
        twin = seen.get(_digest(picture))
        if twin is not None:
            raise StoreError(
                f"{path}: this background has the pixels of the angiogram {twin}; a background "
                "shows no vessels: take it out, or train without backgrounds"
            )


def _digest(picture: Bytes) -> tuple[tuple[int, ...], bytes]:
    return picture.shape, hashlib.blake2b(picture.tobytes(), digest_size=16).digest()


def _disc(circle: npt.NDArray[np.float32], shape: tuple[int, ...]) -> Bools | None:
    if circle[2] == 0:
        return None
    x, y = np.ogrid[: shape[0], : shape[1]]
    inside: Bools = (x - circle[0]) ** 2 + (y - circle[1]) ** 2 <= circle[2] ** 2
    return inside


def _to_model(pictures: Bytes) -> torch.Tensor:
    """Return `(B, S, S)` in 0..255 as `(B, 1, S, S)` in [-1, 1]; exact at both ends."""
    return torch.from_numpy(pictures)[:, None].float() / 127.5 - 1
