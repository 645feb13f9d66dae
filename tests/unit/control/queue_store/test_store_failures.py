"""A full disk, a locked database: clear errors, nothing corrupt, and the store continues by itself."""

import os
import sqlite3
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from orchestrator.control.queue_store import queue_store
from orchestrator.control.queue_store.queue_store import QueueStore
from orchestrator.control.queue_store.run_table import run_by_id, unsettled_runs
from orchestrator.domain.errors import UnavailableError
from tests.small_disk import mounted_disk
from tests.unit.control.queue_store.rows import adding, row

pytestmark = pytest.mark.unit


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 1 MiB."""
    with mounted_disk(tmp_path, "1m") as disk:
        yield disk


@pytest.mark.needs("mounts")
def test_a_full_disk_is_said_and_what_was_confirmed_is_there(small_disk: Path) -> None:
    store = QueueStore(small_disk / "queue.db")
    confirmed = [store.write(adding(row(number))).id for number in range(5)]
    (small_disk / "ballast").write_bytes(bytes(300 << 10))

    def fill() -> None:
        for number in range(5, 5000):
            confirmed.append(store.write(adding(row(number))).id)

    with pytest.raises(UnavailableError, match="disk of the queue's database is full") as caught:
        fill()
    assert "free some space" in str(caught.value.hint)
    assert len(confirmed) > 5
    assert [each.id for each in store.read(unsettled_runs)] == confirmed, "reading works meanwhile"
    (small_disk / "ballast").unlink()
    confirmed.append(store.write(adding(row(9000))).id)
    store.close()
    again = QueueStore(small_disk / "queue.db")
    assert [each.id for each in again.read(unsettled_runs)] == confirmed
    assert again.read(lambda connection: connection.execute("PRAGMA integrity_check").fetchone()) == ("ok",)
    again.close()


HOLDER = """
import sqlite3, sys
connection = sqlite3.connect(sys.argv[1], isolation_level=None)
connection.execute("BEGIN IMMEDIATE")
print("locked", flush=True)
sys.stdin.read()
"""


def test_a_lock_of_another_process_is_said_and_outlived(fast_directory: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(queue_store, "LOCK_WAIT_S", 0.05)
    store = QueueStore(fast_directory / "queue.db")
    kept = store.write(adding(row(1)))
    command = [sys.executable, "-S", "-c", HOLDER, str(fast_directory / "queue.db")]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as holder:
        assert holder.stdout is not None
        assert holder.stdout.readline() == b"locked\n"
        with pytest.raises(UnavailableError, match="another process has locked") as caught:
            store.write(adding(row(2)))
        assert "fuser" in str(caught.value.hint)
        assert store.read(lambda connection: run_by_id(connection, kept.id)) == kept, "reading works meanwhile"
        holder.communicate()
    assert store.write(adding(row(2))).seq == 2
    store.close()


def test_a_process_that_dies_while_it_writes_leaves_whole_transactions(fast_directory: Path) -> None:
    path = fast_directory / "queue.db"
    store = QueueStore(path)
    store.write(adding(row(1)))
    child = os.fork()
    if not child:
        connection = sqlite3.connect(path, isolation_level=None)
        connection.execute("BEGIN IMMEDIATE")
        adding(row(2))(connection)
        os._exit(0)
    os.waitpid(child, 0)
    assert [each.id for each in store.read(unsettled_runs)] == ["tiny-0000001"]
    assert store.write(adding(row(3))).id == "tiny-0000003"
    store.close()


def test_too_many_waiting_commands_are_refused(fast_directory: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import threading

    monkeypatch.setattr("orchestrator.control.queue_store.write_thread.WAITING_COMMANDS", 3)
    store = QueueStore(fast_directory / "queue.db")
    entered, leave = threading.Event(), threading.Event()
    store.submit(lambda _: (entered.set(), leave.wait(10)))
    entered.wait(10)
    for number in range(3):
        store.submit(adding(row(number)))
    with pytest.raises(UnavailableError, match="does not keep up"):
        store.submit(adding(row(4)))
    leave.set()
    store.close()
    assert len(QueueStore(fast_directory / "queue.db").read(unsettled_runs)) == 3
