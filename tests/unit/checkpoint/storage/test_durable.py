"""Shards written from a buffer or a stream, and what makes them a checkpoint."""

import json
import threading
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from orchestrator.checkpoint.format.checkpoint_manifest import (
    MANIFEST,
    GroupEntry,
    Manifest,
    ShardEntry,
    TensorEntry,
    read_manifest,
)
from orchestrator.checkpoint.format.intervals import Kind, Range
from orchestrator.checkpoint.format.reader import CheckpointReader
from orchestrator.checkpoint.format.shard import (
    CHUNK_BYTES,
    Interval,
    ShardIndex,
    ShardPiece,
    ShardWriter,
    digest,
    lay_out,
)
from orchestrator.checkpoint.storage.checkpoint_catalog import newest_valid, verify_checkpoint
from orchestrator.checkpoint.storage.durable import abandon, commit, write_shard
from orchestrator.checkpoint.storage.ranged import AHEAD_BYTES, ChunkCache, RangedShard
from orchestrator.checkpoint.storage.storage import LocalStorage, Storage
from orchestrator.domain.errors import CheckpointError
from tests.unit.checkpoint.written import write_checkpoint

pytestmark = pytest.mark.unit
NAME = "step-00000007"
PARTS = [
    ("a", Kind.MASTER, Range(0, 3_000_001), "float32"),
    ("mask", Kind.BUFFER, Range(0, 5), "bool"),
    ("a", Kind.EXP_AVG, Range(10, 20), "float32"),
    ("half", Kind.FROZEN, Range(0, 7), "bfloat16"),
]


def contents() -> list[np.ndarray]:
    return [
        np.arange(3_000_001, dtype=np.float32),
        np.array([True, False, True, True, False]),
        np.arange(10, dtype=np.float32),
        np.arange(7, dtype=np.uint16),
    ]


def views() -> list[memoryview]:
    return [array.data.cast("B") for array in contents()]


def test_buffer_stream_and_writer_give_the_same_bytes(tmp_path: Path) -> None:
    with ShardWriter(tmp_path / "shard-00003.bin", 3) as writer:
        for (name, kind, extent, dtype), data in zip(PARTS, contents(), strict=True):
            writer.write(ShardPiece(name, kind, extent.start, dtype, data))
        index = writer.finish({"cpu": "AA=="})
    expected = (tmp_path / "shard-00003.bin").read_bytes()
    storage, intervals = LocalStorage(tmp_path), lay_out(PARTS)
    assert tuple(intervals) == index.intervals
    streamed = write_shard(storage, NAME, 3, intervals, iter(views()), {"cpu": "AA=="})
    buffer = bytearray(expected)
    whole = write_shard(storage, "step-00000008", 3, intervals, memoryview(buffer), {"cpu": "AA=="})
    assert streamed == whole
    buffer.append(0)  # would raise BufferError were a view of it left
    for name in (NAME, "step-00000008"):
        assert storage.read(name, streamed.file) == expected
        assert storage.read(name, streamed.index) == index.to_bytes()
    assert len(index.chunks) == 3


def test_content_that_does_not_fit_is_refused(tmp_path: Path) -> None:
    storage, intervals = LocalStorage(tmp_path), lay_out(PARTS)
    with pytest.raises(ValueError, match="end at byte"):
        write_shard(storage, NAME, 0, intervals, memoryview(bytes(12)), {})
    with pytest.raises(ValueError, match="mask: 4 bytes"):
        write_shard(storage, NAME, 0, intervals, [views()[0], memoryview(b"1234"), *views()[2:]], {})
    with pytest.raises(ValueError, match="shorter"):
        write_shard(storage, NAME, 0, intervals, views()[:2], {})
    assert storage.sizes(NAME) == {}


def manifest(shards: list[ShardEntry]) -> Manifest:
    tensors = {"w": TensorEntry((8,), "float32", Kind.MASTER, 0)}
    return Manifest(7, 84, len(shards), 1, "Adam", tensors, {}, False, (), tuple(shards))


def test_a_manifest_of_an_older_version_is_read_and_a_damaged_one_named() -> None:
    groups = (GroupEntry({"lr": 0.1, "betas": [0.9, 0.95]}, 3.0),)
    whole = replace(manifest([]), groups=groups, extra={"skips": [[0, 8]]})
    body = json.loads(whole.to_bytes())
    assert Manifest.from_bytes(whole.to_bytes(), "it") == whole

    def written(**fields: object) -> bytes:
        changed = {key: value for key, value in {**body, **fields}.items() if key != "checksum"}
        text = json.dumps(changed, sort_keys=True, separators=(",", ":"))
        return json.dumps({**changed, "checksum": digest(text.encode())}).encode()

    assert Manifest.from_bytes(written(spec_hash="0123456789abcdef"), "it") == whole
    for fields, message in (
        ({"step": "7"}, "it is not a manifest: .*`step` is a text"),
        ({"groups": [{"step": 1}]}, "`hyperparameters` is missing"),
        ({"loss_scaler": {"cur_scale": "big"}}, "`loss_scaler`"),
        ({"version": 2}, "it has format convoy.intervals 2, expected convoy.intervals 1"),
    ):
        with pytest.raises(CheckpointError, match=message):
            Manifest.from_bytes(written(**fields), "it")


