"""Vaults as processes talk to them: cells in shared memory, copies at peers, reads, and what a crash leaves."""

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator

import pytest

from orchestrator.checkpoint.memory.cells import NONE, Cell, CellSize
from orchestrator.checkpoint.memory.vault import Vault
from orchestrator.checkpoint.memory.wire import Channel, WireError

pytestmark = pytest.mark.unit

TOKEN = "a token of these tests"
SIZE = CellSize(payload_bytes=3 * 4096 + 17, state_bytes=1000)


@pytest.fixture
def vaults() -> Iterator[list[Vault]]:
    made = [Vault("127.0.0.1", TOKEN, lambda: 1 << 30) for _ in range(2)]
    yield made
    for vault in made:
        vault.close()


def channel(vault: Vault) -> Channel:
    return Channel.connect(vault.address, TOKEN, 5.0)


def key(step: int | None = None) -> dict[str, int]:
    return {"generation": 3, "rank": 1, **({} if step is None else {"step": step})}


def create(to: Channel) -> Cell:
    sizes = {"payload_bytes": SIZE.payload_bytes, "slot_state_bytes": SIZE.state_bytes}
    answer, _ = to.ask({"do": "create", **key(), "world_size": 2, **sizes}, b'{"an":"index"}')
    return Cell.attach(f"/proc/{os.getpid()}/fd/{answer['descriptor']}", SIZE)


def fill(cell: Cell, step: int) -> bytes:
    data = bytes((step + i) % 251 for i in range(SIZE.payload_bytes))
    slot = cell.older_slot()
    cell.begin(slot)[:] = data
    cell.finish(slot, step, json.dumps({"step": step}).encode())
    return data


