"""What a worker has to say, queued until it has arrived at the driver: see `report_sender`. Values only; no Ray.

Everything arrives once and in order: what is queued is sent in numbered batches, one at a time, and a batch is sent
again until the driver confirms its number. So the connection and the long poll (`take`), which is used where there is
no connection, can take turns, and even overlap: the driver drops a number that it has seen.
"""

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
BATCH_CHARACTERS = 8 << 20
"""Lines of a batch have at most so many together, or it is a single line: further ones are in the next batch."""


@dataclass(frozen=True)
class Heartbeat:
    """A heartbeat: how far the worker is, by its own account."""

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
    generation: int = 0
    """Of the gang that all this is about."""


@dataclass(frozen=True)
class Published:
    """A value for the other ranks."""

    key: str
    value: str


ReportItem = StepReport | Event | Published


@dataclass(frozen=True)
class ReportBatch:
    """What is sent at once, in the order of what happened; log lines apart."""

    heartbeat: Heartbeat
    number: int = 0
    """Counts the batches that hold something; that of the last such one if this holds nothing."""
    items: tuple[ReportItem, ...] = ()
    lines: tuple[str, ...] = ()
    lines_dropped: int = 0


@dataclass
class ReportQueue:
    """Filled by the training thread and the log reader, emptied by the agent. Thread-safe; putting never blocks."""

    _items: deque[ReportItem] = field(default_factory=deque)
    _lines: deque[str] = field(default_factory=deque)
    _dropped: int = 0
    _last: ReportBatch | None = None
    """The newest that held something, until its arrival is known."""
    _number: int = 0
    _changed: threading.Condition = field(default_factory=threading.Condition)
    _wake: Callable[[], None] | None = None

    def wake(self, call: Callable[[], None] | None) -> None:
        """Call this, which must not wait, whenever there may be something new to send. None: call nothing."""
        self._wake = call

    def put(self, item: ReportItem) -> None:
        """Queue a report, an event or a value."""
        with self._changed:
            self._items.append(item)
            self._changed.notify_all()
        self._call()

    def put_lines(self, lines: list[str]) -> None:
        """Queue lines of output; they do not wake a poll before its time by more than the reader's own pace."""
        with self._changed:
            for line in lines:
                if len(self._lines) >= MAX_LINES:
                    self._lines.popleft()
                    self._dropped += 1
                self._lines.append(line)
            self._changed.notify_all()
        self._call()

    def nudge(self) -> None:
        """Make a `take` that waits look at whether it still should."""
        with self._changed:
            self._changed.notify_all()

    def to_send(self, heartbeat: Heartbeat, sent: int) -> ReportBatch | None:
        """The batch to send now; None if there is nothing, or if the batch numbered `sent`, which was sent last, has
        not been confirmed yet."""
        with self._changed:
            if self._last is None:
                self._form(heartbeat)
            return (
                replace(self._last, heartbeat=heartbeat)
                if self._last is not None and self._last.number > sent
                else None
            )

    def confirm(self, seen: int) -> None:
        """The batches up to this number have arrived."""
        with self._changed:
            if not self._missed(seen):
                self._last = None

    def take(
        self, heartbeat: Heartbeat, timeout_s: float, patient: Callable[[], bool], seen: int | None = None
    ) -> ReportBatch:
        """Answer a poll: everything queued, at once if there is something, else after `timeout_s`, or as soon as
        `patient` says that nothing will come. `seen`: the number of the last batch that arrived; a later one is
        returned again."""
        deadline = time.monotonic() + timeout_s
        with self._changed:
            while not self._items and not self._lines and patient() and not self._missed(seen):
                left_s = deadline - time.monotonic()
                if left_s <= 0:
                    break
                self._changed.wait(left_s)
            if self._last is not None and self._missed(seen):
                return replace(self._last, heartbeat=heartbeat)
            self._last = None
            self._form(heartbeat)
            return self._last or ReportBatch(heartbeat, self._number)

    def _form(self, heartbeat: Heartbeat) -> None:
        """Make a batch of what is queued, if there is something."""
        if not self._items and not self._lines:
            return
        self._number += 1
        lines: list[str] = []
        characters = 0
        while self._lines and (not lines or characters + len(self._lines[0]) <= BATCH_CHARACTERS):
            characters += len(self._lines[0])
            lines.append(self._lines.popleft())
        self._last = ReportBatch(heartbeat, self._number, tuple(self._items), tuple(lines), self._dropped)
        self._items.clear()
        self._dropped = 0

    def _missed(self, seen: int | None) -> bool:
        return seen is not None and self._last is not None and self._last.number > seen

    def _call(self) -> None:
        wake = self._wake
        if wake is not None:
            wake()
