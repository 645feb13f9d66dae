"""How often state is copied to memory and written to storage, from what that costs. Pure."""

import math
from collections import deque
from dataclasses import dataclass, field
from statistics import median

_KEPT = 5
"""Measurements that count; their median is used, because one that was delayed says nothing about the cost."""
SNAPSHOT_COST = 1.5
"""What a snapshot costs training, for each second that it pauses a rank: the copies of other ranks delay that rank, the
data it works on is no longer in the caches, and the vaults need processors. `make bench BENCH=snapshot_cost` measured
0.8, 1.3, 1.5 and 1.7 on two cores."""


def steps_between(pause_s: float, step_s: float, budget: float) -> int:
    """The least number of steps between two snapshots that pause a rank for `pause_s`, so that they cost at most
    `budget` of step time."""
    if pause_s <= 0 or step_s <= 0:
        return 1
    return max(1, math.ceil(SNAPSHOT_COST * pause_s / (budget * step_s)))


@dataclass
class Cadence:
    """How long recent snapshots paused a rank, and how long steps took; the same on every rank that gets the same
    numbers."""

    budget: float
    """Share of step time that snapshots may cost."""
    fixed: int | None = None
    """Steps between snapshots, if the spec sets them."""
    _step_s: deque[float] = field(default_factory=lambda: deque(maxlen=_KEPT), init=False)
    _pause_s: deque[float] = field(default_factory=lambda: deque(maxlen=_KEPT), init=False)

    def measure(self, step_s: float, pause_s: float) -> None:
        """Take in a step, and the pause for the snapshot before it (0: there was none)."""
        self._step_s.append(step_s)
        if pause_s > 0:
            self._pause_s.append(pause_s)

    @property
    def steps(self) -> int:
        """Steps from one snapshot to the next."""
        if self.fixed is not None or not self._pause_s:
            return self.fixed or 1
        return steps_between(median(self._pause_s), median(self._step_s), self.budget)


LEAST_S = 30.0
"""Between two checkpoints, however cheap."""
PRIOR_FAILURES_S = 3600.0
"""Time between failures that is assumed before any was seen: as if one had come in the hour before the run."""
BACKGROUND = 0.1
"""Share of the seconds of a write in the background that training loses to it."""


def checkpoint_interval_s(stall_s: float, write_s: float, elapsed_s: float, failures: int) -> float:
    """Seconds from one checkpoint to the next: Young and Daly's, for what the last one cost and the failures that were
    seen in `elapsed_s`; never more often than the writing itself takes."""
    between_s = (elapsed_s + PRIOR_FAILURES_S) / (failures + 1)
    return max(LEAST_S, 2.0 * write_s, young_daly_s(stall_s + BACKGROUND * write_s, between_s))


def young_daly_s(write_s: float, mean_time_between_failures_s: float) -> float:
    """Seconds between writes that lose the least: sqrt(2 C M) for a write of C that stalls training, and failures M
    apart (Young 1974, https://doi.org/10.1145/361147.361115; Daly 2006, equation 20, for C well below M)."""
    return math.sqrt(2.0 * write_s * mean_time_between_failures_s)
