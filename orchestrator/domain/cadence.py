"""How often state is written, from what it costs. Pure."""

import math
from dataclasses import dataclass, field

_MEMORY = 0.2
"""Weight of the newest measurement in the running means."""


def steps_between(cost_s: float, step_s: float, budget: float) -> int:
    """The least number of steps between two writes of `cost_s` with which they take at most `budget` of step time."""
    if cost_s <= 0 or step_s <= 0:
        return 1
    return max(1, math.ceil(cost_s / (budget * step_s)))


@dataclass
class Cadence:
    """Running means of what a write and a step cost, the same on every rank that is fed the same numbers."""

    budget: float
    """Share of step time that writing may take."""
    fixed: int | None = None
    """Steps between writes, where somebody decided that."""
    _step_s: float = field(default=0.0, init=False)
    _cost_s: float = field(default=0.0, init=False)

    def measure(self, step_s: float, cost_s: float) -> None:
        """Take in a step, and the last write before it (0: there was none)."""
        self._step_s = _mean(self._step_s, step_s)
        if cost_s > 0:
            self._cost_s = _mean(self._cost_s, cost_s)

    @property
    def steps(self) -> int:
        """Steps from one write to the next."""
        return self.fixed or steps_between(self._cost_s, self._step_s, self.budget)


def _mean(before: float, now: float) -> float:
    return now if before == 0.0 else before + _MEMORY * (now - before)


def young_daly_s(write_s: float, mean_time_between_failures_s: float) -> float:
    """Seconds between writes that lose the least: sqrt(2 C M) for a write of C that stalls training, and failures M
    apart (Young 1974, https://doi.org/10.1145/361147.361115; Daly 2006, equation 20, for C well below M)."""
    return math.sqrt(2.0 * write_s * mean_time_between_failures_s)
