"""The vaults' port: for peers, for those who do not know the token, and in a process that is short of something."""

import contextlib
import errno
import os
import select
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from orchestrator.checkpoint.memory import vault_server as serving
from orchestrator.checkpoint.memory.vault_server import VaultServer
from orchestrator.checkpoint.memory.wire import LENGTH, Channel, RefusedError, WireError, encode

pytestmark = pytest.mark.unit

TOKEN = "a token of these tests"


@pytest.fixture
def server() -> Iterator[VaultServer]:
    made = VaultServer("127.0.0.1", TOKEN, lambda channel, _: channel.send({"heard": True}))
    yield made
    made.close()


def asks(server: VaultServer, timeout_s: float = 5.0) -> bool:
    with contextlib.closing(Channel.connect(server.address, TOKEN, timeout_s)) as channel:
        return channel.ask({"do": "anything"})[0] == {"heard": True}


def stranger(server: VaultServer, host: str = "127.0.0.1") -> socket.socket:
    where, _, port = server.address.rpartition(":")
    return socket.create_connection((where, int(port)), timeout=5.0, source_address=(host, 0))


def hung_up(connection: socket.socket, within_s: float) -> bool:
    """Whether the other side closes, after whatever it says."""
    deadline = time.monotonic() + within_s
    connection.settimeout(within_s)
    try:
        while connection.recv(4096):
            connection.settimeout(max(0.01, deadline - time.monotonic()))
    except TimeoutError:
        return False
    except ConnectionError:
        return True
    return True


def open_files(pid: int) -> set[str]:
    return {each.name for each in Path(f"/proc/{pid}/fd").iterdir()}


