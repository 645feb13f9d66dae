"""What a worker has to say, queued until the driver's long poll takes it. Values only; no Ray."""

import threading
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field, replace

from orchestrator.domain.events import Event
from orchestrator.domain.policy.hang import Phase
from orchestrator.domain.step_report import StepReport

MAX_LINES = 20_000
"""Log lines kept while the driver is away; older ones are dropped and counted."""


@dataclass(frozen=True)
class Heartbeat:
    """A sign of life: how far the worker is, by its own account."""

    rank: int
    step: int
    """The one it makes; 0 outside of steps."""
    phase: Phase
    beat: int = 0
    """Beats it has made in this step."""
    still_s: float = 0.0
    """Since the last one, by its own clock."""
    progress: int = 0
    """Changes with each part of a long operation (`Session.progress`), and when its process is seen to work."""
    blocked: bool = False
    """Its kernel has a thread of it blocked in storage."""


@dataclass(frozen=True)
class Published:
    """A value for the other ranks."""

    key: str
    value: str


@dataclass(frozen=True)
class ReportBatch:
    """One answer to a poll, in the order of what happened; log lines apart."""

    lease: Heartbeat
    number: int = 0
    """Counts the batches that hold something; that of the last such one where this holds nothing."""
    items: tuple[StepReport | Event | Published, ...] = ()
    lines: tuple[str, ...] = ()
    lines_dropped: int = 0


@dataclass
class ReportQueue:
    """Filled by the training thread and the log reader, emptied by the agent. Thread-safe; putting never blocks."""

    _items: deque[StepReport | Event | Published] = field(default_factory=deque)
    _lines: deque[str] = field(default_factory=deque)
    _dropped: int = 0
    _last: ReportBatch | None = None
    """The newest that held something, until its arrival is known."""
    _number: int = 0
    _changed: threading.Condition = field(default_factory=threading.Condition)

    def put(self, item: StepReport | Event | Published) -> None:
        """Queue a report, an event or a value."""
        with self._changed:
            self._items.append(item)
            self._changed.notify_all()

    def put_lines(self, lines: list[str]) -> None:
        """Queue lines of output; they do not wake a poll before its time by more than the reader's own pace."""
        with self._changed:
            for line in lines:
                if len(self._lines) >= MAX_LINES:
                    self._lines.popleft()
                    self._dropped += 1
                self._lines.append(line)
            self._changed.notify_all()

    def nudge(self) -> None:
        """Make a `take` that waits look at whether it still should."""
        with self._changed:
            self._changed.notify_all()

    def take(
        self, lease: Heartbeat, timeout_s: float, patient: Callable[[], bool], seen: int | None = None
    ) -> ReportBatch:
        """Everything queued, at once where there is something, after `timeout_s` where there is not, or as soon as
        `patient` says that nothing will come. The batch before once more where `seen`, the number of the last one that
        arrived, is not its."""
        deadline = time.monotonic() + timeout_s
        with self._changed:
            while not self._items and not self._lines and patient() and not self._missed(seen):
                left_s = deadline - time.monotonic()
                if left_s <= 0:
                    break
                self._changed.wait(left_s)
            if self._last is not None and self._missed(seen):
                return replace(self._last, lease=lease)
            self._last = None
            if not self._items and not self._lines:
                return ReportBatch(lease, self._number)
            self._number += 1
            self._last = ReportBatch(lease, self._number, tuple(self._items), tuple(self._lines), self._dropped)
            self._items.clear()
            self._lines.clear()
            self._dropped = 0
            return self._last

    def _missed(self, seen: int | None) -> bool:
        return seen is not None and self._last is not None and self._last.number > seen
