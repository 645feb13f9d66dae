"""Another driver takes a run over: the gang before can write no more, whatever its workers do."""

import os
import subprocess
import sys
import time
from collections.abc import Iterator

import pytest

from orchestrator.checkpoint.memory.cells import Cell, CellSize
from orchestrator.checkpoint.memory.fencing import end_writers, maps
from orchestrator.checkpoint.memory.vault import Vault
from orchestrator.checkpoint.memory.wire import Channel, WireError, encode
from orchestrator.domain.lease import first_generation, token_of

pytestmark = pytest.mark.unit
TOKEN = "a token of these tests"
SIZE = CellSize(payload_bytes=4096, state_bytes=100)
WRITER = """
import os, sys, time
from orchestrator.checkpoint.memory.cells import Cell, CellSize
from orchestrator.checkpoint.memory.wire import Channel
size = CellSize(4096, 100)
channel = Channel.connect(sys.argv[1], sys.argv[2], 10.0)
answer, _ = channel.ask({"do": "create", "generation": 3, "rank": 0, "world_size": 1, "payload_bytes": 4096,
                         "slot_state_bytes": 100, "pid": os.getpid()}, b"{}")
cell = Cell.attach(f"/proc/{sys.argv[3]}/fd/{answer['descriptor']}", size)
slot = cell.older_slot()
cell.begin(slot)[:4] = b"step"
cell.finish(slot, 7, b"{}")
print("ready", flush=True)
time.sleep(60)
"""


@pytest.fixture
def vault() -> Iterator[Vault]:
    made = Vault("127.0.0.1", TOKEN, lambda: 1 << 30)
    yield made
    made.close()


