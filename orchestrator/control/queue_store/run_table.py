"""Runs in the database: adding, changing, finding. A change is a compare-and-set in one transaction with its event."""

import hashlib
import sqlite3
from collections.abc import Collection, Sequence
from dataclasses import dataclass, replace

from orchestrator.control.queue_store.event_table import ChangeCause, add_event
from orchestrator.control.queue_store.run_rows import COLUMNS, MUTABLE, SELECT, RunRow, decode_run, encode_run
from orchestrator.domain.errors import ConflictError
from orchestrator.domain.queue.queue_states import QueueState, is_queue_transition

NEAR_RUNS = 2000
"""Newest runs whose ids and names are compared with a mistyped one."""


class StaleRunError(ConflictError):
    """The run has changed since it was read: read it again."""


@dataclass(frozen=True)
class RunFilter:
    """Which runs to list. None or empty: all."""

    states: tuple[QueueState, ...] = ()
    queue: str | None = None
    user: str | None = None
    group: str | None = None


def add_spec(connection: sqlite3.Connection, text: str) -> str:
    """Keep a spec; its digest."""
    digest = hashlib.sha256(text.encode()).hexdigest()
    connection.execute("INSERT OR IGNORE INTO specs VALUES (?, ?)", (digest, text))
    return digest


def spec_text(connection: sqlite3.Connection, digest: str) -> str:
    """A spec that was kept."""
    return str(connection.execute("SELECT text FROM specs WHERE digest = ?", (digest,)).fetchone()[0])


def add_run(connection: sqlite3.Connection, row: RunRow, needs: Collection[int], cause: ChangeCause) -> RunRow:
    """Queue a run, which comes after those in `needs`. Its `seq` and `changes` are set here. Raises ConflictError if
    its id is taken."""
    first = replace(row, changes=1)
    names = COLUMNS[1:]
    marks = ", ".join("?" * len(names))
    try:
        cursor = connection.execute(f"INSERT INTO runs ({', '.join(names)}) VALUES ({marks})", encode_run(first, names))
    except sqlite3.IntegrityError as error:
        raise ConflictError(f"there is a run {row.id} already") from error
    added = replace(first, seq=int(cursor.lastrowid or 0))
    connection.executemany("INSERT INTO dependencies VALUES (?, ?)", [(added.seq, need) for need in sorted(set(needs))])
    add_event(connection, added.seq, 1, (None, row.state), cause, row.submitted_s)
    return added


_UPDATE = f"UPDATE runs SET {', '.join(f'{name} = ?' for name in MUTABLE)} WHERE seq = ? AND changes = ?"


def change_run(
    connection: sqlite3.Connection, before: RunRow, after: RunRow, cause: ChangeCause, now_s: float
) -> RunRow:
    """Replace a run's row, if it is still as it was read (`before`), and add the event. Raises StaleRunError if it is
    not, RuntimeError if the table of transitions does not have this one: that is a bug."""
    moved = before.state is not after.state
    if moved and not is_queue_transition(before.state, after.state):
        raise RuntimeError(f"a run in the queue cannot go from {before.state} to {after.state}")
    written = replace(after, changes=before.changes + 1, since_s=now_s if moved else before.since_s)
    cursor = connection.execute(_UPDATE, [*encode_run(written, MUTABLE), before.seq, before.changes])
    if cursor.rowcount != 1:
        raise StaleRunError(f"run {before.id} has just changed", hint="repeat the request")
    add_event(connection, before.seq, written.changes, (before.state, after.state), cause, now_s)
    return written


def record_progress(connection: sqlite3.Connection, row: RunRow) -> None:
    """Keep how far an active run has come. No event, and no comparison: figures only."""
    connection.execute(
        "UPDATE runs SET active_s = ?, step = ?, total_steps = ?, loss = ?, step_time_s = ? WHERE seq = ?",
        (row.active_s, row.step, row.total_steps, row.loss, row.step_time_s, row.seq),
    )


def run_by_id(connection: sqlite3.Connection, run_id: str) -> RunRow | None:
    """The run with exactly this id."""
    return _one(connection, "WHERE id = ?", (run_id,))


def run_by_seq(connection: sqlite3.Connection, seq: int) -> RunRow | None:
    """The run with this number."""
    return _one(connection, "WHERE seq = ?", (seq,))


def run_by_name(connection: sqlite3.Connection, name: str) -> RunRow | None:
    """The newest run with this name."""
    return _one(connection, "WHERE name = ? ORDER BY seq DESC LIMIT 1", (name,))


def newest_run(connection: sqlite3.Connection) -> RunRow | None:
    """The run that was submitted last."""
    return _one(connection, "ORDER BY seq DESC LIMIT 1", ())


