"""A grant: on which nodes a run may have how many workers. A server's queue decides it, the run's driver keeps to it.
Pure."""

from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol

from orchestrator.json_values import JsonFields, JsonObject, integer, mapping


@dataclass(frozen=True)
class Grant:
    """The newest one counts. Workers elsewhere leave at the next step boundary."""

    number: int
    """Increases with each grant of a run."""
    places: Mapping[str, int]
    """Workers by the id of the node."""

    @property
    def workers(self) -> int:
        """In all."""
        return sum(self.places.values())

    def to_json(self) -> JsonObject:
        """The fields as JSON values."""
        return {"number": self.number, "places": dict(self.places)}

    @classmethod
    def from_json(cls, value: JsonFields | None) -> "Grant | None":
        """None if it is no grant."""
        if value is None:
            return None
        try:
            places = mapping(value, "places")
            return cls(integer(value, "number"), {node: integer(places, node) for node in places})
        except ValueError:
            return None


@dataclass(frozen=True)
class GrantAnswer:
    """What a driver says of its grants."""

    number: int
    """Of the newest grant that is carried out completely; 0: none."""
    places: Mapping[str, int] = field(default_factory=dict)
    """Workers by the id of the node for which it has reservations now."""

    def to_json(self) -> JsonObject:
        """The fields as JSON values."""
        return {"number": self.number, "places": dict(self.places)}

    @classmethod
    def from_json(cls, value: JsonFields | None) -> "GrantAnswer | None":
        """None if it is no answer."""
        found = Grant.from_json(value)
        return cls(found.number, found.places) if found is not None else None


class GrantDesk(Protocol):
    """The driver's side of the exchange with a server."""

    def newest(self) -> Grant | None:
        """The newest grant; None if there is none that can be read."""

    def answer(self, answer: GrantAnswer) -> None:
        """Tell the server."""


def surplus(places: Mapping[str, int], nodes: Sequence[str]) -> list[int]:
    """Indexes of the workers that a grant has no place for; `nodes`: the node of each worker. The first workers of a
    node stay."""
    left, found = Counter(places), []
    for index, node in enumerate(nodes):
        left[node] -= 1
        if left[node] < 0:
            found.append(index)
    return found


def vacant(places: Mapping[str, int], taken: Sequence[str], live: Collection[str]) -> list[str]:
    """The node of each granted place that nobody has. `taken`: the node of each place that somebody has; `live`: nodes
    on which workers can be started now."""
    left = Counter(places)
    left.subtract(taken)
    return [node for node, count in left.items() if node in live for _ in range(max(0, count))]
