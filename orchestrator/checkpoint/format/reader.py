"""Read any range of any tensor of a checkpoint, regardless of how it was sharded."""

import contextlib
from collections import defaultdict
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import TracebackType
from typing import Protocol, Self

import numpy as np

from orchestrator.checkpoint.format.checkpoint_manifest import Manifest, ShardEntry, read_manifest
from orchestrator.checkpoint.format.dtypes import Elements, decode, storage_dtype
from orchestrator.checkpoint.format.intervals import Kind, Range, intersect, missing
from orchestrator.checkpoint.format.shard import Interval, ShardFile, ShardIndex, digest
from orchestrator.checkpoint.storage.ranged import ChunkCache, RangedShard
from orchestrator.checkpoint.storage.storage import LocalStorage, Storage, checked, locate
from orchestrator.domain.errors import CheckpointError
from orchestrator.domain.tick import Tick, no_tick

_SHARDS_AT_ONCE = 4  # one connection does not fill a link to a bucket
_CONVERT_ELEMENTS = 1 << 20  # elements converted at once where the types differ: the only extra memory


class ShardSource(Protocol):
    """The bytes of one rank's shard, in any place."""

    def read_into(self, offset: int, out: memoryview) -> None:
        """Fill `out` (bytes) from byte `offset`. Raises CheckpointError."""

    def close(self) -> None:
        """Release what is held."""


class IntervalReader:
    """Any range of any tensor of one saved state, out of the shards that hold it.

    Memory: the indexes, plus one chunk at a time; data goes straight into the caller's array.
    """

    def __init__(
        self, manifest: Manifest, indexes: Sequence[ShardIndex], open_shard: Callable[[int], ShardSource], place: str
    ) -> None:
        """`open_shard` opens the bytes of `indexes[number]` when they are first needed; `place` is for messages."""
        self.manifest = manifest
        self.place = place
        self.bytes_read = 0
        """Bytes handed out so far."""
        self._indexes = tuple(indexes)
        self._open_shard = open_shard
        self._shards: dict[int, ShardSource] = {}
        self._intervals: dict[tuple[str, Kind], list[tuple[Interval, int]]] = defaultdict(list)
        for number, index in enumerate(self._indexes):
            for interval in index.intervals:
                self._intervals[interval.name, interval.kind].append((interval, number))
        for found in self._intervals.values():
            found.sort(key=lambda entry: entry[0].range)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Close the shards."""
        for shard in self._shards.values():
            shard.close()
        self._shards.clear()

    def rng(self, rank: int) -> dict[str, str]:
        """Generator state that `rank` saved; empty if there was no such rank."""
        return next((index.rng for index in self._indexes if index.rank == rank), {})

    def has(self, name: str, kind: Kind) -> bool:
        """Whether anything of the tensor was saved."""
        return (name, kind) in self._intervals

    def read(self, name: str, kind: Kind, start: int, end: int, out: Elements) -> None:
        """Fill `out` (1-D, `end - start` elements) with elements [start, end) of a tensor.

        Floating types are converted; bfloat16 goes into uint16 as it is, into floats by value. Raises
        CheckpointError naming the tensor and the ranges that are missing, or the damaged part of a shard.
        """
        if out.ndim != 1 or len(out) != end - start:
            raise ValueError(f"{name}: expected {end - start} elements, got {out.shape}")
        want = Range(start, end)
        parts = self._intervals.get((name, kind), [])
        gaps = missing(want, (interval.range for interval, _ in parts))
        if gaps:
            listed = ", ".join(str(gap) for gap in gaps[:4])
            raise CheckpointError(f"{self.place} lacks {kind} of {name}: elements {listed}")
        for interval, shard in parts:
            common = intersect(want, interval.range)
            if common is not None:
                self._read_part(interval, shard, common, out[common.start - start : common.end - start])

    def require_whole(self) -> None:
        """Raise CheckpointError unless the shards together hold every element of every tensor."""
        for name, entry in self.manifest.tensors.items():
            for kind in self.manifest.kinds(name):
                ranges = [interval.range for interval, _ in self._intervals.get((name, kind), [])]
                gaps = missing(Range(0, entry.elements), ranges)
                if gaps:
                    raise CheckpointError(f"{self.place} lacks {kind} of {name}: elements {gaps[0]}")

    def _read_part(self, interval: Interval, shard: int, part: Range, out: Elements) -> None:
        item = storage_dtype(interval.dtype)
        offset = interval.offset + (part.start - interval.range.start) * item.itemsize
        source = self._shard(shard)
        if out.dtype == item and out.flags.c_contiguous:
            source.read_into(offset, out.data.cast("B"))
        else:
            for first in range(0, len(part), _CONVERT_ELEMENTS):
                piece = out[first : first + _CONVERT_ELEMENTS]
                raw = np.empty(len(piece), dtype=item)
                source.read_into(offset + first * item.itemsize, raw.data.cast("B"))
                decode(raw, interval.dtype, piece)
        self.bytes_read += len(part) * item.itemsize

    def _shard(self, number: int) -> ShardSource:
        if number not in self._shards:
            self._shards[number] = self._open_shard(number)
        return self._shards[number]


class CheckpointReader(IntervalReader):
    """An open checkpoint: a directory or URL, or a name in a storage.

    Raises CheckpointError if the manifest or an index is missing, damaged or contradicts the other, StorageError
    where storage does not answer.
    """

    def __init__(self, place: Path | str, storage: Storage | None = None, tick: Tick = no_tick) -> None:
        """`tick`: called after each chunk that is read, by any thread."""
        self._storage, self._name = (storage, str(place)) if storage is not None else locate(place)
        self._cache, self._tick = ChunkCache(), tick
        manifest = read_manifest(self._name, self._storage)
        with ThreadPoolExecutor(_SHARDS_AT_ONCE, thread_name_prefix="index") as pool:
            indexes = list(pool.map(self._read_index, manifest.shards))
        super().__init__(manifest, indexes, self._open_file, f"checkpoint {self._storage.place(self._name)}")

    def verify(self) -> None:
        """Check that each tensor is complete, and every chunk of every shard. Raises CheckpointError."""
        self.require_whole()
        if isinstance(self._storage, LocalStorage):
            for number in range(len(self._indexes)):
                self._verify(number)
            return
        with ThreadPoolExecutor(_SHARDS_AT_ONCE, thread_name_prefix="verify") as pool:
            for outcome in [pool.submit(self._verify, number) for number in range(len(self._indexes))]:
                outcome.result()

    def _verify(self, number: int) -> None:
        with contextlib.closing(self._open_file(number)) as file:
            file.verify()

    def _open_file(self, number: int) -> "ShardFile | RangedShard":
        file, index = self.manifest.shards[number].file, self._indexes[number]
        if isinstance(self._storage, LocalStorage):
            return ShardFile(self._storage.root / self._name / checked(file), index, self._tick)
        return RangedShard(self._storage, self._name, file, index, self._cache, self._tick)

    def _read_index(self, entry: ShardEntry) -> ShardIndex:
        data = self._storage.read(self._name, entry.index)
        self._tick()
        if digest(data) != entry.index_digest:
            raise CheckpointError(f"{entry.index} is corrupt: it is not the index the manifest names")
        index = ShardIndex.from_bytes(data, entry.index)
        if index.size_bytes != entry.size_bytes:
            raise CheckpointError(f"{entry.index} gives {index.size_bytes} bytes, the manifest {entry.size_bytes}")
        return index
