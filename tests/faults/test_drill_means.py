"""What drills break things with: a link, a disk, a network; and what is left of them when a drill is killed."""

import contextlib
import os
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from orchestrator.checkpoint.storage.storage import LocalStorage, StorageError, StorageFault
from orchestrator.drill import limited_disk, node_network
from orchestrator.drill.bucket_proxy import HOST, Link

pytestmark = pytest.mark.faults

needs_mounts, needs_network = pytest.mark.needs("mounts"), pytest.mark.needs("networks")


@pytest.fixture
def echo() -> Iterator[int]:
    """The port of a server that sends back what it gets."""

    def serve(listener: socket.socket) -> None:
        while True:
            try:
                connection, _ = listener.accept()
            except OSError:
                return
            threading.Thread(target=answer, args=(connection,), daemon=True).start()

    def answer(connection: socket.socket) -> None:
        with connection, contextlib.suppress(OSError):
            while data := connection.recv(1024):
                connection.sendall(data)

    with socket.create_server((HOST, 0)) as listener:
        threading.Thread(target=serve, args=(listener,), daemon=True).start()
        yield listener.getsockname()[1]


def test_a_cut_link_resets_what_is_open_and_refuses_what_is_new(echo: int) -> None:
    link = Link(HOST, echo)
    for _ in range(3):
        with socket.create_connection((HOST, link.port), timeout=5) as connection:
            connection.sendall(b"there")
            assert connection.recv(1024) == b"there"
            link.cut()
            with pytest.raises(ConnectionResetError):
                connection.recv(1024)
        with pytest.raises(ConnectionRefusedError):
            socket.create_connection((HOST, link.port), timeout=5)
        link.mend()
    link.mend()
    link.close()


def killed(code: str, *arguments: str) -> None:
    """Run code until it prints something, and SIGKILL it then."""
    command = [sys.executable, "-c", f"{code}\nprint('there', flush=True)\nimport time; time.sleep(60)", *arguments]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "there\n"
        process.kill()


@needs_mounts
def test_a_full_disk_is_one_and_its_files_stay(tmp_path: Path) -> None:
    directory = tmp_path / "with a blank"
    there = limited_disk.Disk(directory)
    storage = LocalStorage(directory)
    storage.put("zero", "file", [b"there"], 5)
    storage.put("one", "file", [bytes(100_000)], 100_000)
    there.fill()
    with pytest.raises(StorageError, match="No space left on device") as raised:
        storage.put("two", "file", [bytes(100_000)], 100_000)
    assert raised.value.fault is StorageFault.FULL
    storage.remove("one", "file")  # as retention does: nobody is helped by that
    time.sleep(0.3)
    with pytest.raises(StorageError, match="No space left on device"):
        storage.put("two", "file", [bytes(100_000)], 100_000)
    there.empty()
    storage.put("three", "file", [b"more"], 4)
    there.close()
    assert not os.path.ismount(directory)
    assert {name: storage.sizes(name) for name in ("zero", "three")} == {"zero": {"file": 5}, "three": {"file": 4}}
    assert [path.name for path in tmp_path.iterdir()] == [directory.name]


@needs_mounts
def test_the_disk_of_a_drill_that_was_killed_is_settled_by_the_next(tmp_path: Path) -> None:
    directory = tmp_path / "with a blank"
    code = "import sys, pathlib; from orchestrator.drill.limited_disk import Disk; d = pathlib.Path(sys.argv[1]); "
    killed(code + "Disk(d); (d / 'file').write_text('kept')", str(directory))
    assert os.path.ismount(directory)
    mine = limited_disk.Disk(tmp_path / "mine")
    limited_disk.sweep()
    assert not os.path.ismount(directory)
    assert (directory / "file").read_text() == "kept"
    assert os.path.ismount(tmp_path / "mine")  # who lives keeps it
    mine.close()


@needs_network
def test_a_node_that_is_cut_off_is_neither_reached_nor_refused() -> None:
    net = node_network.Network(3)
    try:
        first, second = net.nodes[1].address, net.nodes[2].address
        wait_for(first)
        wait_for(second)
        net.cut(second)
        wait_for(first)
        assert not pings(second)
        net.mend()
        wait_for(second)
    finally:
        net.close()
    assert not any(Path(str(node.namespace)).exists() for node in net.nodes[1:])


def wait_for(address: str) -> None:
    """Until a host answers: the kernel needs a moment for a new link, and looks for a lost neighbour once a second."""
    deadline_s = time.monotonic() + 20.0
    while not pings(address):
        assert time.monotonic() < deadline_s, f"{address} does not answer"


def pings(address: str) -> bool:
    """Whether a host answers: it refuses a connection to a port where nobody listens."""
    try:
        socket.create_connection((address, 9), timeout=0.5).close()
    except ConnectionRefusedError:
        return True
    except OSError:
        return False
    return True


@needs_network
def test_the_network_of_a_drill_that_was_killed_is_removed_by_the_next() -> None:
    before = set(links())
    mine = node_network.Network(2)
    kept = set(links()) - before
    killed("from orchestrator.drill.node_network import Network; Network(3)")
    left = set(links()) - before - kept
    assert len(left) == 3  # a bridge and two nodes
    node_network.sweep()
    deadline = time.monotonic() + 5
    while set(links()) & left and time.monotonic() < deadline:
        time.sleep(0.05)
    assert set(links()) - before == kept  # who lives keeps it
    mine.close()
    assert set(links()) - before == set()


def links() -> list[str]:
    return [path.name for path in Path("/sys/class/net").glob("cv*")]
