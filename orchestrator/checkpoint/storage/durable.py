"""Write a checkpoint into storage, shard by shard, from any process that has the bytes: the manifest comes last.

Shards of one attempt carry its `tag`, so that a second attempt at a step does not touch the files of a first one that
succeeded until its own manifest replaces the old.
"""

import zlib
from collections.abc import Iterable, Iterator, Sequence

from orchestrator.checkpoint.format.checkpoint_manifest import MANIFEST, Manifest, ShardEntry
from orchestrator.checkpoint.format.shard import CHUNK_BYTES, Interval, ShardIndex, digest, shard_stem
from orchestrator.checkpoint.storage.storage import Storage, StorageError, StorageFault
from orchestrator.domain.errors import CheckpointError
from orchestrator.domain.tick import Tick, no_tick

COMMIT_ATTEMPTS = 5


def write_shard(
    storage: Storage,
    name: str,
    rank: int,
    intervals: Sequence[Interval],
    content: memoryview | Iterable[memoryview],
    rng: dict[str, str],
    tag: str = "",
    tick: Tick = no_tick,
) -> ShardEntry:
    """Write one rank's shard and index of checkpoint `name`; the entry its manifest needs. `tick`: called after each
    chunk that storage has taken.

    `content`: one buffer, which becomes the shard file with the intervals at their offsets, or an iterable of the bytes
    of one interval after the other. It is read once and never held completely. Raises StorageError; then `abandon`
    removes what was written. Raises ValueError if content and intervals do not fit each other.
    """
    size_bytes = max((interval.offset + interval.size_bytes for interval in intervals), default=0)
    if isinstance(content, memoryview):
        if content.nbytes < size_bytes:
            raise ValueError(f"the intervals end at byte {size_bytes} of a shard of {content.nbytes} bytes")
        size_bytes, parts = content.nbytes, iter([content.cast("B")])
    else:
        parts = _padded(intervals, content)
    stem = shard_stem(rank, tag)
    chunks: list[int] = []
    parts = _ticking(_checksummed(parts, chunks), tick)
    storage.put(name, f"{stem}.bin", parts, size_bytes)
    index = ShardIndex(rank, size_bytes, CHUNK_BYTES, tuple(chunks), tuple(intervals), rng)
    described = index.to_bytes()
    storage.put(name, f"{stem}.json", [described], len(described))
    return ShardEntry(f"{stem}.bin", f"{stem}.json", size_bytes, digest(described))


def commit(storage: Storage, name: str, manifest: Manifest, tick: Tick = no_tick) -> None:
    """Commit the checkpoint: check that every shard exists in its size, then write the manifest.

    Files of earlier attempts are removed afterwards, if storage permits it. Raises CheckpointError if a shard is
    missing, or if a later driver has saved that step (its manifest has a higher `lease`), StorageError if storage
    fails; then an earlier checkpoint of that name remains, if there was one.
    """
    sizes = storage.sizes(name)
    for shard in manifest.shards:
        if sizes.get(shard.file) != shard.size_bytes or shard.index not in sizes:
            found = sizes.get(shard.file)
            what = "does not exist" if found is None else f"has {found} bytes, expected {shard.size_bytes}"
            if found == shard.size_bytes:
                what = "has no index"
            raise CheckpointError(
                f"{storage.place(name)}/{shard.file} {what}",
                hint="every worker must see the same storage: a directory must be mounted on all nodes",
            )
    _put_manifest(storage, name, manifest, exists=MANIFEST in sizes)
    named = {MANIFEST} | {file for shard in manifest.shards for file in (shard.file, shard.index)}
    _remove_files(storage, name, [file for file in sizes if file not in named], tick)


def _put_manifest(storage: Storage, name: str, manifest: Manifest, exists: bool) -> None:
    """Write the manifest, in place of one that `exists` unless a later driver wrote it. If another driver does the same
    at this moment, one of the two finds that the manifest is not what it looked at, and looks again."""
    data = manifest.to_bytes()
    for _ in range(COMMIT_ATTEMPTS):
        version: str | None = None
        if exists:
            found, version = storage.read_version(name, MANIFEST)
            require_later(found, manifest, f"{storage.place(name)}/{MANIFEST}")
        if storage.put_if(name, MANIFEST, data, version):
            return
        exists = MANIFEST in storage.sizes(name)
    raise StorageError(
        f"{storage.place(name)}/{MANIFEST} was replaced by another process {COMMIT_ATTEMPTS} times meanwhile",
        StorageFault.OTHER,
    )


def require_later(found: bytes, manifest: Manifest, where: str) -> None:
    """Raises CheckpointError if the manifest that was `found` is of a later driver than the new one. One that is
    damaged may be replaced by anybody."""
    try:
        before = Manifest.from_bytes(found, where)
    except CheckpointError:
        return
    if before.lease > manifest.lease:
        raise CheckpointError(
            f"{where} was written by a later driver of the run (lease {before.lease}, this driver has lease "
            f"{manifest.lease}) and is not replaced"
        )


def abandon(storage: Storage, name: str, rank: int, tag: str = "") -> None:
    """Remove what a failed attempt wrote of one rank, as far as storage lets it."""
    stem = shard_stem(rank, tag)
    _remove_files(storage, name, [f"{stem}.bin", f"{stem}.json"])


def _padded(intervals: Sequence[Interval], contents: Iterable[memoryview]) -> Iterator[memoryview]:
    """The intervals' bytes, with zeros where the next one begins later than the last one ends."""
    position = 0
    for interval, content in zip(intervals, contents, strict=True):
        if content.nbytes != interval.size_bytes or interval.offset < position:
            raise ValueError(f"{interval.name}: {content.nbytes} bytes at {interval.offset}, expected {interval}")
        if interval.offset > position:
            yield memoryview(bytes(interval.offset - position))
        yield content.cast("B")
        position = interval.offset + interval.size_bytes


def _checksummed(parts: Iterable[memoryview], chunks: list[int]) -> Iterator[memoryview]:
    """The parts, cut at the ends of chunks, each chunk's CRC-32 appended to `chunks` as it passes."""
    filled, crc = 0, 0
    for part in parts:
        position = 0
        while position < len(part):
            piece = part[position : position + CHUNK_BYTES - filled]
            crc, filled, position = zlib.crc32(piece, crc), filled + len(piece), position + len(piece)
            if filled == CHUNK_BYTES:
                chunks.append(crc)
                filled, crc = 0, 0
            yield piece
    if filled:
        chunks.append(crc)


def _ticking(parts: Iterable[memoryview], tick: Tick) -> Iterator[memoryview]:
    for part in parts:
        yield part
        tick()


def _remove_files(storage: Storage, name: str, files: Sequence[str], tick: Tick = no_tick) -> None:
    for file in files:
        try:
            storage.remove_file(name, file)
        except StorageError:
            return  # it is only room; retention removes it with the checkpoint
        tick()
