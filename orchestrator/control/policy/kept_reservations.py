"""Reservations of waiting runs: made once, with some slack, and kept until the run starts.

A reservation that was made is not recomputed: in a list of reservations that is made from scratch, a run that starts
earlier than expected can push another one back (Mu'alem and Feitelson, "Utilization, predictability, workloads, and
user runtime estimates in scheduling the IBM SP2 with backfilling", IEEE TPDS 2001). A run starts as soon as it can, so
the reservation is only the latest time. The slack lets other runs start before it (Talby and Feitelson, "Supporting
priorities and improving utilization of the IBM SP scheduler using slack-based backfilling", IPPS 1999).
"""

import math
from collections.abc import Iterable

from orchestrator.control.policy.admission_order import Waiting
from orchestrator.control.policy.gang_places import RowPlaces, places_in
from orchestrator.control.policy.tick_state import TickState
from orchestrator.control.policy.worker_shapes import WorkerCounts

SLACK = 6.0
"""Times the run time of a run: so long after it began to wait, later runs may delay it, and no longer. Chosen with
`tests/bench/queue_week.py`: less slack makes all others wait longer for wide runs."""
MOST_SLACK_S = 96 * 3600.0
SLACK_OF_UNKNOWN_S = 3600.0
"""If its run time is not known."""
MOST_SHIFTS = 8
"""Columns by which a reservation is moved if runs before it take longer than expected."""

Reservation = tuple[int, RowPlaces]
"""The column from which on it holds, and where."""


class KeptReservations:
    """Of runs that have not been considered yet in this tick."""

    def __init__(self, state: TickState) -> None:
        self._state = state
        self._held: dict[str, tuple[float, RowPlaces]] = {}

    def hold(self, runs: Iterable[Waiting]) -> None:
        """Hold what was reserved for them, if it is still to be had."""
        for waiting in runs:
            found = self._again(waiting)
            if found is not None:
                start_s = self._state.profile.times_s[found[0]]
                self._held[waiting[0].id] = (start_s, found[1])
                self._change(waiting, start_s, found[1], -1.0)

    def lift(self, waiting: Waiting) -> Reservation | None:
        """Give back the places of a run, which is considered now; and what they were."""
        held = self._held.pop(waiting[0].id, None)
        if held is None:
            return None
        self._change(waiting, *held, 1.0)
        return self._state.profile.column(held[0]), held[1]

    def _again(self, waiting: Waiting) -> Reservation | None:
        """The same places at the same time; else others then, or soon after."""
        (run, shape), profile, rows = waiting, self._state.profile, self._state.rows
        if run.reserved is None or run.reserved[0] == math.inf:
            return None
        places = {rows[node]: workers for node, workers in run.reserved[1].items() if node in rows}
        minimum, duration_s = run.ask.minimum, run.remaining_s(run.ask.minimum)
        profile.split(run.reserved[0])
        first = max(1, profile.column(run.reserved[0]))
        last = min(first + MOST_SHIFTS, profile.unknown) - 1
        if sum(places.values()) == minimum and profile.holds(places, shape, first, profile.end_of(first, duration_s)):
            return first, places
        found = profile.earliest(shape, minimum, duration_s, first, last)
        return None if found is None else (found[0], _places(self._state, waiting, *found))

    def _change(self, waiting: Waiting, start_s: float, places: RowPlaces, sign: float) -> None:
        (run, shape), profile = waiting, self._state.profile
        duration_s = run.remaining_s(run.ask.minimum)
        if sign < 0 and duration_s is not None:
            profile.split(start_s + duration_s)
        start = profile.column(start_s)
        profile.hold(places, shape, start, profile.end_of(start, duration_s), sign)


def slack_s(duration_s: float | None) -> float:
    """Of a run."""
    return SLACK_OF_UNKNOWN_S if duration_s is None else min(SLACK * duration_s, MOST_SLACK_S)


def new_reservation(state: TickState, waiting: Waiting, found: tuple[int, WorkerCounts]) -> Reservation:
    """From when the run can start, or from when its slack ends if that is later. `found`: the column with which it can
    start, and what fits then."""
    (run, shape), profile = waiting, state.profile
    duration_s = run.remaining_s(run.ask.minimum)
    latest_s = run.since_s + slack_s(duration_s)
    if profile.times_s[found[0]] < latest_s:
        profile.split(latest_s)
        later = profile.earliest(shape, run.ask.minimum, duration_s, first=profile.column(latest_s))
        found = later or found
    return found[0], _places(state, waiting, *found)


def _places(state: TickState, waiting: Waiting, start: int, counts: WorkerCounts) -> RowPlaces:
    """Nodes that are free sooner come first: the odds are better that the run starts sooner than expected."""
    run, shape = waiting
    before = state.profile.counts(shape)[:, :start]
    cost: WorkerCounts = (before < counts[:, None]).sum(axis=1)
    return places_in(counts, shape.placement, run.ask.minimum, cost)
