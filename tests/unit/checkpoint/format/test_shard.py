"""Shard files: what is written comes back, and damage is found where it is."""

import resource
import signal
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from orchestrator.checkpoint.format.intervals import Kind
from orchestrator.checkpoint.format.shard import ShardFile, ShardIndex, ShardPiece, ShardWriter
from orchestrator.domain.errors import CheckpointError
from tests.unit.checkpoint.written import flip_byte

pytestmark = pytest.mark.unit

CHUNK = 256
RNG = np.random.default_rng(0)
ARRAYS: dict[str, np.ndarray[Any, Any]] = {
    "odd": RNG.integers(0, 2, 7).astype(bool),
    "weights": RNG.normal(size=333).astype(np.float32),
    "bytes": RNG.integers(0, 255, 3).astype(np.uint8),
    "counts": RNG.integers(-9, 9, 40),
    "one": np.float32([3.5]),
}


def write(path: Path, arrays: dict[str, np.ndarray[Any, Any]] = ARRAYS) -> ShardIndex:
    with ShardWriter(path, rank=3, chunk_bytes=CHUNK) as writer:
        for name, data in arrays.items():
            writer.write(ShardPiece(name, Kind.BUFFER, 5, str(data.dtype), data))
        return writer.finish({"cpu": "AAAA"})


def test_every_piece_comes_back_and_lies_aligned(tmp_path: Path) -> None:
    index = write(tmp_path / "s.bin")
    assert index.size_bytes == (tmp_path / "s.bin").stat().st_size
    assert len(index.chunks) == -(-index.size_bytes // CHUNK)
    file = ShardFile(tmp_path / "s.bin", index)
    for interval, (name, data) in zip(index.intervals, ARRAYS.items(), strict=True):
        assert (interval.name, interval.range.start, len(interval.range)) == (name, 5, len(data))
        assert interval.offset % data.itemsize == 0
        out = np.empty_like(data)
        file.read_into(interval.offset, out.data.cast("B"))
        assert (out == data).all()
    file.close()


def test_the_index_survives_json(tmp_path: Path) -> None:
    index = write(tmp_path / "s.bin")
    assert ShardIndex.from_bytes(index.to_bytes(), "s.json") == index


@pytest.mark.parametrize(
    "data", [b"", b"{", b"[]", b'{"version": 1}', b'{"version": 9}', b'{"version":1,"intervals":[[1]]}']
)
def test_what_is_no_index_says_so(data: bytes) -> None:
    with pytest.raises(CheckpointError, match=r"s\.json"):
        ShardIndex.from_bytes(data, "s.json")


def test_any_flipped_byte_is_found_and_located(tmp_path: Path) -> None:
    path = tmp_path / "s.bin"
    index = write(path)
    for offset in range(0, index.size_bytes, 37):
        flip_byte(path, offset)
        file = ShardFile(path, index)
        start = offset // CHUNK * CHUNK
        with pytest.raises(CheckpointError, match=rf"s\.bin is corrupt in bytes {start} to \d+.*\(holds "):
            file.verify()
        file.close()
        flip_byte(path, offset)


def test_a_reader_is_stopped_only_by_damage_in_what_it_reads(tmp_path: Path) -> None:
    path = tmp_path / "s.bin"
    index = write(path)
    weights = index.intervals[1]
    flip_byte(path, index.size_bytes - 1)
    file = ShardFile(path, index)
    out = np.empty(4, dtype=np.float32)
    file.read_into(weights.offset, out.data.cast("B"))
    assert (out == ARRAYS["weights"][:4]).all()
    with pytest.raises(CheckpointError, match="corrupt"):
        file.read_into(index.intervals[4].offset, out[:1].data.cast("B"))
    file.close()


def test_a_file_cut_short_is_no_shard(tmp_path: Path) -> None:
    path = tmp_path / "s.bin"
    index = write(path)
    with path.open("r+b") as file:
        file.truncate(index.size_bytes - 1)
    with pytest.raises(CheckpointError, match=rf"has {index.size_bytes - 1} bytes, expected {index.size_bytes}"):
        ShardFile(path, index)
    path.unlink()
    with pytest.raises(CheckpointError, match="No such file"):
        ShardFile(path, index)


def test_a_write_that_fails_raises_and_closes_the_file(tmp_path: Path) -> None:
    ignored = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (4096, before[1]))
    try:
        with pytest.raises(OSError, match="File too large"):
            write(tmp_path / "s.bin", {"big": np.zeros(1 << 20, np.float32)})
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
        signal.signal(signal.SIGXFSZ, ignored)


def test_data_of_another_type_than_announced_is_a_mistake_of_ours(tmp_path: Path) -> None:
    with ShardWriter(tmp_path / "s.bin", 0) as writer, pytest.raises(ValueError, match="expected 1-D float32"):
        writer.write(ShardPiece("w", Kind.MASTER, 0, "float32", np.zeros(3)))
