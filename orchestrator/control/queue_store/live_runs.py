"""The runs that matter now, kept in memory and brought up to date by what has changed: a tick does not read ten
thousand rows."""

import sqlite3
import threading
from collections.abc import Mapping

from orchestrator.control.queue_store.event_table import newest_number
from orchestrator.control.queue_store.queue_store import QueueStore
from orchestrator.control.queue_store.run_rows import RunRow
from orchestrator.control.queue_store.run_table import runs_changed_after, unsettled_runs


class LiveRuns:
    """Every run that is not settled, by id, in order of submission. Thread-safe."""

    def __init__(self, store: QueueStore) -> None:
        self._store = store
        self._number: int | None = None
        """Of the newest event that is in `_runs`."""
        self._runs: dict[str, RunRow] = {}
        self._lock = threading.Lock()

    def refresh(self) -> Mapping[str, RunRow]:
        """The runs as the database has them now. Raises UnavailableError."""
        with self._lock:
            known = self._number
            number, rows = self._store.read(lambda connection: _changed(connection, known))
            if rows:
                runs = dict(self._runs)
                for row in rows:
                    if row.settled:
                        runs.pop(row.id, None)
                    else:
                        runs[row.id] = row  # one that was settled and is tried again comes last: nobody relies on it
                self._runs = runs
            self._number = number
            return self._runs


def _changed(connection: sqlite3.Connection, known: int | None) -> tuple[int, list[RunRow]]:
    number = newest_number(connection)
    if known is None:
        return number, unsettled_runs(connection)
    return number, runs_changed_after(connection, known) if number > known else []
