"""A grant: on which nodes a run may have how many workers. A server's queue decides it, the run's driver keeps to it.
Pure."""

from collections.abc import Mapping
from dataclasses import dataclass

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
