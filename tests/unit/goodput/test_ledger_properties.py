"""Whatever a run goes through, its ledger adds up, and what is lost is exactly what was trained for nothing."""

from collections.abc import Callable
from dataclasses import dataclass, field
from itertools import pairwise

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from orchestrator.domain.events import (
    EVENT_TYPES,
    CheckpointRestored,
    CheckpointSaved,
    EventBody,
    RecoveryStarted,
    RunState,
    ScaleAnswered,
    StateChanged,
    WorkerFailed,
    WorkerPhase,
)
from orchestrator.domain.events.event_codec import fields_of
from orchestrator.domain.step_report import StepReport
from orchestrator.metrics.ledger import Category, Ledger
from orchestrator.metrics.lineage import KEPT_POINTS, Lineage
from tests.events import event

pytestmark = pytest.mark.unit
Make = Callable[..., StepReport]
SLOW = settings(
    deadline=None,
    max_examples=60,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.function_scoped_fixture],
)


@dataclass
class Life:
    """A run that is told to a ledger, and what it did by its own account."""

    report: Make
    ledger: Ledger = field(default_factory=lambda: Ledger(0.0))
    now_s: float = 0.0
    driven_s: float = 0.0
    """Of the drivers before this one."""
    began_s: float = 0.0
    position: int = 0
    trained: dict[int, float] = field(default_factory=dict)
    """By step, the seconds of those that were made and not made again."""
    superseded_s: float = 0.0
    cut_off_s: float = 0.0
    training: bool = False
    recovering: bool = False

    def tell(self, kind: type[EventBody], **fields: object) -> None:
        self.ledger.on_event(event(kind, self.now_s, **fields), self.now_s)

    def begin(self) -> None:
        self.tell(WorkerPhase, phase="train")
        self.training = True

    def step(self, productive_s: float, wait_s: float, saves: bool) -> None:
        if not self.training:
            self.begin()
        step, length_s = self.position + 1, productive_s + wait_s
        self.now_s += length_s
        if saves:
            self.tell(CheckpointSaved, step=step, seconds=0.0, write_seconds=None)
        self.ledger.on_step(self.report(step, self.now_s, length_s, wait_s), self.now_s)
        self.superseded_s += sum(seconds for made, seconds in self.trained.items() if made >= step)
        self.trained = {made: seconds for made, seconds in self.trained.items() if made < step} | {step: productive_s}
        self.position, self.recovering = step, False

    def cut_off(self, after_s: float) -> None:
        """Some part of a step, which comes to nothing."""
        self.now_s += after_s
        if self.training and not self.recovering:
            self.cut_off_s += after_s

    def fail(self, after_s: float, back_to: int, source: str) -> None:
        self.cut_off(after_s)
        self.position = min(back_to, max(self.trained, default=0))
        self.tell(WorkerFailed, rank=0)
        self.tell(StateChanged, state="recovering")
        self.training = self.recovering = True
        self.tell(RecoveryStarted, from_step=self.position, source=source, checkpoint=None)

    def restore(self, after_s: float, other: int | None) -> None:
        """It may be another step that is restored than was decided on first."""
        if not self.recovering:
            return
        self.now_s += after_s
        if other is not None:
            self.position = min(other, max(self.trained, default=0))
        self.tell(WorkerPhase, phase="restore")
        self.tell(CheckpointRestored, step=self.position, seconds=after_s / 2)

    def regroup(self, after_s: float) -> None:
        """Planned, at a step boundary."""
        if self.recovering:
            return
        self.tell(StateChanged, state="starting")
        self.now_s += after_s
        self.tell(CheckpointRestored, step=self.position, seconds=0.0)
        self.training = False

    def next_driver(self, after_s: float, back_to: int | None) -> None:
        """Killed in a step, and resumed elsewhere; None: without anything that is restored, from the beginning."""
        self.cut_off(after_s)
        carried = self.ledger.to_json(self.now_s)
        self.driven_s += self.now_s - self.began_s
        self.now_s += 1000.0
        self.began_s = self.now_s
        self.ledger = Ledger(self.now_s, carried)
        self.training = self.recovering = False
        self.position = 0
        if back_to is not None:
            self.position = min(back_to, max(self.trained, default=0))
            self.tell(CheckpointRestored, step=self.position, seconds=0.0)

    def idle(self, after_s: float) -> None:
        if not self.training:
            self.now_s += after_s


