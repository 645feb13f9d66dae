"""Runs as clients see them: the row, what its driver last said, and why it waits."""

from collections.abc import Mapping, Sequence

from orchestrator.control.policy.queue_facts import Outlook
from orchestrator.control.ports import DriverFacts
from orchestrator.control.queue_board import TickView
from orchestrator.control.queue_store.run_rows import RunRow
from orchestrator.domain.queue.priorities import priority_of
from orchestrator.domain.queue.queue_states import HOLDING, WAITING, QueueState
from orchestrator.wire.run_messages import RunView, WaitView

AFTER, PAUSED, BACKOFF = "after", "paused", "backoff"
"""Obstacles that are no matter of capacity."""
UNDECIDED = "undecided"
"""Obstacle of a run about which nothing could be decided yet."""


def view_of(row: RunRow, needs: Sequence[RunRow], tick: TickView | None) -> RunView:
    """The view of a run. `needs`: the runs that it comes after."""
    facts = tick.drivers.get(row.id) if tick is not None and row.state in HOLDING else None
    step, total, step_time_s, loss = _progress(row, facts)
    return RunView(
        id=row.id,
        name=row.name,
        group=row.group_name,
        queue=row.queue,
        team=row.team,
        user=row.user,
        priority=priority_of(row.priority).value,
        state=row.state,
        run_state=facts.state if facts is not None else None,
        reason=row.reason,
        submitted_s=row.submitted_s,
        started_s=row.started_s,
        ended_s=row.ended_s,
        workers=sum(row.booked.values()),
        min_workers=row.min_workers,
        max_workers=row.max_workers,
        worker_resources=dict(row.bundle),
        nodes=dict(row.booked),
        after=[need.id for need in needs],
        attempt=row.attempt,
        retry_at_s=row.retry_at_s if row.state is QueueState.BACKOFF else None,
        step=step,
        total_steps=total,
        loss=loss,
        eta_s=_left(step, total, step_time_s) if row.state is QueueState.ACTIVE else None,
        waits=wait_of(row, needs, tick),
        directory=row.directory,
    )


def wait_of(row: RunRow, needs: Sequence[RunRow], tick: TickView | None) -> WaitView | None:
    """Why a run waits; None if it does not."""
    if row.state is QueueState.BLOCKED:
        open_ones = [need for need in needs if need.state is not QueueState.SUCCEEDED]
        shown = ", ".join(f"{need.id} ({need.state})" for need in open_ones) or "nothing any more"
        return WaitView(
            position=None, obstacle=AFTER, message=f"comes after {shown}", blockers=[need.id for need in open_ones]
        )
    if row.state is QueueState.PAUSED:
        return WaitView(
            position=None, obstacle=PAUSED, message=f"{row.reason or 'paused'}; `convoy resume` continues it"
        )
    if row.state is QueueState.BACKOFF:
        message = f"failed, and is tried again ({row.failures} of {row.retries} retries): {row.reason}"
        return WaitView(position=None, obstacle=BACKOFF, message=message, may_start_s=row.retry_at_s)
    if row.state not in WAITING:
        return None
    return _of_outlook(tick.outlooks.get(row.id) if tick is not None else None, row, tick)


def _of_outlook(outlook: Outlook | None, row: RunRow, tick: TickView | None) -> WaitView:
    if outlook is not None:
        return WaitView(
            position=outlook.position, obstacle=outlook.obstacle.value, message=outlook.message,
            blockers=list(outlook.blockers), may_start_s=outlook.may_start_s,
        )  # fmt: skip
    if tick is None:
        message = "the server has just started and has not looked at the cluster yet"
    elif not tick.acting:
        message = "another server acts on this queue: ask that one"
    elif tick.problem is not None:
        message = tick.problem
    elif tick.nodes is None:
        message = "the cluster does not answer; nothing is decided until it does"
    elif row.booked:
        message = "its last reservation is being released"
    else:
        message = "it is looked at within a second"
    return WaitView(position=None, obstacle=UNDECIDED, message=message)


def imagined_wait(row: RunRow, live: Sequence[RunRow]) -> WaitView:
    """Where a run would stand that was only checked: behind the waiting runs of its class and of higher ones. `live`:
    every run that is not settled."""
    waiting = [each for each in live if each.state in WAITING]
    before = sum(1 for each in waiting if each.priority >= row.priority)
    message = f"not submitted: it would be number {before + 1} of {len(waiting) + 1} runs that wait"
    return WaitView(position=before + 1, obstacle=UNDECIDED, message=message)


def _progress(row: RunRow, facts: DriverFacts | None) -> tuple[int, int | None, float | None, float | None]:
    """Step, total steps, seconds a step, loss: of the driver, or as last recorded."""
    if facts is None:
        return row.step, row.total_steps, row.step_time_s, row.loss
    return (
        max(facts.step, row.step),
        facts.total_steps if facts.total_steps is not None else row.total_steps,
        facts.step_time_s if facts.step_time_s is not None else row.step_time_s,
        facts.loss if facts.loss is not None else row.loss,
    )


def _left(step: int, total: int | None, step_time_s: float | None) -> float | None:
    return max(0, total - step) * step_time_s if total is not None and step_time_s is not None else None


def used_by(rows: Sequence[RunRow]) -> Mapping[str, float]:
    """What is booked for these runs, by Ray's resource names."""
    used: dict[str, float] = {}
    for row in rows:
        workers = sum(row.booked.values())
        for name, amount in row.bundle.items():
            if workers:
                used[name] = used.get(name, 0.0) + workers * amount
    return used
