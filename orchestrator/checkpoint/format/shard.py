"""One rank's part of a checkpoint: a raw file of intervals, and a JSON index with a checksum per chunk.

The chain of trust: the manifest holds a digest of the index, the index a CRC-32 per chunk of the file. So data
is checksummed in the one pass that writes it, damage is located to a few MiB, and a reader checks only the
chunks it needs.
"""

import contextlib
import hashlib
import json
import os
import zlib
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType

import numpy as np

from orchestrator.checkpoint.format.dtypes import Elements, storage_dtype
from orchestrator.checkpoint.format.intervals import Kind, Range
from orchestrator.checkpoint.storage.flushing import SteadyFlush
from orchestrator.domain.errors import CheckpointError
from orchestrator.domain.tick import Tick, no_tick

CHUNK_BYTES = 4 << 20
INDEX_VERSION = 1


def digest(data: bytes) -> str:
    """BLAKE2b-128, as hex."""
    return hashlib.blake2b(data, digest_size=16).hexdigest()


@dataclass(frozen=True, slots=True)
class Interval:
    """Elements `range` of tensor `name`, from byte `offset` of the shard file on."""

    name: str
    kind: Kind
    range: Range
    offset: int
    dtype: str

    @property
    def size_bytes(self) -> int:
        return len(self.range) * storage_dtype(self.dtype).itemsize


def shard_stem(rank: int, tag: str = "") -> str:
    """The name of a rank's shard (`.bin`) and its index (`.json`), without the ending. `tag`: of the attempt."""
    return f"shard-{rank:05d}{tag}"


@dataclass(frozen=True)
class ShardPiece:
    """Something to write: elements [start, start + len(data)) of tensor `name`."""

    name: str
    kind: Kind
    start: int
    dtype: str
    data: Elements
    """1-D, contiguous, of the type's storage dtype (bfloat16 as uint16)."""


@dataclass(frozen=True)
class ShardIndex:
    """What a shard file holds. `rng` is the rank's generator state by device, base64."""

    rank: int
    size_bytes: int
    chunk_bytes: int
    chunks: tuple[int, ...]
    """CRC-32 of each chunk; the last one may be short."""
    intervals: tuple[Interval, ...]
    rng: dict[str, str] = field(default_factory=dict)

    def to_bytes(self) -> bytes:
        """The index file."""
        body = {
            "version": INDEX_VERSION,
            "rank": self.rank,
            "bytes": self.size_bytes,
            "chunk_bytes": self.chunk_bytes,
            "chunks": list(self.chunks),
            "intervals": [[i.name, i.kind, i.range.start, i.range.end, i.offset, i.dtype] for i in self.intervals],
            "rng": self.rng,
        }
        return json.dumps(body, separators=(",", ":")).encode()

    def chunk_extent(self, chunk: int, file: str) -> Range:
        """The bytes of a chunk. Raises CheckpointError, with the name of the file, if it has no such chunk."""
        start = chunk * self.chunk_bytes
        if chunk >= len(self.chunks):
            raise CheckpointError(f"{file}: byte {start} lies beyond the file's {self.size_bytes}")
        return Range(start, min(start + self.chunk_bytes, self.size_bytes))

    def check_chunk(self, chunk: int, data: bytes | bytearray | memoryview, file: str) -> None:
        """Raise CheckpointError, naming `file`, the bytes and the tensors in them, unless `data` is the chunk."""
        if zlib.crc32(data) != self.chunks[chunk]:
            start = chunk * self.chunk_bytes
            end = start + len(data)
            raise CheckpointError(
                f"{file} is corrupt in bytes {start} to {end}: the checksum differs "
                f"(holds {self._tensors_in(start, end)})"
            )

    def _tensors_in(self, start: int, end: int) -> str:
        hit = [
            f"{i.name} {i.kind} {i.range}" for i in self.intervals if i.offset < end and start < i.offset + i.size_bytes
        ]
        more = f" and {len(hit) - 3} more" if len(hit) > 3 else ""
        return (", ".join(hit[:3]) + more) or "no tensor"

    @classmethod
    def from_bytes(cls, data: bytes, source: str) -> "ShardIndex":
        """The reverse of `to_bytes`. Raises CheckpointError naming `source` for anything else."""
        try:
            body = json.loads(data)
            if body["version"] != INDEX_VERSION:
                raise CheckpointError(f"{source} has index version {body['version']}, expected {INDEX_VERSION}")
            intervals = tuple(
                Interval(name, Kind(kind), Range(start, end), offset, dtype)
                for name, kind, start, end, offset, dtype in body["intervals"]
            )
            return cls(
                rank=body["rank"],
                size_bytes=body["bytes"],
                chunk_bytes=body["chunk_bytes"],
                chunks=tuple(body["chunks"]),
                intervals=intervals,
                rng=dict(body["rng"]),
            )
        except (ValueError, KeyError, TypeError) as error:
            raise CheckpointError(f"{source} is not a shard index: {type(error).__name__}: {error}") from error


def lay_out(parts: Iterable[tuple[str, Kind, Range, str]]) -> list[Interval]:
    """Lay out parts (name, kind, elements, dtype) in a shard, one after the other, with aligned elements."""
    intervals: list[Interval] = []
    offset = 0
    for name, kind, extent, dtype in parts:
        offset += -offset % storage_dtype(dtype).itemsize
        intervals.append(Interval(name, kind, extent, offset, dtype))
        offset += intervals[-1].size_bytes
    return intervals


