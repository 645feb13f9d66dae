"""A state read out of real vaults, some of which go meanwhile."""

import os
import time
from collections.abc import Iterator

import numpy as np
import pytest

from orchestrator.checkpoint.cells import Cell, CellSize
from orchestrator.checkpoint.intervals import Kind, Range
from orchestrator.checkpoint.manifest import TensorEntry
from orchestrator.checkpoint.peers import CellIndex, PeerReader, SmallState
from orchestrator.checkpoint.shard import Interval, ShardIndex
from orchestrator.checkpoint.vault import Vault
from orchestrator.checkpoint.wire import Channel
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
