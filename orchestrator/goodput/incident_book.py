"""The recoveries of a run, each with the worker-seconds that it cost. Pure."""

from dataclasses import dataclass, field, replace

from orchestrator.domain.events import RecoveryReason, RecoveryStarted
from orchestrator.goodput.crew import NodeKey
from orchestrator.goodput.ledger_result import IncidentTime, incident_from
from orchestrator.goodput.time_books import ClassSeconds, TimeBooks
from orchestrator.goodput.time_class import TimeClass
from orchestrator.json_values import JsonFields, JsonObject, mapping, number_mapping, objects, optional, text

MAX_INCIDENTS = 256
"""Incidents with figures of their own; of older ones only the sum by reason is kept."""
CAUSE_CHARACTERS = 300


@dataclass
class _OpenIncident:
    """The recovery that is under way. `seconds` is filled by the books."""

    incident: IncidentTime
    node: NodeKey | None
    seconds: ClassSeconds = field(default_factory=dict)


class IncidentBook:
    """All incidents of a run; at most one is open."""

    def __init__(self, books: TimeBooks) -> None:
        self._books = books
        self._closed: list[IncidentTime] = []
        self._open: _OpenIncident | None = None
        self._older: dict[RecoveryReason, ClassSeconds] = {}
        """By reason, of the incidents that have no figures of their own any more."""

    @property
    def open(self) -> bool:
        """Whether a recovery is under way."""
        return self._open is not None

    def begin(self, started: RecoveryStarted, began_s: float, node: NodeKey | None) -> None:
        """A recovery has started, which `node` is to blame for; one that was under way is over. `began_s`: Unix
        seconds of the last sign of life."""
        self._start(
            IncidentTime(
                incident=started.incident,
                reason=started.reason,
                cause=started.cause[:CAUSE_CHARACTERS],
                rank=started.rank,
                node=node[0] if node is not None else None,
                began_s=began_s,
                seconds={},
                steps_recomputed=max(0, started.step - started.from_step),
            ),
            node,
        )

    def begin_without_driver(self, began_s: float) -> None:
        """The driver was lost, and another one continues the run."""
        cause = "the driver was lost; a later one continues the run"
        self._start(IncidentTime(None, RecoveryReason.DRIVER_LOST, cause, None, None, began_s, {}, 0), None)

    def _start(self, incident: IncidentTime, node: NodeKey | None) -> None:
        self.close()
        self._open = _OpenIncident(incident, node)
        self._books.charged = self._open.seconds

    def repeats(self, steps: int) -> None:
        """So many steps are recomputed."""
        if self._open is not None:
            self._open.incident = replace(self._open.incident, steps_recomputed=steps)

    def close(self) -> None:
        """Training has continued, or the run is over."""
        opened, self._open, self._books.charged = self._open, None, None
        if opened is None:
            return
        self._books.blame(opened.node, sum(opened.seconds.values()))
        self._closed.append(replace(opened.incident, seconds=opened.seconds))
        while len(self._closed) > MAX_INCIDENTS:
            oldest = self._closed.pop(0)
            older = self._older.setdefault(oldest.reason, {})
            for time_class, worker_s in oldest.seconds.items():
                older[time_class] = older.get(time_class, 0.0) + worker_s

    def all(self, pending: ClassSeconds) -> list[IncidentTime]:
        """The incidents, in order. `pending`: worker-seconds of the open one that are not booked yet."""
        if self._open is None:
            return list(self._closed)
        seconds = dict(self._open.seconds)
        for time_class, worker_s in pending.items():
            seconds[time_class] = seconds.get(time_class, 0.0) + worker_s
        return [*self._closed, replace(self._open.incident, seconds=seconds)]

    @property
    def older(self) -> dict[RecoveryReason, ClassSeconds]:
        """By reason, of the incidents before those of `all`."""
        return self._older

    def to_json(self) -> JsonObject:
        """All of it, for `from_json`."""
        opened = self._open
        now = None
        if opened is not None:
            node = None if opened.node is None else {"node": opened.node[0], "node_id": opened.node[1]}
            now = {"incident": replace(opened.incident, seconds=opened.seconds).to_json(), "blamed": node}
        older = {reason.value: {name.value: s for name, s in each.items()} for reason, each in self._older.items()}
        return {"closed": [each.to_json() for each in self._closed], "open": now, "older": older}

    @classmethod
    def from_json(cls, value: JsonFields, books: TimeBooks) -> "IncidentBook":
        """Raises JsonShapeError."""
        book = cls(books)
        book._closed = [incident_from(each) for each in objects(value, "closed")]
        older = mapping(value, "older")
        known = {reason: number_mapping(older, reason.value) for reason in RecoveryReason if reason.value in older}
        book._older = {reason: {TimeClass(name): s for name, s in each.items()} for reason, each in known.items()}
        now = optional(mapping, value, "open")
        if now is not None:
            node = optional(mapping, now, "blamed")
            incident = incident_from(mapping(now, "incident"))
            key = None if node is None else (text(node, "node"), text(node, "node_id"))
            book._open = _OpenIncident(incident, key, dict(incident.seconds))
            books.charged = book._open.seconds
        return book
