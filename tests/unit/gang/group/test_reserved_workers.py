"""Which workers are reserved is reported whenever it changes, with the time for which new ones had been before."""

from dataclasses import dataclass, field

import pytest

from orchestrator.domain.events import EventBody, NodeReservation, WorkersReserved
from orchestrator.gang.agent.ray_session import Assignment
from orchestrator.gang.agent.worker_actor import Hello
from orchestrator.gang.group import reserved_workers
from orchestrator.gang.group.reservations import Reservations
from orchestrator.gang.group.reserved_workers import ReservedWorkers
from orchestrator.gang.group.worker_handle import WorkerHandle

pytestmark = pytest.mark.unit


def hello(node: str) -> Hello:
    return Hello(f"id-{node}", node, "host", 1, "/none")


def place(node: str, members: int, joining: int = 0) -> NodeReservation:
    return NodeReservation(node, f"id-{node}", members, joining)


@dataclass
class Recruits:
    """Workers that have started to join."""

    arrived: list[tuple[object, Hello]] = field(default_factory=list)


class FakeGang:
    """Two reservations; members and recruits as a test sets them."""

    def __init__(self) -> None:
        self.groups = [object(), object()]
        self.places = Reservations(self.groups)
        self.members: list[WorkerHandle] = []
        self.recruits = Recruits()

    def form(self, *nodes: str) -> None:
        self.members = [
            WorkerHandle(None, hello(node), group, Assignment(rank, len(nodes), 0, node))
            for rank, (node, group) in enumerate(zip(nodes, self.places.groups, strict=False))
        ]


@pytest.fixture
def told(monkeypatch: pytest.MonkeyPatch) -> list[WorkersReserved]:
    monkeypatch.setattr(reserved_workers, "placed_after_s", lambda group: 4.0)
    return []


def test_the_nodes_are_known_when_the_workers_have_answered(told: list[EventBody]) -> None:
    gang, reserved = FakeGang(), ReservedWorkers(told.append)
    reserved.begin(gang, 2)
    reserved.look()
    gang.form("a", "b")
    reserved.look()
    reserved.look()
    reserved.end()
    reserved.end()
    assert told == [
        WorkersReserved((NodeReservation("", "", 2, 0),)),
        WorkersReserved((place("a", 1), place("b", 1))),
        WorkersReserved(()),
    ]


def test_a_worker_that_joins_was_reserved_before_it_answered(told: list[EventBody]) -> None:
    gang, now_s = FakeGang(), [0.0]
    reserved = ReservedWorkers(told.append, lambda: now_s[0])
    reserved.begin(gang, 2)
    gang.form("a", "b")
    reserved.look()
    new = object()
    gang.places.add(new)
    asked_s = gang.places.asked_s(new)
    assert asked_s is not None
    now_s[0] = asked_s + 10.0
    reserved.look()
    assert len(told) == 2, "it has no node yet"
    gang.recruits.arrived = [(new, hello("c"))]
    reserved.look()
    assert told[2].nodes == (place("a", 1), place("b", 1), place("c", 0, 1))
    assert told[2].earlier_s == pytest.approx(6.0)
    gang.recruits.arrived = []
    gang.form("a", "b", "c")
    reserved.look()
    assert told[3] == WorkersReserved((place("a", 1), place("b", 1), place("c", 1)))


def test_the_place_of_a_lost_worker_is_reserved_until_it_is_given_back(told: list[EventBody]) -> None:
    gang, reserved = FakeGang(), ReservedWorkers(told.append)
    reserved.begin(gang, 2)
    gang.form("a", "b")
    reserved.look()
    gang.members = gang.members[:1]  # the next gang, without the lost worker
    reserved.look()
    assert told[-1].nodes == (place("a", 1), place("b", 0, 1))
    gang.places._groups.remove(gang.groups[1])  # as `give_back` does, without Ray
    reserved.look()
    assert told[-1].nodes == (place("a", 1),)
