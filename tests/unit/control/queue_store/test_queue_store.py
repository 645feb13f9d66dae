"""The database: schema, commits, backups, what it refuses to open."""

import sqlite3
import threading
from concurrent.futures import Future
from pathlib import Path

import pytest

from orchestrator.control.queue_store import schema_migrations
from orchestrator.control.queue_store.event_table import events_after, newest_number
from orchestrator.control.queue_store.queue_store import QueueStore
from orchestrator.control.queue_store.queue_table import all_queues
from orchestrator.control.queue_store.run_table import run_by_id, unsettled_runs
from orchestrator.control.queue_store.schema_migrations import migrations, statements_of
from orchestrator.control.queue_store.token_table import (
    TokenRow,
    add_token,
    all_tokens,
    revoke_token,
    token_by_hash,
    touch_token,
)
from orchestrator.domain.errors import ConflictError, UnavailableError, UsageError
from tests.unit.control.queue_store.rows import adding, row

pytestmark = pytest.mark.unit


def test_what_is_written_is_there_after_a_reopening_and_for_nobody_else_to_read(fast_directory: Path) -> None:
    path = fast_directory / "deep" / "queue.db"
    store = QueueStore(path)
    added = store.write(adding(row(1)))
    assert (added.seq, added.changes) == (1, 1)
    identity = store.server_id
    store.close()
    again = QueueStore(path)
    assert again.read(lambda connection: run_by_id(connection, added.id)) == added
    assert again.server_id == identity
    assert list(again.read(all_queues)) == ["default"]
    assert path.stat().st_mode & 0o777 == 0o600
    assert {each.stat().st_mode & 0o077 for each in path.parent.iterdir()} == {0}
    again.close()
    with pytest.raises(UnavailableError, match="shutting down"):
        again.write(adding(row(2)))


def test_every_table_is_strict_and_the_settings_are_those_of_a_durable_wal(fast_directory: Path) -> None:
    store = QueueStore(fast_directory / "queue.db")
    tables = store.read(
        lambda connection: connection.execute(
            "SELECT name, strict FROM pragma_table_list WHERE type = 'table'"
        ).fetchall()
    )
    own = {name: strict for name, strict in tables if not name.startswith("sqlite_")}
    assert len(own) == 12
    assert set(own.values()) == {1}
    pragmas = store.write(
        lambda connection: [
            connection.execute(f"PRAGMA {name}").fetchone()[0]
            for name in ("journal_mode", "synchronous", "foreign_keys")
        ]
    )
    assert pragmas == ["wal", 2, 1]
    with pytest.raises(UnavailableError, match="cannot be written"):
        store.read(lambda connection: connection.execute("DELETE FROM queues"))
    store.close()


def test_commands_that_wait_together_share_a_commit_and_fail_alone(fast_directory: Path) -> None:
    store = QueueStore(fast_directory / "queue.db")
    entered, leave = threading.Event(), threading.Event()

    def slow(connection: sqlite3.Connection) -> int:
        entered.set()
        leave.wait(10)
        return connection.total_changes

    first = store.submit(slow)
    entered.wait(10)
    futures: list[Future[object]] = [store.submit(adding(row(number))) for number in (1, 2, 1, 3)]
    assert not any(future.done() for future in futures), "nothing is said before it is durable"
    leave.set()
    first.result(10)
    results = [future.exception(10) for future in futures]
    assert [type(error) for error in results] == [type(None), type(None), ConflictError, type(None)]
    assert [each.id for each in store.read(unsettled_runs)] == ["tiny-0000001", "tiny-0000002", "tiny-0000003"]
    assert store.read(newest_number) == 3
    store.close()


def test_an_event_cannot_be_changed_or_removed(fast_directory: Path) -> None:
    store = QueueStore(fast_directory / "queue.db")
    store.write(adding(row(1)))
    for statement in ("UPDATE events SET message = 'x'", "DELETE FROM events"):
        with pytest.raises(sqlite3.IntegrityError, match="never"):
            store.write(lambda connection, statement=statement: connection.execute(statement))
    assert [event.message for event in store.read(lambda connection: events_after(connection, 0, 10))] == ["by a test"]
    store.close()


def test_a_reader_sees_one_state_and_does_not_wait_for_the_writer(fast_directory: Path) -> None:
    store = QueueStore(fast_directory / "queue.db")
    store.write(adding(row(1)))

    def twice(connection: sqlite3.Connection) -> tuple[int, int]:
        before = newest_number(connection)
        store.write(adding(row(2)))
        return before, newest_number(connection)

    assert store.read(twice) == (1, 1)
    assert store.read(newest_number) == 2
    store.close()


