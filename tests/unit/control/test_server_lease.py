"""Two servers on one database: one acts."""

import contextlib
import sqlite3
from collections.abc import Callable, Iterator
from pathlib import Path
from time import sleep

import pytest

from orchestrator.control.queue_store import queue_store
from orchestrator.control.queue_store.queue_store import QueueStore
from orchestrator.control.server_lease import UNSURE_S, ServerLease
from orchestrator.domain.errors import UnavailableError
from orchestrator.domain.lease import LOOK_S, RENEW_S, TTL_S
from tests.unit.control.queue_store.rows import adding, row
from tests.unit.control.scripted import Time

pytestmark = pytest.mark.unit


@pytest.fixture
def store(fast_directory: Path) -> Iterator[QueueStore]:
    opened = QueueStore(fast_directory / "queue.db")
    yield opened
    opened.close()


def lease(store: QueueStore, time: Time) -> ServerLease:
    return ServerLease(store, time.clock, threaded=False)


def watch(challenger: ServerLease, time: Time, seconds: float, meanwhile: Callable[[], None] = lambda: None) -> bool:
    """Let the challenger look for so long; whether it has the lease then."""
    for _ in range(int(seconds / LOOK_S)):
        challenger.turn()
        meanwhile()
        time.pass_s(LOOK_S)
    return challenger.held()


def test_the_first_server_acts_and_a_second_one_waits_while_it_renews(store: QueueStore) -> None:
    time = Time()
    first, second = lease(store, time), lease(store, time)
    first.turn()
    assert first.held()
    assert first.token == 1
    assert not watch(second, time, 3 * TTL_S, meanwhile=first.turn)
    assert second.token is None
    with pytest.raises(UnavailableError, match="another server acts"):
        second.write(adding(row(1)))
    assert first.write(adding(row(1))).seq == 1


def test_a_server_that_gives_the_lease_back_is_not_waited_for(store: QueueStore) -> None:
    time = Time()
    first, second = lease(store, time), lease(store, time)
    first.turn()
    first.close()
    first.close()
    assert not first.held()
    second.turn()
    assert second.held()
    assert second.token == 2


def test_a_lease_that_cannot_be_given_back_keeps_no_server_from_ending(
    fast_directory: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(queue_store, "LOCK_WAIT_S", 0.02)
    store = QueueStore(fast_directory / "locked.db")
    held = lease(store, Time())
    held.turn()
    with contextlib.closing(sqlite3.connect(store.path, isolation_level=None)) as other:
        other.execute("BEGIN IMMEDIATE")
        held.close()
    assert not held.held()
    store.close()


def test_a_silent_holder_is_replaced_after_the_ttl_and_can_write_nothing_more(store: QueueStore) -> None:
    time = Time()
    first, second = lease(store, time), lease(store, time)
    first.turn()
    assert not watch(second, time, TTL_S - 1)
    assert watch(second, time, 2)
    assert second.token == 2
    with pytest.raises(UnavailableError, match="another server has taken over"):
        first.write(adding(row(1)))
    assert store.read(lambda connection: connection.execute("SELECT count(*) FROM runs").fetchone()) == (0,)
    assert not first.held(), "a holder that has not renewed for long looks before it acts"
    assert second.held()
    assert second.write(adding(row(1))).seq == 1


def test_a_clock_that_jumps_expires_nothing(store: QueueStore) -> None:
    time = Time()
    first, second = lease(store, time), lease(store, time)
    first.turn()
    second.turn()
    time.monotonic_s += 1e6  # the machine was suspended, and the holder's with it
    second.turn()
    time.unix_s += 1e9
    second.turn()
    assert second.token is None
    assert first.held()
    time.unix_s -= 2e9
    assert not watch(second, time, TTL_S + 10, meanwhile=first.turn)


def test_a_server_whose_process_is_certainly_dead_is_not_waited_for(
    store: QueueStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    from orchestrator.store.driver_process import DriverProcess

    time = Time()
    lease(store, time).turn()
    second = lease(store, time)
    monkeypatch.setattr(DriverProcess, "alive", lambda self: None)
    second.turn()
    assert second.token is None, "it cannot be told: another machine"
    monkeypatch.setattr(DriverProcess, "alive", lambda self: False)
    second.turn()
    assert second.token == 2


def test_two_servers_with_connections_of_their_own_agree(fast_directory: Path) -> None:
    time, stores = Time(), [QueueStore(fast_directory / "shared.db") for _ in range(2)]
    first, second = (lease(store, time) for store in stores)
    first.turn()
    second.turn()
    assert (first.token, second.token) == (1, None)
    assert first.write(adding(row(1))).seq == 1
    assert watch(second, time, TTL_S + 2)
    with pytest.raises(UnavailableError, match="taken over"):
        first.write(adding(row(2)))
    assert second.write(adding(row(2))).seq == 2
    for store in stores:
        store.close()


def test_of_two_challengers_one_gets_it(store: QueueStore) -> None:
    time = Time()
    first = lease(store, time)
    first.turn()
    first.close()
    challengers = [lease(store, time) for _ in range(3)]
    for each in challengers:
        each.turn()
    assert [each.token for each in challengers] == [2, None, None]


def test_it_is_renewed_in_the_background_and_given_back(store: QueueStore) -> None:
    held = ServerLease(store)
    for _ in range(1000):
        if held.token is not None:
            break
        sleep(0.005)
    assert held.token == 1
    held.close()
    assert UNSURE_S > RENEW_S
    second = lease(store, Time())
    second.turn()
    assert second.held()
