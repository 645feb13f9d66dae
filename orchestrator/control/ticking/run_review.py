"""What becomes of a run after a look at its driver and its reservations. Pure: one row in, at most one change out."""

from collections.abc import Sequence
from dataclasses import replace

from orchestrator.control.ports import DriverFacts
from orchestrator.control.queue_store.event_table import ChangeCause
from orchestrator.control.queue_store.run_rows import NO_PLACES, RunRow
from orchestrator.control.ticking.retry_policy import MOST_LOST_DRIVERS, RUN_FAILED, USER_ERROR, judge_failure
from orchestrator.control.ticking.run_sight import RunSight
from orchestrator.domain.events import RunState
from orchestrator.domain.queue.queue_states import FINAL, WAITING, QueueState
from orchestrator.domain.run_states import FINAL_STATES

Reviewed = tuple[RunRow, ChangeCause] | None
CLUSTER_LOST = "the cluster went away; it resumes when there is one"
SAVED = "its driver has saved the state and ended"
LIMIT_REACHED = "its `schedule.max_runtime` is used up; its state is saved, and `convoy retry` continues it"


def review(row: RunRow, sight: RunSight) -> Reviewed:
    """The next change of a run; None if there is none."""
    if row.booked and row.state not in (QueueState.STARTING, QueueState.ACTIVE) and _released(row, sight):
        return replace(row, booked=NO_PLACES, granted=NO_PLACES), ChangeCause("released", "its capacity is free again")
    match row.state:
        case QueueState.STARTING:
            return _starting(row, sight)
        case QueueState.ACTIVE:
            return _active(row, sight)
        case QueueState.SUSPENDING | QueueState.PAUSING | QueueState.CANCELLING:
            return _leaving(row, sight)
        case QueueState.BACKOFF if sight.pause_over:
            return _moved(replace(row, retry_at_s=None), _back(row), "it is tried again")
    return None


def unblocked(row: RunRow, needs: Sequence[tuple[str, QueueState]], now_s: float) -> Reviewed:
    """What becomes of a blocked run. `needs`: id and state of the runs that it comes after; `now_s`: Unix seconds."""
    for need, state in needs:
        if state in (QueueState.FAILED, QueueState.CANCELLED):
            reason = f"run {need}, which it comes after, is {state}"
            after = replace(row, state=QueueState.FAILED, reason=reason, ended_s=now_s)
            return after, ChangeCause("state", reason, {"run": need})
    if all(state is QueueState.SUCCEEDED for _, state in needs):
        return _moved(row, QueueState.QUEUED, "the runs before it have succeeded")
    return None


def _released(row: RunRow, sight: RunSight) -> bool:
    """Its driver has ended, and the cluster has no reservation of it."""
    leaving = row.state not in WAITING and row.state not in FINAL and row.state not in (
        QueueState.PAUSED, QueueState.BACKOFF,
    )  # fmt: skip
    return not leaving and sight.held is not None and not sight.held and sight.gone is not False


def _starting(row: RunRow, sight: RunSight) -> Reviewed:
    facts = sight.facts
    if facts is None:
        return None
    if sight.gone is False and (facts.lease_moved or (facts.state is not None and facts.state not in FINAL_STATES)):
        started_s = row.started_s if row.started_s is not None else sight.now_s
        after = replace(row, state=QueueState.ACTIVE, reason=None, started_s=started_s, retry_at_s=None)
        return replace(after, launched=row.launched or row.grant_number), ChangeCause(
            "state", "its driver has taken the lease"
        )
    if not sight.gone:
        return None
    if facts.state is RunState.SUCCEEDED:
        return _ended(row, sight, QueueState.SUCCEEDED, "it has reached its last step")
    if not row.launched:
        return None
    return _driver_ended(row, facts, sight)


def _active(row: RunRow, sight: RunSight) -> Reviewed:
    facts = sight.facts
    if facts is None:
        return None
    if sight.gone:
        return _driver_ended(row, facts, sight)
    if row.limit_s is not None and sight.active_s >= row.limit_s:
        return _moved(progress_of(row, sight), QueueState.SUSPENDING, LIMIT_REACHED)
    if facts.answered >= row.grant_number and row.booked != row.granted:
        workers = sum(row.granted.values())
        after = progress_of(replace(row, booked=row.granted), sight)
        return after, ChangeCause("answered", f"it has the {workers} workers of grant {row.grant_number}")
    return None


