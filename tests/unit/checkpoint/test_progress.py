"""Everything that takes long because there is much of it reports progress, part by part."""

import os
import threading
import time
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from orchestrator.checkpoint.format.checkpoint_manifest import Manifest, TensorEntry
from orchestrator.checkpoint.format.intervals import Kind, Range
from orchestrator.checkpoint.format.reader import CheckpointReader
from orchestrator.checkpoint.format.shard import CHUNK_BYTES, Interval, ShardFile, ShardIndex, ShardPiece, ShardWriter
from orchestrator.checkpoint.memory import peers, vault_writer
from orchestrator.checkpoint.memory.peers import CellIndex, PeerReader, SmallState
from orchestrator.checkpoint.memory.vault_writer import ShardOrder, ShardWriterThread
from orchestrator.checkpoint.storage import flushing
from orchestrator.checkpoint.storage.checkpoint_catalog import clear_interrupted, retain, verify_checkpoint
from orchestrator.checkpoint.storage.durable import commit, write_shard
from orchestrator.checkpoint.storage.flushing import LEAST_BYTES, MOST_BYTES, SteadyFlush, next_portion
from orchestrator.checkpoint.storage.ranged import AHEAD_BYTES, ChunkCache, RangedShard
from orchestrator.checkpoint.storage.retention import Rule
from orchestrator.checkpoint.storage.storage import LocalStorage
from tests.unit.checkpoint.memory.test_peers import TOKEN, leave_state, vaults  # noqa: F401  # a fixture
from tests.unit.checkpoint.written import write_checkpoint

pytestmark = pytest.mark.unit