class ShardWriter:
    """Writes pieces one after the other. `finish` makes the file durable; leaving the block without it does not."""

    def __init__(self, path: Path, rank: int, chunk_bytes: int = CHUNK_BYTES, tick: Tick = no_tick) -> None:
        """`tick`: called after each chunk."""
        self._path = path
        self._rank = rank
        self._chunk_bytes = chunk_bytes
        self._tick = tick
        self._file = path.open("wb", buffering=1 << 20)
        self._flush = SteadyFlush(self._file)
        self._offset = 0
        self._crc = 0
        self._chunks: list[int] = []
        self._intervals: list[Interval] = []

    def __enter__(self) -> "ShardWriter":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if not self._file.closed:
            self._abandon()

    def write(self, piece: ShardPiece) -> None:
        """Append one piece. Raises OSError, e.g. if the disk is full."""
        item = storage_dtype(piece.dtype)
        if piece.data.dtype != item or piece.data.ndim != 1:
            raise ValueError(f"{piece.name}: expected 1-D {item}, got {piece.data.ndim}-D {piece.data.dtype}")
        self._write_bytes(memoryview(bytes(-self._offset % item.itemsize)))  # elements lie aligned
        extent = Range(piece.start, piece.start + len(piece.data))
        self._intervals.append(Interval(piece.name, piece.kind, extent, self._offset, piece.dtype))
        self._write_bytes(np.ascontiguousarray(piece.data).data.cast("B"))

    def finish(self, rng: dict[str, str]) -> ShardIndex:
        """Flush to the device and describe what was written. Raises OSError."""
        self._file.flush()
        os.fsync(self._file.fileno())
        self._file.close()
        if self._offset % self._chunk_bytes:
            self._chunks.append(self._crc)
        return ShardIndex(
            rank=self._rank,
            size_bytes=self._offset,
            chunk_bytes=self._chunk_bytes,
            chunks=tuple(self._chunks),
            intervals=tuple(self._intervals),
            rng=rng,
        )

    def _write_bytes(self, data: memoryview) -> None:
        position = 0
        while position < len(data):
            room = self._chunk_bytes - self._offset % self._chunk_bytes
            part = data[position : position + room]
            self._file.write(part)
            self._flush.wrote(len(part))
            self._tick()
            self._crc = zlib.crc32(part, self._crc)
            self._offset += len(part)
            position += len(part)
            if self._offset % self._chunk_bytes == 0:
                self._chunks.append(self._crc)
                self._crc = 0

    def _abandon(self) -> None:
        # A full disk fails again when the buffer is flushed; the error that brought us here is on its way up.
        with contextlib.suppress(OSError):
            self._file.close()


class ShardFile:
    """Reads a shard, checking each chunk the first time anything in it is read. Ticks after each chunk.

    Positioned reads, not a memory map: a file that was cut short is an error here, not a SIGBUS, and resident
    memory does not grow with what is read.
    """

    def __init__(self, path: Path, index: ShardIndex, tick: Tick = no_tick) -> None:
        self._path, self._tick = path, tick
        self._index = index
        self._checked: set[int] = set()
        try:
            self._descriptor = os.open(path, os.O_RDONLY)
        except OSError as error:
            raise CheckpointError(f"{path.name} cannot be read: {error.strerror}") from error
        size = os.fstat(self._descriptor).st_size
        if size != index.size_bytes:
            os.close(self._descriptor)
            raise CheckpointError(f"{path.name} has {size} bytes, expected {index.size_bytes}")

    def close(self) -> None:
        """Release the file."""
        os.close(self._descriptor)

    def read_into(self, offset: int, out: memoryview) -> None:
        """Fill `out` (bytes) from byte `offset`. Raises CheckpointError if a chunk fails its checksum."""
        done = 0
        while done < len(out):
            chunk, skip = divmod(offset + done, self._index.chunk_bytes)
            count = min(self._index.chunk_bytes - skip, len(out) - done)
            part = out[done : done + count]
            if chunk in self._checked:
                self._pread(offset + done, part)
                self._tick()
            else:
                part[:] = self._check(chunk)[skip : skip + count]
            done += count

    def verify(self) -> None:
        """Check every chunk. Raises CheckpointError naming the first damaged bytes and tensors."""
        for chunk in range(len(self._index.chunks)):
            if chunk not in self._checked:
                self._check(chunk)

    def _check(self, chunk: int) -> memoryview:
        """The bytes of a chunk, checked."""
        extent = self._index.chunk_extent(chunk, self._path.name)
        buffer = memoryview(bytearray(len(extent)))
        self._pread(extent.start, buffer)
        self._index.check_chunk(chunk, buffer, self._path.name)
        self._checked.add(chunk)
        self._tick()
        return buffer

    def _pread(self, offset: int, out: memoryview) -> None:
        done = 0
        while done < len(out):
            # Linux transfers at most 2 GiB a call.
            read = os.preadv(self._descriptor, [out[done : done + (1 << 30)]], offset + done)
            if read == 0:
                raise CheckpointError(
                    f"{self._path.name} ends at byte {offset + done}, expected {self._index.size_bytes}"
                )
            done += read
