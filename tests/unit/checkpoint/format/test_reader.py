"""Reading ranges across shards, types and damage."""

import json
import tracemalloc
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from orchestrator.checkpoint.format.checkpoint_manifest import MANIFEST, Manifest, read_manifest
from orchestrator.checkpoint.format.dtypes import decode
from orchestrator.checkpoint.format.intervals import Kind
from orchestrator.checkpoint.format.reader import CheckpointReader
from orchestrator.domain.errors import CheckpointError
from tests.unit.checkpoint.written import flip_byte, write_checkpoint

pytestmark = pytest.mark.unit

WEIGHTS = {
    "a.weight": np.arange(91, dtype=np.float32).reshape(7, 13),
    "b": np.float32([1.5]),
    "c": np.ones(8, np.float32),
}


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    buffers = {"seen": np.arange(5), "scalar": np.array(7, dtype=np.int32)}
    return write_checkpoint(
        tmp_path_factory.mktemp("c"), 4, WEIGHTS, buffers, world_size=3, moments=True, chunk_bytes=64
    )


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(start=st.integers(0, 91), length=st.integers(0, 91), kind=st.sampled_from([Kind.MASTER, Kind.EXP_AVG_SQ]))
def test_any_range_is_gathered_from_whatever_shards_hold_it(
    checkpoint: Path, start: int, length: int, kind: Kind
) -> None:
    end = min(91, start + length)
    out = np.full(end - start, -1, dtype=np.float32)
    with CheckpointReader(checkpoint) as reader:
        reader.read("a.weight", kind, start, end, out)
        assert reader.bytes_read == 4 * (end - start), "only what was asked for"
    assert (out == np.arange(start, end) * (100 if kind is Kind.EXP_AVG_SQ else 1)).all()


def test_types_are_converted_where_that_makes_sense(checkpoint: Path) -> None:
    with CheckpointReader(checkpoint) as reader:
        half = np.empty(8, dtype=np.float16)
        reader.read("c", Kind.MASTER, 0, 8, half)
        assert (half == 1).all()
        seen = np.empty(5, dtype=np.int64)
        reader.read("seen", Kind.BUFFER, 0, 5, seen)
        assert seen.tolist() == [0, 1, 2, 3, 4]
        with pytest.raises(CheckpointError, match="type int64 do not fit an array of float32"):
            reader.read("seen", Kind.BUFFER, 0, 5, np.empty(5, dtype=np.float32))


def test_bfloat16_is_widened_exactly() -> None:
    values = np.float32([0.0, -1.0, 3.140625, 2.0**-126, np.inf])
    bits = (values.view(np.uint32) >> 16).astype(np.uint16)
    out = np.empty(5, dtype=np.float32)
    decode(bits, "bfloat16", out)
    assert (out == values).all()


def test_what_is_missing_is_named(checkpoint: Path) -> None:
    with CheckpointReader(checkpoint) as reader:
        with pytest.raises(CheckpointError, match=r"lacks exp_avg of nothing: elements \[2, 5\)"):
            reader.read("nothing", Kind.EXP_AVG, 2, 5, np.empty(3, dtype=np.float32))
        with pytest.raises(CheckpointError, match=r"lacks master of b: elements \[1, 3\)"):
            reader.read("b", Kind.MASTER, 0, 3, np.empty(3, dtype=np.float32))


def test_verify_finds_damage_and_gaps(tmp_path: Path) -> None:
    path = write_checkpoint(tmp_path, 1, WEIGHTS, world_size=2)
    with CheckpointReader(path) as reader:
        reader.verify()
    flip_byte(path / "shard-00001.bin", 9)
    with CheckpointReader(path) as reader, pytest.raises(CheckpointError, match=r"shard-00001\.bin is corrupt"):
        reader.verify()
    flip_byte(path / "shard-00001.bin", 9)
    manifest = read_manifest(path)
    only_first = Manifest(**{**vars(manifest), "shards": manifest.shards[:1]})
    (path / MANIFEST).write_bytes(only_first.to_bytes())
    with CheckpointReader(path) as reader, pytest.raises(CheckpointError, match=r"lacks master of a\.weight"):
        reader.verify()


def test_a_damaged_or_foreign_index_is_refused(tmp_path: Path) -> None:
    path = write_checkpoint(tmp_path, 1, WEIGHTS)
    flip_byte(path / "shard-00000.json", 30)
    with pytest.raises(CheckpointError, match=r"shard-00000\.json is corrupt"):
        CheckpointReader(path)
    (path / "shard-00000.json").unlink()
    with pytest.raises(CheckpointError, match="cannot be read: No such file"):
        CheckpointReader(path)


def test_any_change_of_the_manifest_is_noticed(tmp_path: Path) -> None:
    path = write_checkpoint(tmp_path, 1, WEIGHTS)
    data = (path / MANIFEST).read_bytes()
    body = json.loads(data)
    for key in body:
        changed = {**body, key: "changed"}
        with pytest.raises(CheckpointError):
            Manifest.from_bytes(json.dumps(changed).encode(), "m")
    for cut in range(0, len(data), 97):
        with pytest.raises(CheckpointError):
            Manifest.from_bytes(data[:cut], "m")
    assert Manifest.from_bytes(data, "m") == read_manifest(path)
    with pytest.raises(CheckpointError, match=r"format convoy\.intervals 99, expected convoy\.intervals 1"):
        Manifest.from_bytes(json.dumps({**body, "version": 99}).encode(), "m")


def test_memory_is_what_is_read_plus_a_chunk(tmp_path: Path) -> None:
    elements = 12 << 20
    big = {"w": np.zeros(elements, np.float32)}
    path = write_checkpoint(tmp_path, 1, big, world_size=2)
    del big
    out = np.empty(elements // 8, dtype=np.float32)
    half = np.empty(elements // 8, dtype=np.float16)
    with CheckpointReader(path) as reader:
        tracemalloc.start()
        reader.read("w", Kind.MASTER, elements // 4, elements // 4 + len(out), out)
        reader.read("w", Kind.MASTER, elements // 2, elements // 2 + len(half), half)
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
    assert peak < 9 << 20, f"{peak / 2**20:.1f} MiB beside the target"
