"""What a run makes of its grants: who leaves, which places are asked for, what the server is told."""

from types import SimpleNamespace
from typing import Any

import pytest

from orchestrator.domain.queue.grant import Grant, GrantAnswer
from orchestrator.gang.elastic import granted_places
from orchestrator.gang.elastic.granted_places import RETRY_S, GrantedPlaces, seek_granted
from orchestrator.gang.group.reservations import Reservations

pytestmark = pytest.mark.unit


class Desk:
    """The newest grant, and every answer."""

    def __init__(self, grant: Grant | None) -> None:
        self.grant, self.answers = grant, list[GrantAnswer]()

    def newest(self) -> Grant | None:
        return self.grant

    def answer(self, answer: GrantAnswer) -> None:
        self.answers.append(answer)


class Place:
    """A reservation."""

    def __init__(self, node: str) -> None:
        self.node = node


class Recruits:
    """Workers that start."""

    paused = False

    def __init__(self) -> None:
        self.groups: list[Any] = []

    def call(self, group: Any) -> None:
        self.groups.append(group)

    def leave(self, groups: Any) -> None:
        self.groups = [group for group in self.groups if group not in groups]


class World:
    """A gang without processes, and a cluster without nodes."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, grant: Grant) -> None:
        self.released: list[str] = []
        monkeypatch.setattr(granted_places, "group_bound_to", lambda node, bundle, run: Place(node))
        monkeypatch.setattr("orchestrator.gang.group.reservations.release", self._release)
        self.desk = Desk(grant)
        self.granted = GrantedPlaces(self.desk)
        groups = [self.bind(node) for node, count in grant.places.items() for _ in range(count)]
        self.gang: Any = SimpleNamespace(places=Reservations(groups), recruits=Recruits(), members=[], staying=[])
        self.form(groups)

    def bind(self, node: str) -> Any:
        return self.granted.bind(node, {"CPU": 1.0}, "run")

    def form(self, groups: list[Any]) -> None:
        """These train from now on."""
        self.gang.members = [
            SimpleNamespace(group=group, lives=True, hello=SimpleNamespace(node_id=group.node)) for group in groups
        ]
        self._keep()

    def seek(self, *live: str) -> None:
        self._keep()
        seek_granted(self.gang, self.granted, live, self.bind)

    def coming(self) -> list[str]:
        return sorted(group.node for group in self.gang.recruits.groups)

    def _keep(self) -> None:
        lives = [member for member in self.gang.members if member.lives]
        gone = [id(member) for member in self.granted.surplus(lives)]
        self.gang.staying = [member for member in lives if id(member) not in gone]

    def _release(self, groups: list[Any]) -> None:
        self.released += [group.node for group in groups]


def test_a_larger_grant_starts_workers_on_its_nodes_and_is_answered_when_they_train(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    world = World(monkeypatch, Grant(1, {"a": 1}))
    world.granted.answer(world.gang)
    assert world.desk.answers == [GrantAnswer(1, {"a": 1})]
    world.desk.grant = Grant(2, {"a": 1, "b": 2})
    assert world.granted.look(1.0)
    world.seek("a", "b")
    assert world.coming() == ["b", "b"]
    assert world.desk.answers[-1] == GrantAnswer(1, {"a": 1, "b": 2})
    world.form([*(member.group for member in world.gang.members), *world.gang.recruits.groups])
    world.granted.answer(world.gang)
    assert world.desk.answers[-1] == GrantAnswer(2, {"a": 1, "b": 2})
    assert not world.granted.look(1.0 + RETRY_S)


def test_a_moved_run_keeps_its_old_places_until_its_workers_have_left(monkeypatch: pytest.MonkeyPatch) -> None:
    world = World(monkeypatch, Grant(1, {"a": 2}))
    world.granted.answer(world.gang)
    world.desk.grant = Grant(2, {"b": 2})
    world.granted.look(1.0)
    assert len(world.granted.surplus(world.gang.members)) == 2
    world.seek("a", "b")
    assert (world.coming(), world.released) == (["b", "b"], [])
    assert world.desk.answers[-1] == GrantAnswer(1, {"a": 2, "b": 2})
    old = [member.group for member in world.gang.members]
    world.form(world.gang.recruits.groups)
    world.gang.recruits.groups = []
    world.gang.places.give_back(old)
    world.granted.answer(world.gang)
    assert world.desk.answers[-1] == GrantAnswer(2, {"b": 2})


def test_nothing_is_asked_for_on_a_node_that_is_gone_or_not_granted(monkeypatch: pytest.MonkeyPatch) -> None:
    world = World(monkeypatch, Grant(1, {"a": 1, "b": 1}))
    lost = world.gang.members.pop()
    world.gang.places.give_back([lost.group])
    world.seek("a", "c")
    assert world.coming() == []
    world.seek("a", "b", "c")  # the node is there again
    assert world.coming() == ["b"]
    world.desk.grant = Grant(2, {"a": 1, "c": 1})
    world.granted.look(1.0)
    world.seek("a", "b", "c")
    assert (world.coming(), world.released) == (["c"], ["b", "b"])


def test_the_place_of_a_worker_that_died_is_used_again(monkeypatch: pytest.MonkeyPatch) -> None:
    world = World(monkeypatch, Grant(1, {"a": 2}))
    world.gang.members[0].lives = False
    world.seek("a")
    assert world.gang.recruits.groups == [world.gang.members[0].group]
    assert world.released == []


def test_a_grant_that_cannot_be_carried_out_is_tried_again(monkeypatch: pytest.MonkeyPatch) -> None:
    world = World(monkeypatch, Grant(1, {"a": 1}))
    world.granted.answer(world.gang)
    world.desk.grant = Grant(2, {"a": 1, "b": 1})
    assert world.granted.look(1.0)
    world.seek("a")
    assert not world.granted.look(1.0 + RETRY_S / 2)
    assert world.granted.look(1.0 + RETRY_S)


def test_a_worker_that_starts_on_a_node_that_dies_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    """Ray would try without a pause to place its reservation again."""
    world = World(monkeypatch, Grant(1, {"a": 1, "b": 1}))
    world.granted.answer(world.gang)
    lost = world.gang.members.pop()
    world.gang.places.give_back([lost.group])
    world.seek("a", "b")
    assert (world.coming(), world.released) == (["b"], ["b"])
    assert world.granted.look(1.0)
    world.seek("a")
    assert (world.coming(), world.released) == ([], ["b", "b"])
    assert world.desk.answers[-1] == GrantAnswer(1, {"a": 1})
    assert world.granted.look(1.0 + RETRY_S), "it may be there again"


def test_the_end_gives_everything_back(monkeypatch: pytest.MonkeyPatch) -> None:
    world = World(monkeypatch, Grant(4, {"a": 1}))
    world.granted.end()
    assert world.desk.answers == []
    world.granted.answer(world.gang)
    world.granted.end()
    world.granted.end()
    assert world.desk.answers == [GrantAnswer(4, {"a": 1}), GrantAnswer(4, {})]