def a_writer(vault: Vault) -> subprocess.Popen[str]:
    process = subprocess.Popen(
        [sys.executable, "-c", WRITER, vault.address, TOKEN, str(os.getpid())], stdout=subprocess.PIPE, text=True
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "ready\n"
    return process


def create(channel: Channel, generation: int) -> None:
    channel.ask(
        {"do": "create", "generation": generation, "rank": 1, "world_size": 2, "payload_bytes": SIZE.payload_bytes,
         "slot_state_bytes": SIZE.state_bytes}, b"{}"
    )  # fmt: skip


def test_a_stopped_writer_is_ended_and_its_state_stays(vault: Vault) -> None:
    process = a_writer(vault)
    try:
        process.send_signal(19)  # SIGSTOP: it answers nobody, and could wake up at any time
        driver = Channel.connect(vault.address, TOKEN, 5.0)
        answer, _ = driver.ask({"do": "fence", "generation": 4})
        assert answer == {"ended": [process.pid], "left": []}
        assert process.wait(5.0) == -9
        inventory, _ = driver.ask({"do": "inventory"})
        assert [(item["generation"], item["step"]) for item in inventory["held"]] == [(3, 7)]
        assert inventory["generation"] == 4
        assert driver.ask({"do": "fence", "generation": 4})[0] == {"ended": [], "left": []}
    finally:
        process.kill()
        process.wait()


def test_those_of_the_new_gang_are_let_be(vault: Vault) -> None:
    process = a_writer(vault)
    try:
        driver = Channel.connect(vault.address, TOKEN, 5.0)
        assert driver.ask({"do": "fence", "generation": 3})[0] == {"ended": [], "left": []}
        assert process.poll() is None
    finally:
        process.kill()
        process.wait()


def test_what_comes_of_an_older_generation_is_refused(vault: Vault) -> None:
    driver, worker = (Channel.connect(vault.address, TOKEN, 5.0) for _ in range(2))
    create(worker, 3)
    driver.ask({"do": "fence", "generation": 4})
    with pytest.raises(WireError, match="generation 3 is over"):
        create(worker, 3)
    create(worker, 4)
    copy = {"do": "copy", "generation": 3, "rank": 0, "world_size": 2, "slot": 0, "step": 9, "state_bytes": 2,
            "index_bytes": 2, "payload_bytes": SIZE.payload_bytes, "slot_state_bytes": SIZE.state_bytes}  # fmt: skip
    with pytest.raises(WireError, match="generation 3 is over"):
        Channel.connect(vault.address, TOKEN, 5.0).ask(copy, b"{}{}" + bytes(SIZE.payload_bytes))


def test_a_copy_that_is_there_is_not_written_by_an_older_generation(vault: Vault) -> None:
    driver, peer = (Channel.connect(vault.address, TOKEN, 5.0) for _ in range(2))
    copy = {"do": "copy", "generation": 3, "rank": 0, "world_size": 2, "slot": 0, "step": 9, "state_bytes": 2,
            "index_bytes": 2, "payload_bytes": SIZE.payload_bytes, "slot_state_bytes": SIZE.state_bytes}  # fmt: skip
    peer.ask(copy, b"{}{}" + bytes(SIZE.payload_bytes))
    driver.ask({"do": "fence", "generation": 4})
    with pytest.raises(WireError, match="generation 3 is over"):
        peer.ask({**copy, "step": 10}, b"{}{}" + bytes(SIZE.payload_bytes))
    assert [item["step"] for item in driver.ask({"do": "inventory"})[0]["held"]] == [9]


def a_copy(generation: int, step: int, slot: int = 0) -> dict[str, object]:
    return {"do": "copy", "generation": generation, "rank": 0, "world_size": 2, "slot": slot, "step": step,
            "state_bytes": 2, "index_bytes": 2, "payload_bytes": SIZE.payload_bytes,
            "slot_state_bytes": SIZE.state_bytes}  # fmt: skip


def steps(vault: Vault) -> list[tuple[int, int]]:
    held, _ = Channel.connect(vault.address, TOKEN, 5.0).ask({"do": "inventory"})
    return sorted((token_of(item["generation"]), item["step"]) for item in held["held"])


def test_a_driver_with_a_higher_token_ends_what_the_ones_before_may_do(vault: Vault) -> None:
    """Whatever it asks for, not only with a fence: a vault that the fence did not reach is fenced by what follows."""
    old, new = first_generation(1) + 3, first_generation(2) + 1
    before, driver, worker = (Channel.connect(vault.address, TOKEN, 5.0) for _ in range(3))
    whole = b"{}{}" + bytes(SIZE.payload_bytes)
    worker.ask(a_copy(old, 9), whole)
    driver.ask({"do": "peers", "generation": new, "addresses": []})
    for refused in ({"do": "peers", "generation": old, "addresses": []}, {"do": "forget", "before": old + 1}):
        with pytest.raises(WireError, match="is over"):
            before.ask(refused)
    with pytest.raises(WireError, match="is over"):
        worker.ask(a_copy(old, 10, slot=1), whole)
    store = {"do": "store", "generation": old, "rank": 0, "step": 9, "place": "/x", "name": "n", "tag": "", "extra": {}}
    late = Channel.connect(vault.address, TOKEN, 5.0)
    late.send(store)
    with pytest.raises(OSError, match=r"hung up|reset|closed"):
        late.answer()
    assert steps(vault) == [(1, 9)], "the state stays: the new driver goes on from it"


def test_a_copy_on_its_way_when_the_fence_is_raised_changes_no_cell(vault: Vault) -> None:
    old, new = first_generation(1) + 1, first_generation(2) + 1
    driver, worker = (Channel.connect(vault.address, TOKEN, 5.0) for _ in range(2))
    payload = b"{}{}" + bytes(SIZE.payload_bytes)
    worker.ask(a_copy(old, 8, slot=1), payload)
    worker.ask(a_copy(old, 9), payload)
    late = Channel.connect(vault.address, TOKEN, 5.0)
    late._socket.sendall(encode(a_copy(old, 10, slot=1), len(payload)) + payload[:100])
    deadline = time.monotonic() + 5.0
    while steps(vault) != [(1, 9)]:  # the slot of step 8 is being written
        assert time.monotonic() < deadline
        time.sleep(0.005)
    driver.ask({"do": "fence", "generation": new})
    late._socket.sendall(payload[100:])
    with pytest.raises(OSError, match=r"hung up|reset|closed"):
        late.answer()
    assert steps(vault) == [(1, 9)]


def test_a_copy_of_a_forgotten_generation_is_not_taken(vault: Vault) -> None:
    """It would be held until the next gang: nobody forgets it again."""
    driver = Channel.connect(vault.address, TOKEN, 5.0)
    driver.ask({"do": "forget", "before": 4})
    copy = {"do": "copy", "generation": 3, "rank": 0, "world_size": 2, "slot": 0, "step": 9, "state_bytes": 2,
            "index_bytes": 2, "payload_bytes": SIZE.payload_bytes, "slot_state_bytes": SIZE.state_bytes}  # fmt: skip
    with pytest.raises(WireError, match="generation 3 is over"):
        Channel.connect(vault.address, TOKEN, 5.0).ask(copy, b"{}{}" + bytes(SIZE.payload_bytes))
    assert driver.ask({"do": "inventory"})[0]["memory_bytes"] == 0


def test_a_pid_that_is_somebody_elses_by_now_is_not_touched() -> None:
    cell = Cell.create(SIZE, "1-0")
    other = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"])
    try:
        assert maps(os.getpid(), cell.descriptor)
        assert not maps(other.pid, cell.descriptor)
        assert end_writers([(other.pid, cell.descriptor)]) == ([], [])
        assert other.poll() is None
    finally:
        other.kill()
        other.wait()
        cell.close()