def shard(storage: Storage, rank: int, tag: str = "") -> ShardEntry:
    interval = Interval("w", Kind.MASTER, Range(rank * 4, rank * 4 + 4), 0, "float32")
    data = np.arange(rank * 4, rank * 4 + 4, dtype=np.float32)
    return write_shard(storage, NAME, rank, [interval], data.data, {}, tag=tag)


def test_a_checkpoint_exists_when_all_of_it_is_there(tmp_path: Path) -> None:
    storage = LocalStorage(tmp_path)
    entries = [shard(storage, 0)]
    missing = replace(entries[0], file="shard-00001.bin", index="shard-00001.json")
    with pytest.raises(CheckpointError, match=r"shard-00001\.bin does not exist") as caught:
        commit(storage, NAME, manifest([*entries, missing]))
    assert "mounted on all nodes" in str(caught.value.hint)
    entries.append(shard(storage, 1))
    for wrong, message in (
        (replace(entries[1], size_bytes=5), "has 16 bytes, expected 5"),
        (replace(entries[1], index="shard-00009.json"), "has no index"),
    ):
        with pytest.raises(CheckpointError, match=message):
            commit(storage, NAME, manifest([entries[0], wrong]))
        assert newest_valid(storage) is None
    commit(storage, NAME, manifest(entries))
    found = newest_valid(storage)
    assert found is not None
    assert (found.step, found.place) == (7, str(tmp_path / NAME))
    with CheckpointReader(found.place) as reader:
        out = np.empty(8, dtype=np.float32)
        reader.read("w", Kind.MASTER, 0, 8, out)
    assert out.tolist() == list(range(8))


def test_a_driver_that_was_taken_over_replaces_no_manifest(tmp_path: Path) -> None:
    storage = LocalStorage(tmp_path)
    first, second = ([shard(storage, rank, tag) for rank in range(2)] for tag in ("-a", "-b"))
    commit(storage, NAME, replace(manifest(first), lease=1))
    commit(storage, NAME, replace(manifest(first), lease=1))  # the same driver may, after a rollback for instance
    second = [shard(storage, rank, "-b") for rank in range(2)]
    commit(storage, NAME, replace(manifest(second), lease=2))
    late = [shard(storage, rank, "-c") for rank in range(2)]
    with pytest.raises(CheckpointError, match=r"later driver of the run .lease 2, this driver has lease 1"):
        commit(storage, NAME, replace(manifest(late), lease=1))
    assert read_manifest(NAME, storage).lease == 2
    assert verify_checkpoint(NAME, storage).shards == tuple(second)


class Raced(LocalStorage):
    """Between the look at the manifest and its replacement, a later driver commits."""

    def __init__(self, root: Path, meanwhile: list[Manifest]) -> None:
        super().__init__(root)
        self.meanwhile = meanwhile

    def put_if(self, name: str, file: str, data: bytes, version: str | None) -> bool:
        if self.meanwhile:
            later = self.meanwhile.pop().to_bytes()
            self.put(name, file, [later], len(later))
        return super().put_if(name, file, data, version)


def test_of_two_drivers_that_commit_at_once_the_later_one_stays(tmp_path: Path) -> None:
    storage = Raced(tmp_path, [])
    entries = [shard(storage, rank) for rank in range(2)]
    for before in (None, replace(manifest(entries), lease=1)):
        if before is not None:
            storage.remove_file(NAME, MANIFEST)
            commit(storage, NAME, before)
        storage.meanwhile.append(replace(manifest(entries), lease=2))
        with pytest.raises(CheckpointError, match="later driver"):
            commit(storage, NAME, replace(manifest(entries), lease=1))
        assert read_manifest(NAME, storage).lease == 2


def test_a_file_is_put_if_it_is_what_was_looked_at(tmp_path: Path) -> None:
    storage = LocalStorage(tmp_path)
    assert storage.put_if("a", "f", b"one", None)
    assert not storage.put_if("a", "f", b"two", None)
    data, version = storage.read_version("a", "f")
    assert data == b"one"
    assert storage.put_if("a", "f", b"two", version)
    assert not storage.put_if("a", "f", b"three", version)
    assert not storage.put_if("a", "none", b"x", version)
    assert storage.read("a", "f") == b"two"
    assert storage.sizes("a") == {"f": 3}


