"""The one thread that writes into the database. Commands that wait at the same time share one commit."""

import contextlib
import queue
import sqlite3
import threading
from collections.abc import Callable
from concurrent.futures import Future
from pathlib import Path
from typing import Generic, Protocol, TypeVar

from orchestrator.control.queue_store.sqlite_errors import in_words
from orchestrator.domain.errors import UnavailableError
from orchestrator.lasting_thread import LastingThread

WAITING_COMMANDS = 4096
"""More are refused: the disk does not keep up."""
COMMANDS_PER_COMMIT = 256
IDLE_S = 0.5
"""How long one turn waits for a command."""

T = TypeVar("T")
Command = Callable[[sqlite3.Connection], T]
"""Runs in the writer's transaction, and must not end it. What it raises undoes its own changes and no others."""


class _Pending(Protocol):
    """A command without the type of its result."""

    def start(self) -> bool: ...
    def run(self, connection: sqlite3.Connection) -> None: ...
    def finish(self) -> None: ...
    def fail(self, error: BaseException) -> None: ...


class _Entry(Generic[T]):
    """A command and what becomes of it, known when its transaction is durable."""

    def __init__(self, command: Command[T]) -> None:
        self._command = command
        self.future: Future[T] = Future()
        self._finish: Callable[[], None] = lambda: None

    def start(self) -> bool:
        """False if its caller no longer waits."""
        return self.future.set_running_or_notify_cancel()

    def run(self, connection: sqlite3.Connection) -> None:
        value = self._command(connection)
        self._finish = lambda: self.future.set_result(value)

    def finish(self) -> None:
        if not self.future.done():
            self._finish()

    def fail(self, error: BaseException) -> None:
        if not self.future.done():
            self.future.set_exception(error)


class WriteThread:
    """Takes commands from any thread, in order. The result of a command is known only when it is on the disk."""

    def __init__(self, path: Path, connect: Callable[[], sqlite3.Connection]) -> None:
        self._path, self._connect = path, connect
        self._connection: sqlite3.Connection | None = None
        self._commands: queue.Queue[_Pending] = queue.Queue(WAITING_COMMANDS)
        self._closing = threading.Event()
        self._thread = LastingThread("queue writer", self._turn)

    def submit(self, command: Command[T]) -> Future[T]:
        """Queue a command. Raises UnavailableError if too many wait, or if the store is closed."""
        entry = _Entry(command)
        if self._closing.is_set():
            raise UnavailableError("the server is shutting down", hint="repeat the request when it is back")
        try:
            self._commands.put_nowait(entry)
        except queue.Full:
            raise UnavailableError(
                f"{WAITING_COMMANDS} requests wait for the queue's database: its disk does not keep up",
                hint="repeat the request in a few seconds",
            ) from None
        return entry.future

    def close(self, timeout_s: float) -> None:
        """Carry out what waits, and end. What is left after `timeout_s` fails."""
        self._closing.set()
        with contextlib.suppress(queue.Full):
            self._commands.put_nowait(_Entry(lambda _: None))  # wakes the thread
        self._thread.join(timeout_s)
        while not self._commands.empty():
            self._commands.get_nowait().fail(UnavailableError("the server is shutting down"))

    def _turn(self) -> bool:
        batch = self._batch()
        if batch:
            self._carry_out(batch)
        elif self._closing.is_set():
            if self._connection is not None:
                self._connection.close()
            return False
        return True

    def _batch(self) -> list[_Pending]:
        try:
            batch = [self._commands.get(timeout=0.01 if self._closing.is_set() else IDLE_S)]
        except queue.Empty:
            return []
        while len(batch) < COMMANDS_PER_COMMIT:
            try:
                batch.append(self._commands.get_nowait())
            except queue.Empty:
                break
        return [entry for entry in batch if entry.start()]

    def _carry_out(self, batch: list[_Pending]) -> None:
        try:
            if self._connection is None:
                self._connection = self._connect()
            _commit(self._connection, batch)
        except BaseException as error:  # noqa: BLE001  # given to those who wait
            self._undo()
            failure = (in_words(error, self._path) if isinstance(error, sqlite3.Error) else None) or error
            for entry in batch:
                entry.fail(failure)

    def _undo(self) -> None:
        """Roll back, with a new connection next time: after an error of the disk this one may be of no use."""
        connection, self._connection = self._connection, None
        if connection is not None:
            connection.close()  # rolls back


def _commit(connection: sqlite3.Connection, batch: list[_Pending]) -> None:
    """All commands in one transaction. One that fails is undone alone, unless SQLite has undone everything. Raises
    sqlite3.Error then."""
    connection.execute("BEGIN IMMEDIATE")
    failed: list[tuple[_Pending, Exception]] = []
    for entry in batch:
        connection.execute("SAVEPOINT command")
        try:
            entry.run(connection)
        except Exception as error:
            if isinstance(error, sqlite3.OperationalError) or not connection.in_transaction:
                raise  # the disk: it concerns all of them
            connection.execute("ROLLBACK TO command")
            failed.append((entry, error))
        connection.execute("RELEASE command")
    connection.execute("COMMIT")
    for entry, problem in failed:
        entry.fail(problem)
    for entry in batch:
        entry.finish()
