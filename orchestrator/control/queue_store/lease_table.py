"""The lease on the database: which server acts. The rules are those of a run's lease, see `domain/lease.py`."""

import json
import sqlite3
from dataclasses import dataclass

from orchestrator.domain.errors import UnavailableError
from orchestrator.domain.lease import Lease
from orchestrator.store.driver_process import DriverProcess


@dataclass(frozen=True)
class ServerLeaseRow:
    """A lease and the process that holds it."""

    lease: Lease
    process: DriverProcess | None


def read_lease(connection: sqlite3.Connection) -> ServerLeaseRow | None:
    """The newest lease; None before the first server."""
    row = connection.execute("SELECT holder, token, renewals, ttl_s, released, process FROM server_lease").fetchone()
    if row is None:
        return None
    lease = Lease(row[0], row[1], row[2], row[3], bool(row[4]))
    return ServerLeaseRow(lease, DriverProcess.from_json(json.loads(row[5])))


def take_lease(connection: sqlite3.Connection, seen: Lease | None, own: ServerLeaseRow) -> bool:
    """Put `own` in place of the lease that was seen; False if that has moved meanwhile."""
    found = read_lease(connection)
    if (found.lease if found is not None else None) != seen:
        return False
    connection.execute("INSERT OR REPLACE INTO server_lease VALUES (1, ?, ?, ?, ?, ?, ?)", _values(own))
    return True


def renew_lease(connection: sqlite3.Connection, own: ServerLeaseRow) -> bool:
    """Write the next renewal; False if another server has taken the lease."""
    values = _values(own)
    return connection.execute(
        "UPDATE server_lease SET renewals = ?, released = ? WHERE holder = ? AND token = ?",
        (values[2], values[4], values[0], values[1]),
    ).rowcount == 1  # fmt: skip


def require_token(connection: sqlite3.Connection, holder: str, token: int) -> None:
    """Fence a write, in its own transaction: raises UnavailableError if another server has taken the lease."""
    row = connection.execute("SELECT holder, token FROM server_lease").fetchone()
    if row is None or (row[0], row[1]) != (holder, token):
        raise UnavailableError(
            "another server has taken over the queue: this one decides nothing more",
            hint="only one server can act on a database; see `convoy server status`",
        )


def _values(own: ServerLeaseRow) -> tuple[str, int, int, float, int, str]:
    lease = own.lease
    process = json.dumps(own.process.to_json() if own.process is not None else None)
    return (lease.holder, lease.token, lease.renewals, lease.ttl_s, int(lease.released), process)
