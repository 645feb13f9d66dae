"""Worker-seconds by class and by node, as they are booked. Pure, and a booking takes the same time for any number of
workers: what each worker of a crew has spent is divided among the nodes when the crew changes or the nodes are read."""

from collections.abc import Collection, Iterable, Mapping, Sequence

from orchestrator.domain.events import NodeReservation
from orchestrator.goodput.crew import Crew, NodeKey, crew_from, key_of
from orchestrator.goodput.ledger_result import seconds_from
from orchestrator.goodput.step_lineage import LINEAGE_CLASSES, StepSum
from orchestrator.goodput.time_class import TimeClass
from orchestrator.json_values import JsonFields, JsonObject, JsonValue, integer, mapping, number, objects, text

MAX_NODES = 1024
"""Nodes with times of their own. Those with the least time, of the released ones, are put together."""
OTHER_NODES: NodeKey = ("others", "")
MAX_CREWS = 32
"""Crews that are remembered. Steps of an older one that are thrown away stay with their nodes as they were booked."""

ClassSeconds = dict[TimeClass, float]


class TimeBooks:
    """All bookings of a run."""

    def __init__(self) -> None:
        self.seconds: ClassSeconds = {}
        """Worker-seconds of all workers."""
        self.crew = Crew()
        self.crew_id = 0
        self.charged: ClassSeconds | None = None
        """Those of the incident that is open, if one is: it gets all that is booked."""
        self.caused: dict[NodeKey, float] = {}
        """Worker-seconds that the workers of a node have cost the run."""
        self._crews: dict[int, Crew] = {0: self.crew}
        self._nodes: dict[NodeKey, ClassSeconds] = {}
        self._member: ClassSeconds = {}
        """Seconds of each member of the present crew that are not divided among the nodes yet."""
        self._joining: ClassSeconds = {}
        """The same of each joining worker."""

    def book(self, time_class: TimeClass, seconds: float) -> None:
        """What every member has spent."""
        _add(self._member, time_class, seconds)
        self._total(time_class, seconds * self.crew.members)

    def book_joining(self, time_class: TimeClass, seconds: float) -> None:
        """What every joining worker has spent."""
        _add(self._joining, time_class, seconds)
        self._total(time_class, seconds * self.crew.joining)

    def add(self, time_class: TimeClass, worker_s: float) -> None:
        """Worker-seconds that were spent before they were known: of the workers that join."""
        if self.crew.joining:
            self.book_joining(time_class, worker_s / self.crew.joining)
        elif self.crew.members:
            self.book(time_class, worker_s / self.crew.members)

    def move_to_recomputed(self, sums: Iterable[StepSum]) -> float:
        """Steps were made for nothing; their worker-seconds."""
        moved_s = 0.0
        for step_sum in sums:
            amounts = dict(zip(LINEAGE_CLASSES, step_sum.amounts, strict=False))
            moved_s += _move(self.seconds, amounts, 1.0)
            crew = self._crews.get(step_sum.crew)
            for place in crew.places if crew is not None and crew.members else ():
                share = place.members / crew.members if crew is not None else 0.0
                _move(self._nodes.setdefault(key_of(place), {}), amounts, share)
        if self.charged is not None:
            _add(self.charged, TimeClass.RECOMPUTED, moved_s)
        return moved_s

    def change(self, crew: Crew, remembered: Collection[int]) -> None:
        """Other workers are reserved from now on. `remembered`: crews whose steps may still be thrown away."""
        learns = not self.crew.known and crew.known and crew.workers == self.crew.workers
        self._divide(crew.places if learns else None)
        if learns:  # the same workers: their steps were made on these nodes, too
            self._crews[self.crew_id] = crew
        self.crew, self.crew_id = crew, self.crew_id + 1
        kept = {number: known for number, known in self._crews.items() if number in remembered}
        newest = sorted(kept)[-(MAX_CREWS - 1) :]
        self._crews = {**{number: kept[number] for number in newest}, self.crew_id: crew}

    def blame(self, node: NodeKey | None, worker_s: float) -> None:
        """A worker of a node has cost the run so much."""
        if node is not None and worker_s > 0.0:
            self.caused[node] = self.caused.get(node, 0.0) + worker_s

    def by_node(self) -> Mapping[NodeKey, ClassSeconds]:
        """Worker-seconds of each node."""
        self._divide(None)
        return self._nodes

    def _total(self, time_class: TimeClass, worker_s: float) -> None:
        _add(self.seconds, time_class, worker_s)
        if self.charged is not None:
            _add(self.charged, time_class, worker_s)

    def _divide(self, learned: Sequence[NodeReservation] | None) -> None:
        """Divide what the workers have spent among their nodes, or among those that have been `learned` only now."""
        member, joining, crew = self._member, self._joining, self.crew
        self._member, self._joining = {}, {}
        if learned is None:
            for place in crew.places:
                seconds = self._nodes.setdefault(key_of(place), {})
                for time_class, each_s in member.items():
                    _add(seconds, time_class, each_s * place.members)
                for time_class, each_s in joining.items():
                    _add(seconds, time_class, each_s * place.joining)
        else:
            total: ClassSeconds = {name: each_s * crew.members for name, each_s in member.items()}
            for time_class, each_s in joining.items():
                _add(total, time_class, each_s * crew.joining)
            for place in learned:
                share = (place.members + place.joining) / max(1, crew.workers)
                for time_class, worker_s in total.items():
                    _add(self._nodes.setdefault(key_of(place), {}), time_class, worker_s * share)
        self._fold()

    def _fold(self) -> None:
        if len(self._nodes) <= MAX_NODES:
            return
        present = {key_of(place) for crew in self._crews.values() for place in crew.places} | {OTHER_NODES}
        released = [key for key in self._nodes if key not in present]
        released.sort(key=lambda key: sum(self._nodes[key].values()))
        others = self._nodes.setdefault(OTHER_NODES, {})
        for key in released[: len(self._nodes) - MAX_NODES]:
            for time_class, worker_s in self._nodes.pop(key).items():
                _add(others, time_class, worker_s)
            self.blame(OTHER_NODES, self.caused.pop(key, 0.0))

    def to_json(self) -> JsonObject:
        """All of it but the open incident, for `from_json`."""
        nodes: list[JsonValue] = [
            {"node": node, "node_id": node_id, "seconds": plain_seconds(seconds)}
            for (node, node_id), seconds in self.by_node().items()
        ]
        caused: list[JsonValue] = [
            {"node": node, "node_id": node_id, "worker_s": worker_s}
            for (node, node_id), worker_s in self.caused.items()
        ]
        return {
            "seconds": plain_seconds(self.seconds),
            "nodes": nodes,
            "caused": caused,
            "crews": {str(number): crew.to_json() for number, crew in self._crews.items()},
            "crew": self.crew_id,
        }

    @classmethod
    def from_json(cls, value: JsonFields) -> "TimeBooks":
        """Raises JsonShapeError."""
        books = cls()
        books.seconds = seconds_from(mapping(value, "seconds"))
        books._nodes = {_key(each): seconds_from(mapping(each, "seconds")) for each in objects(value, "nodes")}
        books.caused = {_key(each): number(each, "worker_s") for each in objects(value, "caused")}
        crews = mapping(value, "crews")
        books._crews = {int(name): crew_from(mapping(crews, name)) for name in crews}
        books.crew_id = integer(value, "crew")
        books.crew = books._crews.setdefault(books.crew_id, Crew())
        return books


def plain_seconds(seconds: Mapping[TimeClass, float]) -> JsonObject:
    """By the names of the classes."""
    return {time_class.value: worker_s for time_class, worker_s in seconds.items()}


def _key(value: JsonFields) -> NodeKey:
    return text(value, "node"), text(value, "node_id")


def _add(seconds: ClassSeconds, time_class: TimeClass, amount: float) -> None:
    if amount:
        seconds[time_class] = seconds.get(time_class, 0.0) + amount


def _move(seconds: ClassSeconds, amounts: Mapping[TimeClass, float], share: float) -> float:
    """Move a share of the amounts of their classes to `RECOMPUTED`; how much that was."""
    for time_class, amount in amounts.items():
        _add(seconds, time_class, -amount * share)
    moved_s = sum(amounts.values()) * share
    _add(seconds, TimeClass.RECOMPUTED, moved_s)
    return moved_s