CHUNKS = 5
VALUES = np.arange(CHUNKS * CHUNK_BYTES // 4, dtype=np.float32)
NAME = "step-00000007"


class Ticks:
    """Counts, from any thread."""

    def __init__(self) -> None:
        self.count = 0
        self._lock = threading.Lock()

    def __call__(self) -> None:
        with self._lock:
            self.count += 1

    def taken(self) -> int:
        """How many there were since the last call."""
        count, self.count = self.count, 0
        return count


def interval() -> Interval:
    return Interval("w", Kind.MASTER, Range(0, VALUES.size), 0, "float32")


def test_writing_and_reading_a_shard_is_progress_by_chunk(tmp_path: Path) -> None:
    ticks = Ticks()
    with ShardWriter(tmp_path / "s.bin", 0, tick=ticks) as writer:
        writer.write(ShardPiece("w", Kind.MASTER, 0, "float32", VALUES))
        assert ticks.taken() >= CHUNKS
        index = writer.finish({})
    file, out = ShardFile(tmp_path / "s.bin", index, ticks), np.empty_like(VALUES)
    for _ in range(2):  # the second time without checking
        file.read_into(0, out.data.cast("B"))
        assert ticks.taken() == CHUNKS
        assert np.array_equal(out, VALUES)
    file.close()
    file = ShardFile(tmp_path / "s.bin", index, ticks)
    file.verify()
    assert ticks.taken() == CHUNKS
    file.close()


def test_a_chunk_is_read_from_the_disk_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with ShardWriter(tmp_path / "s.bin", 0) as writer:
        writer.write(ShardPiece("w", Kind.MASTER, 0, "float32", VALUES))
        index = writer.finish({})
    read, preadv = 0, os.preadv

    def counting(descriptor: int, buffers: Any, offset: int) -> int:
        nonlocal read
        got = preadv(descriptor, buffers, offset)
        read += got
        return got

    monkeypatch.setattr(os, "preadv", counting)
    file, out = ShardFile(tmp_path / "s.bin", index), np.empty_like(VALUES)
    file.read_into(0, out.data.cast("B"))
    file.close()
    assert read == VALUES.nbytes
    assert np.array_equal(out, VALUES)


def write(tmp_path: Path, tick: Ticks) -> Manifest:
    storage = LocalStorage(tmp_path)
    parts = (VALUES.data.cast("B")[at : at + (1 << 20)] for at in range(0, VALUES.nbytes, 1 << 20))
    entry = write_shard(storage, NAME, 0, [interval()], joined(parts), {}, tick=tick)
    tensors = {"w": TensorEntry((VALUES.size,), "float32", Kind.MASTER, 0)}
    manifest = Manifest(7, 0, 1, 1, "Adam", tensors, {}, False, (), (entry,))
    commit(storage, NAME, manifest, tick)
    return manifest


def joined(parts: Iterable[memoryview]) -> Iterator[memoryview]:
    yield memoryview(b"".join(parts))


def test_storage_takes_a_shard_chunk_by_chunk_and_gives_it_back_so(tmp_path: Path) -> None:
    ticks = Ticks()
    manifest = write(tmp_path, ticks)
    assert ticks.taken() == CHUNKS
    out = np.empty_like(VALUES)
    with CheckpointReader(tmp_path / NAME, tick=ticks) as reader:
        assert ticks.taken() == 1  # the index
        reader.read("w", Kind.MASTER, 0, VALUES.size, out)
    assert ticks.taken() == CHUNKS
    verify_checkpoint(tmp_path / NAME, tick=ticks)
    assert ticks.taken() == CHUNKS + 1
    index = ShardIndex.from_bytes((tmp_path / NAME / manifest.shards[0].index).read_bytes(), "i")
    ranged = RangedShard(LocalStorage(tmp_path), NAME, manifest.shards[0].file, index, ChunkCache(), ticks)
    ranged.read_into(0, out.data.cast("B"))
    assert ticks.taken() == -(-VALUES.nbytes // AHEAD_BYTES)
    assert np.array_equal(out, VALUES)


def test_removing_is_progress_file_by_file(tmp_path: Path) -> None:
    ticks = Ticks()
    for step in (1, 2, 3):
        write_checkpoint(tmp_path, step, {"w": np.arange(10, dtype=np.float32)}, world_size=4)
    ticks.taken()
    retain(tmp_path, Rule(1), trusted=(3,), tick=ticks)
    assert [path.name for path in tmp_path.iterdir()] == ["step-00000003"]
    assert ticks.taken() >= 3 + 2 * 8  # looked at, and the files of two
    (tmp_path / "step-00000003").rename(tmp_path / ".step-00000003.tmp")
    clear_interrupted(tmp_path, ticks)
    assert list(tmp_path.iterdir()) == []
    assert ticks.taken() == 9


def test_a_state_in_vaults_is_read_piece_by_piece(
    vaults: Any,  # noqa: F811
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(peers, "PIECE_BYTES", 1000)
    ticks = Ticks()
    values, state = leave_state(vaults)
    for own, pid in ((None, None), (vaults[0].address, os.getpid())):
        out = np.zeros_like(values)
        with PeerReader(state, TOKEN, own, pid, ticks) as reader:
            assert ticks.taken() == 1
            reader.read("w", Kind.MASTER, 0, values.size, out)
        assert ticks.taken() == -(-values.nbytes // 1000)
        assert np.array_equal(out, values)


# In the background ------------------------------------------------------------------------------------------------


def order(place: Path, rank: int = 0) -> ShardOrder:
    return ShardOrder(1, rank, 7, str(place), NAME, "-t", {})


def states() -> tuple[bytes, bytes]:
    small = {"step": 7, "extra": {}}
    index = CellIndex(ShardIndex(0, VALUES.nbytes, CHUNK_BYTES, (), (interval(),)), {}, {})
    return SmallState(small, {}).to_bytes(), index.to_bytes()


def answer(writer: ShardWriterThread) -> dict[str, Any]:
    deadline = time.monotonic() + 30.0
    while "pending" in (found := writer.answers(1, 7)[-1]):
        assert time.monotonic() < deadline
        time.sleep(0.005)
    return found


def test_a_vault_says_how_far_a_shard_is_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[int] = []
    fdatasync = os.fdatasync
    writer = ShardWriterThread()

    def looking(descriptor: int) -> None:
        seen.append(writer.answers(1, 7)[0]["parts"])
        fdatasync(descriptor)

    monkeypatch.setattr(flushing.os, "fdatasync", looking)
    state, index = states()
    writer.order(order(tmp_path), VALUES.data.cast("B"), state, index)
    assert answer(writer)["entry"]["size_bytes"] == VALUES.nbytes
    writer.close()
    assert len(seen) >= 2
    assert seen == sorted(seen)
    assert seen[0] < seen[-1]


def test_an_error_nobody_expected_fails_one_shard_and_not_all_that_follow(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    writer, (state, index) = ShardWriterThread(), states()
    with monkeypatch.context() as context:
        context.setattr(vault_writer, "write_shard", lambda *_: {}["on purpose"])
        writer.order(order(tmp_path), VALUES.data.cast("B"), state, index)
        assert answer(writer)["error"] == "KeyError: 'on purpose'"
    writer.order(order(tmp_path), VALUES.data.cast("B"), state, index)
    assert answer(writer)["entry"]["size_bytes"] == VALUES.nbytes
    writer.close()


# Durability by portions -------------------------------------------------------------------------------------------


def test_portions_follow_the_speed_of_the_disk() -> None:
    def settle(bytes_per_s: float) -> tuple[int, float]:
        portion, longest_s = LEAST_BYTES, 0.0
        for _ in range(50):
            longest_s = max(longest_s, portion / bytes_per_s)
            portion = next_portion(portion, portion / bytes_per_s)
        return portion, longest_s

    assert settle(2e9) == (MOST_BYTES, MOST_BYTES / 2e9)
    portion, longest_s = settle(20e6)
    assert LEAST_BYTES < portion < MOST_BYTES
    assert longest_s < 2.0
    assert settle(0.5e6)[0] == LEAST_BYTES
    assert next_portion(LEAST_BYTES, 1e9) == LEAST_BYTES
    assert next_portion(MOST_BYTES, 0.0) == MOST_BYTES


def test_a_large_file_is_durable_long_before_its_end(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Else one `fsync` at the end takes all the time that a slow disk needs, without any sign of progress."""
    flushed: list[int] = []
    monkeypatch.setattr(flushing.os, "fdatasync", lambda descriptor: flushed.append(os.fstat(descriptor).st_size))
    with (tmp_path / "x").open("wb", buffering=1 << 20) as file:
        flush = SteadyFlush(file, clock=lambda: 0.0)
        for _ in range(64):
            file.write(bytes(1 << 18))
            flush.wrote(1 << 18)
    assert flushed == [LEAST_BYTES, 3 * LEAST_BYTES, 7 * LEAST_BYTES, 15 * LEAST_BYTES]