def test_a_backup_is_whole_while_the_database_is_written(fast_directory: Path) -> None:
    store = QueueStore(fast_directory / "queue.db")
    futures = [store.submit(adding(row(number))) for number in range(200)]
    futures[0].result(10)
    store.backup(fast_directory / "copy.db")
    [future.result(10) for future in futures]
    store.close()
    copy = QueueStore(fast_directory / "copy.db")
    found = copy.read(unsettled_runs)
    assert 0 < len(found) <= 200
    assert copy.read(newest_number) == len(found)
    assert copy.server_id == store.server_id
    copy.close()
    assert sorted(path.name for path in fast_directory.glob("*copy*")) == ["copy.db"]
    with pytest.raises(UsageError, match="cannot write the backup"):
        QueueStore(fast_directory / "queue.db").backup(fast_directory / "missing" / "copy.db")


def test_a_database_of_a_newer_version_or_another_program_is_refused(fast_directory: Path) -> None:
    newer, foreign, broken = (fast_directory / name for name in ("newer.db", "foreign.db", "broken.db"))
    QueueStore(newer).close()
    with sqlite3.connect(newer) as connection:
        connection.execute("PRAGMA user_version = 99")
    with pytest.raises(UsageError, match=r"newer version of Convoy \(schema 99, this version knows") as caught:
        QueueStore(newer)
    assert "backup" in str(caught.value.hint)
    with sqlite3.connect(foreign) as connection:
        connection.execute("CREATE TABLE songs (title TEXT)")
    with pytest.raises(UsageError, match="another program"):
        QueueStore(foreign)
    broken.write_bytes(b"these are no pages of a database" * 200)
    with pytest.raises(UsageError, match="no SQLite database"):
        QueueStore(broken)
    with pytest.raises(UsageError, match="cannot open"):
        QueueStore(fast_directory)


def test_a_migration_is_done_whole_or_not_at_all(fast_directory: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = fast_directory / "queue.db"
    store = QueueStore(path)
    store.write(adding(row(1)))
    store.close()
    known = migrations()
    steps = [*known, (2, "ALTER TABLE runs ADD COLUMN note TEXT;\nCREATE TABLE wrong (;\n")]
    monkeypatch.setattr(schema_migrations, "migrations", lambda: steps)
    with pytest.raises(sqlite3.OperationalError):
        QueueStore(path)
    steps[-1] = (2, "ALTER TABLE runs ADD COLUMN note TEXT;\n")
    QueueStore(path).close()
    with sqlite3.connect(path) as connection:
        assert connection.execute("PRAGMA user_version").fetchone() == (2,)
        assert connection.execute("SELECT count(*), max(note) FROM runs").fetchone() == (1, None)


def test_statements_are_told_apart_with_triggers_whole() -> None:
    text = "CREATE TABLE a (b); -- one\nCREATE TRIGGER t AFTER INSERT ON a\nBEGIN SELECT 1; SELECT 2; END;\n"
    assert len(statements_of(text)) == 2
    numbers = [number for number, _ in migrations()]
    assert numbers == list(range(1, len(numbers) + 1))


def test_tokens_are_found_by_hash_revoked_and_touched(fast_directory: Path) -> None:
    store = QueueStore(fast_directory / "queue.db")
    token = TokenRow("t1", "laptop", "ml", "ann", "submitter", "ab" * 32, 1.0, expires_s=9.0)
    store.write(lambda connection: add_token(connection, token))
    assert store.read(lambda connection: token_by_hash(connection, "ab" * 32)) == token
    assert store.read(lambda connection: token_by_hash(connection, "cd" * 32)) is None
    assert store.write(lambda connection: revoke_token(connection, "t1"))
    assert not store.write(lambda connection: revoke_token(connection, "t2"))
    store.write(lambda connection: touch_token(connection, "t1", 5.0))
    (found,) = store.read(all_tokens)
    assert (found.revoked, found.last_used_s) == (True, 5.0)
    with pytest.raises(sqlite3.IntegrityError):
        store.write(lambda connection: add_token(connection, TokenRow("t3", "x", "ml", "a", "king", "ef", 1.0)))
    store.close()


def test_a_command_that_is_given_up_is_not_carried_out(fast_directory: Path) -> None:
    store = QueueStore(fast_directory / "queue.db")
    entered, leave = threading.Event(), threading.Event()
    store.submit(lambda _: (entered.set(), leave.wait(10)))
    entered.wait(10)
    late = store.submit(adding(row(1)))
    assert late.cancel()
    leave.set()
    assert store.write(adding(row(2))).seq == 1
    store.close()