seconds_of = st.floats(0.01, 5.0)
steps_of = st.integers(0, 40)
actions = st.one_of(
    st.tuples(st.just("step"), seconds_of, st.floats(0.0, 1.0), st.booleans()),
    st.tuples(st.just("step"), seconds_of, st.just(0.0), st.just(False)),
    st.tuples(st.just("fail"), seconds_of, steps_of, st.sampled_from(["vaults", "storage", "beginning"])),
    st.tuples(st.just("restore"), seconds_of, st.none() | steps_of),
    st.tuples(st.just("regroup"), seconds_of),
    st.tuples(st.just("next_driver"), seconds_of, steps_of),
    st.tuples(st.just("idle"), seconds_of),
)


@SLOW
@given(st.lists(actions, max_size=40))
def test_what_is_lost_is_what_was_trained_for_nothing(report: Make, told: list[tuple[str, float]]) -> None:
    life = Life(report)
    for name, *arguments in told:
        getattr(life, name)(*arguments)
        seconds = life.ledger.seconds
        assert min(seconds.values()) >= 0.0
        undone_s = sum(taken for made, taken in life.trained.items() if made > life.position)
        counted_s = sum(taken for made, taken in life.trained.items() if made <= life.position)
        lost_s = life.superseded_s + life.cut_off_s + undone_s
        assert seconds[Category.TRAINING] == pytest.approx(counted_s, abs=1e-6)
        assert seconds[Category.LOST] == pytest.approx(lost_s, abs=1e-6)
        value = life.ledger.to_json(life.now_s)
        elapsed_s = life.driven_s + life.now_s - life.began_s
        assert sum(value["seconds"].values()) == pytest.approx(value["elapsed_s"], abs=1e-6)
        assert value["elapsed_s"] == pytest.approx(elapsed_s, abs=1e-6)
        assert 0.0 <= value["goodput"] <= 1.0


seconds = st.floats(allow_nan=True, allow_infinity=True)
steps = st.integers(-5, 50)


@SLOW
@given(
    st.lists(
        st.tuples(
            st.sampled_from(EVENT_TYPES),
            st.floats(-5.0, 5.0),
            st.fixed_dictionaries({"seconds": seconds, "step": steps, "from_step": steps}),
            st.sampled_from(["import", "train", "export"]),
            st.sampled_from([RunState.STARTING, RunState.RECOVERING, RunState.FAILED, RunState.RUNNING]),
        ),
        max_size=60,
    )
)
def test_no_event_makes_it_wrong(
    report: Make, told: list[tuple[type[EventBody], float, dict[str, object], str, RunState]]
) -> None:
    """Clocks of other hosts run ahead and behind, and numbers are anything."""
    ledger = Ledger(0.0)
    for number, (kind, off_s, fields, phase, state) in enumerate(told, start=1):
        known = {field.name for field in fields_of(kind)} - ({"state"} if kind is ScaleAnswered else set())
        every = {**fields, "phase": phase, "state": state}
        given = {name: value for name, value in every.items() if name in known}
        ledger.on_event(event(kind, number + off_s, **given), float(number))
        if number % 3 == 0:
            ledger.on_step(report(number, number + off_s, 0.01 + abs(off_s), 0.1), float(number))
        value = ledger.to_json(float(number))
        assert min(value["seconds"].values()) >= 0.0
        assert sum(value["seconds"].values()) == pytest.approx(value["elapsed_s"]) == pytest.approx(number)
        assert 0.0 <= value["goodput"] <= 1.0 + 1e-9


@settings(SLOW, max_examples=20)
@given(st.lists(st.tuples(st.integers(1, 400), st.integers(0, 4000)), min_size=1, max_size=8), st.randoms())
def test_a_long_lineage_is_short_and_adds_up(stretches: list[tuple[int, int]], draw: object) -> None:
    """Between the steps that are kept it is interpolated: wrong by no more than the steps of one gap."""
    lineage, made, total_s = Lineage(), list[float](), 0.0
    for count, back_to in stretches:
        del made[min(back_to, len(made)) :]
        for _ in range(count):
            seconds = draw.uniform(0.5, 1.5)  # type: ignore[attr-defined]
            made.append(seconds)
            total_s += seconds
            lineage.add(len(made), seconds)
        assert len(lineage.points) <= KEPT_POINTS
        assert lineage.counted_s + lineage.superseded_s == pytest.approx(total_s)
        newest = range(max(0, len(made) - KEPT_POINTS // 4), len(made) + 1, 7)
        for step in newest if len(stretches) == 1 else [len(made)]:
            assert lineage.after(len(made)) - lineage.after(step) == pytest.approx(sum(made[step:]), abs=1e-6)
        points = sorted(lineage.points)
        for first, last in pairwise(points):
            middle = (first + last) // 2
            assert lineage.after(first) <= lineage.after(middle) <= lineage.after(last)
