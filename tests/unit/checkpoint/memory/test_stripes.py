"""Large slots travel to peers in stripes over several connections, several cells at once, whatever happens to one."""

import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from orchestrator.checkpoint.memory import replication, stripes
from orchestrator.checkpoint.memory.cells import NONE, Cell, CellSize
from orchestrator.checkpoint.memory.held import CellKey
from orchestrator.checkpoint.memory.peers import descriptor_path
from orchestrator.checkpoint.memory.stripes import Arrivals
from orchestrator.checkpoint.memory.vault import Vault
from orchestrator.checkpoint.memory.wire import Channel, RefusedError, WireError, encode
from tests.unit.checkpoint.memory.test_replication import TOKEN, SilentPeer, channel, eventually, tell_peers

pytestmark = pytest.mark.unit

SIZE = CellSize(payload_bytes=10 * 1000 + 17, state_bytes=100)
STRIPES = 11
RANKS = range(6)
INDEX = b'{"an":"index"}'


@pytest.fixture(autouse=True)
def small_stripes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stripes, "STRIPE_BYTES", 1000)
    monkeypatch.setattr(replication, "RETRY_S", 0.05)


@pytest.fixture
def vaults() -> Iterator[list[Vault]]:
    made = [Vault("127.0.0.1", TOKEN, lambda: 1 << 30) for _ in range(2)]
    yield made
    for vault in made:
        vault.close()


def of(rank: int, generation: int = 1) -> dict[str, int]:
    return {"generation": generation, "rank": rank}


def create(to: Channel, rank: int, generation: int = 1) -> Cell:
    sizes = {"payload_bytes": SIZE.payload_bytes, "slot_state_bytes": SIZE.state_bytes}
    answer, _ = to.ask({"do": "create", **of(rank, generation), "world_size": len(RANKS), **sizes}, INDEX)
    return Cell.attach(descriptor_path(os.getpid(), answer["descriptor"]), SIZE)


def data_of(rank: int, step: int) -> bytes:
    return bytes((7 * rank + step + i) % 251 for i in range(SIZE.payload_bytes))


def fill(to: Channel, cell: Cell, rank: int, step: int, generation: int = 1) -> None:
    slot = cell.older_slot()
    cell.begin(slot)[:] = data_of(rank, step)
    cell.finish(slot, step, b"state %d" % step)
    to.send({"do": "filled", **of(rank, generation), "step": step})


def read(vault: Vault, rank: int, step: int) -> bytes:
    reader = channel(vault)
    _, count = reader.ask({"do": "read", **of(rank), "step": step, "offset": 0, "length": SIZE.payload_bytes})
    return reader.take(count)


class Receptions:
    """What `Arrivals.receive` is called with; `before` is called first, and may raise."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, before: Callable[[CellKey, int], None]) -> None:
        self.calls: list[tuple[CellKey, int, Channel]] = []
        receive = Arrivals.receive

        def noted(arrivals: Arrivals, key: CellKey, ticket: int, channel: Channel, offset: int, length: int) -> None:
            self.calls.append((key, offset, channel))
            before(key, offset)
            receive(arrivals, key, ticket, channel, offset, length)

        monkeypatch.setattr(Arrivals, "receive", noted)


def test_cells_travel_side_by_side_and_each_in_stripes(vaults: list[Vault], monkeypatch: pytest.MonkeyPatch) -> None:
    here, peer = vaults
    both = threading.Barrier(2, timeout=10.0)

    def meet(key: CellKey, offset: int) -> None:
        """Stripes of two ranks, and two stripes of one, are under way at the same time, or nothing arrives."""
        if (key.rank, offset) in ((0, 0), (1, 0)) and not both.broken:
            both.wait()

    seen = Receptions(monkeypatch, meet)
    tell_peers(here, 1, peer.address)
    worker = channel(here)
    held = {rank: create(worker, rank) for rank in RANKS}
    for rank, cell in held.items():
        fill(worker, cell, rank, 1)
    eventually(lambda: all(cell.replicated_step == 1 for cell in held.values()))
    for rank, cell in held.items():
        fill(worker, cell, rank, 2)
    eventually(lambda: all(cell.replicated_step == 2 for cell in held.values()))
    for rank in RANKS:
        for step in (1, 2):
            assert read(peer, rank, step) == data_of(rank, step)
    asking = channel(peer)
    _, count = asking.ask({"do": "describe", **of(3), "step": 2})
    assert asking.take(count) == b"state 2" + INDEX
    assert len(seen.calls) == 2 * len(RANKS) * STRIPES
    assert len({id(used) for key, _, used in seen.calls if key.rank == 0}) > 1
    assert held[0].spent_us > 0


def test_a_stream_that_fails_fails_its_copy_only(vaults: list[Vault], monkeypatch: pytest.MonkeyPatch) -> None:
    here, peer = vaults
    failed: list[int] = []

    def fail_once(key: CellKey, offset: int) -> None:
        if (key.rank, offset) == (1, 5000) and not failed:
            failed.append(offset)
            eventually(lambda: all(held[rank].replicated_step == 1 for rank in RANKS if rank % replication.LANES != 1))
            assert held[1].replicated_step == NONE
            raise OSError("on purpose")

    Receptions(monkeypatch, fail_once)
    tell_peers(here, 1, peer.address)
    worker = channel(here)
    held = {rank: create(worker, rank) for rank in RANKS}
    for rank, cell in held.items():
        fill(worker, cell, rank, 1)
    eventually(lambda: held[1].replicated_step == 1)
    assert failed
    assert "copy of rank 1, step 1" in here.last_problem
    assert all(read(peer, rank, 1) == data_of(rank, 1) for rank in RANKS)


STOPPING = """
import sys, threading
from orchestrator.checkpoint.memory import stripes
from orchestrator.checkpoint.memory.vault import Vault

