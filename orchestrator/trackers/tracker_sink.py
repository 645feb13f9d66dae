"""What a tracker's process needs of a tracker, and what it is told at its start."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from orchestrator.json_values import JsonFields, JsonObject, mapping, text
from orchestrator.trackers.tracker_points import Point

MAX_MARKERS = 1000
"""Markers of one driver that a tracker keeps as text; later ones are curves alone."""


@dataclass(frozen=True)
class TrackedRun:
    """The run that is logged."""

    run_id: str
    job: str
    directory: Path
    """The run's directory."""
    settings: JsonObject
    """The tracker's part of the spec."""
    spec: JsonObject
    """The whole spec, as the tracker's configuration of the run."""

    def to_json(self) -> JsonObject:
        """For the tracker's process."""
        return {**vars(self), "directory": str(self.directory)}

    @classmethod
    def from_json(cls, value: JsonFields) -> "TrackedRun":
        """Raises JsonShapeError."""
        names = (text(value, "run_id"), text(value, "job"), Path(text(value, "directory")))
        return cls(*names, mapping(value, "settings"), mapping(value, "spec"))


class TrackerSink(Protocol):
    """One tracker, through its own library. It may block and raise: only its own process is affected."""

    place: str
    """Where the curves are: a URL or a directory."""

    def log(self, point: Point) -> None:
        """Add values, or a marker. A step may come again, after a recovery: it must not be there twice."""

    def close(self, exit_code: int) -> None:
        """Deliver everything and end. `exit_code`: of the run, 0 if it succeeded."""


OpenSink = Callable[[TrackedRun, Callable[[str], None]], TrackerSink]
"""Opens a tracker; the second argument reports a problem that does not end it."""
