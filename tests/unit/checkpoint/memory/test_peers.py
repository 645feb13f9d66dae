"""A state read out of real vaults, some of which go meanwhile."""

import os
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from orchestrator.checkpoint.format.checkpoint_manifest import TensorEntry
from orchestrator.checkpoint.format.intervals import Kind, Range
from orchestrator.checkpoint.format.shard import Interval, ShardIndex
from orchestrator.checkpoint.memory import cells, peers
from orchestrator.checkpoint.memory.cells import Cell, CellSize
from orchestrator.checkpoint.memory.peers import CellIndex, PeerReader, SmallState
from orchestrator.checkpoint.memory.vault import Vault
from orchestrator.checkpoint.memory.wire import Channel
from orchestrator.domain.errors import CheckpointError
from orchestrator.domain.session import PeerState, ShardPlace

pytestmark = pytest.mark.unit

TOKEN = "a token of these tests"
ELEMENTS, STEP = 4096, 5
KEY = {"generation": 3, "rank": 0}


@pytest.fixture
def vaults() -> Iterator[list[Vault]]:
    made = [Vault("127.0.0.1", TOKEN, lambda: 1 << 30, shares=False) for _ in range(2)]
    yield made
    for vault in made:
        vault.close()


def leave_state(vaults: list[Vault]) -> tuple["np.ndarray[tuple[int], np.dtype[np.float32]]", PeerState]:
    """One rank's state of one step in the first vault, and a copy of it in the second; its numbers, and where it is."""
    values = np.arange(ELEMENTS, dtype=np.float32)
    shard = ShardIndex(0, values.nbytes, 1 << 20, (), (Interval("w", Kind.MASTER, Range(0, ELEMENTS), 0, "float32"),))
    index = CellIndex(shard, {"w": TensorEntry((ELEMENTS,), "float32", Kind.MASTER, 0)}, {})
    manifest = {"step": STEP, "position": 60, "world_size": 1, "stage": 1, "optimizer": "Adam", "moments": False,
                "groups": [{"hyperparameters": {"lr": 1e-3}, "step": 5.0}]}  # fmt: skip
    here, peer = vaults
    worker = Channel.connect(here.address, TOKEN, 5.0)
    size = CellSize(payload_bytes=values.nbytes, state_bytes=4000)
    sizes = {"payload_bytes": size.payload_bytes, "slot_state_bytes": size.state_bytes}
    answer, _ = worker.ask({"do": "create", **KEY, "world_size": 1, **sizes}, index.to_bytes())
    worker.ask({"do": "peers", "generation": 3, "addresses": [peer.address]})
    cell = Cell.attach(f"/proc/{os.getpid()}/fd/{answer['descriptor']}", size)
    slot = cell.older_slot()
    cell.begin(slot)[:] = values.tobytes()
    cell.finish(slot, STEP, SmallState(manifest, {"cpu": "AAA="}).to_bytes())
    worker.send({"do": "filled", **KEY, "step": STEP})
    deadline = time.monotonic() + 5.0
    while cell.replicated_step != STEP:
        assert time.monotonic() < deadline, here.last_problem
        time.sleep(0.005)
    return values, PeerState(3, STEP, (ShardPlace(0, (here.address, peer.address)),))


def mapped_cells() -> int:
    """Of how many cells this process has a mapping."""
    return sum("/memfd:convoy-" in line for line in Path("/proc/self/maps").read_text().splitlines())


def test_shards_are_opened_when_they_are_read(vaults: list[Vault], monkeypatch: pytest.MonkeyPatch) -> None:
    """With hundreds of GB in a node's vault, a mapping of all of it would fill page tables in every process."""
    values, state = leave_state(vaults)
    before = mapped_cells()
    populated: list[int] = []
    monkeypatch.setattr(cells, "_populate", lambda memory: populated.append(len(memory)))
    out = np.zeros(ELEMENTS, dtype=np.float32)
    with PeerReader(state, TOKEN, vaults[0].address, os.getpid()) as reader:
        assert mapped_cells() == before
        reader.read("w", Kind.MASTER, 0, ELEMENTS, out)
        assert mapped_cells() == before + 1
    assert mapped_cells() == before
    assert np.array_equal(out, values)
    assert populated == []


def test_a_shard_that_this_hosts_vault_has_given_up_is_read_from_another(vaults: list[Vault]) -> None:
    values, state = leave_state(vaults)
    out = np.zeros(ELEMENTS, dtype=np.float32)
    with PeerReader(state, TOKEN, vaults[0].address, os.getpid()) as reader:
        Channel.connect(vaults[0].address, TOKEN, 5.0).ask({"do": "forget", "before": 4})
        reader.read("w", Kind.MASTER, 0, ELEMENTS, out)
    assert np.array_equal(out, values)


def test_a_large_shard_is_read_over_several_connections(vaults: list[Vault], monkeypatch: pytest.MonkeyPatch) -> None:
    values, state = leave_state(vaults)
    monkeypatch.setattr(peers, "PIECE_BYTES", 1000)
    threads: set[str] = set()
    out = np.zeros(ELEMENTS, dtype=np.float32)

    def tick() -> None:
        threads.add(threading.current_thread().name)
        time.sleep(0.001)

    with PeerReader(state, TOKEN, None, None, tick) as reader:
        reader.read("w", Kind.MASTER, 0, ELEMENTS, out)
        assert np.array_equal(out, values)
        vaults[0].close()  # all connections break off
        out[:] = 0
        reader.read("w", Kind.MASTER, 0, ELEMENTS, out)
        assert np.array_equal(out, values)
        vaults[1].close()
        with pytest.raises(CheckpointError, match="cannot be reached"):
            reader.read("w", Kind.MASTER, 0, ELEMENTS, out)
    assert sum(name.startswith("peer-read") for name in threads) == peers.STREAMS


def test_reading_goes_on_from_another_vault_where_one_goes(vaults: list[Vault]) -> None:
    values, state = leave_state(vaults)
    half, out = ELEMENTS // 2, np.zeros(ELEMENTS, dtype=np.float32)
    with PeerReader(state, TOKEN, None, None) as reader:
        assert reader.rng(0) == {"cpu": "AAA="}
        reader.read("w", Kind.MASTER, 0, half, out[:half])
        vaults[0].close()
        reader.read("w", Kind.MASTER, half, ELEMENTS, out[half:])
        assert np.array_equal(out, values)
        vaults[1].close()
        with pytest.raises(CheckpointError, match=f"the vault at {vaults[1].address} cannot be reached"):
            reader.read("w", Kind.MASTER, 0, half, out[:half])


def test_a_vault_that_is_gone_already_is_passed_over(vaults: list[Vault]) -> None:
    values, state = leave_state(vaults)
    vaults[0].close()
    out = np.zeros(ELEMENTS, dtype=np.float32)
    with PeerReader(state, TOKEN, None, None) as reader:
        reader.read("w", Kind.MASTER, 0, ELEMENTS, out)
    assert np.array_equal(out, values)
