"""From a position in the global order to a sample: which source, which epoch of it, which of its samples.

Without weights all samples of all sources are one pool: epoch e is a permutation of the pool.

With weights, positions go in blocks of `block_positions`. Every block holds the same number of samples of each source,
the largest-remainder apportionment of the weights (at least one each), in a new order for each block. A source's
samples are taken in its own epochs, each a permutation of it. So a source's share is exact after every block, and each
of its samples is used exactly once in each of its epochs.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from orchestrator.data.samples.order import U64, keys, permute

I64 = NDArray[np.int64]

POOL_STREAM = 0
BLOCK_STREAM = 1
FIRST_SOURCE_STREAM = 2
"""Streams keep the keys of different permutations apart."""


@dataclass(frozen=True)
class Drawn:
    """The samples at some positions. int64[n] each: source number, epoch (of the pool, or of the source if there are
    weights) and global sample id (the sources' samples numbered one after another)."""

    sources: I64
    epochs: I64
    ids: I64


@dataclass(frozen=True)
class Mixture:
    """The endless global order over sources of `sizes` samples each."""

    sizes: tuple[int, ...]
    seed: int
    counts: tuple[int, ...] | None = None
    """Samples of each source in a block; None: no weights, one pool."""

    @classmethod
    def of(cls, sizes: Sequence[int], weights: Sequence[float] | None, seed: int) -> "Mixture":
        """Raises ValueError if there is no sample at all, or a source with a weight has none."""
        if sum(sizes) < 1:
            raise ValueError("there is no sample to order")
        if weights is None:
            return cls(tuple(sizes), seed)
        if min(sizes) < 1:
            raise ValueError("a source with a weight has no sample")
        return cls(tuple(sizes), seed, apportion(weights, max(1024, 16 * len(weights))))

    @cached_property
    def offsets(self) -> I64:
        """int64[sources + 1]: the first global sample id of each source, then their total."""
        return np.concatenate([[0], np.cumsum(self.sizes)]).astype(np.int64)

    @property
    def total(self) -> int:
        """Samples of all sources."""
        return sum(self.sizes)

    @property
    def block_positions(self) -> int:
        """Positions in a block of the weighted order; 1 without weights."""
        return sum(self.counts) if self.counts else 1

    def draw(self, first_position: int, count: int) -> Drawn:
        """What lies at positions [first_position, first_position + count)."""
        if first_position < 0 or count < 0:
            raise ValueError(f"positions start at 0: asked for {count} from {first_position}")
        positions = np.arange(first_position, first_position + count, dtype=np.uint64)
        return self._draw_pool(positions) if self.counts is None else self._draw_weighted(positions, self.counts)

    def must_be_complete(self, source: int, epoch: int, positions: int) -> bool:
        """Whether the first `positions` positions of the order contain the whole of this epoch of this source,
        by arithmetic alone. (A weighted epoch may end within a block: then the block has to be whole.)"""
        if self.counts is None:
            return (epoch + 1) * self.total <= positions
        return (epoch + 1) * self.sizes[source] <= positions // self.block_positions * self.counts[source]

    def _draw_pool(self, positions: U64) -> Drawn:
        total = np.uint64(self.total)
        epochs, places = positions // total, positions % total
        ids = permute(places, self.total, keys(self.seed, POOL_STREAM, epochs)).astype(np.int64)
        sources = np.searchsorted(self.offsets, ids, side="right") - 1
        return Drawn(sources.astype(np.int64), epochs.astype(np.int64), ids)

    def _draw_weighted(self, positions: U64, counts: tuple[int, ...]) -> Drawn:
        size = np.uint64(sum(counts))
        blocks, places = positions // size, positions % size
        slots = permute(places, int(size), keys(self.seed, BLOCK_STREAM, blocks))
        bounds = np.concatenate([[0], np.cumsum(counts)]).astype(np.uint64)
        sources = (np.searchsorted(bounds, slots, side="right") - 1).astype(np.int64)
        within = blocks * np.asarray(counts, dtype=np.uint64)[sources] + slots - bounds[sources]
        epochs = np.zeros(len(positions), dtype=np.int64)
        ids = np.zeros(len(positions), dtype=np.int64)
        for source in np.unique(sources):
            rows = sources == source
            n = self.sizes[source]
            epoch = within[rows] // np.uint64(n)
            key = keys(self.seed, FIRST_SOURCE_STREAM + int(source), epoch)
            ids[rows] = permute(within[rows] % np.uint64(n), n, key).astype(np.int64) + self.offsets[source]
            epochs[rows] = epoch.astype(np.int64)
        return Drawn(sources, epochs, ids)


def apportion(weights: Sequence[float], seats: int) -> tuple[int, ...]:
    """Largest-remainder (Hamilton) apportionment of `seats`, at least one each. Ties go to the earlier source.

    Raises ValueError if there are more sources than seats or a weight is not positive."""
    if len(weights) > seats or min(weights) <= 0:
        raise ValueError("every source needs a positive weight and a seat")
    quotas = [weight / sum(weights) * seats for weight in weights]
    counts = [max(1, int(quota)) for quota in quotas]
    by_remainder = sorted(range(len(weights)), key=lambda i: (-(quotas[i] - int(quotas[i])), i))
    for i in by_remainder:
        if sum(counts) < seats:
            counts[i] += 1
    while sum(counts) > seats:  # sources lifted to one seat take it from the largest
        counts[counts.index(max(counts))] -= 1
    return tuple(counts)
