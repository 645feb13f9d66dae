"""Connections that only read. They see the last committed state and wait for no writer."""

import contextlib
import sqlite3
import threading
from collections import deque
from collections.abc import Callable, Iterator

from orchestrator.domain.errors import UnavailableError

READERS = 8
READER_WAIT_S = 10.0
"""How long a request waits for a connection."""


class ReaderPool:
    """At most `READERS` connections, made when they are needed. Thread-safe."""

    def __init__(self, connect: Callable[[], sqlite3.Connection]) -> None:
        self._connect = connect
        self._free: deque[sqlite3.Connection] = deque()
        self._room = threading.BoundedSemaphore(READERS)

    @contextlib.contextmanager
    def snapshot(self) -> Iterator[sqlite3.Connection]:
        """A connection in a transaction: all of its reads see one state. Raises UnavailableError, sqlite3.Error."""
        if not self._room.acquire(timeout=READER_WAIT_S):
            raise UnavailableError("too many requests at once", hint="repeat the request in a few seconds")
        try:
            connection = self._free.pop() if self._free else self._connect()
            try:
                connection.execute("BEGIN")
                yield connection
                connection.execute("COMMIT")
            except BaseException:
                connection.close()
                raise
            self._free.append(connection)
        finally:
            self._room.release()

    def close(self) -> None:
        """Close what is not in use."""
        while self._free:
            self._free.pop().close()
