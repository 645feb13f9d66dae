"""This server's lease on the queue's database: of several servers on one database, only the holder acts.

The rules are those of a run's lease (`domain/lease.py`): a token that grows, a counter that the holder renews, and a
challenger that watches the counter on its own monotonic clock. Clocks of two machines are never compared, and a clock
that jumps expires nothing.
"""

import contextlib
import secrets
import sqlite3
import threading
import time
from collections.abc import Callable
from dataclasses import replace

from orchestrator.control.queue_store.lease_table import (
    ServerLeaseRow,
    read_lease,
    renew_lease,
    require_token,
    take_lease,
)
from orchestrator.control.queue_store.queue_store import QueueStore
from orchestrator.control.queue_store.write_thread import Command, T
from orchestrator.domain.errors import UnavailableError
from orchestrator.domain.lease import LOOK_S, RENEW_S, TTL_S, Lease, Observed, Standing, next_token, observe, standing
from orchestrator.lasting_thread import LastingThread
from orchestrator.store.driver_process import DriverProcess

UNSURE_S = 3 * RENEW_S
"""A holder that has not renewed for this long (it was stopped, or the disk was full) renews before it acts."""


class ServerLease:
    """Waits for the lease, then keeps it until `close` or until another server takes it; then it waits again.
    Thread-safe."""

    def __init__(
        self, store: QueueStore, clock: Callable[[], float] = time.monotonic, ttl_s: float = TTL_S,
        threaded: bool = True,
    ) -> None:  # fmt: skip
        """`clock`: monotonic seconds. `threaded`: renew in the background; tests call `turn` themselves."""
        self._store, self._clock, self._ttl_s = store, clock, ttl_s
        self._holder, self._process = secrets.token_hex(8), DriverProcess.current()
        self._own: Lease | None = None
        self._renewed_s = 0.0
        self._first: Lease | None = None
        self._seen: Observed | None = None
        self._lock, self._ending = threading.RLock(), threading.Event()
        self._thread = LastingThread("server lease", self._lasting_turn) if threaded else None

    @property
    def token(self) -> int | None:
        """The fencing token; None while another server acts."""
        own = self._own
        return own.token if own is not None else None

    def held(self) -> bool:
        """Whether this server may act now. Raises UnavailableError if that is unknown."""
        with self._lock:
            if self._own is not None and self._clock() - self._renewed_s > UNSURE_S:
                self._renew()
            return self._own is not None

    def write(self, command: Command[T]) -> T:
        """A write of the holder: in its own transaction it fails with UnavailableError if another server has the
        lease."""
        own = self._own
        if own is None:
            raise UnavailableError("another server acts on this queue")

        def fenced(connection: sqlite3.Connection) -> T:
            require_token(connection, own.holder, own.token)
            return command(connection)

        return self._store.write(fenced)

    def turn(self) -> None:
        """Renew the lease, or look whether it is free and take it. Raises UnavailableError."""
        with self._lock:
            if self._own is not None:
                self._renew()
            else:
                self._challenge()

    def close(self) -> None:
        """Give the lease back, so that the next server need not wait. Idempotent."""
        self._ending.set()
        if self._thread is not None:
            self._thread.stop()
            self._thread.join(UNSURE_S)
        with self._lock:
            if self._own is not None:
                released = replace(self._own, renewals=self._own.renewals + 1, released=True)
                self._own = None
                with contextlib.suppress(UnavailableError):  # then the next server waits for the TTL
                    self._store.write(lambda connection: renew_lease(connection, ServerLeaseRow(released, None)))

    def _lasting_turn(self) -> bool:
        self.turn()
        return not self._ending.wait(RENEW_S if self._own is not None else LOOK_S)

    def _renew(self) -> None:
        own = self._own
        assert own is not None
        renewed = replace(own, renewals=own.renewals + 1)
        if self._store.write(lambda connection: renew_lease(connection, ServerLeaseRow(renewed, self._process))):
            self._own, self._renewed_s = renewed, self._clock()
        else:
            self._own = self._first = self._seen = None

    def _challenge(self) -> None:
        found = self._store.read(read_lease)
        if found is not None:
            self._first = self._first or found.lease
            self._seen = observe(self._seen, found.lease, self._clock())
            gone = found.process is not None and found.process.alive() is False
            if standing(self._first, self._seen, gone) is not Standing.FREE:
                return
        seen = found.lease if found is not None else None
        token = next_token([seen.token] if seen is not None else [])
        own = Lease(self._holder, token, ttl_s=self._ttl_s)
        if self._store.write(lambda connection: take_lease(connection, seen, ServerLeaseRow(own, self._process))):
            self._own, self._renewed_s = own, self._clock()
        self._first = self._seen = None
