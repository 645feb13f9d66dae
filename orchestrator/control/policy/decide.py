"""The decision of a tick: who gets which places, who gives some up, and what the others may expect. Pure."""

from dataclasses import dataclass, field

import numpy as np

from orchestrator.control.policy.admission_order import Waiting
from orchestrator.control.policy.displaced_runs import rehome
from orchestrator.control.policy.elastic_growth import grow
from orchestrator.control.policy.gang_places import places_in
from orchestrator.control.policy.kept_reservations import KeptReservations, new_reservation
from orchestrator.control.policy.lowered_maximum import shrink_to_maximum
from orchestrator.control.policy.making_room import (
    RoomMade,
    room_by_shrinking,
    room_by_suspending,
)
from orchestrator.control.policy.queue_facts import Decision, Obstacle, QueueFacts
from orchestrator.control.policy.tick_state import TickState
from orchestrator.control.policy.wait_outlooks import WaitReason, outlooks_of
from orchestrator.control.policy.worker_shapes import WorkerShape, fit_of

RESERVATION_DEPTH = 64
"""So many waiting runs get a reservation in each tick; those after them start only if they delay none of these."""
BACKFILL_SCAN = 4096
"""Further runs that are looked at."""
BACKFILL_TRIES = 128
"""Of these, whose window is searched."""
SUSPENSION_TRIES = 8
"""Waiting runs for which suspending others is tried in one tick; the next tick continues."""
PATIENCE_S = 120.0
"""Nothing is suspended for a run that starts sooner than that without."""


@dataclass
class Admission:
    """The state of one pass over the waiting runs."""

    state: TickState
    reasons: dict[str, WaitReason] = field(default_factory=dict)
    full_queues: dict[str, str] = field(default_factory=dict)
    """Queues at their limit, with the run that waits for it: runs after it do not pass it."""
    suspension_tries: int = 0
    kept: KeptReservations = field(init=False)

    def __post_init__(self) -> None:
        self.kept = KeptReservations(self.state)


def decide(facts: QueueFacts) -> Decision:
    """What changes. The same facts give the same decision, and deciding again on the result changes nothing."""
    state = TickState(facts)
    rehome(state)
    shrink_to_maximum(state)
    admission = Admission(state)
    waiting = state.order
    _shelter(state, {run.queue for run, _ in waiting[: state.entitled]})
    rank: tuple[bool, int] | None = None
    for at, (run, shape) in enumerate(waiting[:RESERVATION_DEPTH]):
        if at == state.entitled:
            _shelter(state, set())
        if rank != (at < state.entitled, run.priority):
            rank = (at < state.entitled, run.priority)
            _harden_above(state, run.priority, at < state.entitled)
            end = state.entitled if at < state.entitled else RESERVATION_DEPTH
            admission.kept.hold(each for each in waiting[at:end] if each[0].priority == run.priority)
        _admit(admission, (run, shape), at < state.entitled)
    _backfill(admission, waiting[RESERVATION_DEPTH : RESERVATION_DEPTH + BACKFILL_SCAN])
    grow(state)
    return Decision(
        grants=state.grants_by_node(),
        suspensions={each.run.id: each.suspended_for for each in state.holders.values() if each.suspended_for},
        outlooks=outlooks_of(state, admission.reasons),
        reservations={run: (at_s, state.by_node(places)) for run, (at_s, places) in state.reserved.items()},
    )


def _shelter(state: TickState, except_of: set[str]) -> None:
    """Extras within the quota of their queue are for other queues no more than the rest of the quota."""
    if not state.ledger.has_quotas:
        return
    for holder in state.holders.values():
        queue = holder.run.queue
        if holder.soft and queue not in except_of and not state.ledger.borrows(queue, state.ledger.target[queue]):
            state.harden(holder)


def _harden_above(state: TickState, priority: int, entitled: bool) -> None:
    """Extras of runs above a priority are not for it, unless they are borrowed and their owner wants them."""
    for holder in state.holders.values():
        if holder.soft and holder.run.priority > priority:
            queue = holder.run.queue
            if not (entitled and state.ledger.borrows(queue, state.ledger.target[queue])):
                state.harden(holder)


def _admit(admission: Admission, waiting: Waiting, entitled: bool) -> None:
    """Start a run, make room for it, or reserve places."""
    state, (run, shape) = admission.state, waiting
    minimum = run.ask.minimum
    if not _can_fit(admission, waiting) or not _within_limit(admission, waiting):
        return
    duration_s = run.remaining_s(minimum)
    kept = admission.kept.lift(waiting)
    now = state.profile.earliest(shape, minimum, duration_s, last=0)
    if now is not None and _under_limit_now(state, waiting):
        state.start(run, shape, places_in(now[1], shape.placement, minimum))
        return
    fits_now = fit_of(state.profile.counts(shape)[:, 0], shape.placement) >= minimum
    soonest = state.profile.earliest(shape, minimum, duration_s, first=1)
    likely_s = None if soonest is None else state.profile.times_s[soonest[0]]
    room = _make_room(admission, waiting, entitled, None if soonest is None else soonest[0])
    if room is not None:
        victims = tuple(each.run.id for each in room.victims)
        state.reserve(run, shape, 1, room.places)
        admission.reasons[run.id] = WaitReason(Obstacle.MAKING_ROOM, victims)
        return
    if kept is None and soonest is not None:
        kept = new_reservation(state, waiting, soonest)
    if kept is not None:
        state.reserve(run, shape, *kept)
    obstacle = Obstacle.RESERVED if fits_now else Obstacle.CAPACITY
    admission.reasons[run.id] = WaitReason(obstacle, likely_s=None if likely_s == np.inf else likely_s)