receive = stripes.Arrivals.receive

def stop(arrivals, key, ticket, channel, offset, length):
    if offset == 7000:
        print("here", flush=True)
        threading.Event().wait()
    receive(arrivals, key, ticket, channel, offset, length)

stripes.Arrivals.receive = stop
vault = Vault("127.0.0.1", sys.argv[1], lambda: 1 << 30)
print(vault.address, flush=True)
threading.Event().wait()
"""


def test_a_peer_that_is_killed_between_two_stripes_leaves_the_others_whole(vaults: list[Vault]) -> None:
    here, peer = vaults
    process = subprocess.Popen([sys.executable, "-c", STOPPING, TOKEN], stdout=subprocess.PIPE, text=True)
    try:
        assert process.stdout is not None
        tell_peers(here, 1, process.stdout.readline().strip(), peer.address)
        worker = channel(here)
        cell = create(worker, 0)
        fill(worker, cell, 0, 1)
        assert process.stdout.readline() == "here\n"
        assert here.last_problem == ""
    finally:
        process.kill()
        process.wait()
    eventually(lambda: "copy of rank 0, step 1" in here.last_problem)
    eventually(lambda: bool(channel(peer).ask({"do": "inventory"})[0]["held"]))
    assert read(peer, 0, 1) == data_of(0, 1)
    assert cell.replicated_step == NONE
    tell_peers(here, 1, peer.address)
    eventually(lambda: cell.replicated_step == 1)


def test_a_silent_peer_holds_up_its_own_ranks_only(vaults: list[Vault]) -> None:
    here, peer = vaults
    silent = SilentPeer()
    tell_peers(here, 1, silent.address)
    tell_peers(here, 2, peer.address)
    worker = channel(here)
    waiting, moving = create(worker, 0), create(worker, 1, 2)
    fill(worker, waiting, 0, 1)
    eventually(lambda: bool(silent.connections))
    fill(worker, moving, 1, 1, generation=2)
    eventually(lambda: moving.replicated_step == 1)
    assert waiting.replicated_step == NONE
    silent.close()


def begin(to: Channel, step: int) -> int:
    sizes = {"payload_bytes": SIZE.payload_bytes, "slot_state_bytes": SIZE.state_bytes}
    header = {"do": "copy", **of(0), "world_size": 1, "slot": 0, "step": step, **sizes, "striped": True}
    header |= {"state_bytes": len(b"state"), "index_bytes": len(INDEX)}
    return int(to.ask(header, INDEX + b"state")[0]["ticket"])


def test_what_is_left_of_an_earlier_attempt_cannot_spoil_a_slot(vaults: list[Vault]) -> None:
    peer = vaults[1]
    control, late, early = channel(peer), channel(peer), channel(peer)
    first = begin(control, 1)
    stripe: dict[str, Any] = {"do": "stripe", **of(0), "ticket": first, "offset": 0}
    early.ask(stripe, b"x" * 1000)
    late._socket.sendall(encode({**stripe, "offset": 1000}, 1000) + b"x" * 400)
    with pytest.raises(RefusedError, match="1000 of 10017 bytes"):
        control.ask({"do": "whole", **of(0), "ticket": first})
    time.sleep(0.05)  # it is being received
    second = begin(control, 1)
    eventually(lambda: late.hung_up)  # it was broken off
    with pytest.raises(WireError, match="that copy has ended"):
        early.ask(stripe, b"x" * 1000)
    with pytest.raises(RefusedError, match="that copy has ended"):
        control.ask({"do": "whole", **of(0), "ticket": first})
    data, again = data_of(0, 1), channel(peer)
    for offset in range(0, SIZE.payload_bytes, 4000):
        again.ask({**stripe, "ticket": second, "offset": offset}, data[offset : offset + 4000])
    assert control.ask({"do": "inventory"})[0]["held"] == []
    control.ask({"do": "whole", **of(0), "ticket": second})
    assert read(peer, 0, 1) == data
    third = begin(control, 2)
    with pytest.raises(WireError, match="no such range"):
        again.ask({**stripe, "ticket": third, "offset": 9000}, b"x" * 2000)
