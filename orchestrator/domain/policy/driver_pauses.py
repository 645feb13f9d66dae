"""Whether the driver is too busy to notice lost and hung workers. Pure.

A round of the driver's loop that takes long makes the time since then count for nothing: the driver may have been
suspended, and with it, on one machine, all workers. If that happens again and again, silence and hangs are noticed late
or never, which nobody would see without a warning.
"""

from collections import deque
from dataclasses import dataclass, field

PAUSE_S = 1.0
"""If a round of the driver's loop takes longer, the driver was paused, and silence in that time does not count."""
PAUSES = 3
WINDOW_S = 60.0
"""So many pauses in this time are worth a warning."""
AGAIN_S = 600.0
"""From one warning to the next."""


@dataclass
class DriverPauses:
    """Pauses of the driver's loop."""

    _recent: deque[tuple[float, float]] = field(default_factory=lambda: deque(maxlen=PAUSES))
    """When they ended, and how long they were."""
    _told_s: float | None = None

    def take(self, now_s: float, gap_s: float) -> str | None:
        """A round has taken `gap_s` and ends now. The warning that is due, if one is."""
        if gap_s <= PAUSE_S:
            return None
        self._recent.append((now_s, gap_s))
        if len(self._recent) < PAUSES or now_s - self._recent[0][0] > WINDOW_S:
            return None
        if self._told_s is not None and now_s - self._told_s < AGAIN_S:
            return None
        self._told_s = now_s
        longest_s = max(gap for _, gap in self._recent)
        return (
            f"the driver was paused or busy {PAUSES} times within {now_s - self._recent[0][0]:.0f} s, for up to "
            f"{longest_s:.1f} s: as long as this lasts, lost and hung workers are noticed late. Give its machine "
            "more processors, or less other work"
        )
