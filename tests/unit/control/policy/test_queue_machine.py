"""Random histories of a queue: arrivals, ends, lost and drained nodes, and drivers that answer late."""

import hypothesis.strategies as st
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from orchestrator.clusters.placement import WorkerRequest
from orchestrator.control.policy.capacity_profile import HANDOVER_S
from orchestrator.control.policy.queue_facts import QueueShare
from tests.unit.control.policy.queue_world import QueueWorld, ask, node

pytestmark = pytest.mark.unit

PLACEMENTS = ("pack", "spread", "strict_spread", "strict_pack")
SHARES = (
    {},
    {"a": QueueShare("a", 2.0), "b": QueueShare("b", 1.0)},
    {"a": QueueShare("a", quota={"GPU": 6.0}), "b": QueueShare("b", quota={"GPU": 4.0}, limit={"GPU": 8.0})},
    {"a": QueueShare("a", limit={"GPU": 5.0})},
)


@st.composite
def requests(draw: st.DrawFn) -> WorkerRequest:
    minimum = draw(st.integers(1, 5))
    maximum = draw(st.one_of(st.just(minimum), st.integers(minimum, 10)))
    return ask(minimum, maximum, draw(st.sampled_from(PLACEMENTS)), draw(st.sampled_from((1.0, 1.0, 2.0, 0.5))))


SUBMISSIONS = st.tuples(
    requests(),
    st.one_of(st.none(), st.floats(0.01, 20)),
    st.sampled_from((0, 0, 10)),
    st.sampled_from("ab"),
    st.sampled_from("uv"),
)


class QueueMachine(RuleBasedStateMachine):
    """The checks are in `queue_world.check`, which runs at each tick."""

    @initialize(gpus=st.lists(st.integers(2, 4), min_size=2, max_size=4), shares=st.sampled_from(SHARES))
    def begin(self, gpus: list[int], shares: dict[str, QueueShare]) -> None:
        self.world = QueueWorld({f"n{i}": node(i, count) for i, count in enumerate(gpus)}, shares)

    @rule(batch=st.lists(SUBMISSIONS, min_size=1, max_size=6))
    def submit(self, batch: list[tuple[WorkerRequest, float | None, int, str, str]]) -> None:
        for request, hours, priority, queue, user in batch:
            work_s = None if hours is None else hours * 3600.0 * request.minimum
            self.world.submit(request, work_s, priority, queue=queue, user=user)
        self.world.tick()

    @rule(seconds=st.sampled_from((200.0, 3600.0)))
    def work(self, seconds: float) -> None:
        self.world.answer_all()
        self.world.pass_time(seconds)
        self.world.tick()

    @rule()
    def tick(self) -> None:
        self.world.tick()

    @precondition(lambda self: self.world.runs)
    @rule(data=st.data())
    def answer(self, data: st.DataObject) -> None:
        self.world.answer(data.draw(st.sampled_from(sorted(self.world.runs))))

    @rule(seconds=st.sampled_from((1.0, 30.0, 200.0, 3600.0)))
    def pass_time(self, seconds: float) -> None:
        self.world.pass_time(seconds)

    @precondition(lambda self: any(not run.waits for run in self.world.runs.values()))
    @rule(data=st.data())
    def end(self, data: st.DataObject) -> None:
        del self.world.runs[data.draw(st.sampled_from([n for n, run in self.world.runs.items() if not run.waits]))]

    @precondition(lambda self: len(self.world.runs) > 2)
    @rule(data=st.data())
    def lose_or_return(self, data: st.DataObject) -> None:
        self.world.down = {data.draw(st.sampled_from(sorted(self.world.nodes)))} - self.world.down
        self.world.tick()

    @rule()
    def settle(self) -> None:
        self.world.answer_all()
        self.world.settle()

    @invariant()
    def none_is_lost(self) -> None:
        for run in getattr(self, "world", QueueWorld()).runs.values():
            assert run.waits or run.places or run.granted


TestQueueMachine = QueueMachine.TestCase
TestQueueMachine.settings = settings(
    max_examples=25, stateful_step_count=15, deadline=None, suppress_health_check=list(HealthCheck)
)


STEP_S = 60.0
RUNS = st.lists(
    st.tuples(st.integers(1, 12), st.floats(0.05, 1.5), st.floats(0.0, 0.5), st.booleans()), min_size=2, max_size=12
)


@settings(max_examples=12, deadline=None)
@given(runs=RUNS, elastic=st.booleans())
def test_none_starts_later_than_its_first_reservation(
    runs: list[tuple[int, float, float, bool]], elastic: bool
) -> None:
    """Run times are exact upper bounds here, all of one priority and user: later arrivals never delay a run."""
    world = QueueWorld({f"n{i}": node(i) for i in range(3)})
    arrivals = []
    at_s = world.now_s
    for workers, hours, gap_h, stretches in runs:
        at_s += round(gap_h * 3600 / STEP_S) * STEP_S
        arrivals.append((at_s, workers, round(hours * 3600 / STEP_S) * STEP_S, stretches and elastic))
    for _ in range(5_000):
        while arrivals and arrivals[0][0] <= world.now_s:
            _, workers, seconds, stretches = arrivals.pop(0)
            world.submit(ask(workers, min(12, 2 * workers) if stretches else workers), seconds * workers)
        world.answer_all()
        world.tick()
        if not arrivals and not any(run.waits for run in world.runs.values()):
            break
        world.pass_time(STEP_S)
    assert not any(run.waits for run in world.runs.values())
    late = {name: world.started_s[name] - at_s for name, at_s in world.promised_s.items()}
    assert (
        max(late.values(), default=0.0) <= HANDOVER_S + STEP_S if elastic else max(late.values(), default=0.0) <= 0.01
    )
