"""Experiment trackers: where a run's curves are, and whether all of them arrived."""

from dataclasses import dataclass
from typing import ClassVar

from orchestrator.domain.events.event_base import EventBody


@dataclass(frozen=True)
class TrackerReady(EventBody):
    """An experiment tracker takes the run's curves."""

    KIND: ClassVar[str] = "tracker.ready"

    tracker: str
    """TensorBoard or W&B."""
    place: str
    """Directory or URL of the curves."""


@dataclass(frozen=True)
class TrackerEnded(EventBody):
    """The run has ended for a tracker."""

    KIND: ClassVar[str] = "tracker.ended"

    tracker: str
    """TensorBoard or W&B."""
    logged: int
    """Points and markers that it has taken."""
    dropped: int
    """Those that it has not taken: it was too slow, or it failed."""
    place: str = ""
    """Directory or URL of the curves; empty if it never began."""
    problem: str | None = None
    """What was wrong; null if nothing was."""
