"""Which sample stands in which shard and batch: pure integers.

Floating-point results depend on the batch size in the last bits, so sample *i* always runs in
the same full batch: batches are aligned to multiples of `batch_size`, the last one is padded
with the indices that follow it, and a shard holds whole batches.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from synthgen.core.errors import RequestError

if TYPE_CHECKING:
    from collections.abc import Iterator


@dataclass(frozen=True)
class ShardPlan:
    """Samples 0 .. n-1 in shards of `shard_size`, computed in batches of `batch_size`.

    Examples:
        >>> plan = ShardPlan(n=10, shard_size=8, batch_size=4)
        >>> plan.num_shards, plan.rows(1)
        (2, range(8, 10))
        >>> list(plan.batches(1))
        [range(8, 12)]
    """

    n: int
    shard_size: int
    batch_size: int

    def __post_init__(self) -> None:
        if self.n < 1 or self.batch_size < 1 or self.shard_size < 1:
            raise RequestError(
                "n, shard_size and batch_size must be at least 1, got "
                f"n={self.n}, shard_size={self.shard_size}, batch_size={self.batch_size}"
            )
        if self.shard_size % self.batch_size:
            raise RequestError(
                f"shard_size must be a multiple of batch_size, got {self.shard_size} and "
                f"{self.batch_size}"
            )

    @property
    def num_shards(self) -> int:
        """Number of shards, the last one possibly short."""
        return -(-self.n // self.shard_size)

    def rows(self, shard: int) -> range:
        """Return the sample indices that shard `shard` holds."""
        start = shard * self.shard_size
        return range(start, min(start + self.shard_size, self.n))

    def batches(self, shard: int) -> Iterator[range]:
        """Yield the full batches of a shard; the last may run past its rows (padding)."""
        rows = self.rows(shard)
        for start in range(rows.start, rows.stop, self.batch_size):
            yield range(start, start + self.batch_size)

    def shards_of(self, worker: int, num_workers: int) -> range:
        """Return the shards that one worker owns: dealt round robin, none twice."""
        if not 0 <= worker < num_workers:
            raise RequestError(f"worker must lie in 0 .. {num_workers - 1}, got {worker}")
        return range(worker, self.num_shards, num_workers)

    def shard_of(self, index: int) -> int:
        """Return the shard that holds sample `index`."""
        if not 0 <= index < self.n:
            raise RequestError(f"index must lie in 0 .. {self.n - 1}, got {index}")
        return index // self.shard_size
