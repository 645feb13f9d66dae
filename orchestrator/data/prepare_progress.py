"""Progress events, a few a second."""

import time
from collections.abc import Callable

from orchestrator.domain.events import DataProgress, Emit

EVENTS_PER_S = 5.0


class PrepareProgress:
    """Emits `DataProgress`: at most `EVENTS_PER_S`, but always the first and the last of a phase."""

    def __init__(self, emit: Emit, total_bytes: int, clock: Callable[[], float] = time.monotonic) -> None:
        self._emit = emit
        self._total_bytes = total_bytes
        self._clock = clock
        self._last_s = float("-inf")
        self._phase = ""

    def update(self, phase: str, done_bytes: int, documents: int = 0, tokens: int = 0, last: bool = False) -> None:
        """Say how far we are, unless that was said a moment ago."""
        now = self._clock()
        if phase == self._phase and not last and now - self._last_s < 1 / EVENTS_PER_S:
            return
        self._phase, self._last_s = phase, now
        self._emit(DataProgress(phase, done_bytes, self._total_bytes, documents, tokens))
