"""What every event has: a kind, a time, fields. The events themselves are in the modules beside this one."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import ClassVar, Protocol

from orchestrator.domain.step_report import StepReport
from orchestrator.json_values import JsonFields, JsonValue


@dataclass(frozen=True)
class EventBody:
    """What happened, without its time. Each kind of event is a subclass with a field for each thing it reports."""

    KIND: ClassVar[str] = ""
    """Name of the kind in `events.jsonl`. It never changes: other programs read it."""
    ON_DISK: ClassVar[bool] = True
    """Whether `events.jsonl` has it."""

    @property
    def kind(self) -> str:
        """Name of the kind."""
        return self.KIND


@dataclass(frozen=True)
class UnknownEvent(EventBody):
    """An event that this version cannot read: of a kind that a newer version added, or with other fields."""

    name: str
    """Its kind."""
    fields: JsonFields
    """Its fields, as they were read."""

    @property
    def kind(self) -> str:
        """Name of the kind, as it was read."""
        return self.name


@dataclass(frozen=True)
class Event:
    """Something that happened, and when."""

    body: EventBody
    time_s: float
    """Unix time in seconds."""
    extra: Mapping[str, JsonValue] = field(default_factory=dict)
    """Fields that a newer version wrote and this one does not know; they are kept when the event is written again."""


class Observer(Protocol):
    """A receiver of a run's events and step reports, for example the recorder, the metrics, the terminal."""

    def on_event(self, event: Event) -> None:
        """Take one event. It must not block for long. Emitting further events from here is allowed: they follow when
        every observer has this one."""

    def on_step(self, report: StepReport) -> None:
        """Take the report of one optimizer step, under the same rules."""


class Emit(Protocol):
    """A function that publishes an event. The implementation adds the time."""

    def __call__(self, body: EventBody, /) -> None: ...
