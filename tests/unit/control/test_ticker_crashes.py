"""The server is killed before and after each of its writes and effects: no run is lost, none is started twice."""

import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from orchestrator.control.policy.queue_facts import Decision, QueueFacts
from orchestrator.control.queue_store.write_thread import Command, T
from orchestrator.control.server_lease import ServerLease
from orchestrator.domain.queue.grant import Grant
from orchestrator.domain.queue.queue_states import QueueState
from tests.unit.control.conftest import SHARED_MEMORY
from tests.unit.control.scripted import ANN, Server, World, fifo, job

pytestmark = pytest.mark.unit


class Killed(BaseException):
    """The process is gone."""


class Fuse:
    """Ends the process at the point with a number: before it or after it."""

    def __init__(self, point: int, after: bool) -> None:
        self.point, self.after, self.passed = point, after, 0

    def run(self, action: Callable[[], T]) -> T:
        number, self.passed = self.passed, self.passed + 1
        if number == self.point and not self.after:
            raise Killed
        result = action()
        if number == self.point:
            raise Killed
        return result


class FusedWorld(World):
    """Its effects are points."""

    fuse: Fuse

    def launch(self, run_id: str, directory: Path, grant: Grant, resume: bool, cluster_address: str) -> None:
        self.fuse.run(lambda: super(FusedWorld, self).launch(run_id, directory, grant, resume, cluster_address))

    def grant(self, run_id: str, directory: Path, grant: Grant) -> None:
        self.fuse.run(lambda: super(FusedWorld, self).grant(run_id, directory, grant))

    def stop(self, run_id: str, directory: Path) -> None:
        self.fuse.run(lambda: super(FusedWorld, self).stop(run_id, directory))

    def kill(self, run_id: str, directory: Path) -> None:
        self.fuse.run(lambda: super(FusedWorld, self).kill(run_id, directory))


class FusedLease(ServerLease):
    """Writes of the ticker are points."""

    fuse: Fuse

    def write(self, command: Command[T]) -> T:
        return self.fuse.run(lambda: super(FusedLease, self).write(command))


def preempting(facts: QueueFacts) -> Decision:
    """First come, first served; a run of a higher class has one of a lower class suspended; what is idle is given to
    elastic runs."""
    decision = fifo(facts)
    waiting = [run for run in facts.runs if run.waits and run.id not in decision.grants]
    victims = [run for run in facts.runs if run.granted and not run.leaving]
    for run in waiting:
        lower = [victim for victim in victims if victim.priority < run.priority]
        if lower and not any(each.leaving for each in facts.runs):
            return Decision({}, {lower[0].id: run.id}, decision.outlooks)
    if not waiting and not decision.grants:
        for run in facts.runs:
            if run.elastic and run.granted == run.places and run.granted == {"a": 1} and _room(facts, "a"):
                return Decision({run.id: {"a": 2}}, {}, {})
    return decision


def _room(facts: QueueFacts, node: str) -> bool:
    """Whether one more worker fits."""
    free = sum(each.free["CPU"] for each in facts.nodes if each.node_id == node)
    return free - sum(run.places.get(node, 0) for run in facts.runs) >= 1


class Story:
    """A day of a server in which everything happens, told by seconds."""

    def __init__(self, home: Path, fuse: Fuse) -> None:
        self.world, self.fuse = FusedWorld(), fuse
        self.world.fuse = fuse
        self.world.nodes_up = {"a": 2.0}
        self.server = Server(home, self.world, preempting)
        self._fuse_lease()
        self.crashes = 0

    def _fuse_lease(self) -> None:
        self.server.lease.__class__ = FusedLease
        self.server.lease.fuse = self.fuse  # type: ignore[attr-defined]

    def tell(self) -> dict[str, str]:
        """The ids by name, when everything has ended."""
        ids: dict[str, str] = {}
        ids["elastic"] = self.server.submit(job("elastic", "{min: 1, max: 2}"))
        ids["after"] = self.server.submit(job("after").model_copy(update={"after": ["elastic"]}))
        self.seconds(8)
        ids["urgent"] = self.server.submit(job("urgent", "2", more="schedule: {priority: urgent}\n"))
        self.seconds(8)
        ids["gone"] = self.server.submit(job("gone", "2"))
        self.seconds(2)
        self.server.queue.cancel(ids["gone"], ANN)
        self.until(ids["after"], QueueState.ACTIVE)
        self.server.queue.pause(ids["after"], ANN)
        self.until(ids["after"], QueueState.PAUSED)
        self.server.queue.resume(ids["after"], ANN)
        self.until(ids["after"], QueueState.SUCCEEDED)
        self.seconds(3)
        return ids

    def until(self, run: str, state: QueueState) -> None:
        for _ in range(80):
            if self.server.state(run) is state:
                return
            self.seconds(1)
        raise AssertionError(f"{run} is {self.server.state(run)}: {self.server.row(run).reason}")

    def seconds(self, count: int) -> None:
        for _ in range(count):
            try:
                self.server.second()
            except Killed:
                self.crashes += 1
                self.server.crash()
                for _ in range(2):
                    self.world.advance()
                self.server.boot()
                self._fuse_lease()


@pytest.fixture
def homes() -> Iterator[Callable[[], Path]]:
    """Fresh directories, in memory if possible."""
    with tempfile.TemporaryDirectory(dir=SHARED_MEMORY if SHARED_MEMORY.is_dir() else None) as base:
        yield lambda: Path(tempfile.mkdtemp(dir=base))


@pytest.mark.parametrize("stride", [11, pytest.param(1, marks=pytest.mark.soak)])
def test_a_server_that_is_killed_anywhere_loses_nothing_and_starts_nothing_twice(
    homes: Callable[[], Path], stride: int
) -> None:
    undisturbed = Story(homes(), Fuse(-1, after=False))
    ids = undisturbed.tell()
    names = {run: name for name, run in ids.items()}
    expected = [names[run] for run in undisturbed.world.launches]
    assert expected == ["elastic", "urgent", "elastic", "after", "after"]
    points = undisturbed.fuse.passed
    undisturbed.server.store.close()
    assert points > 30
    for point in range(stride // 2, points, stride):
        for after in (False, True):
            story = Story(homes(), Fuse(point, after))
            ids = story.tell()
            names = {run: name for name, run in ids.items()}
            where = f"killed {'after' if after else 'before'} point {point}"
            assert story.crashes == 1, where
            ends = {name: story.server.state(run).value for name, run in ids.items()}
            assert ends == {"elastic": "succeeded", "after": "succeeded", "urgent": "succeeded", "gone": "cancelled"}, (
                where
            )
            assert [names[run] for run in story.world.launches] == expected, where
            assert story.world.killed == [], where
            assert story.world.twice == [], where
            assert story.world.held_now == {}, where
            assert all(story.server.row(run).settled for run in ids.values()), where
            story.server.store.close()
