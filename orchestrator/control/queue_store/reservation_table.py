"""What waiting runs are promised, so that a server that takes over keeps the promises of the one before."""

import sqlite3
from collections.abc import Mapping

from orchestrator.control.queue_store.run_rows import json_text, places

Reservation = tuple[float, Mapping[str, int]]
"""When, in Unix seconds, and workers by node."""


def read_reservations(connection: sqlite3.Connection) -> dict[str, Reservation]:
    """By run."""
    rows = connection.execute("SELECT run, start_s, places FROM reservations").fetchall()
    return {str(run): (float(start_s), places(str(text))) for run, start_s, text in rows}


def replace_reservations(connection: sqlite3.Connection, reservations: Mapping[str, Reservation]) -> None:
    """All of them."""
    connection.execute("DELETE FROM reservations")
    connection.executemany(
        "INSERT INTO reservations VALUES (?, ?, ?)",
        [(run, start_s, json_text(where)) for run, (start_s, where) in reservations.items()],
    )
