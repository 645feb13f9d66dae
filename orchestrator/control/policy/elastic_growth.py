"""Elastic runs grow into what is idle and not reserved soon."""

import math

import numpy as np

from orchestrator.control.policy.capacity_holders import CapacityHolder
from orchestrator.control.policy.displaced_runs import open_rows
from orchestrator.control.policy.gang_places import places_in
from orchestrator.control.policy.tick_state import TickState
from orchestrator.control.policy.worker_shapes import Amounts, WorkerCounts, fit_of, workers_that_fit

GROWTH_PAUSE_S = 120.0
"""Since the last change of a run's grant, before it grows again."""
IDLE_S = 600.0
"""A place that is reserved sooner is not worth the two changes."""
WORTH_S = 120.0
"""A run that ends sooner does not grow."""
LEAST_GAIN = 0.05
"""Fewer additional workers than that share are not worth the change."""
ROUNDS = 6
"""In each but the last, a run gets no more than its part of what is idle, so that all grow alike."""
STEPS_OF_RANGE = 4
"""Nor more than this part of its range."""


def grow(state: TickState) -> None:
    """Divide what is idle: higher priority first, then the run with the smallest part of its maximum."""
    able = [each for each in state.holders.values() if _may_grow(state, each)]
    if not able or not state.profile.free.size:
        return
    until = max(1, state.profile.column(state.now_s + IDLE_S))
    idle = state.profile.free[:, :, 0]
    if until > 1:
        idle = np.minimum(idle, state.profile.free[:, :, 1:until].min(axis=2) - state.soft)
    idle = idle.copy()
    full: set[tuple[int, int]] = set()
    for turn in range(ROUNDS):
        able.sort(key=lambda each: (-each.run.priority, each.workers / each.run.ask.maximum, each.run.order))
        for holder in able:
            key = (holder.shape.number, holder.run.priority)
            others = 1 if turn == ROUNDS - 1 else len(able)
            if key not in full and not _grow(state, holder, idle, others):
                full.add(key)


def _may_grow(state: TickState, holder: CapacityHolder) -> bool:
    run, ask = holder.run, holder.run.ask
    if holder.leaves or holder.workers >= ask.maximum:
        return False
    if holder.started:
        return True
    if holder.changed or not holder.settled:
        return False
    if run.changed_s is not None and state.now_s - run.changed_s < GROWTH_PAUSE_S:
        return False
    left_s = run.remaining_s(holder.workers)
    return left_s is None or left_s >= WORTH_S


def _grow(state: TickState, holder: CapacityHolder, idle: Amounts, among: int) -> bool:
    """Give a run its part of what is idle, if so many want it. False if no node has room for such a worker."""
    ask, shape = holder.run.ask, holder.shape
    counts = workers_that_fit(idle, shape.bundle)
    if not counts.any():
        return False
    counts = open_rows(holder, _allowed(state, holder, counts))
    wanted = ask.maximum - holder.workers
    fit = fit_of(counts, shape.placement)
    if among > 1:
        wanted = min(wanted, math.ceil((ask.maximum - ask.minimum) / STEPS_OF_RANGE), max(1, fit // among))
    room = state.ledger.room(holder.run.queue, state.ledger.booked[holder.run.queue], shape.bundle)
    if room is not None:
        wanted = min(wanted, room)
    gain = min(wanted, fit)
    if gain > 0 and (holder.changed or gain >= LEAST_GAIN * holder.workers):
        places = places_in(counts, shape.placement, gain, _elsewhere(holder, counts))
        state.grow(holder, places)
        for row, workers in places.items():
            idle[:, row] -= workers * shape.bundle
    return True


def _elsewhere(holder: CapacityHolder, counts: WorkerCounts) -> WorkerCounts:
    """A packed gang first fills the nodes that it is on."""
    cost: WorkerCounts = np.zeros_like(counts)
    if holder.shape.placement == "pack":
        cost += 1
        cost[list(holder.kept)] = 0
    return cost


def _allowed(state: TickState, holder: CapacityHolder, counts: WorkerCounts) -> WorkerCounts:
    """Runs of lower priority cannot take extras back: no growth onto what is reserved for them."""
    rows = [row for row, priority in state.reserved_priority.items() if priority < holder.run.priority]
    if rows:
        counts = counts.copy()
        counts[rows] = np.minimum(counts[rows], state.room_now(holder.shape, state.end_column(holder))[rows])
    return counts
