"""Changes of runs, and finding them."""

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from orchestrator.control.queue_store.event_table import ChangeCause, events_of_run
from orchestrator.control.queue_store.live_runs import LiveRuns
from orchestrator.control.queue_store.queue_store import QueueStore
from orchestrator.control.queue_store.run_rows import RunRow
from orchestrator.control.queue_store.run_table import (
    RunFilter,
    StaleRunError,
    blocked_needs,
    change_run,
    list_runs,
    needs_of,
    record_progress,
    run_by_id,
    run_by_name,
    runs_by_prefix,
)
from orchestrator.domain.queue.queue_states import QueueState
from tests.unit.control.queue_store.rows import adding, row

pytestmark = pytest.mark.unit


@pytest.fixture
def store(fast_directory: Path) -> Iterator[QueueStore]:
    opened = QueueStore(fast_directory / "queue.db")
    yield opened
    opened.close()


def move(store: QueueStore, before: RunRow, state: QueueState, now_s: float = 50.0) -> RunRow:
    after = replace(before, state=state)
    return store.write(
        lambda connection: change_run(connection, before, after, ChangeCause("state", f"to {state}"), now_s)
    )


def test_a_change_keeps_every_field_and_has_its_event(store: QueueStore) -> None:
    before = store.write(adding(row(1)))
    after = replace(
        before, state=QueueState.STARTING, reason="because", started_s=3.0, active_s=1.5, grant_number=4,
        granted={"a": 2}, booked={"a": 2, "b": 1}, launched=4, attempt=2, failures=1, retry_at_s=9.0, lost_drivers=1,
        step=7, total_steps=10, loss=0.5, step_time_s=0.25, min_workers=1, max_workers=3,
    )  # fmt: skip
    written = store.write(
        lambda connection: change_run(connection, before, after, ChangeCause("granted", "three", {"grant": 4}), 60.0)
    )
    assert written == replace(after, changes=2, since_s=60.0)
    assert store.read(lambda connection: run_by_id(connection, before.id)) == written
    first, second = store.read(lambda connection: events_of_run(connection, before.seq, 0, 10))
    assert (first.kind, first.source, first.target) == ("submitted", None, QueueState.QUEUED)
    assert (second.ordinal, second.source, second.target) == (2, QueueState.QUEUED, QueueState.STARTING)
    assert (second.message, second.data, second.time_s) == ("three", {"grant": 4}, 60.0)
    assert store.read(lambda connection: events_of_run(connection, before.seq, 1, 10)) == [second]


def test_of_two_changes_of_the_same_row_one_wins(store: QueueStore) -> None:
    before = store.write(adding(row(1)))
    move(store, before, QueueState.STARTING)
    with pytest.raises(StaleRunError, match="has just changed"):
        move(store, before, QueueState.PAUSED)
    events = store.read(lambda connection: events_of_run(connection, before.seq, 0, 10))
    assert [event.target for event in events] == [QueueState.QUEUED, QueueState.STARTING], "no event without a change"


def test_a_transition_that_the_table_does_not_have_is_a_bug(store: QueueStore) -> None:
    before = store.write(adding(row(1)))
    with pytest.raises(RuntimeError, match="cannot go from queued to succeeded"):
        move(store, before, QueueState.SUCCEEDED)


def test_a_change_without_a_transition_keeps_the_time_of_the_state(store: QueueStore) -> None:
    before = store.write(adding(row(1)))
    scaled = store.write(
        lambda connection: change_run(
            connection, before, replace(before, max_workers=2), ChangeCause("scaled", "x"), 99.0
        )
    )
    assert (scaled.since_s, scaled.changes) == (before.since_s, 2)
    store.write(lambda connection: record_progress(connection, replace(scaled, step=3, active_s=2.0)))
    move(store, replace(scaled, step=3), QueueState.STARTING)  # figures are no change that another one collides with


