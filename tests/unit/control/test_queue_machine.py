"""Anything in any order: people, drivers, nodes and servers that come and go. What always holds, and how it ends."""

import contextlib
import itertools
import shutil
import tempfile
from pathlib import Path

import pytest
from hypothesis import HealthCheck, Phase, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule, run_state_machine_as_test

from orchestrator.control.policy.decide import decide
from orchestrator.control.queue_store.event_table import events_of_run
from orchestrator.control.queue_store.run_rows import RunRow
from orchestrator.control.queue_store.run_table import RunFilter, list_runs
from orchestrator.domain.errors import ConflictError, UsageError
from orchestrator.domain.events import RunState
from orchestrator.domain.queue.queue_states import FINAL, HOLDING, QueueState, is_queue_transition
from tests.unit.control.conftest import SHARED_MEMORY
from tests.unit.control.scripted import ANN, ROOT, Server, job

pytestmark = pytest.mark.unit

LONGEST_WAIT_S = 3000
"""After which every run has ended: budgets of retries and their pauses are used up long before."""
MOST_RUNS = 12
PHASES = (Phase.explicit, Phase.generate)
"""Nothing is shrunk: an example takes a quarter of a second, and a failing one is short enough to be read."""


class QueueMachine(RuleBasedStateMachine):
    """One server over a scripted world."""

    def __init__(self) -> None:
        super().__init__()
        self.home = Path(tempfile.mkdtemp(dir=SHARED_MEMORY if SHARED_MEMORY.is_dir() else None))
        self.server = Server(self.home, decide=decide)
        self.ids: list[str] = []

    def teardown(self) -> None:
        try:
            self.everything_ends()
        finally:
            self.server.store.close()
            shutil.rmtree(self.home)

    def rows(self) -> list[RunRow]:
        return self.server.store.read(lambda connection: list_runs(connection, RunFilter(), None, 1000))

    def some(self, number: int) -> str:
        return self.ids[number % len(self.ids)]

    @precondition(lambda self: len(self.ids) < MOST_RUNS)
    @rule(
        workers=st.sampled_from(["1", "3", "8", "{min: 1, max: 2}"]),
        priority=st.sampled_from(["low", "normal", "urgent"]),
        retries=st.integers(0, 2),
        after=st.none() | st.integers(0, 5),
    )
    def submit(self, workers: str, priority: str, retries: int, after: int | None) -> None:
        needs = [self.some(after)] if after is not None and self.ids else []
        more = f"schedule: {{priority: {priority}, retries: {retries}, after: {needs}}}\n"
        with contextlib.suppress(UsageError):  # the run before it has failed, or it can never fit
            self.ids.append(self.server.submit(job(f"n{len(self.ids)}", workers, more=more)))

    @rule(seconds=st.integers(1, 6))
    def time_passes(self, seconds: int) -> None:
        self.server.second(seconds)

    @precondition(lambda self: self.ids)
    @rule(number=st.integers(0, 20), request=st.sampled_from(["cancel", "pause", "resume", "retry"]))
    def request(self, number: int, request: str) -> None:
        queue = self.server.queue
        act = {"cancel": queue.cancel, "pause": queue.pause, "resume": queue.resume, "retry": queue.retry}[request]
        with contextlib.suppress(ConflictError):
            act(self.some(number), ROOT)

    @precondition(lambda self: self.ids)
    @rule(number=st.integers(0, 20), workers=st.integers(1, 9))
    def scale(self, number: int, workers: int) -> None:
        with contextlib.suppress(UsageError):
            self.server.queue.scale(self.some(number), workers, ANN)

    @rule(number=st.integers(0, 20), how=st.sampled_from(["killed", "failed", "user error", "stopped"]))
    def driver_ends(self, number: int, how: str) -> None:
        living = sorted(run for run, driver in self.server.world.drivers.items() if driver.alive)
        if living:
            state, code = {
                "killed": (None, None),
                "failed": (RunState.FAILED, 1),
                "user error": (RunState.FAILED, 2),
                "stopped": (RunState.STOPPED, 130),
            }[how]
            self.server.world.end(living[number % len(living)], state, code, how)

    @rule()
    def cluster_goes_and_comes(self) -> None:
        self.server.world.answers = not self.server.world.answers

    @rule()
    def head_restarts(self) -> None:
        world = self.server.world
        for run in [run for run, driver in world.drivers.items() if driver.alive]:
            world.end(run, RunState.FAILED, 1, "the cluster is gone")
        number = 1 + max(int(name[1:] or 0) for name in world.nodes_up)
        world.nodes_up = {f"a{number}": 4.0, f"b{number}": 4.0}

    @rule(downtime=st.integers(0, 12))
    def server_is_killed(self, downtime: int) -> None:
        self.server.crash()
        for _ in range(downtime):
            self.server.world.advance()
        self.server.boot()

    @rule(jump_s=st.sampled_from([-1e7, 1e7]))
    def clock_jumps(self, jump_s: float) -> None:
        self.server.time.unix_s += jump_s

    @invariant()
    def nothing_is_booked_twice(self) -> None:
        assert self.server.world.overbooked() == []
        assert self.server.world.twice == []
        booked: dict[str, int] = {}
        for row in self.rows():
            for node, count in row.booked.items():
                booked[node] = booked.get(node, 0) + count
        up = self.server.world.nodes_up
        assert {node: count for node, count in booked.items() if count > up.get(node, count)} == {}

    @invariant()
    def every_run_holds_ends_or_says_why_it_waits(self) -> None:
        for row in self.rows():
            view = self.server.queue.run(row.id, ANN)
            assert (view.waits is not None) == (row.state not in HOLDING | FINAL)
            assert view.waits is None or view.waits.message
            assert row.state is not QueueState.FAILED or row.reason

    @invariant()
    def every_change_has_its_event(self) -> None:
        for row in self.rows():
            events = self.server.store.read(lambda connection, seq=row.seq: events_of_run(connection, seq, 0, 10_000))
            assert [event.ordinal for event in events] == list(range(1, row.changes + 1))
            assert events[-1].target is row.state
            for before, after in itertools.pairwise(events):
                assert after.source is before.target
                assert after.source is after.target or is_queue_transition(before.target, after.target)

    def everything_ends(self) -> None:
        """With a cluster, and nobody who disturbs: paused runs rest, all others end, and nothing is left of them."""
        world = self.server.world
        world.answers = True
        resting = {QueueState.PAUSED}
        for _ in range(LONGEST_WAIT_S):
            rows = self.rows()
            blocked = [row for row in rows if row.state is QueueState.BLOCKED]
            moving = [row for row in rows if not row.settled and (row.booked or row.state not in resting)]
            if not moving or (len(moving) == len(blocked) and any(row.state in resting for row in rows)):
                break
            self.server.second()
        else:
            raise AssertionError([(row.id, row.state, row.reason, row.booked) for row in moving])
        assert world.held_now == {}
        assert all(not row.booked for row in self.rows())


@pytest.mark.parametrize("examples", [12, pytest.param(200, marks=pytest.mark.soak)])
def test_whatever_happens_nothing_is_lost_or_booked_twice(examples: int) -> None:
    how = settings(
        max_examples=examples, stateful_step_count=30, deadline=None, derandomize=examples < 100, database=None,
        suppress_health_check=list(HealthCheck), phases=PHASES,
    )  # fmt: skip
    run_state_machine_as_test(QueueMachine, settings=how)
