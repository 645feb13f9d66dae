"""Times of runs on this process's monotonic clock: how long a lease has not moved, a state has lasted, a run was
active. No decision compares clocks of two machines, or the wall clock of before with that of now."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from orchestrator.control.ports import DriverFacts
from orchestrator.control.queue_store.run_rows import RunRow
from orchestrator.control.ticking.retry_policy import backoff_s
from orchestrator.domain.lease import LONGEST_GAP_S, TTL_S
from orchestrator.domain.queue.queue_states import QueueState

HUNG_S = 300.0
"""A driver whose process exists, but whose lease and step have not moved for so long, is ended and replaced."""


@dataclass
class _RunTimes:
    """Of one run. Mutable: `RunClocks` keeps it."""

    state: QueueState
    looked_s: float
    pause_s: float
    """That a run in backoff waits, counted from when it was first seen so."""
    in_state_s: float = 0.0
    active_s: float = 0.0
    still_s: float = 0.0
    """How long its lease has not moved."""
    step: int = 0
    stuck_s: float = 0.0
    """How long neither its lease nor its step has moved."""


class RunClocks:
    """Kept by the ticker. A tick counts for `LONGEST_GAP_S` at most: a server that was stopped itself has not seen what
    happened meanwhile."""

    def __init__(self) -> None:
        self._times: dict[str, _RunTimes] = {}

    def advance(self, rows: Iterable[RunRow], drivers: Mapping[str, DriverFacts], clock_s: float, now_s: float) -> None:
        """Take the look of one tick. `rows`: runs that matter now; times of others are forgotten. `now_s`: Unix
        seconds; they only shorten the pause of a run that failed before this process looked at it."""
        known, self._times = self._times, {}
        for row in rows:
            times = known.get(row.id) or _RunTimes(row.state, clock_s, _pause_left(row, now_s), active_s=row.active_s)
            self._times[row.id] = times
            gap_s = min(max(0.0, clock_s - times.looked_s), LONGEST_GAP_S)
            times.looked_s = clock_s
            if times.state is not row.state:
                times.state, times.in_state_s, times.pause_s = row.state, 0.0, backoff_s(row.failures)
            else:
                times.in_state_s += gap_s
            if row.state is QueueState.ACTIVE:
                times.active_s += gap_s
            else:
                times.active_s = row.active_s
            _judge(times, drivers.get(row.id), gap_s)

    def in_state_s(self, run_id: str) -> float:
        """How long the run has been seen in its state."""
        return self._times[run_id].in_state_s if run_id in self._times else 0.0

    def pause_over(self, run_id: str) -> bool:
        """Whether a run in backoff has waited long enough."""
        times = self._times.get(run_id)
        return times is not None and times.in_state_s >= times.pause_s

    def active_s(self, row: RunRow) -> float:
        """How long the run has been active in all."""
        return self._times[row.id].active_s if row.id in self._times else row.active_s

    def gone(self, run_id: str, facts: DriverFacts | None) -> bool | None:
        """Whether the run's driver is gone: its process is certainly dead, or nothing is known of the process and its
        lease has not moved for the TTL. While the lease moves, nothing else counts."""
        if facts is None:
            return None
        if facts.lease_moved:
            return False
        if facts.alive is None:
            return True if self._times[run_id].still_s >= TTL_S else None
        return not facts.alive

    def hung(self, run_id: str) -> bool:
        """Two signals: neither lease nor step has moved for `HUNG_S`."""
        return run_id in self._times and self._times[run_id].stuck_s >= HUNG_S


def _pause_left(row: RunRow, now_s: float) -> float:
    """Of a run that was in backoff before this process looked: by the wall clock, and never more than the whole."""
    left_s = row.retry_at_s - now_s if row.retry_at_s is not None else 0.0
    return min(backoff_s(row.failures), max(0.0, left_s))


def _judge(times: _RunTimes, facts: DriverFacts | None, gap_s: float) -> None:
    if facts is None:
        return
    times.still_s = 0.0 if facts.lease_moved else times.still_s + gap_s
    moved = facts.lease_moved or facts.step != times.step
    times.stuck_s = 0.0 if moved else times.stuck_s + gap_s
    times.step = facts.step