def eventually(true: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 10.0
    while not true():
        assert time.monotonic() < deadline
        time.sleep(0.005)


def fail_to_accept(monkeypatch: pytest.MonkeyPatch, error: Exception, times: int) -> list[int]:
    """The next so many accepts raise; how many are left to."""
    left, accept = [times], socket.socket.accept

    def failing(listener: socket.socket) -> Any:
        if left[0] > 0:
            left[0] -= 1
            raise error
        return accept(listener)

    monkeypatch.setattr(socket.socket, "accept", failing)
    return left


@pytest.mark.parametrize(
    "error",
    [
        *(OSError(number, os.strerror(number)) for number in (
            errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM, errno.ECONNABORTED, errno.EPROTO, errno.EPERM,
            errno.ENETDOWN, errno.EHOSTUNREACH)),
        MemoryError(),
        RuntimeError("anything else"),
    ],
    ids=repr,
)  # fmt: skip
def test_no_error_of_accepting_ends_the_listening(
    server: VaultServer, monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    left = fail_to_accept(monkeypatch, error, 3)
    assert asks(server)
    assert left == [0]
    assert server.problem == ""
    assert server.deaf_s == 0.0


def test_a_server_that_cannot_accept_says_so_until_it_can(server: VaultServer, monkeypatch: pytest.MonkeyPatch) -> None:
    left = fail_to_accept(monkeypatch, OSError(errno.EMFILE, "Too many open files"), 1 << 30)
    with pytest.raises(TimeoutError):
        asks(server, 0.2)
    eventually(lambda: server.deaf_s > 0.3)
    assert "Too many open files" in server.problem
    left[0] = 0
    assert asks(server)
    assert (server.deaf_s, server.problem) == (0.0, "")


def test_a_connection_without_a_thread_for_it_is_refused_and_the_next_is_served(
    server: VaultServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    start, left = threading.Thread.start, [1]

    def failing(thread: threading.Thread) -> None:
        if thread.name == "vault-serve" and left[0]:
            left[0] -= 1
            raise RuntimeError("can't start new thread")
        start(thread)

    monkeypatch.setattr(threading.Thread, "start", failing)
    with pytest.raises(RefusedError, match="can't start new thread"):
        asks(server)
    assert asks(server)


SMALL_PROCESS = f"""
import resource, sys
from orchestrator.checkpoint.memory.vault import Vault
vault = Vault("127.0.0.1", {TOKEN!r}, lambda: 1 << 30)
resource.setrlimit(resource.RLIMIT_NOFILE, (64, resource.getrlimit(resource.RLIMIT_NOFILE)[1]))
print(vault.address, flush=True)
sys.stdin.read()
"""


def test_a_vault_short_of_descriptors_hears_its_peers_all_the_same() -> None:
    """With 64 descriptors and 150 connections of somebody who does not know the token."""
    with subprocess.Popen(
        [sys.executable, "-c", SMALL_PROCESS], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None
        address = process.stdout.readline().strip()
        host, _, port = address.rpartition(":")

        def count() -> int:
            return len(open_files(process.pid))

        def pings() -> bool:
            with contextlib.closing(Channel.connect(address, TOKEN, 5.0)) as channel:
                return channel.ask({"do": "ping"})[0] == {}

        assert pings()
        before = count()
        held = [socket.create_connection((host, int(port)), timeout=5.0) for _ in range(150)]
        assert all(pings() for _ in range(20))
        assert count() <= before + 64 // 8 + 1
        for each in held:
            each.close()
        eventually(lambda: count() <= before)
        assert pings()
        process.kill()


def test_the_oldest_strangers_make_room_for_peers(server: VaultServer) -> None:
    held = [stranger(server) for _ in range(serving.MAX_STRANGERS + 20)]
    assert asks(server)
    assert all(hung_up(each, 5.0) for each in held[:20])
    assert not hung_up(held[-1], 0.05)
    assert len(server._strangers) <= serving.MAX_STRANGERS
    for each in held:
        each.close()
    eventually(lambda: not server._strangers)


def test_whoever_opens_many_takes_no_place_of_others(server: VaultServer) -> None:
    slow = stranger(server, "127.0.0.2")
    slow.sendall(encode({"token": TOKEN}, 0)[:9])  # the oldest of all, and slow
    held = [stranger(server) for _ in range(2 * serving.MAX_STRANGERS)]
    assert hung_up(held[0], 5.0)
    slow.sendall(encode({"token": TOKEN}, 0)[9:])
    channel = Channel(slow)
    assert channel.answer() == ({}, 0)
    assert channel.ask({"do": "anything"})[0] == {"heard": True}
    for each in (slow, *held):
        each.close()


def test_the_time_for_the_token_is_one_in_all(server: VaultServer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(serving, "HANDSHAKE_S", 0.3)
    trickle, began_s = stranger(server), time.monotonic()
    with contextlib.suppress(OSError):
        for byte in encode({"token": TOKEN}, 0):  # a byte well within every timeout of a single receive
            trickle.sendall(bytes([byte]))
            if select.select([trickle], [], [], 0.03)[0]:
                break
    assert hung_up(trickle, 0.1)
    assert time.monotonic() - began_s < 3.0
    trickle.close()


@pytest.mark.parametrize(
    "said",
    [
        LENGTH.pack(64 << 20),
        LENGTH.pack((1 << 32) - 1) + b"x" * 100,
        LENGTH.pack(1000) + b"[" * 1000,
        LENGTH.pack(2) + b"{}",
        LENGTH.pack(2) + b"\xff\xff",
        LENGTH.pack(4) + b"null",
        encode({"token": "wr\u00f6ng"}, 0),
        encode({"token": None}, 0),
        encode({"token": TOKEN}, 1 << 40),
        b"GET / HTTP/1.1\r\n\r\n",
    ],
    ids=range(10),
)
def test_what_is_no_hello_ends_its_connection_at_once(server: VaultServer, said: bytes) -> None:
    connection = stranger(server)
    connection.sendall(said)
    assert hung_up(connection, 2.0)
    connection.close()
    assert not server._strangers
    assert asks(server)


def test_a_wrong_token_is_told(server: VaultServer) -> None:
    with pytest.raises(WireError, match="wrong token"):
        Channel.connect(server.address, "wrong", 5.0)


def test_no_more_peers_than_there_may_be(server: VaultServer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(serving, "MAX_PEERS", 3)
    held = [Channel.connect(server.address, TOKEN, 5.0) for _ in range(3)]
    with pytest.raises(RefusedError, match="3 connections are open"):
        Channel.connect(server.address, TOKEN, 5.0)
    held.pop().close()
    eventually(lambda: len(server._peers) < 3)
    assert asks(server)
    for each in held:
        each.close()


def test_everything_is_released(monkeypatch: pytest.MonkeyPatch) -> None:
    before = open_files(os.getpid())
    for _ in range(3):
        server = VaultServer("127.0.0.1", TOKEN, lambda channel, _: channel.send({}))
        held = [stranger(server) for _ in range(5)]
        peers = [Channel.connect(server.address, TOKEN, 5.0) for _ in range(5)]
        server.close()
        assert all(hung_up(each, 5.0) for each in held)
        for each in (*held, *peers):
            each.close()
        with pytest.raises(ConnectionRefusedError):
            stranger(server)
    eventually(lambda: open_files(os.getpid()) <= before)
