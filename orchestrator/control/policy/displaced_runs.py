"""Runs whose nodes are gone or draining: other places, or fewer workers, or a wait for other places."""

from orchestrator.control.policy.capacity_holders import CapacityHolder
from orchestrator.control.policy.gang_places import places_in
from orchestrator.control.policy.tick_state import TickState
from orchestrator.control.policy.worker_shapes import WorkerCounts, fit_of


def open_rows(holder: CapacityHolder, counts: WorkerCounts) -> WorkerCounts:
    """Of what fits by node, what the placement of a run allows beside the workers that it keeps."""
    if holder.shape.placement == "strict_spread":
        allowed = counts.copy()
        allowed[list(holder.kept)] = 0
        return allowed
    if holder.shape.placement == "strict_pack" and holder.kept:
        allowed = counts * 0
        row = next(iter(holder.kept))
        allowed[row] = counts[row]
        return allowed
    return counts


def rehome(state: TickState) -> None:
    """Grant other places to every run that has lost some, the most important first."""
    displaced = [each for each in state.holders.values() if each.lost and not each.run.leaving]
    for holder in sorted(displaced, key=lambda each: (-each.run.priority, each.run.order)):
        _rehome(state, holder)


def _rehome(state: TickState, holder: CapacityHolder) -> None:
    minimum, shape = holder.run.ask.minimum, holder.shape
    counts = open_rows(holder, state.room_now(shape, state.end_column(holder)))
    found = min(holder.lost, fit_of(counts, shape.placement))
    if holder.workers + found < minimum:
        state.suspend(holder, holder.run.id)
        return
    places = places_in(counts, shape.placement, found) if found else {}
    if found:
        state.profile.hold(places, shape, 0, state.end_column(holder))
        amount = shape.bundle * found
        state.ledger.booked[holder.run.queue] += amount
        state.ledger.target[holder.run.queue] += amount
    for row, workers in places.items():
        holder.kept[row] = holder.kept.get(row, 0) + workers
        holder.booked[row] = max(holder.booked.get(row, 0), holder.kept[row])
    if holder.soft:
        state.count_soft(holder, holder.extras, -1.0)
        state.profile.hold(holder.extras, shape, 1, state.end_column(holder))
    before = holder.kept
    state.profile.hold(before, shape, 1, state.end_column(holder), 1.0)
    holder.divide({})
    state.profile.hold(holder.hard, shape, 1, state.end_column(holder))
    holder.soft = bool(holder.extras)
    if holder.soft:
        state.count_soft(holder, holder.extras)
    holder.changed = True
    state.grants[holder.run.id] = holder.kept