def eventually(true: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 5.0
    while not true():
        assert time.monotonic() < deadline
        time.sleep(0.005)


def held(vault: Vault) -> set[tuple[int, bool]]:
    answer, _ = channel(vault).ask({"do": "inventory"})
    assert all((item["generation"], item["rank"], item["world_size"]) == (3, 1, 2) for item in answer["held"])
    return {(item["step"], item["own"]) for item in answer["held"]}


def test_a_slot_is_whole_or_not_there() -> None:
    cell = Cell.create(SIZE, "test")
    assert (cell.step(0), cell.step(1), cell.replicated_step, cell.slot_of(NONE)) == (NONE, NONE, NONE, None)
    fill(cell, 7)
    fill(cell, 8)
    assert {cell.step(0), cell.step(1)} == {7, 8}
    slot = cell.older_slot()
    assert cell.step(slot) == 7
    cell.begin(slot)
    assert cell.slot_of(7) is None
    assert cell.slot_of(8) == 1 - slot
    assert json.loads(cell.state(1 - slot)) == {"step": 8}
    with pytest.raises(ValueError, match="1000 were reserved"):
        cell.finish(slot, 9, b"x" * 1001)
    cell.close()


def test_a_step_is_replicated_when_every_peer_has_it(vaults: list[Vault]) -> None:
    here, peer = vaults
    worker = channel(here)
    cell = create(worker)
    fill(cell, 1)
    worker.send({"do": "filled", **key(1)})
    time.sleep(0.05)
    assert cell.replicated_step == NONE  # nobody has said where copies go
    channel(here).ask({"do": "peers", "generation": 3, "addresses": [peer.address]})
    data = {step: fill(cell, step) for step in (2, 3)}
    for step in data:
        worker.send({"do": "filled", **key(step)})
    eventually(lambda: cell.replicated_step == 3)
    assert held(here) == {(2, True), (3, True)}
    assert held(peer) == {(2, False), (3, False)}
    reader = channel(peer)
    answer, count = reader.ask({"do": "describe", **key(3)})
    described = reader.take(count)
    assert described == b'{"step": 3}{"an":"index"}'
    assert answer["state_bytes"] == len(b'{"step": 3}')
    _, count = reader.ask({"do": "read", **key(2), "offset": 5000, "length": 3000})
    assert reader.take(count) == data[2][5000:8000]


def test_a_peer_that_is_gone_leaves_the_step_unreplicated(vaults: list[Vault]) -> None:
    here, peer = vaults
    worker = channel(here)
    cell = create(worker)
    channel(here).ask({"do": "peers", "generation": 3, "addresses": [peer.address]})
    fill(cell, 1)
    worker.send({"do": "filled", **key(1)})
    eventually(lambda: cell.replicated_step == 1)
    peer.close()
    fill(cell, 2)
    worker.send({"do": "filled", **key(2)})
    eventually(lambda: "copy of rank 1, step 2" in here.last_problem)
    assert cell.replicated_step == 1
    assert held(here) == {(1, True), (2, True)}


def test_a_copy_that_did_not_arrive_is_sent_again(vaults: list[Vault]) -> None:
    """The workers take no other snapshot before it has: without, one lost connection would end protection for good."""
    here, peer = vaults
    worker = channel(here)
    cell = create(worker)
    gone = Vault("127.0.0.1", TOKEN, lambda: 1 << 30)
    gone.close()
    channel(here).ask({"do": "peers", "generation": 3, "addresses": [gone.address]})
    data = fill(cell, 1)
    worker.send({"do": "filled", **key(1)})
    eventually(lambda: "copy of rank 1, step 1" in here.last_problem)
    channel(here).ask({"do": "peers", "generation": 3, "addresses": [peer.address]})
    report = {"do": "report", "generation": 3, "rank": 1, "step": 2, "copy": False}
    deadline = time.monotonic() + 5.0
    while cell.replicated_step != 1:  # while there is always something else to do
        worker.send(report, b"{}")
        time.sleep(0.01)
        assert time.monotonic() < deadline
    assert held(peer) == {(1, False)}
    reader = channel(peer)
    reader.ask({"do": "read", **key(1), "offset": 0, "length": SIZE.payload_bytes})
    assert reader.take(SIZE.payload_bytes) == data


def test_what_is_asked_wrongly_is_refused(vaults: list[Vault]) -> None:
    here = vaults[0]
    with pytest.raises(WireError, match="wrong token"):
        Channel.connect(here.address, "another", 5.0)
    create(channel(here))
    with pytest.raises(WireError, match="not here"):
        channel(here).ask({"do": "read", **key(4), "offset": 0, "length": 1})
    with pytest.raises(OSError, match=r"hung up|reset"):
        channel(here).ask({"do": "anything"})
    assert held(here) == set()


@pytest.mark.parametrize(
    "wrong",
    [
        {"do": "inventory", "generation": "the newest"},
        {"do": "filled", "generation": 3, "rank": 1},
        {"do": "create", **key(), "world_size": 2, "payload_bytes": None, "slot_state_bytes": 1},
        {"do": "copy", **key(7), "world_size": 2, "slot": 0.5},
        {"do": "peers", "generation": 3, "addresses": "127.0.0.1:80"},
        {"do": "read", **key(7), "offset": [0], "length": 1},
        {"do": "forget", "before": {}},
        {"do": ["ping"]},
    ],
)
def test_a_malformed_frame_ends_its_connection_and_nothing_else(vaults: list[Vault], wrong: dict[str, object]) -> None:
    here = vaults[0]
    cell = create(channel(here))
    fill(cell, 7)
    standing = channel(here)
    standing.ask({"do": "ping"})
    with pytest.raises(OSError, match=r"hung up|reset"):
        channel(here).ask(wrong)
    standing.ask({"do": "ping"})
    assert held(here) == {(7, True)}
    assert standing.ask({"do": "inventory"})[0]["generation"] == 3
    cell.close()


def test_no_more_memory_is_taken_than_there_is() -> None:
    vault = Vault("127.0.0.1", TOKEN, lambda: SIZE.total_bytes - 1)
    try:
        with pytest.raises(WireError, match="no room for the state of rank 1"):
            create(channel(vault))
    finally:
        vault.close()


def test_generations_are_forgotten(vaults: list[Vault]) -> None:
    here = vaults[0]
    worker = channel(here)
    fill(create(worker), 1)
    channel(here).ask({"do": "forget", "before": 3})
    assert held(here) == {(1, True)}
    channel(here).ask({"do": "forget", "before": 4})
    assert held(here) == set()


def test_memory_goes_with_the_process_that_is_killed() -> None:
    code = (
        "import sys, time\n"
        "from orchestrator.checkpoint.memory.vault import Vault\n"
        f"vault = Vault('127.0.0.1', {TOKEN!r}, lambda: 1 << 30)\n"
        "print(vault.address, flush=True)\n"
        "time.sleep(60)\n"
    )
    process = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True)
    try:
        assert process.stdout is not None
        address = process.stdout.readline().strip()
        worker = Channel.connect(address, TOKEN, 5.0)
        sizes = {"payload_bytes": SIZE.payload_bytes, "slot_state_bytes": SIZE.state_bytes}
        answer, _ = worker.ask({"do": "create", **key(), "world_size": 2, **sizes})
        path = f"/proc/{process.pid}/fd/{answer['descriptor']}"
        cell = Cell.attach(path, SIZE)
        fill(cell, 1)
    finally:
        process.kill()
        process.wait()
    with pytest.raises(FileNotFoundError):
        Cell.attach(path, SIZE)
    assert cell.step(0) == 1  # whoever still maps it is not hurt
    cell.close()