def _driver_ended(row: RunRow, facts: DriverFacts, sight: RunSight) -> Reviewed:
    """A run without its driver, which was not asked to end."""
    if facts.state is RunState.SUCCEEDED:
        return _ended(row, sight, QueueState.SUCCEEDED, "it has reached its last step")
    if (sight.cluster_lost or facts.cluster_lost) and facts.exit_code != USER_ERROR:
        target = QueueState.SUSPENDED if row.begun or row.state is QueueState.ACTIVE else QueueState.QUEUED
        return _moved(progress_of(row, sight), target, CLUSTER_LOST)
    if facts.state is RunState.FAILED or facts.exit_code in (RUN_FAILED, USER_ERROR):
        return _failed(row, facts.reason or "its driver failed", facts.exit_code, sight)
    lost = 1 if facts.step > row.step else row.lost_drivers + 1
    stopped = facts.state is RunState.STOPPED
    what = "its driver was stopped" if stopped else "its driver has vanished"
    if lost > MOST_LOST_DRIVERS:
        return _failed(replace(row, lost_drivers=0), f"{what} {lost} times without a step", facts.exit_code, sight)
    before = replace(progress_of(row, sight), lost_drivers=lost, launched=0)
    if stopped:
        return _moved(before, _back(row), f"{what}: {facts.reason}" if facts.reason else what)
    cause = ChangeCause("driver_lost", f"{what}; another one is started", {"step": facts.step})
    return replace(before, state=QueueState.STARTING), cause


def _failed(row: RunRow, reason: str, exit_code: int | None, sight: RunSight) -> tuple[RunRow, ChangeCause]:
    """A run that has failed: tried again later, or not."""
    verdict = judge_failure(exit_code, row.failures, row.retries, sight.in_state_s)
    if not verdict.again:
        return _ended(replace(row, failures=verdict.failures), sight, QueueState.FAILED, reason)
    before = replace(progress_of(row, sight), failures=verdict.failures, retry_at_s=sight.now_s + verdict.pause_s)
    after = replace(before, state=QueueState.BACKOFF, reason=reason, launched=0, attempt=row.attempt + 1)
    message = f"{reason}; tried again in {verdict.pause_s:.0f} s ({verdict.failures} of {row.retries} retries)"
    return after, ChangeCause("state", message, {"exit_code": exit_code, "pause_s": verdict.pause_s})


def launch_failed(row: RunRow, message: str, exit_code: int, now_s: float) -> tuple[RunRow, ChangeCause]:
    """A run whose driver could not be started at all."""
    return _failed(row, f"its driver cannot be started: {message}", exit_code, RunSight(now_s, active_s=row.active_s))


def _leaving(row: RunRow, sight: RunSight) -> Reviewed:
    """A run whose driver was asked to end."""
    if not sight.gone:
        return None
    facts, started = sight.facts, row.launched > 0
    state = facts.state if facts is not None and started else None
    if state is RunState.SUCCEEDED:
        return _ended(row, sight, QueueState.SUCCEEDED, "it reached its last step meanwhile")
    if row.state is QueueState.CANCELLING:
        return _ended(row, sight, QueueState.CANCELLED, row.reason or "cancelled")
    if facts is not None and state is RunState.FAILED and facts.exit_code == USER_ERROR:
        return _ended(row, sight, QueueState.FAILED, facts.reason or "it has failed")
    before = replace(progress_of(row, sight), launched=0)
    if row.state is QueueState.PAUSING:
        note = (
            f"{row.reason or 'paused'}; it failed while it was saved: {facts.reason}" if facts and _bad(state) else None
        )
        paused = replace(before, state=QueueState.PAUSED, reason=note or row.reason)
        return paused, ChangeCause("state", note or SAVED)
    if row.limit_s is not None and before.active_s >= row.limit_s:
        return _ended(before, sight, QueueState.FAILED, LIMIT_REACHED)
    if facts is not None and _bad(state) and not (sight.cluster_lost or facts.cluster_lost):
        return _failed(before, facts.reason or "it failed while it was saved", facts.exit_code, sight)
    return replace(before, state=QueueState.SUSPENDED), ChangeCause("state", SAVED)


def _bad(state: RunState | None) -> bool:
    return state is RunState.FAILED


def _moved(row: RunRow, target: QueueState, reason: str) -> Reviewed:
    return replace(row, state=target, reason=reason), ChangeCause("state", reason)


def _ended(row: RunRow, sight: RunSight, target: QueueState, reason: str) -> tuple[RunRow, ChangeCause]:
    after = replace(progress_of(row, sight), state=target, reason=reason, ended_s=sight.now_s, launched=0)
    return after, ChangeCause("state", reason)


def progress_of(row: RunRow, sight: RunSight) -> RunRow:
    """The row with what its driver last said."""
    facts = sight.facts
    active_s = max(row.active_s, sight.active_s)
    if facts is None:
        return replace(row, active_s=active_s)
    return replace(
        row,
        active_s=active_s,
        step=max(row.step, facts.step),
        total_steps=facts.total_steps if facts.total_steps is not None else row.total_steps,
        loss=facts.loss if facts.loss is not None else row.loss,
        step_time_s=facts.step_time_s if facts.step_time_s is not None else row.step_time_s,
    )


def _back(row: RunRow) -> QueueState:
    """Where a run waits for capacity again."""
    return QueueState.SUSPENDED if row.begun else QueueState.QUEUED
