"""Feeds one tracker with a run's events and steps, and reports what becomes of it."""

from collections.abc import Callable

from orchestrator.domain.events import Emit, Event, TrackerEnded, TrackerReady, WarningIssued
from orchestrator.domain.step_report import StepReport
from orchestrator.trackers.tracker_child import ALONE_S
from orchestrator.trackers.tracker_points import Point, PointMaker
from orchestrator.trackers.tracker_process import MAX_QUEUED, NewsKind, Patience, TrackerProcess

PATIENCE = Patience(total_s=30.0, stuck_s=10.0, stopped_s=1.0)
"""If a run is stopped, everything ends within 5 s."""


class TrackerObserver:
    """An observer that never waits: a tracker that hangs costs the points that it does not take."""

    def __init__(self, name: str, process: TrackerProcess, emit: Emit, interval_steps: int) -> None:
        """`name` is for people. Warnings and the two events of a tracker are given to `emit`."""
        self.name = name
        self._process, self._emit = process, emit
        self._points = PointMaker(interval_steps)
        self._place = ""
        self._told_drops = False
        self._problem: str | None = None

    def on_event(self, event: Event) -> None:
        """Log what it adds."""
        self._put(self._points.of_event(event))

    def on_step(self, report: StepReport) -> None:
        """Log the step."""
        self._put(self._points.of_step(report))

    def ask_to_end(self, exit_code: int) -> None:
        """Deliver the last points. `exit_code`: of the run. Does not wait."""
        self._process.ask_to_end(exit_code)

    def close(self, hurry: Callable[[], bool]) -> None:
        """Wait until it has ended, and report how many points there were. `hurry`: whether the run was stopped."""
        ended = self._process.close(PATIENCE, hurry)
        self._tell()
        if self._process.left_alone:
            self._problem = f"it delivers the last points in the background, for at most {ALONE_S:g} s"
        elif not ended and self._problem is None:
            self._problem = "it did not come to an end in time; what it has not uploaded is in its directory"
        self._emit(TrackerEnded(self.name, self._process.logged, self._process.lost, self._place, self._problem))

    def _put(self, point: Point | None) -> None:
        if point is not None:
            self._process.put({"point": point.to_json()})
        self._tell()

    def _tell(self) -> None:
        """Report what has happened since the last point. A failure is reported once, and so are dropped points."""
        for news in self._process.news():
            if news.kind is NewsKind.READY:
                self._place = news.text
                self._emit(TrackerReady(self.name, self._place))
            elif news.kind is NewsKind.PROBLEM:
                self._emit(WarningIssued(f"{self.name}: {news.text}"))
            else:
                self._problem, self._told_drops = news.text, True
                self._emit(WarningIssued(f"{self.name} failed, training continues without it: {news.text}"))
        if self._process.dropped and not self._told_drops:
            self._told_drops = True
            what = f"{self.name} does not keep up: {MAX_QUEUED} points are waiting, further ones are dropped"
            self._emit(WarningIssued(f"{what}; training does not wait for it"))