def sharing(count: int) -> list[Vault]:
    return [Vault("127.0.0.1", TOKEN, lambda: 1 << 30, shares=True) for _ in range(count)]


def test_on_one_machine_a_peer_holds_the_memory_itself() -> None:
    own, peer = sharing(2)
    to = channel(own)
    cell = create(to)
    to.ask({"do": "peers", "generation": 3, "addresses": [peer.address]})
    for step in (1, 2, 3):
        fill(cell, step)
        to.send({"do": "filled", **key(step)})
        eventually(lambda step=step: cell.replicated_step == step)  # type: ignore[misc]
        assert (step, False) in held(peer)
    answer, _ = channel(peer).ask({"do": "inventory"})
    assert answer["memory_bytes"] == 0  # none of its own
    data = fill(cell, 4)  # nobody has told the peer: it lies there all the same
    assert (4, False) in held(peer)
    own.close()
    cell.close()
    reader = channel(peer)
    header, count = reader.ask({"do": "read", **key(4), "offset": 5, "length": 100})
    assert (header, reader.take(count)) == ({}, data[5:105])
    peer.close()


def test_a_peer_that_cannot_get_hold_of_the_memory_gets_copies(monkeypatch: pytest.MonkeyPatch) -> None:
    own, peer = sharing(2)
    monkeypatch.setattr(
        "orchestrator.checkpoint.memory.vault.descriptor_path", lambda pid, number: f"/proc/0/fd/{number}"
    )
    to = channel(own)
    cell = create(to)
    to.ask({"do": "peers", "generation": 3, "addresses": [peer.address]})
    for step in (1, 2):
        fill(cell, step)
        to.send({"do": "filled", **key(step)})
        eventually(lambda step=step: cell.replicated_step == step)  # type: ignore[misc]
    assert held(peer) == {(1, False), (2, False)}
    answer, _ = channel(peer).ask({"do": "inventory"})
    assert answer["memory_bytes"] == SIZE.total_bytes
    assert cell.spent_us > 0
    for each in (own, peer):
        each.close()


def test_a_peer_that_is_gone_holds_nothing() -> None:
    """However cheap it is to share: a step counts only where the peer has said that it is there."""
    own, peer = sharing(2)
    to = channel(own)
    cell = create(to)
    to.ask({"do": "peers", "generation": 3, "addresses": [peer.address]})
    fill(cell, 1)
    to.send({"do": "filled", **key(1)})
    eventually(lambda: cell.replicated_step == 1)
    peer.close()
    fill(cell, 2)
    to.send({"do": "filled", **key(2)})
    eventually(lambda: "copy of rank 1, step 2" in own.last_problem)
    assert cell.replicated_step == 1
    own.close()