def test_lists_are_newest_first_in_pages_by_state_user_queue_and_group(store: QueueStore) -> None:
    rows = [store.write(adding(row(number, user="ann" if number % 2 else "bob"))) for number in range(10)]
    for each in rows[:3]:
        move(store, each, QueueState.CANCELLED)

    def listed(wanted: RunFilter, before: int | None = None, limit: int = 100) -> list[int]:
        return [each.seq for each in store.read(lambda connection: list_runs(connection, wanted, before, limit))]

    assert listed(RunFilter(), limit=4) == [10, 9, 8, 7]
    assert listed(RunFilter(), before=7, limit=4) == [6, 5, 4, 3]
    assert listed(RunFilter((QueueState.CANCELLED,))) == [3, 2, 1]
    assert listed(RunFilter(user="ann"), limit=2) == [10, 8]
    assert listed(RunFilter((QueueState.QUEUED, QueueState.CANCELLED), user="bob"), before=8, limit=3) == [7, 5, 3]
    assert listed(RunFilter(queue="other")) == []
    assert listed(RunFilter(group="none")) == []


def test_every_list_is_a_range_of_an_index(store: QueueStore) -> None:
    statements: list[str] = []

    def traced(connection):  # type: ignore[no-untyped-def]
        connection.set_trace_callback(statements.append)
        for wanted in (
            RunFilter(), RunFilter((QueueState.QUEUED,)), RunFilter(user="ann"), RunFilter(queue="default"),
            RunFilter(group="g"), RunFilter((QueueState.QUEUED,), user="ann"),
        ):  # fmt: skip
            list_runs(connection, wanted, None, 100)
        run_by_name(connection, "tiny")
        runs_by_prefix(connection, "tiny", 5)
        connection.set_trace_callback(None)
        return [step[3] for statement in statements for step in connection.execute(f"EXPLAIN QUERY PLAN {statement}")]

    plans = [plan for plan in store.read(traced) if "runs" in plan]
    assert len(plans) > 10
    assert [plan for plan in plans if plan.startswith("SCAN") and "USING" not in plan and plan != "SCAN runs"] == []
    assert plans.count("SCAN runs") <= 1, "only the list of everything, newest first, reads the table in its own order"


def test_runs_are_found_by_id_name_and_prefix(store: QueueStore) -> None:
    ids = [store.write(adding(row(number, name=name))).id for number, name in enumerate(["a", "ab", "ab", "b"])]
    newest = store.read(lambda connection: run_by_name(connection, "ab"))
    assert newest is not None
    assert newest.id == ids[2]
    found = store.read(lambda connection: runs_by_prefix(connection, "ab", 5))
    assert [each.id for each in found] == ids[1:3]
    assert store.read(lambda connection: run_by_id(connection, "ab")) is None


def test_dependencies_are_kept_and_those_of_blocked_runs_listed(store: QueueStore) -> None:
    first = store.write(adding(row(1)))
    blocked = store.write(adding(row(2, QueueState.BLOCKED), needs=(first.seq,)))
    store.write(adding(row(3), needs=(first.seq,)))
    assert store.read(lambda connection: needs_of(connection, blocked.seq)) == [first]
    assert store.read(blocked_needs) == {blocked.seq: [(first.id, QueueState.QUEUED)]}


def test_live_runs_follow_what_changes(store: QueueStore) -> None:
    live = LiveRuns(store)
    rows = [store.write(adding(row(number))) for number in range(3)]
    assert list(live.refresh().values()) == rows
    assert live.refresh() is live.refresh(), "nothing is copied while nothing changes"
    started = move(store, rows[1], QueueState.STARTING)
    ended = move(store, rows[0], QueueState.CANCELLED)
    added = store.write(adding(row(3)))
    assert sorted(live.refresh().values(), key=lambda each: each.seq) == [ended, started, rows[2], added]
    settled = replace(ended, settled=True)
    store.write(lambda connection: change_run(connection, ended, settled, ChangeCause("settled", "x"), 70.0))
    assert set(live.refresh()) == {started.id, rows[2].id, added.id}
    assert dict(LiveRuns(store).refresh()) == dict(live.refresh())
