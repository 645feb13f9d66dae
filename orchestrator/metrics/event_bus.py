"""Delivers a run's events and step reports to its observers: in order, one at a time, each to all of them.

An observer that emits while it handles an item only adds to the queue: its event follows when every observer has had
the current item. An observer that raises is isolated, and a warning names it once. An essential one is different: the
run cannot continue without it, so what it raises reaches the caller.
"""

import threading
import time
from collections import deque
from collections.abc import Callable, Sequence

from orchestrator.domain.events import Event, EventBody, Observer, WarningIssued
from orchestrator.domain.step_report import StepReport
from orchestrator.metrics.collectors.loop_pace import LoopPace

MAX_QUEUED = 10_000
"""Items that wait while one is delivered. Only observers that emit without end, or a second thread, come so far."""


def named(observers: Sequence[Observer]) -> list[tuple[str, Observer]]:
    """Names for observers that a caller brings without any: a number and the name of the class."""
    return [(f"observer {number}, {type(each).__name__}", each) for number, each in enumerate(observers, 1)]


class EventBus:
    """Thread-safe. Items are delivered by the thread that publishes; while it does, those of other threads are queued
    and delivered by it."""

    def __init__(self, clock: Callable[[], float] = time.time) -> None:
        """`clock` gives Unix seconds."""
        self._clock = clock
        self._observers: dict[str, tuple[Observer, bool]] = {}
        self._failed: set[str] = set()
        """Names of observers whose failure has been reported."""
        self._queue: deque[Event | StepReport] = deque()
        self._delivering = False
        self._lock = threading.Lock()
        self.pace = LoopPace()
        """Of the loop that publishes most of what is delivered, if there is one: it notes its rounds there."""

    def add(self, name: str, observer: Observer, essential: bool = False, after: str | None = None) -> None:
        """Deliver to this observer too: after the one that is named, by default after all others. Under a known name
        it takes the place of the former one. `essential`: what it raises is raised by `publish`, after the others have
        had the item."""
        with self._lock:
            behind: dict[str, tuple[Observer, bool]] = {}
            if after is not None and name not in self._observers:
                names = list(self._observers)
                behind = {each: self._observers.pop(each) for each in names[names.index(after) + 1 :]}
            self._observers[name] = (observer, essential)
            self._observers.update(behind)

    def emit(self, body: EventBody) -> None:
        """Publish an event that happens now."""
        self.publish(Event(body, self._clock()))

    def publish(self, item: Event | StepReport) -> None:
        """Queue an event or a step report, and deliver what is queued unless that is under way already.

        Raises what an essential observer raises: the items behind are then delivered with the next one. Raises
        RuntimeError if `MAX_QUEUED` items are waiting.
        """
        with self._lock:
            if len(self._queue) >= MAX_QUEUED:
                raise RuntimeError(f"{MAX_QUEUED} events are waiting for delivery")
            self._queue.append(item)
            if self._delivering:
                return
            self._delivering = True
        while (following := self._next()) is not None:
            try:
                self._deliver(following)
            except BaseException:
                with self._lock:
                    self._delivering = False
                raise

    def _next(self) -> Event | StepReport | None:
        """The next item; None, and delivery is over, if none is left."""
        with self._lock:
            if self._queue:
                return self._queue.popleft()
            self._delivering = False
            return None

    def _deliver(self, item: Event | StepReport) -> None:
        with self._lock:
            observers = list(self._observers.items())
        fatal: Exception | None = None
        for name, (observer, essential) in observers:
            try:
                if isinstance(item, StepReport):
                    observer.on_step(item)
                else:
                    observer.on_event(item)
            except Exception as error:  # noqa: BLE001  # whatever it is, the others get the item
                if essential:
                    fatal = fatal or error
                else:
                    self._report(name, error)
        if fatal is not None:
            raise fatal

    def _report(self, name: str, error: Exception) -> None:
        """Once for each name, so that a broken observer cannot flood the others."""
        if name in self._failed:
            return
        self._failed.add(name)
        what = f"{type(error).__name__}: {error}"
        warning = Event(WarningIssued(f"{name} failed and may be incomplete from here on: {what}"), self._clock())
        with self._lock:
            self._queue.append(warning)  # at most one for each observer beyond the bound
