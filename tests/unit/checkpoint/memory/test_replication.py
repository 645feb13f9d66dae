"""What a vault does by itself goes on, whatever is taken from under it."""

import contextlib
import json
import os
import socket
import struct
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from orchestrator.checkpoint.format.shard import CHUNK_BYTES, ShardIndex
from orchestrator.checkpoint.memory import copies
from orchestrator.checkpoint.memory.cells import NONE, Cell, CellSize
from orchestrator.checkpoint.memory.held import FreedError, Held
from orchestrator.checkpoint.memory.peers import CellIndex, SmallState, descriptor_path
from orchestrator.checkpoint.memory.vault import Vault
from orchestrator.checkpoint.memory.wire import LENGTH, Channel

pytestmark = pytest.mark.unit

TOKEN = "a token of these tests"
SIZE = CellSize(payload_bytes=1 << 16, state_bytes=4096)
INDEX = CellIndex(ShardIndex(0, SIZE.payload_bytes, CHUNK_BYTES, (), ()), {}, {}).to_bytes()


@pytest.fixture
def vaults() -> Iterator[list[Vault]]:
    made = [Vault("127.0.0.1", TOKEN, lambda: 1 << 30) for _ in range(2)]
    yield made
    for vault in made:
        vault.close()


def channel(vault: Vault) -> Channel:
    return Channel.connect(vault.address, TOKEN, 5.0)


def create(to: Channel, generation: int, rank: int = 0) -> Cell:
    request = {"do": "create", "generation": generation, "rank": rank, "world_size": 1, "pid": os.getpid(),
               "payload_bytes": SIZE.payload_bytes, "slot_state_bytes": SIZE.state_bytes}  # fmt: skip
    answer, _ = to.ask(request, INDEX)
    return Cell.attach(descriptor_path(os.getpid(), answer["descriptor"]), SIZE)


def fill(to: Channel, cell: Cell, generation: int, step: int, state: bytes = b"{}", rank: int = 0) -> None:
    slot = cell.older_slot()
    cell.begin(slot)
    cell.finish(slot, step, state)
    to.send({"do": "filled", "generation": generation, "rank": rank, "step": step})


def tell_peers(vault: Vault, generation: int, *addresses: str) -> None:
    channel(vault).ask({"do": "peers", "generation": generation, "addresses": list(addresses)})


def eventually(true: Callable[[], bool], limit_s: float = 10.0) -> None:
    deadline = time.monotonic() + limit_s
    while not true():
        assert time.monotonic() < deadline
        time.sleep(0.005)


class SilentPeer:
    """Takes the token and everything else, and never says that it has it."""

    def __init__(self) -> None:
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.address = f"127.0.0.1:{self._listener.getsockname()[1]}"
        self.connections: list[socket.socket] = []
        threading.Thread(target=self._serve, daemon=True).start()

    def _serve(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                connection, _ = self._listener.accept()
                (length,) = struct.unpack(">I", connection.recv(4))
                connection.recv(length)
                connection.sendall(LENGTH.pack(11) + b'{"bytes":0}')
                self.connections.append(connection)

    def close(self) -> None:
        self._listener.close()
        for connection in self.connections:
            connection.close()


def test_states_that_are_forgotten_while_they_are_copied_end_no_copies(
    vaults: list[Vault], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(copies, "PEER_TIMEOUT_S", 1.0)
    here, peer = vaults
    silent = SilentPeer()
    tell_peers(here, 1, silent.address, peer.address)
    worker = channel(here)
    old = create(worker, 1)
    fill(worker, old, 1, 10)
    eventually(lambda: bool(silent.connections))  # it is on its way
    channel(here).ask({"do": "forget", "before": 2})
    tell_peers(here, 2, peer.address)
    new = create(worker, 2)
    fill(worker, new, 2, 11)
    eventually(lambda: new.replicated_step == 11)
    silent.close()


def test_copies_begin_when_their_peers_become_known(vaults: list[Vault]) -> None:
    """The driver's word may come late, or only at its second attempt."""
    here, peer = vaults
    worker = channel(here)
    cell = create(worker, 5)
    fill(worker, cell, 5, 20)
    time.sleep(0.05)
    assert cell.replicated_step == NONE
    tell_peers(here, 5, peer.address)
    eventually(lambda: cell.replicated_step == 20)
    assert [item["step"] for item in channel(peer).ask({"do": "inventory"})[0]["held"]] == [20]


def test_memory_that_is_used_is_freed_afterwards() -> None:
    held = Held(Cell.create(SIZE, "1-0"), 1, b"", own=True)
    path = Path(f"/proc/self/fd/{held.cell.descriptor}")
    target = path.readlink()
    with held.in_use() as outer, held.in_use() as inner:
        held.free()
        held.free()
        assert path.readlink() == target
        assert outer.step(0) == inner.step(0) == NONE
        with pytest.raises(FreedError), held.in_use():
            pass
    assert not path.is_symlink() or path.readlink() != target


def test_a_shard_that_cannot_be_written_is_answered_and_so_is_the_next(vaults: list[Vault], tmp_path: Path) -> None:
    here, _ = vaults
    tell_peers(here, 1)
    worker = channel(here)
    good = SmallState({"extra": {}}, {}).to_bytes()

    def order(step: int, state: bytes) -> list[dict[str, Any]]:
        fill(worker, cell, 1, step, state)
        of = {"generation": 1, "rank": 0, "step": step}
        worker.send({"do": "store", **of, "place": str(tmp_path), "name": f"step-{step}", "tag": "", "extra": {}})
        asked = channel(here)

        def shards() -> list[dict[str, Any]]:
            found: list[dict[str, Any]] = asked.ask({"do": "written", **of})[0]["shards"]
            return found

        eventually(lambda: bool(shards()) and "pending" not in shards()[0])
        return shards()

    cell = create(worker, 1)
    (failed,) = order(1, json.dumps({"manifest": {"extra": {}}}).encode())
    assert (failed["rank"], failed["fault"]) == (0, "other")
    assert "rng" in failed["error"]
    (written,) = order(2, good)
    assert "error" not in written
    assert "entry" in written
