"""Queues, drains of nodes, shapes of runs: small tables."""

import json
import sqlite3
from collections.abc import Mapping
from dataclasses import dataclass

from orchestrator.control.policy.queue_facts import QueueShare
from orchestrator.control.queue_store.run_rows import amounts, json_text

DRAINS_KEPT_S = 30 * 86400.0


def put_queue(connection: sqlite3.Connection, share: QueueShare) -> None:
    """Add a queue, or change its share."""
    connection.execute(
        "INSERT INTO queues VALUES (?, ?, ?, ?) ON CONFLICT (name) DO UPDATE SET weight = excluded.weight, "
        "quota = excluded.quota, most = excluded.most",
        (share.name, share.weight, json_text(share.quota), json_text(share.limit)),
    )


def all_queues(connection: sqlite3.Connection) -> dict[str, QueueShare]:
    """Every queue by its name."""
    rows = connection.execute("SELECT name, weight, quota, most FROM queues ORDER BY name")
    return {name: QueueShare(name, weight, amounts(quota), amounts(most)) for name, weight, quota, most in rows}


@dataclass(frozen=True)
class DrainRow:
    """A node that takes no more workers."""

    node: str
    reason: str
    deadline_s: float | None
    """Unix seconds."""
    by_user: str
    created_s: float


def put_drain(connection: sqlite3.Connection, drain: DrainRow) -> None:
    """Record that a node drains, in place of what was recorded for it. Records of long ago are removed: those nodes are
    gone."""
    connection.execute("DELETE FROM drains WHERE created_s < ?", (drain.created_s - DRAINS_KEPT_S,))
    connection.execute(
        "INSERT OR REPLACE INTO drains VALUES (?, ?, ?, ?, ?)",
        (drain.node, drain.reason, drain.deadline_s, drain.by_user, drain.created_s),
    )


def remove_drain(connection: sqlite3.Connection, node: str) -> None:
    """The node is gone."""
    connection.execute("DELETE FROM drains WHERE node = ?", (node,))


def all_drains(connection: sqlite3.Connection) -> list[DrainRow]:
    """Every node that drains."""
    return [DrainRow(*row) for row in connection.execute("SELECT * FROM drains ORDER BY node")]


def record_shape(connection: sqlite3.Connection, shape: str, worker_seconds: float, now_s: float) -> None:
    """Keep what a step of a run of this shape took: its seconds times the number of workers."""
    connection.execute("INSERT OR REPLACE INTO shapes VALUES (?, ?, ?)", (shape, worker_seconds, now_s))


def all_shapes(connection: sqlite3.Connection, limit: int) -> dict[str, float]:
    """Worker-seconds of a step by shape, of the newest ones."""
    rows = connection.execute("SELECT shape, worker_seconds FROM shapes ORDER BY updated_s DESC LIMIT ?", (limit,))
    return dict(rows.fetchall())


@dataclass(frozen=True)
class KnownKey:
    """An idempotency key that was used before."""

    digest: str
    """Of the submission."""
    runs: tuple[str, ...]


def find_key(connection: sqlite3.Connection, caller: str, key: str) -> KnownKey | None:
    """What the caller submitted with this key."""
    row = connection.execute(
        "SELECT digest, runs FROM idempotency_keys WHERE caller = ? AND key = ?", (caller, key)
    ).fetchone()
    return KnownKey(str(row[0]), tuple(json.loads(row[1]))) if row is not None else None


def add_key(connection: sqlite3.Connection, caller: str, key: str, known: KnownKey, now_s: float) -> None:
    """Remember a key. Raises sqlite3.IntegrityError if it is known."""
    connection.execute(
        "INSERT INTO idempotency_keys VALUES (?, ?, ?, ?, ?)",
        (caller, key, known.digest, json.dumps(known.runs), now_s),
    )


def forget_keys(connection: sqlite3.Connection, before_s: float) -> None:
    """Remove keys that are older."""
    connection.execute("DELETE FROM idempotency_keys WHERE created_s < ?", (before_s,))


def places_text(places: Mapping[str, int]) -> str:
    """Workers by node as text, for messages."""
    return ", ".join(f"{count} on {node[:12]}" for node, count in sorted(places.items())) or "none"