def _make_room(admission: Admission, waiting: Waiting, entitled: bool, start: int | None) -> RoomMade | None:
    """Places from the second column on; None if others cannot give enough, or need not because it starts soon."""
    state, (run, shape) = admission.state, waiting
    if start == 1:
        end = state.profile.end_of(1, run.remaining_s(run.ask.minimum))
        return room_by_shrinking(state, (run, shape), state.profile.free[:, :, 1:end].min(axis=2))
    soon = start is not None and state.profile.times_s[start] - state.now_s <= PATIENCE_S
    if soon or admission.suspension_tries >= SUSPENSION_TRIES:
        return None
    if entitled or (state.by_harm() and state.by_harm()[0].run.priority < run.priority):
        admission.suspension_tries += 1
        return room_by_suspending(state, (run, shape), entitled)
    return None


def _can_fit(admission: Admission, waiting: Waiting) -> bool:
    run, shape = waiting
    if shape.ever >= run.ask.minimum:
        return True
    autoscales = admission.state.facts.autoscales
    admission.reasons[run.id] = WaitReason(Obstacle.NODES if autoscales else Obstacle.NEVER)
    return False


def _within_limit(admission: Admission, waiting: Waiting) -> bool:
    """Its queue's limit leaves room, if elastic runs of the queue shrink; and no run before it waits for the limit."""
    state, (run, shape) = admission.state, waiting
    ledger, queue, minimum = state.ledger, run.queue, run.ask.minimum
    if not ledger.limits(queue):
        return True
    ever = ledger.room(queue, np.zeros_like(shape.bundle), shape.bundle)
    if ever is not None and ever < minimum:
        admission.reasons[run.id] = WaitReason(Obstacle.NEVER, limit_workers=ever)
        return False
    room = ledger.room(queue, ledger.floor[queue] + ledger.claimed[queue], shape.bundle)
    if queue in admission.full_queues or (room is not None and room < minimum):
        before = admission.full_queues.setdefault(queue, run.id)
        blockers = (before,) if before != run.id else tuple(_in_queue(state, queue))
        admission.reasons[run.id] = WaitReason(Obstacle.QUOTA, blockers, room)
        return False
    return True


def _in_queue(state: TickState, queue: str) -> list[str]:
    found = [each for each in state.holders.values() if each.run.queue == queue]
    return [each.run.id for each in sorted(found, key=lambda each: (each.end_s, each.run.order))]


def _under_limit_now(state: TickState, waiting: Waiting) -> bool:
    """Its queue's limit leaves room now. If not, elastic runs of the queue return what is missing."""
    (run, shape), ledger = waiting, state.ledger
    room = ledger.room(run.queue, ledger.booked[run.queue], shape.bundle)
    if room is None or room >= run.ask.minimum:
        return True
    wanted = shape.bundle * run.ask.minimum
    own = [each for each in state.by_harm() if each.run.queue == run.queue and not each.leaves]
    for holder in own:
        for row in sorted(holder.extras, reverse=True):
            while row in holder.extras:
                excess = ledger.excess(run.queue, ledger.target[run.queue] + wanted)
                if not (excess[holder.shape.bundle > 0] > 0).any():
                    break
                state.take_extra(holder, row, 1)
    return False


def _backfill(admission: Admission, rest: list[Waiting]) -> None:
    """Start further runs that fit now, end in a known time, and delay no reservation."""
    state = admission.state
    room: dict[WorkerShape, int] = {}
    tries = 0
    for run, shape in rest:
        minimum = run.ask.minimum
        if shape not in room:
            room[shape] = fit_of(state.profile.counts(shape)[:, 0], shape.placement)
        if room[shape] < minimum or run.queue in admission.full_queues:
            continue
        duration_s = run.remaining_s(minimum)
        if duration_s is None or tries >= BACKFILL_TRIES:
            continue
        tries += 1
        if not _within_limit(admission, (run, shape)) or not _limit_leaves(state, (run, shape)):
            continue
        found = state.profile.earliest(shape, minimum, duration_s, last=0)
        if found is not None:
            state.start(run, shape, places_in(found[1], shape.placement, minimum))
            room = {}


def _limit_leaves(state: TickState, waiting: Waiting) -> bool:
    (run, shape), ledger = waiting, state.ledger
    room = ledger.room(run.queue, ledger.booked[run.queue] + ledger.claimed[run.queue], shape.bundle)
    return room is None or room >= run.ask.minimum
