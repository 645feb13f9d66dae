"""Events of the queue: every change of a run with its cause. They are only ever added."""

import json
import sqlite3
from dataclasses import dataclass, field

from orchestrator.domain.queue.queue_states import QueueState
from orchestrator.json_values import JsonFields, parse_object


@dataclass(frozen=True)
class ChangeCause:
    """Why a run changes."""

    kind: str
    """`submitted`, `state`, `granted`, `launched`, `scaled`, `settled`, ...: for programs."""
    message: str
    """For people."""
    data: JsonFields = field(default_factory=dict)


@dataclass(frozen=True)
class QueueEvent:
    """One change."""

    number: int
    """Among all events."""
    run: int
    """`seq` of the run."""
    ordinal: int
    """Among the events of this run, from 1."""
    time_s: float
    """Unix seconds."""
    kind: str
    source: QueueState | None
    target: QueueState
    message: str
    data: JsonFields


_SELECT = "SELECT number, run, ordinal, time_s, kind, source, target, message, data FROM events"


def add_event(
    connection: sqlite3.Connection, run: int, ordinal: int, states: tuple[QueueState | None, QueueState],
    cause: ChangeCause, now_s: float,
) -> None:  # fmt: skip
    """Append one. `states`: before and after."""
    connection.execute(
        "INSERT INTO events (run, ordinal, time_s, kind, source, target, message, data) "
        "VALUES (?, ?, ?, ?, ?, ?, ?, ?)",
        (run, ordinal, now_s, cause.kind, states[0], states[1], cause.message, json.dumps(dict(cause.data))),
    )


def events_of_run(connection: sqlite3.Connection, run: int, after: int, limit: int) -> list[QueueEvent]:
    """Events of one run whose ordinals are above `after`, oldest first."""
    rows = connection.execute(f"{_SELECT} WHERE run = ? AND ordinal > ? ORDER BY ordinal LIMIT ?", (run, after, limit))
    return [_decode(*row) for row in rows]


def events_after(connection: sqlite3.Connection, number: int, limit: int) -> list[QueueEvent]:
    """Events of all runs whose numbers are above `number`, oldest first."""
    rows = connection.execute(f"{_SELECT} WHERE number > ? ORDER BY number LIMIT ?", (number, limit))
    return [_decode(*row) for row in rows]


def newest_number(connection: sqlite3.Connection) -> int:
    """Of all events; 0 if there is none."""
    return int(connection.execute("SELECT coalesce(max(number), 0) FROM events").fetchone()[0])


def _decode(
    number: int, run: int, ordinal: int, time_s: float, kind: str, source: str | None, target: str, message: str,
    data: str,
) -> QueueEvent:  # fmt: skip
    before = QueueState(source) if source is not None else None
    return QueueEvent(number, run, ordinal, time_s, kind, before, QueueState(target), message, parse_object(data))
