"""The only source of randomness: sample *i* depends on (seed, index, attempt) alone.

`torch.Generator` on the CPU keeps the low 32 bits of its seed, so hashing (seed, index) to
64 bits collides after some ten thousand samples. Keys are therefore mapped injectively: for one
(seed, stream, attempt), different indices below 2**32 give different 32-bit seeds.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from enum import IntEnum
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    import torch

_MASK = 0xFFFFFFFF


class Stream(IntEnum):
    """What a draw is for. Streams of one key are independent. Append only: values are stored."""

    NOISE = 0
    CONDITION = 1
    STYLE = 2
    RENDER = 3
    TRAIN = 4
    AUGMENT = 5
    INIT = 6
    SPLIT = 7
    EVALUATE = 8
    TEXTURE = 9
    VESSEL = 10
    BACKGROUND = 11


@dataclass(frozen=True)
class SampleKey:
    """The key of one sample's randomness.

    `attempt` counts redraws of the same index, so that rejection sampling stays a pure function.

    Examples:
        >>> SampleKey(0, 5).seed32(Stream.NOISE) == SampleKey(0, 5).seed32(Stream.NOISE)
        True
        >>> SampleKey(0, 5).seed32(Stream.NOISE) == SampleKey(0, 6).seed32(Stream.NOISE)
        False
    """

    seed: int
    index: int
    attempt: int = 0

    def seed32(self, stream: Stream) -> int:
        """Return a seed in [0, 2**32), injective in `index` for one (seed, stream, attempt)."""
        return _mix32((_base32(self.seed, stream, self.attempt) + self.index) & _MASK)

    def numpy(self, stream: Stream) -> np.random.Generator:
        """Return a fresh NumPy generator for one stream of this key."""
        return np.random.Generator(np.random.Philox(self.seed32(stream)))

    def torch(self, stream: Stream) -> torch.Generator:
        """Return a fresh CPU generator, so that a device never changes a draw."""
        import torch  # noqa: PLC0415 - the core imports without torch

        return torch.Generator().manual_seed(self.seed32(stream))


def _base32(seed: int, stream: Stream, attempt: int) -> int:
    text = f"synthgen/{seed}/{int(stream)}/{attempt}".encode()
    return int.from_bytes(hashlib.blake2b(text, digest_size=4).digest(), "little")


def _mix32(x: int) -> int:
    """Mix 32 bits bijectively: xor-shifts and odd multipliers are each invertible mod 2**32."""
    x = ((x ^ (x >> 16)) * 0x7FEB352D) & _MASK
    x = ((x ^ (x >> 15)) * 0x846CA68B) & _MASK
    return x ^ (x >> 16)
