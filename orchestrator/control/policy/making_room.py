"""Room for a waiting run: elastic runs shrink, and if that is not enough, runs are suspended. No run is ended."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from orchestrator.clusters.placement import EPSILON
from orchestrator.control.policy.admission_order import Waiting
from orchestrator.control.policy.capacity_holders import CapacityHolder
from orchestrator.control.policy.gang_places import RowPlaces, places_in
from orchestrator.control.policy.tick_state import TickState
from orchestrator.control.policy.worker_shapes import Amounts, WorkerCounts, WorkerShape, fit_of, workers_that_fit


@dataclass(frozen=True)
class RoomMade:
    """Where a run is to start when the victims have given their places."""

    places: RowPlaces
    victims: tuple[CapacityHolder, ...]


def _shortest_prefix(most: int, fits: Callable[[int], bool]) -> int | None:
    """About as few as suffice: 0, 1, 2, 4, ... of `most`. None: all are not enough."""
    if not fits(most):
        return None
    size = 0
    while size < most and not fits(size):
        size = max(1, 2 * size)
    return min(size, most)


def room_by_shrinking(state: TickState, run: Waiting, window: Amounts) -> RoomMade | None:
    """Places from the second column on, where elastic runs shrink if need be. `window` is what is free then, with all
    extras: [resources, nodes]."""
    shape, workers = run[1], run[0].ask.minimum
    soft = [each for each in state.by_harm() if each.soft and each.extras]
    real = window - state.soft

    def counts(size: int) -> WorkerCounts:
        free = real.copy()
        for holder in soft[:size]:
            for row, extra in holder.extras.items():
                free[:, row] += extra * holder.shape.bundle
        return workers_that_fit(free, shape.bundle)

    size = _shortest_prefix(len(soft), lambda size: fit_of(counts(size), shape.placement) >= workers)
    if size is None:
        return None
    without, with_all = counts(0), counts(size)
    places = places_in(with_all, shape.placement, workers, (with_all > without).astype(np.int64))
    victims = []
    for row, wanted in places.items():
        lacks = shape.bundle * wanted - real[:, row]
        for holder in soft[:size]:
            if (lacks <= EPSILON).all():
                break
            if row in holder.extras and _helps(holder.shape, lacks):
                given = min(holder.extras[row], _needed(holder.shape, lacks))
                state.take_extra(holder, row, given)
                lacks -= given * holder.shape.bundle
                victims.append(holder)
    return RoomMade(places, tuple(dict.fromkeys(victims)))


def _helps(shape: WorkerShape, lacks: Amounts) -> bool:
    return bool(((lacks > EPSILON) & (shape.bundle > 0)).any())


def _needed(shape: WorkerShape, lacks: Amounts) -> int:
    """Workers of a shape whose end provides what lacks, as far as they have it."""
    has = (shape.bundle > 0) & (lacks > EPSILON)
    return int(np.ceil(lacks[has] / shape.bundle[has] - EPSILON).max())


def room_by_suspending(state: TickState, run: Waiting, entitled: bool) -> RoomMade | None:
    """Places from the second column on, for which runs are suspended: those of lower priority, and if the waiting run
    is within the quota of its queue, those of queues that have borrowed."""
    shape, workers = run[1], run[0].ask.minimum
    victims = _suspendable(state, run, entitled)
    if not victims:
        return None
    profile = state.profile
    end = profile.end_of(1, run[0].remaining_s(workers))
    base = profile.free[:, :, 1:end] - state.soft[:, :, None]

    def counts(chosen: Sequence[CapacityHolder]) -> WorkerCounts:
        free = base.copy()
        for holder in chosen:
            until = max(0, state.end_column(holder) - 1)
            for row, held in holder.hard.items():
                free[:, row, :until] += (held * holder.shape.bundle)[:, None]
            for row, extra in holder.extras.items():
                free[:, row, : None if holder.soft else until] += (extra * holder.shape.bundle)[:, None]
        return workers_that_fit(free.min(axis=2), shape.bundle)

    size = _shortest_prefix(len(victims), lambda size: fit_of(counts(victims[:size]), shape.placement) >= workers)
    if size is None:
        return None
    without, with_all = counts(()), counts(victims[:size])
    places = places_in(with_all, shape.placement, workers, (with_all > without).astype(np.int64))
    chosen = [each for each in victims[:size] if not places.keys().isdisjoint(each.kept)]
    rows = np.array(list(places))
    wanted = np.array(list(places.values()))
    for holder in reversed(chosen.copy()):
        others = [each for each in chosen if each is not holder]
        if (counts(others)[rows] >= wanted).all():
            chosen = others
    for holder in chosen:
        state.suspend(holder, run[0].id)
    return RoomMade(places, tuple(chosen))


def _suspendable(state: TickState, run: Waiting, entitled: bool) -> list[CapacityHolder]:
    """In the order in which they are taken. A queue loses no more than it has borrowed to other queues."""
    used = {queue: amounts.copy() for queue, amounts in state.ledger.floor.items()}
    found = []
    for holder in state.by_harm():
        other = holder.run
        if holder.leaves or holder.started or other.id in state.reserved:
            continue
        lower = other.priority < run[0].priority
        if other.queue == run[0].queue:
            takes = lower
        else:
            takes = (lower or entitled) and state.ledger.borrows(other.queue, used[other.queue])
        if takes:
            found.append(holder)
            used[other.queue] -= holder.shape.bundle * other.ask.minimum
    return found