def test_a_second_attempt_leaves_the_first_alone_until_it_is_whole(tmp_path: Path) -> None:
    storage = LocalStorage(tmp_path)
    commit(storage, NAME, manifest([shard(storage, rank, "-aa") for rank in range(2)]))
    second = [shard(storage, rank, "-bb") for rank in range(2)]
    verify_checkpoint(tmp_path / NAME)
    abandon(storage, NAME, 1, "-bb")
    with pytest.raises(CheckpointError, match=r"shard-00001-bb\.bin does not exist"):
        commit(storage, NAME, manifest(second))
    verify_checkpoint(tmp_path / NAME)
    commit(storage, NAME, manifest([shard(storage, rank, "-cc") for rank in range(2)]))
    verify_checkpoint(tmp_path / NAME)
    assert read_manifest(NAME, storage).shards[0].file == "shard-00000-cc.bin"
    left = {f"shard-0000{rank}-cc.{ending}" for rank in range(2) for ending in ("bin", "json")}
    assert set(storage.sizes(NAME)) == {MANIFEST, *left}, "files of earlier attempts are gone"


class Counting(LocalStorage):
    """Counts its ranged reads, as a bucket would count requests."""

    def __init__(self, root: Path) -> None:
        super().__init__(root)
        self.reads: list[tuple[int, int]] = []
        self._reading = threading.Lock()

    def read_into(self, name: str, file: str, offset: int, out: memoryview) -> None:
        with self._reading:
            self.reads.append((offset, len(out)))
        super().read_into(name, file, offset, out)


def ranged(tmp_path: Path, size_bytes: int) -> tuple[Counting, RangedShard, bytes]:
    storage = Counting(tmp_path)
    data = np.random.default_rng(0).integers(0, 256, size_bytes, dtype=np.uint8)
    interval = Interval("w", Kind.BUFFER, Range(0, size_bytes), 0, "uint8")
    entry = write_shard(storage, NAME, 0, [interval], data.data, {})
    index = ShardIndex.from_bytes(storage.read(NAME, entry.index), "index")
    return storage, RangedShard(storage, NAME, entry.file, index, ChunkCache()), data.tobytes()


def test_many_small_reads_are_few_requests(tmp_path: Path) -> None:
    storage, source, data = ranged(tmp_path, 40 << 20)
    out = bytearray(1000)
    for offset in range(0, len(data) - len(out), 100_000):
        source.read_into(offset, memoryview(out))
        assert out == data[offset : offset + 1000]
    assert len(storage.reads) == -(-len(data) // AHEAD_BYTES)
    whole = bytearray(len(data))
    source.read_into(0, memoryview(whole))
    assert whole == data
    assert len(storage.reads) == 3, "all of it was held already"


def test_a_single_read_does_not_fetch_what_nobody_asked_for(tmp_path: Path) -> None:
    storage, source, data = ranged(tmp_path, 40 << 20)
    out = bytearray(10)
    source.read_into((20 << 20) + 5, memoryview(out))
    assert out == data[(20 << 20) + 5 : (20 << 20) + 15]
    assert storage.reads == [(20 << 20, CHUNK_BYTES)]


def test_a_damaged_chunk_is_found_when_it_is_read(tmp_path: Path) -> None:
    _, source, data = ranged(tmp_path, 10 << 20)
    path = tmp_path / NAME / "shard-00000.bin"
    with path.open("r+b") as file:
        file.seek(9 << 20)
        file.write(bytes([data[9 << 20] ^ 1]))
    source.read_into(CHUNK_BYTES, memoryview(bytearray(5)))
    with pytest.raises(CheckpointError, match="is corrupt in bytes 8388608 to 10485760") as caught:
        source.read_into(8 << 20, memoryview(bytearray(5)))
    assert "holds w" in caught.value.message
    with pytest.raises(CheckpointError, match="lies beyond"):
        source.read_into(12 << 20, memoryview(bytearray(5)))


def test_the_cache_is_bounded() -> None:
    cache = ChunkCache(limit_bytes=10)
    for chunk in range(5):
        cache.add("f", chunk, memoryview(bytes(4)))
    assert [cache.get("f", chunk) is not None for chunk in range(5)] == [False, False, False, True, True]
    cache.get("f", 3)
    cache.add("f", 9, memoryview(bytes(4)))
    assert cache.get("f", 3) is not None
    assert cache.get("f", 4) is None


def test_a_checkpoint_of_the_older_writer_reads_the_same(tmp_path: Path) -> None:
    path = write_checkpoint(tmp_path, 1, {"w": np.arange(24, dtype=np.float32)}, moments=True)
    assert verify_checkpoint(str(path)) == verify_checkpoint(path.name, LocalStorage(tmp_path))
