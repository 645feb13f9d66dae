"""The schedulers that the simulated week compares with. They see the same facts, and place workers by the same rule.

They decide on the whole state of the real scheduler (its profile of future capacity), and do less with it.
"""

from collections.abc import Callable

from orchestrator.control.policy.gang_places import places_in
from orchestrator.control.policy.making_room import room_by_suspending
from orchestrator.control.policy.queue_facts import Decision, QueueFacts
from orchestrator.control.policy.tick_state import TickState

Policy = Callable[[QueueFacts], Decision]


def fifo(facts: QueueFacts) -> Decision:
    """First in, first out: the first run that does not fit stops all others. Priorities do not count."""
    state = TickState(facts)
    for run, shape in state.order:
        found = state.profile.earliest(shape, run.ask.minimum, run.remaining_s(run.ask.minimum), last=0)
        if found is None:
            break
        state.start(run, shape, places_in(found[1], shape.placement, run.ask.minimum))
    return Decision(state.grants_by_node(), {}, {})


def backfill(facts: QueueFacts) -> Decision:
    """EASY backfill (Lifka, "The ANL/IBM SP scheduling system", JSSPP 1995): the first run that does not fit gets a
    reservation, and the others start if they do not delay it. Priorities do not count."""
    state = TickState(facts)
    blocked = False
    for run, shape in state.order:
        minimum, duration_s = run.ask.minimum, run.remaining_s(run.ask.minimum)
        found = state.profile.earliest(shape, minimum, duration_s, last=0 if blocked else None)
        if found is not None and found[0] == 0:
            state.start(run, shape, places_in(found[1], shape.placement, minimum))
        elif not blocked and found is not None:
            blocked = True
            state.reserve(run, shape, found[0], places_in(found[1], shape.placement, minimum))
    return Decision(state.grants_by_node(), {}, {})


def kill_for_priority(facts: QueueFacts) -> Decision:
    """By priority, then first come; runs that do not fit are skipped (as Kueue's default `BestEffortFIFO`), and runs of
    lower priority are killed for those of higher."""
    state = TickState(facts)
    for run, shape in state.order:
        minimum = run.ask.minimum
        found = state.profile.earliest(shape, minimum, None, last=0)
        if found is not None:
            state.start(run, shape, places_in(found[1], shape.placement, minimum))
        elif any(each.run.priority < run.priority and not each.leaves for each in state.holders.values()):
            room = room_by_suspending(state, (run, shape), False)
            if room is not None:
                state.reserve(run, shape, 1, room.places)
    killed = {each.run.id: each.suspended_for for each in state.holders.values() if each.suspended_for}
    return Decision(state.grants_by_node(), killed, {})
