"""The reserved workers of a run, by node. Pure values."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

from orchestrator.domain.events import NodeReservation, WorkersReserved
from orchestrator.domain.events.event_codec import encode_body
from orchestrator.json_values import JsonFields, JsonObject, integer, objects, text

NodeKey = tuple[str, str]
"""Address and id of a node; both empty if the node is not known."""
UNKNOWN_NODE: NodeKey = ("", "")


@dataclass(frozen=True)
class Crew:
    """All workers that are reserved at one time."""

    places: tuple[NodeReservation, ...] = ()

    @classmethod
    def of_size(cls, workers: int) -> "Crew":
        """Members on nodes that are not known."""
        return cls((NodeReservation(*UNKNOWN_NODE, workers, 0),) if workers > 0 else ())

    @cached_property
    def members(self) -> int:
        """Workers of the gang."""
        return sum(place.members for place in self.places)

    @cached_property
    def joining(self) -> int:
        """Reserved workers that are not of the gang."""
        return sum(place.joining for place in self.places)

    @cached_property
    def workers(self) -> int:
        """All of them."""
        return self.members + self.joining

    @cached_property
    def nodes(self) -> int:
        """Nodes with workers."""
        return sum(place.members + place.joining > 0 for place in self.places)

    @cached_property
    def known(self) -> bool:
        """Whether the nodes are known."""
        return all(key_of(place) != UNKNOWN_NODE for place in self.places)

    def node_of(self, rank: int) -> NodeKey | None:
        """The node of a rank: ranks follow the nodes. None if there is no such rank, or its node is not known."""
        for place in self.places:
            rank -= place.members
            if rank < 0:
                return key_of(place) if key_of(place) != UNKNOWN_NODE else None
        return None

    def to_json(self) -> JsonObject:
        """For `crew_from`."""
        return {"nodes": encode_body(WorkersReserved(self.places))["nodes"]}


def key_of(place: NodeReservation) -> NodeKey:
    """The node of some workers."""
    return place.node, place.node_id


def crew_of(places: Sequence[NodeReservation]) -> Crew:
    """Numbers below zero count as none."""
    return Crew(tuple(NodeReservation(p.node, p.node_id, max(0, p.members), max(0, p.joining)) for p in places))


def crew_from(value: JsonFields) -> Crew:
    """Raises JsonShapeError."""
    places = [
        NodeReservation(text(each, "node"), text(each, "node_id"), integer(each, "members"), integer(each, "joining"))
        for each in objects(value, "nodes")
    ]
    return crew_of(places)
