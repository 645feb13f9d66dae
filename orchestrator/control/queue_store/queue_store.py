"""The queue's database: SQLite in WAL mode, one writer thread, readers on connections of their own.

It has to be on a disk of the server's machine: WAL needs shared memory, which network file systems do not have
(https://www.sqlite.org/wal.html).
"""

import contextlib
import os
import secrets
import sqlite3
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from concurrent.futures import TimeoutError as NoAnswerError
from pathlib import Path
from typing import TypeVar

from orchestrator.control.queue_store.reader_pool import ReaderPool
from orchestrator.control.queue_store.schema_migrations import migrate
from orchestrator.control.queue_store.sqlite_errors import LOCK_WAIT_S, in_words
from orchestrator.control.queue_store.write_thread import Command, WriteThread
from orchestrator.domain.errors import UnavailableError, UsageError

WRITE_WAIT_S = 30.0
"""How long a caller waits for its command to be durable."""
CLOSE_WAIT_S = 10.0
CACHE_KIB = 8192
"""Pages that a connection keeps in memory."""
LARGEST_WAL_BYTES = 64 << 20
"""To which the write-ahead log is cut after a checkpoint."""
COPIED_PAGES = 2048
"""Of a backup in one go; writers go between two of them."""

T = TypeVar("T")


class QueueStore:
    """One database file. Thread-safe. Every method raises UnavailableError if the database is locked, its disk is full
    or does not answer; nothing is changed then."""

    def __init__(self, path: Path, now_s: float | None = None) -> None:
        """Open or create the database, readable by this user only, and bring it to this version. Raises UsageError if
        it is of a newer version, damaged, or no queue's database."""
        self.path = path.absolute()
        with self._said():
            try:
                self.path.parent.mkdir(parents=True, exist_ok=True)
                os.close(os.open(self.path, os.O_RDWR | os.O_CREAT, 0o600))
            except OSError as error:
                raise UsageError(f"cannot open the queue's database {path}: {error.strerror}") from error
            with contextlib.closing(self._connect_writer()) as connection:
                migrate(connection, self.path)
        self._readers = ReaderPool(self._connect_reader)
        self._writer = WriteThread(self.path, self._connect_writer)
        created_s = time.time() if now_s is None else now_s
        self.server_id = self.write(lambda connection: _identity(connection, created_s))

    def read(self, query: Callable[[sqlite3.Connection], T]) -> T:
        """What `query` finds in one committed state."""
        with self._said(), self._readers.snapshot() as connection:
            return query(connection)

    def write(self, command: Command[T]) -> T:
        """The result of a command, once it is durable. What it raises undoes its changes."""
        future = self.submit(command)
        try:
            return future.result(WRITE_WAIT_S)
        except NoAnswerError:
            if not future.cancel() and future.done():
                return future.result(0)
            raise UnavailableError(
                f"the queue's database has not answered for {WRITE_WAIT_S:g} s: {self.path}",
                hint="check its disk; repeat the request with the same idempotency key",
            ) from None
        except sqlite3.Error as error:
            raise in_words(error, self.path) or error from error

    def submit(self, command: Command[T]) -> Future[T]:
        """As `write`, without waiting."""
        return self._writer.submit(command)

    def backup(self, target: Path) -> None:
        """Copy the database as it is now, while it is in use, and replace `target` with the whole copy. Raises
        UsageError if it cannot be written."""
        work = target.with_name(f".{target.name}.{secrets.token_hex(4)}.tmp")
        try:
            os.close(os.open(work, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o600))
            with contextlib.closing(sqlite3.connect(work)) as copy, contextlib.closing(self._connect_reader()) as own:
                own.backup(copy, pages=COPIED_PAGES, sleep=0.001)
            work.replace(target)
        except (OSError, sqlite3.Error) as error:
            raise UsageError(
                f"cannot write the backup {target}: {error}", hint="name a file on another disk"
            ) from error
        finally:
            work.unlink(missing_ok=True)

    def close(self) -> None:
        """Carry out what waits, then close. Idempotent."""
        self._writer.close(CLOSE_WAIT_S)
        self._readers.close()

    @contextlib.contextmanager
    def _said(self) -> Iterator[None]:
        try:
            yield
        except sqlite3.Error as error:
            raise in_words(error, self.path) or error from error

    def _connect_writer(self) -> sqlite3.Connection:
        connection = self._connect()
        connection.execute("PRAGMA journal_mode = WAL")
        connection.execute("PRAGMA synchronous = FULL")
        connection.execute("PRAGMA foreign_keys = ON")
        connection.execute(f"PRAGMA journal_size_limit = {LARGEST_WAL_BYTES}")
        return connection

    def _connect_reader(self) -> sqlite3.Connection:
        connection = self._connect()
        connection.execute("PRAGMA query_only = ON")
        return connection

    def _connect(self) -> sqlite3.Connection:
        connection = sqlite3.connect(self.path, timeout=LOCK_WAIT_S, isolation_level=None, check_same_thread=False)
        connection.execute(f"PRAGMA cache_size = -{CACHE_KIB}")
        return connection


def _identity(connection: sqlite3.Connection, now_s: float) -> str:
    """The server's id, made with the database."""
    connection.execute("INSERT OR IGNORE INTO server_identity VALUES (1, ?, ?)", (secrets.token_hex(8), now_s))
    connection.execute("INSERT OR IGNORE INTO queues VALUES ('default', 1.0, '{}', '{}')")
    return str(connection.execute("SELECT id FROM server_identity").fetchone()[0])
