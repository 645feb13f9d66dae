"""What a person's request makes of a run in the queue. Pure: a row in, a row and the cause of the change out.

A request that asks for what is so already returns the row as it is.
"""

from collections.abc import Sequence
from dataclasses import replace

from orchestrator.control.queue_store.event_table import ChangeCause
from orchestrator.control.queue_store.run_rows import RunRow
from orchestrator.domain.errors import ConflictError
from orchestrator.domain.queue.queue_states import FINAL, HOLDING, QueueState
from orchestrator.domain.scaling import check_workers, fewest_workers
from orchestrator.spec.job import JobSpec
from orchestrator.spec.resources import WorkersRange

Changed = tuple[RunRow, ChangeCause]


def cancelled(row: RunRow, user: str, now_s: float) -> Changed:
    """End it for good. Raises ConflictError if it has ended otherwise."""
    reason = f"cancelled by {user}"
    cause = ChangeCause("state", reason, {"user": user})
    if row.state in (QueueState.CANCELLED, QueueState.CANCELLING):
        return row, cause
    if row.state in FINAL:
        raise ConflictError(f"run {row.id} has ended already: it is {row.state}")
    if row.state in HOLDING:
        return replace(row, state=QueueState.CANCELLING, reason=reason), cause
    return replace(row, state=QueueState.CANCELLED, reason=reason, ended_s=now_s, retry_at_s=None), cause


def paused(row: RunRow, user: str) -> Changed:
    """Give its capacity back until it is resumed. Raises ConflictError if it ends or has ended."""
    reason = f"paused by {user}"
    cause = ChangeCause("state", reason, {"user": user})
    if row.state in (QueueState.PAUSED, QueueState.PAUSING):
        return row, cause
    if row.state in FINAL or row.state is QueueState.CANCELLING:
        raise ConflictError(f"run {row.id} is {row.state}: it cannot be paused")
    target = QueueState.PAUSING if row.state in HOLDING else QueueState.PAUSED
    return replace(row, state=target, reason=reason, retry_at_s=None), cause


def resumed(row: RunRow, needs: Sequence[RunRow], user: str) -> Changed:
    """Queue a paused run again. Raises ConflictError if it is not paused, or a run before it has failed."""
    if row.state is QueueState.PAUSING:
        raise ConflictError(f"run {row.id} is still being paused", hint="repeat this in a few seconds")
    if row.state is not QueueState.PAUSED:
        hint = f"convoy retry {row.id}" if row.state in (QueueState.FAILED, QueueState.CANCELLED) else None
        raise ConflictError(f"run {row.id} is {row.state}, not paused", hint=hint)
    cause = ChangeCause("state", f"resumed by {user}", {"user": user})
    return replace(row, state=waiting_state(row, needs), reason=None), cause


def retried(row: RunRow, needs: Sequence[RunRow], user: str) -> Changed:
    """Queue a run that has failed or was cancelled again, with its whole budget of retries and time. Raises
    ConflictError if it is in another state, or a run before it has failed."""
    if row.state not in (QueueState.FAILED, QueueState.CANCELLED):
        hint = f"convoy resume {row.id}" if row.state is QueueState.PAUSED else None
        raise ConflictError(f"run {row.id} is {row.state}: only a failed or cancelled run can be retried", hint=hint)
    after = replace(
        row, state=waiting_state(row, needs), reason=None, ended_s=None, settled=False, attempt=row.attempt + 1,
        failures=0, lost_drivers=0, retry_at_s=None, active_s=0.0,
    )  # fmt: skip
    return after, ChangeCause("state", f"retried by {user}", {"user": user, "attempt": after.attempt})


def scaled(row: RunRow, spec: JobSpec, workers: int, user: str) -> Changed:
    """At most, and if there is room, so many workers from now on. Raises ConflictError if it has ended, UsageError if
    its spec does not allow the number."""
    if row.state in FINAL or row.state is QueueState.CANCELLING:
        raise ConflictError(f"run {row.id} is {row.state}: it cannot be scaled")
    check_workers(spec, workers, force=False)
    asked = spec.resources.workers
    least = fewest_workers(asked.min if isinstance(asked, WorkersRange) else asked, workers)
    cause = ChangeCause("scaled", f"{user} asked for {workers} workers", {"user": user, "workers": workers})
    return replace(row, min_workers=least, max_workers=workers), cause


def waiting_state(row: RunRow, needs: Sequence[RunRow]) -> QueueState:
    """Where a run waits that is queued again. Raises ConflictError if a run before it has failed."""
    for need in needs:
        if need.state in (QueueState.FAILED, QueueState.CANCELLED):
            raise ConflictError(
                f"run {row.id} comes after {need.id}, which is {need.state}", hint=f"first: convoy retry {need.id}"
            )
    if any(need.state is not QueueState.SUCCEEDED for need in needs):
        return QueueState.BLOCKED
    return QueueState.SUSPENDED if row.begun else QueueState.QUEUED
