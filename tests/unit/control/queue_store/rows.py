"""Rows for tests of the store."""

import sqlite3
from collections.abc import Callable
from dataclasses import replace

from orchestrator.control.queue_store.event_table import ChangeCause
from orchestrator.control.queue_store.run_rows import RunRow
from orchestrator.control.queue_store.run_table import add_run, add_spec
from orchestrator.domain.queue.queue_states import QueueState


def row(number: int, state: QueueState = QueueState.QUEUED, name: str = "tiny", user: str = "ann") -> RunRow:
    """A run that was just submitted."""
    return RunRow(
        seq=0, id=f"{name}-{number:07d}", name=name, group_name=None, queue="default", team="ml", user=user,
        priority=20, spec_digest="", directory=f"/runs/{name}-{number:07d}", bundle={"CPU": 1.0}, placement="spread",
        shape="s", limit_s=None, retries=3, submitted_s=float(number), state=state, since_s=float(number),
    )  # fmt: skip


def adding(each: RunRow, needs: tuple[int, ...] = ()) -> Callable[[sqlite3.Connection], RunRow]:
    """The command that queues it."""

    def add(connection: sqlite3.Connection) -> RunRow:
        stored = replace(each, spec_digest=add_spec(connection, "name: tiny"))
        return add_run(connection, stored, needs, ChangeCause("submitted", "by a test"))

    return add
