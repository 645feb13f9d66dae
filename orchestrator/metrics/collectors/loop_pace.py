"""How long the rounds of the driver's loop take: the loop notes them, a scrape reads the longest."""

from collections import deque

WINDOW_S = 10.0
"""The longest round of so many seconds is shown."""
_PARTS = 10
"""The window moves by this part of it: the memory does not depend on how fast the loop is."""


class LoopPace:
    """Written by one thread, read by any."""

    def __init__(self) -> None:
        self._longest: deque[tuple[float, float]] = deque(maxlen=_PARTS + 2)
        """The longest round of each part of the window, with the time of its last round."""

    def note(self, now_s: float, round_s: float) -> None:
        """A round of `round_s` has ended. `now_s`: of a monotonic clock."""
        parts = self._longest
        part_s = WINDOW_S / _PARTS
        if parts and now_s // part_s == parts[-1][0] // part_s:
            parts[-1] = (now_s, max(parts[-1][1], round_s))
        else:
            parts.append((now_s, round_s))

    def longest_s(self, now_s: float) -> float | None:
        """The longest round that ended in the last `WINDOW_S`; None if none did: there is no loop between two gangs."""
        return max((round_s for ended_s, round_s in list(self._longest) if now_s - ended_s <= WINDOW_S), default=None)