def runs_by_prefix(connection: sqlite3.Connection, prefix: str, limit: int) -> list[RunRow]:
    """Runs whose ids begin so, by id. A range of the index, not `LIKE`, which would read all."""
    return _all(connection, "WHERE id >= ? AND id < ? ORDER BY id LIMIT ?", (prefix, prefix + "\U0010ffff", limit))


def near_names(connection: sqlite3.Connection) -> list[str]:
    """Names and ids of the newest runs, for suggestions."""
    rows = connection.execute("SELECT id, name FROM runs ORDER BY seq DESC LIMIT ?", (NEAR_RUNS,)).fetchall()
    return [*dict.fromkeys(str(row[1]) for row in rows), *(str(row[0]) for row in rows)]


def unsettled_runs(connection: sqlite3.Connection) -> list[RunRow]:
    """Every run that is not final, or that something is left to be done for; in order of submission."""
    return _all(connection, "WHERE settled = 0 ORDER BY seq", ())


def runs_changed_after(connection: sqlite3.Connection, number: int) -> list[RunRow]:
    """Runs with events above this number."""
    return _all(connection, "WHERE seq IN (SELECT run FROM events WHERE number > ?) ORDER BY seq", (number,))


def list_runs(connection: sqlite3.Connection, wanted: RunFilter, before: int | None, limit: int) -> list[RunRow]:
    """Runs that match, newest first, with `seq` below `before`.

    Each state is asked for alone, and each of these questions is a range of one index: the time does not depend on the
    length of the history.
    """
    conditions, values = ["seq < ?"], list[str | int]([before if before is not None else 1 << 62])
    for column, value in (("group_name", wanted.group), ("user", wanted.user), ("queue", wanted.queue)):
        if value is not None:
            conditions.append(f"{column} = ?")
            values.append(value)
    where = " AND ".join(conditions)
    states: Sequence[QueueState] = wanted.states
    if not states and len(values) == 1:
        return _all(connection, f"WHERE {where} ORDER BY seq DESC LIMIT ?", (*values, limit))
    parts, arguments = [], list[str | int]()
    for state in states or tuple(QueueState):
        parts.append(f"SELECT * FROM (SELECT seq FROM runs WHERE state = ? AND {where} ORDER BY seq DESC LIMIT ?)")
        arguments += [state.value, *values, limit]
    inner = " UNION ALL ".join(parts)
    return _all(connection, f"WHERE seq IN ({inner}) ORDER BY seq DESC LIMIT ?", (*arguments, limit))


def needs_of(connection: sqlite3.Connection, seq: int) -> list[RunRow]:
    """Runs that this one comes after."""
    return _all(connection, "WHERE seq IN (SELECT needs FROM dependencies WHERE run = ?) ORDER BY seq", (seq,))


def needs_of_runs(connection: sqlite3.Connection, seqs: Collection[int]) -> dict[int, list[RunRow]]:
    """By `seq` of each of these runs that comes after others: those others."""
    marks = ", ".join("?" * len(seqs))
    pairs = connection.execute(f"SELECT run, needs FROM dependencies WHERE run IN ({marks})", tuple(seqs)).fetchall()
    if not pairs:
        return {}
    wanted = sorted({int(need) for _, need in pairs})
    marks = ", ".join("?" * len(wanted))
    known = {row.seq: row for row in _all(connection, f"WHERE seq IN ({marks})", wanted)}
    found: dict[int, list[RunRow]] = {}
    for run, need in sorted(pairs):
        found.setdefault(run, []).append(known[need])
    return found


def blocked_needs(connection: sqlite3.Connection) -> dict[int, list[tuple[str, QueueState]]]:
    """Of every blocked run, by `seq`: id and state of the runs that it comes after."""
    rows = connection.execute(
        "SELECT dependencies.run, needed.id, needed.state FROM runs AS waiting "
        "JOIN dependencies ON dependencies.run = waiting.seq JOIN runs AS needed ON needed.seq = dependencies.needs "
        "WHERE waiting.state = 'blocked'"
    )
    found: dict[int, list[tuple[str, QueueState]]] = {}
    for run, need, state in rows:
        found.setdefault(run, []).append((need, QueueState(state)))
    return found


def _one(connection: sqlite3.Connection, rest: str, values: Sequence[str | int]) -> RunRow | None:
    found = _all(connection, rest, values)
    return found[0] if found else None


def _all(connection: sqlite3.Connection, rest: str, values: Sequence[str | int]) -> list[RunRow]:
    cursor = connection.cursor()
    cursor.row_factory = decode_run
    found: list[RunRow] = cursor.execute(f"{SELECT} {rest}", values).fetchall()
    return found
