"""A decision of the scheduler to changes of runs: what is booked before anything happens. Pure."""

from collections.abc import Iterator, Mapping
from dataclasses import replace

from orchestrator.control.policy.queue_facts import Decision, Places
from orchestrator.control.queue_store.event_table import ChangeCause
from orchestrator.control.queue_store.queue_table import places_text
from orchestrator.control.queue_store.run_rows import RunRow
from orchestrator.domain.queue.queue_states import WAITING, QueueState

Booked = tuple[RunRow, RunRow, ChangeCause]
"""Row before, row after, cause."""


def bookings(decision: Decision, rows: Mapping[str, RunRow], now_s: float) -> Iterator[Booked]:
    """The changes of runs. Those that have changed so that the decision does not fit them any more are left out."""
    for run_id, why in decision.suspensions.items():
        row = rows.get(run_id)
        if row is not None and row.state in (QueueState.STARTING, QueueState.ACTIVE):
            reason = f"gives its capacity to run {why}" if why in rows else f"gives its capacity to others: {why}"
            yield (
                row,
                replace(row, state=QueueState.SUSPENDING, reason=reason),
                ChangeCause("state", reason, {"for": why}),
            )
    for run_id, places in decision.grants.items():
        row = rows.get(run_id)
        if row is None or not places or run_id in decision.suspensions:
            continue
        if row.state in WAITING and not row.booked:
            yield _started(row, places, now_s)
        elif row.state in (QueueState.STARTING, QueueState.ACTIVE) and dict(places) != dict(row.granted):
            yield _regranted(row, places, now_s)


def _started(row: RunRow, places: Places, now_s: float) -> Booked:
    workers = sum(places.values())
    after = replace(
        row, state=QueueState.STARTING, reason=None, grant_number=row.grant_number + 1, granted=dict(places),
        booked=dict(places), launched=0, granted_s=now_s,
    )  # fmt: skip
    message = f"{workers} worker{'s' if workers != 1 else ''} booked: {places_text(places)}"
    return row, after, ChangeCause("granted", message, {"grant": after.grant_number, "places": dict(places)})


def _regranted(row: RunRow, places: Places, now_s: float) -> Booked:
    before, workers = sum(row.granted.values()), sum(places.values())
    both = {node: max(row.booked.get(node, 0), places.get(node, 0)) for node in (*row.booked, *places)}
    after = replace(row, grant_number=row.grant_number + 1, granted=dict(places), booked=both, granted_s=now_s)
    verb = "grows" if workers > before else "shrinks" if workers < before else "moves"
    message = f"{verb} from {before} to {workers} workers: {places_text(places)}"
    return row, after, ChangeCause("granted", message, {"grant": after.grant_number, "places": dict(places)})
