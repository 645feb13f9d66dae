"""Rows and looks to the facts that the scheduler decides from. What has not changed since the last tick is not made
again: ten thousand waiting runs cost next to nothing."""

from collections.abc import Collection, Mapping
from dataclasses import replace

from orchestrator.clusters.placement import NodeCapacity
from orchestrator.control.policy.queue_facts import ScheduledRun
from orchestrator.control.ports import DriverFacts
from orchestrator.control.queue_store.reservation_table import Reservation
from orchestrator.control.queue_store.run_rows import NO_PLACES, RunRow
from orchestrator.control.ticking.run_clocks import RunClocks
from orchestrator.control.ticking.work_estimate import time_left, work_left
from orchestrator.domain.queue.queue_states import WAITING, QueueState

ON_THE_WAY_OUT = frozenset({QueueState.SUSPENDING, QueueState.PAUSING, QueueState.CANCELLING})


def concerns_capacity(row: RunRow) -> bool:
    """The scheduler has to know of it: it waits for capacity, or capacity is booked for it."""
    return bool(row.booked) or row.state is QueueState.QUEUED or row.state is QueueState.SUSPENDED


class FactBuilder:
    """Makes `ScheduledRun`. Kept by the ticker."""

    def __init__(self) -> None:
        self._made: dict[str, tuple[RunRow, float | None, Reservation | None, ScheduledRun]] = {}
        """By waiting run: what its facts were made from, and they."""

    def run_facts(
        self, rows: Collection[RunRow], drivers: Mapping[str, DriverFacts], shapes: Mapping[str, float],
        clocks: RunClocks, reserved: Mapping[str, Reservation],
    ) -> tuple[ScheduledRun, ...]:  # fmt: skip
        """Of every run that concerns capacity. `reserved`: what the decision before promised, by run."""
        made: dict[str, tuple[RunRow, float | None, Reservation | None, ScheduledRun]] = {}
        found = []
        for row in rows:
            if row.booked:
                found.append(_facts(row, drivers.get(row.id), shapes, clocks.active_s(row), None))
                continue
            if not concerns_capacity(row):
                continue
            each, promise = shapes.get(row.shape), reserved.get(row.id)
            known = self._made.get(row.id)
            if known is None or known[0] is not row or known[1] != each or known[2] != promise:
                known = (row, each, promise, _facts(row, None, shapes, row.active_s, promise))
            made[row.id] = known
            found.append(known[3])
        self._made = made
        return tuple(found)


def _facts(
    row: RunRow, facts: DriverFacts | None, shapes: Mapping[str, float], active_s: float, reserved: Reservation | None
) -> ScheduledRun:
    has_driver = row.state in (QueueState.STARTING, QueueState.ACTIVE)
    return ScheduledRun(
        id=row.id,
        queue=row.queue,
        user=row.user,
        priority=row.priority,
        order=row.seq,
        ask=row.ask,
        waits=row.state in WAITING and not row.booked,
        leaving=bool(row.booked) and not has_driver,
        places=row.booked,
        granted=row.granted if has_driver else NO_PLACES,
        since_s=row.since_s,
        work_s=work_left(row, facts, shapes),
        limit_s=time_left(row, active_s),
        changed_s=row.granted_s,
        reserved=reserved,
    )


def free_for_queue(
    nodes: Collection[NodeCapacity], held: Mapping[str, Mapping[str, int]], rows: Mapping[str, RunRow]
) -> tuple[NodeCapacity, ...]:
    """The nodes with what reservations of this queue's runs take from `free` put back: the scheduler subtracts what is
    booked. `held`: workers by node, by run."""
    ours: dict[str, dict[str, float]] = {}
    for run_id, places in held.items():
        row = rows.get(run_id)
        for node, workers in places.items() if row is not None else ():
            amounts = ours.setdefault(node, {})
            for name, amount in row.bundle.items() if row is not None else ():
                amounts[name] = amounts.get(name, 0.0) + workers * amount
    return tuple(_with_ours(node, ours[node.node_id]) if node.node_id in ours else node for node in nodes)


def _with_ours(node: NodeCapacity, ours: Mapping[str, float]) -> NodeCapacity:
    free = {name: min(total, node.free.get(name, 0.0) + ours.get(name, 0.0)) for name, total in node.total.items()}
    return replace(node, free=free)
