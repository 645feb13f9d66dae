"""The time as the run controller sees it."""

import time
from collections.abc import Callable
from dataclasses import dataclass


@dataclass(frozen=True)
class Clock:
    """Two clocks; tests step them by hand."""

    unix_s: Callable[[], float] = time.time
    """For records that people and other hosts read. It may jump."""
    monotonic_s: Callable[[], float] = time.monotonic
    """For durations. It only goes forward."""

    def steady_unix_s(self) -> Callable[[], float]:
        """A clock that begins as the Unix time now, and only goes forward."""
        offset_s = self.unix_s() - self.monotonic_s()
        return lambda: offset_s + self.monotonic_s()
