"""How often Prometheus reads an endpoint, so that the last state of a failed run can wait to be read."""

import threading
from collections import deque
from collections.abc import Sequence

LONGEST_WAIT_S = 35.0
"""For a scrape: a little more than the usual interval of half a minute."""
SLACK = 1.5
"""A scrape is expected within so many intervals of the one before."""


def expected_wait_s(scrapes_s: Sequence[float], now_s: float) -> float:
    """How long it is worth to wait for the next scrape; 0 if none is expected. `scrapes_s`: times of those before."""
    if len(scrapes_s) < 2:
        return 0.0
    interval_s = scrapes_s[-1] - scrapes_s[-2]
    return min(LONGEST_WAIT_S, max(0.0, scrapes_s[-1] + SLACK * interval_s - now_s))


class ScrapePace:
    """Takes note of scrapes, in the threads that answer them."""

    def __init__(self) -> None:
        self._times_s: deque[float] = deque(maxlen=2)
        self._changed = threading.Condition()
        self._count = 0

    def note(self, now_s: float) -> None:
        """A scrape has been answered."""
        with self._changed:
            self._times_s.append(now_s)
            self._count += 1
            self._changed.notify_all()

    def await_next(self, now_s: float) -> bool:
        """Wait for the next scrape as long as one is expected; whether it came."""
        with self._changed:
            before = self._count
            return self._changed.wait_for(lambda: self._count > before, expected_wait_s(tuple(self._times_s), now_s))
