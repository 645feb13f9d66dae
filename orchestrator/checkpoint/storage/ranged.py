"""A shard that is read in ranges from a bucket: checked by chunk, with a cache and read-ahead."""

import threading
from collections import OrderedDict

from orchestrator.checkpoint.format.shard import ShardIndex
from orchestrator.checkpoint.storage.storage import Storage
from orchestrator.domain.tick import Tick, no_tick

CACHE_BYTES = 64 << 20
AHEAD_BYTES = 16 << 20
"""Size of a request if reads follow each other, so that many small reads need few requests."""


class ChunkCache:
    """The chunks last read, of all shards of one reader together: what a restore holds beside its own shard."""

    def __init__(self, limit_bytes: int = CACHE_BYTES) -> None:
        self._limit_bytes = limit_bytes
        self._held_bytes = 0
        self._chunks: OrderedDict[tuple[str, int], memoryview] = OrderedDict()
        self._lock = threading.Lock()

    def get(self, file: str, chunk: int) -> memoryview | None:
        """The chunk, if it is cached."""
        with self._lock:
            data = self._chunks.get((file, chunk))
            if data is not None:
                self._chunks.move_to_end((file, chunk))
            return data

    def add(self, file: str, chunk: int, data: memoryview) -> None:
        """Cache a chunk, and drop the least recently used ones."""
        with self._lock:
            if (file, chunk) in self._chunks:
                return
            # A copy: a slice would keep all of its request's bytes.
            self._chunks[file, chunk] = memoryview(bytes(data))
            self._held_bytes += len(data)
            while self._held_bytes > self._limit_bytes and len(self._chunks) > 1:
                self._held_bytes -= len(self._chunks.popitem(last=False)[1])


class RangedShard:
    """One shard in a storage. Raises CheckpointError for a chunk that fails its checksum, StorageError if storage
    does not answer. `tick`: called after each request."""

    def __init__(
        self, storage: Storage, name: str, file: str, index: ShardIndex, cache: ChunkCache, tick: Tick = no_tick
    ) -> None:
        self._storage, self._name, self._file = storage, name, file
        self._index = index
        self._cache, self._tick = cache, tick
        self._next = 0
        """The chunk after those fetched last."""

    def close(self) -> None:
        """Nothing is held."""

    def read_into(self, offset: int, out: memoryview) -> None:
        """Fill `out` (bytes) from byte `offset`."""
        done = 0
        while done < len(out):
            chunk, skip = divmod(offset + done, self._index.chunk_bytes)
            last = (offset + len(out) - 1) // self._index.chunk_bytes
            data = self._chunk(chunk, last)[skip:]
            taken = min(len(data), len(out) - done)
            out[done : done + taken] = data[:taken]
            done += taken

    def verify(self) -> None:
        """Check every chunk. Raises CheckpointError naming the first damaged bytes and tensors."""
        ahead = max(1, AHEAD_BYTES // self._index.chunk_bytes)
        for first in range(0, len(self._index.chunks), ahead):
            self._fetch(first, min(first + ahead, len(self._index.chunks)))

    def _chunk(self, chunk: int, last: int) -> memoryview:
        """A checked chunk. If it must be fetched, the chunks up to `last` are fetched with it as far as they fit one
        request, and more if the previous chunk was fetched just before."""
        held = self._cache.get(self._file, chunk)
        if held is not None:
            return held
        ahead = max(1, AHEAD_BYTES // self._index.chunk_bytes)
        end = chunk + ahead if chunk == self._next else min(last + 1, chunk + ahead)
        self._index.chunk_extent(chunk, self._file)
        fetched = self._fetch(chunk, min(end, len(self._index.chunks)))
        for number, data in enumerate(fetched, start=chunk):
            self._cache.add(self._file, number, data)
        return fetched[0]

    def _fetch(self, first: int, end: int) -> list[memoryview]:
        """Chunks [first, end), checked."""
        start = self._index.chunk_extent(first, self._file).start
        buffer = memoryview(bytearray(self._index.chunk_extent(end - 1, self._file).end - start))
        self._storage.read_into(self._name, self._file, start, buffer)
        self._tick()
        chunks = []
        for chunk in range(first, end):
            extent = self._index.chunk_extent(chunk, self._file)
            data = buffer[extent.start - start : extent.end - start]
            self._index.check_chunk(chunk, data, self._file)
            chunks.append(data)
        self._next = end
        return chunks
