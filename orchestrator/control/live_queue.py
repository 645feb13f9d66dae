"""The queue as the API sees it: `QueueService` on the database and the newest tick."""

import sqlite3
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

from orchestrator import __version__
from orchestrator.control.merged_events import merged, parts_of
from orchestrator.control.ports import ClusterPort
from orchestrator.control.queue_board import QueueBoard
from orchestrator.control.queue_service import Caller
from orchestrator.control.queue_store.event_table import ChangeCause, events_of_run
from orchestrator.control.queue_store.live_runs import LiveRuns
from orchestrator.control.queue_store.queue_store import QueueStore
from orchestrator.control.queue_store.queue_table import DrainRow, all_drains, all_queues, put_drain
from orchestrator.control.queue_store.run_rows import RunRow
from orchestrator.control.queue_store.run_table import (
    RunFilter,
    StaleRunError,
    change_run,
    list_runs,
    needs_of,
    needs_of_runs,
    spec_text,
)
from orchestrator.control.resource_views import node_views, queue_views
from orchestrator.control.run_lookup import find_run
from orchestrator.control.run_requests import cancelled, paused, resumed, retried, scaled
from orchestrator.control.run_views import imagined_wait, view_of
from orchestrator.control.submitting import SubmitSettings, Submitted, Submitter
from orchestrator.domain.errors import ConflictError, ConvoyError, ForbiddenError, NotFoundError, UsageError
from orchestrator.domain.queue.queue_states import QueueState
from orchestrator.domain.run_layout import RunLayout
from orchestrator.spec.loading.load import load_text
from orchestrator.spec.schedule import MOST_RUNS_OF_MATRIX
from orchestrator.store.run_store import RunStore
from orchestrator.wire.cluster_messages import NodeView, QueueView, ServerView
from orchestrator.wire.run_messages import RunEvent, RunList, RunView, Submission, SubmitAnswer

ADMIN, SUBMITTER = "admin", "submitter"
MOST_RUNS = 1000
"""On one page of a list."""
MOST_EVENTS = 1000
API = "v1"
TRIES = 5
"""Of a request whose run changes at the same moment."""

Change = Callable[[RunRow, Sequence[RunRow]], tuple[RunRow, ChangeCause]]
"""The row that a request makes of a run and of those it comes after. Raises ConflictError, UsageError."""


class LiveQueue:
    """Implements `QueueService`. Every caller may read; submitters act on the runs of their team, admins on all. A
    request for a group (a matrix) is one for each of its runs. Thread-safe."""

    def __init__(
        self, store: QueueStore, runs: RunStore, board: QueueBoard, cluster: ClusterPort,
        settings: SubmitSettings | None = None, wake: Callable[[], None] = lambda: None,
        now: Callable[[], float] = time.time,
    ) -> None:  # fmt: skip
        """`wake`: called after every change, so that the next tick comes at once. `now`: Unix seconds."""
        self._store, self._board, self._cluster = store, board, cluster
        self._live = LiveRuns(store)
        self._submitter = Submitter(store, runs, board, cluster, settings or SubmitSettings())
        self._wake, self._now = wake, now
        self._started_s = now()

    def submit(self, submission: Submission, caller: Caller, key: str | None) -> SubmitAnswer:
        """Queue a job durably, or say where it would stand (`dry_run`)."""
        _require_role(caller, "submit runs")
        done = self._submitter.submit(submission, caller, key, self._now())
        if submission.dry_run:
            return SubmitAnswer(runs=self._imagined(done), warnings=list(done.warnings))
        self._wake()
        return SubmitAnswer(runs=self._views_of(done), warnings=list(done.warnings), existing=done.existing)

    def runs(
        self, caller: Caller, states: Sequence[str] = (), queue: str | None = None, user: str | None = None,
        group: str | None = None, limit: int = 100, cursor: str | None = None,
    ) -> RunList:  # fmt: skip
        """Runs, newest first."""
        wanted = RunFilter(tuple(_state(name) for name in states), queue, user, group)
        before, most = _position(cursor), max(1, min(limit, MOST_RUNS))

        def query(connection: sqlite3.Connection) -> tuple[list[RunRow], dict[int, list[RunRow]]]:
            rows = list_runs(connection, wanted, before, most + 1)
            return rows, needs_of_runs(connection, [row.seq for row in rows])

        (found, needs), tick = self._store.read(query), self._board.view
        more = str(found[most - 1].seq) if len(found) > most else None
        return RunList(runs=[view_of(row, needs.get(row.seq, []), tick) for row in found[:most]], next_cursor=more)

    def run(self, query: str, caller: Caller) -> RunView:
        """One run."""
        row, needs = self._find(query)
        return view_of(row, needs, self._board.view)

    def cancel(self, query: str, caller: Caller) -> RunView:
        """End a run for good; again is harmless."""
        return self._request(query, caller, lambda row, _: cancelled(row, caller.user, self._now()))

    def pause(self, query: str, caller: Caller) -> RunView:
        """Save the state of a run and give its capacity back until it is resumed; again is harmless."""
        return self._request(query, caller, lambda row, _: paused(row, caller.user))

    def resume(self, query: str, caller: Caller) -> RunView:
        """Queue a paused run again."""
        return self._request(query, caller, lambda row, needs: resumed(row, needs, caller.user))

    def retry(self, query: str, caller: Caller) -> RunView:
        """Queue a failed or cancelled run again; it continues from its newest state."""
        return self._request(query, caller, lambda row, needs: retried(row, needs, caller.user))

    def scale(self, query: str, workers: int, caller: Caller) -> RunView:
        """Another number of workers: from now on at most, and if there is room, so many."""

        def change(row: RunRow, _: Sequence[RunRow]) -> tuple[RunRow, ChangeCause]:
            text = self._store.read(lambda connection: spec_text(connection, row.spec_digest))
            return scaled(row, load_text(text, "spec.yaml", (), {}), workers, caller.user)

        return self._request(query, caller, change)

    def events(self, query: str, after: int, limit: int, caller: Caller) -> list[RunEvent]:
        """Events of the queue and of the run, merged; see `merged_events`."""
        row, _ = self._find(query)
        ordinal, _ = parts_of(max(0, after))
        most = max(1, min(limit, MOST_EVENTS))
        own = self._store.read(lambda connection: events_of_run(connection, row.seq, ordinal, most))
        return merged(own, RunLayout(Path(row.directory)).events, max(0, after), most)

    def queues(self, caller: Caller) -> list[QueueView]:
        """Every queue with its share and its runs."""
        tick = self._board.view
        return queue_views(self._store.read(all_queues), self._live.refresh().values(), tick)

    def nodes(self, caller: Caller) -> list[NodeView]:
        """Every node that the newest tick saw, and those that drain."""
        return node_views(self._live.refresh().values(), self._store.read(all_drains), self._board.view)

    def drain(self, node: str, deadline_s: float | None, caller: Caller) -> NodeView:
        """Have the workers leave a node, and no others come."""
        if caller.role != ADMIN:
            raise ForbiddenError("only an admin may drain nodes", hint="ask an admin of this server")
        known_nodes = self.nodes(caller)
        found = [each for each in known_nodes if each.id.startswith(node) or each.address == node]
        if len(found) != 1:
            known = ", ".join(each.id[:12] for each in known_nodes[:10]) or "none"
            raise NotFoundError(f"there is no one node {node!r}", hint=f"the nodes are {known}")
        row = DrainRow(found[0].id, f"drained by {caller.user}", deadline_s, caller.user, self._now())
        self._cluster.drain(row.node, row.reason, deadline_s)
        self._store.write(lambda connection: put_drain(connection, row))
        self._wake()
        return next(each for each in self.nodes(caller) if each.id == row.node)

    def server(self) -> ServerView:
        """Who answers."""
        tick = self._board.view
        known = tick is not None and tick.nodes is not None
        return ServerView(
            version=__version__,
            api=API,
            server_id=self._store.server_id,
            cluster=self._cluster.address if known else None,
            acting=tick is not None and tick.acting,
            started_s=self._started_s,
        )

    def _find(self, query: str) -> tuple[RunRow, list[RunRow]]:
        def found(connection: sqlite3.Connection) -> tuple[RunRow, list[RunRow]]:
            row = find_run(connection, query)
            return row, _needs(connection, row)

        return self._store.read(found)

    def _views_of(self, done: Submitted) -> list[RunView]:
        tick = self._board.view
        return [view_of(row, done.needs, tick) for row in done.runs]

    def _imagined(self, done: Submitted) -> list[RunView]:
        """Views of runs that were only checked: where they would stand."""
        live = list(self._live.refresh().values())
        return [
            view.model_copy(update={"waits": imagined_wait(row, live)}) if row.state is QueueState.QUEUED else view
            for row, view in zip(done.runs, self._views_of(done), strict=True)
        ]

    def _request(self, query: str, caller: Caller, change: Change) -> RunView:
        """Apply a request to a run. To all runs of a group that it fits, and the first of them is returned; raises what
        it raises for the first one if it fits none."""
        members = self._store.read(
            lambda connection: list_runs(connection, RunFilter(group=query), None, MOST_RUNS_OF_MATRIX)
        )
        if not members:
            return self._request_one(query, caller, change)
        done: list[RunView] = []
        refused: list[ConvoyError] = []
        for member in reversed(members):
            try:
                done.append(self._request_one(member.id, caller, change))
            except ConflictError as error:
                refused.append(error)
        if not done:
            raise refused[0]
        return done[0]

    def _request_one(self, query: str, caller: Caller, change: Change) -> RunView:
        """Apply a request to a run, again if the run changes at the same moment."""
        for left in reversed(range(TRIES)):
            row, needs = self._find(query)
            _require_team(caller, row)
            after, cause = change(row, needs)
            if after == row:
                return view_of(row, needs, self._board.view)
            try:
                written = self._store.write(
                    partial(change_run, before=row, after=after, cause=cause, now_s=self._now())
                )
            except StaleRunError:
                if not left:
                    raise
                continue
            self._wake()
            return view_of(written, needs, self._board.view)
        raise AssertionError("the last try returns or raises")


def _needs(connection: sqlite3.Connection, row: RunRow) -> list[RunRow]:
    return needs_of(connection, row.seq)


def _require_role(caller: Caller, what: str) -> None:
    if caller.role not in (ADMIN, SUBMITTER):
        raise ForbiddenError(f"a {caller.role} may not {what}", hint="ask an admin for a token with the role submitter")


def _require_team(caller: Caller, row: RunRow) -> None:
    _require_role(caller, "change runs")
    if caller.role != ADMIN and caller.team != row.team:
        raise ForbiddenError(
            f"run {row.id} belongs to team {row.team!r}, you are in {caller.team!r}", hint=f"ask {row.user} or an admin"
        )


def _state(name: str) -> QueueState:
    try:
        return QueueState(name)
    except ValueError:
        states = ", ".join(QueueState)
        raise UsageError(f"{name!r} is no state of a run", hint=f"the states are {states}") from None


def _position(cursor: str | None) -> int | None:
    if cursor is None:
        return None
    if not cursor.isdigit() or len(cursor) > 18:
        raise UsageError(f"{cursor[:40]!r} is no cursor of this server", hint="take `next_cursor` of the page before")
    return int(cursor)
