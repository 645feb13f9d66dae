"""Whatever a run goes through, and whatever its clocks and its records are like, every second of every worker belongs
to one class: the classes add up to the workers' time by the test's own account."""

import json
import math
from dataclasses import dataclass, field

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from orchestrator.domain.events import (
    EVENT_TYPES,
    CheckpointFailed,
    CheckpointRestored,
    CheckpointSaved,
    EvalFinished,
    Event,
    EventBody,
    GangResized,
    GangWaiting,
    ModelExported,
    RecoveryFinished,
    RecoveryReason,
    RecoveryStarted,
    RunCreated,
    RunState,
    ScaleAnswered,
    StateChanged,
    TrainingPlanned,
    WorkerFailed,
    WorkerHung,
    WorkerPhase,
    WorkersReserved,
)
from orchestrator.domain.events.event_codec import fields_of
from orchestrator.goodput.ledger import Ledger
from orchestrator.goodput.ledger_view import result_of
from orchestrator.goodput.time_class import TimeClass
from tests.events import body, event
from tests.unit.goodput.story import NO_TERMS, T0, Rank, check_sums, nodes, step_report

pytestmark = pytest.mark.unit
SLOW = settings(deadline=None, max_examples=40, suppress_health_check=[HealthCheck.too_slow])


@dataclass
class Life:
    """A run that is told to a ledger, and the test's own account of its workers' time."""

    draw: st.DataObject
    ledger: Ledger = field(default_factory=Ledger)
    now_s: float = 0.0
    clock_off_s: float = 0.0
    """Of the clock that events are stamped with."""
    members: int = 0
    joining: int = 0
    told_members: int = 0
    told_joining: int = 0
    """What the ledger can know."""
    since_s: float = 0.0
    """Of the last fact."""
    worker_s: float = 0.0
    step: int = 0
    lossy: bool = False

    def number(self, low: float, high: float) -> float:
        return self.draw.draw(st.floats(low, high))

    def passes(self, most_s: float = 3.0) -> None:
        self.now_s += self.number(0.0, most_s)

    def tell(self, what: EventBody) -> bool:
        """An event, unless its line is lost; whether it was told."""
        if self.lossy and self.draw.draw(st.integers(0, 5)) == 0:
            return False
        self.count()
        self.ledger.on_event(Event(what, T0 + self.now_s + self.clock_off_s), T0 + self.now_s)
        return True

    def count(self) -> None:
        """The workers' time until now."""
        self.worker_s += (self.now_s - self.since_s) * (self.told_members + self.told_joining)
        self.since_s = self.now_s

    def reserve(self) -> None:
        earlier_s = self.number(0.0, 2.0) if self.joining > self.told_joining else 0.0
        told = nodes({"a": self.members - self.members // 2, "b": self.members // 2}, {"c": self.joining})
        if self.tell(WorkersReserved(told.nodes, earlier_s)):
            self.worker_s += earlier_s if self.members + self.joining else 0.0
            self.told_members, self.told_joining = self.members, self.joining

    def generation(self, restores: bool) -> None:
        self.tell(body(TrainingPlanned, world_size=max(1, self.members), total_steps=60))
        for phase in ("import", "rendezvous", "build", "restore", "train") if restores else ("import", "train"):
            self.passes(1.0)
            self.tell(body(WorkerPhase, phase=phase))
        self.tell(body(StateChanged, state=RunState.RUNNING))

    # What happens.

    def starts(self) -> None:
        """A driver takes up the run, whatever became of the one before: the workers went with it at its last fact."""
        self.told_members = self.told_joining = 0
        self.members = self.joining = 0
        self.passes(20.0)
        self.since_s = self.now_s
        lossy, self.lossy = self.lossy, False
        self.tell(body(RunCreated))
        self.passes()
        self.members = self.draw.draw(st.integers(1, 6))
        self.reserve()
        self.lossy = lossy
        self.passes()
        if self.step:
            self.tell(body(CheckpointRestored, step=self.draw.draw(st.integers(0, self.step))))
        self.generation(restores=self.step > 0)

    def trains(self) -> None:
        ranks = [
            Rank(self.number(0.0, 2.0), self.number(0.0, 1.0), self.number(0.0, 1.0), 0.0, self.number(0.0, 1.0))
            for _ in range(max(1, self.members))
        ]
        self.now_s += self.number(0.0, 4.0)
        self.step += 1
        self.count()
        report = step_report(self.step, T0 + self.now_s + self.clock_off_s, ranks)
        self.ledger.on_step(report, T0 + self.now_s)

    def evaluates(self) -> None:
        self.passes()
        self.tell(body(EvalFinished, seconds=self.number(0.0, 4.0)))

    def saves(self) -> None:
        self.passes()
        kind = self.draw.draw(st.sampled_from([CheckpointSaved, CheckpointFailed]))
        self.tell(body(kind, seconds=self.number(0.0, 4.0)))

    def joins(self) -> None:
        self.passes()
        self.joining += 1
        self.reserve()

    def resizes(self) -> None:
        self.passes()
        self.members, self.joining = max(1, self.members + self.draw.draw(st.integers(-1, self.joining))), 0
        self.reserve()
        self.tell(body(GangResized, before=2, world_size=self.members))
        self.generation(restores=True)

    def waits(self) -> None:
        self.passes()
        self.tell(body(StateChanged, state=RunState.WAITING))
        self.tell(body(GangWaiting))
        self.passes(10.0)
        self.tell(body(StateChanged, state=self.draw.draw(st.sampled_from([RunState.STARTING, RunState.RECOVERING]))))

    def fails(self) -> None:
        """A worker is lost, maybe while a recovery is under way."""
        self.passes()
        self.tell(body(WorkerHung, seconds=1.0))
        self.tell(body(WorkerFailed, rank=0))
        self.tell(body(StateChanged, state=RunState.RECOVERING))
        from_step = self.draw.draw(st.integers(0, self.step))
        detected_s = T0 + self.now_s + self.clock_off_s - self.number(0.0, 2.0)
        started = body(
            RecoveryStarted, incident=1, rank=0, from_step=from_step, step=self.step, detected_s=detected_s,
            alive_s=self.draw.draw(st.sampled_from([None, detected_s - 1.0])),
            reason=self.draw.draw(st.sampled_from(list(RecoveryReason))),
        )  # fmt: skip
        self.passes(1.0)
        self.tell(started)
        self.members = max(1, self.members - 1)
        self.reserve()
        if self.draw.draw(st.booleans()):
            self.waits()
        self.generation(restores=True)
        self.step = from_step
        self.tell(body(RecoveryFinished, incident=1))

    def exports(self) -> None:
        self.passes()
        self.tell(body(WorkerPhase, phase="export"))
        self.passes()
        self.tell(body(ModelExported, seconds=self.number(0.0, 3.0)))

    def ends(self) -> None:
        self.passes()
        self.members = self.joining = 0
        self.reserve()
        self.count()
        final = self.draw.draw(st.sampled_from([RunState.FAILED, RunState.STOPPED, RunState.SUCCEEDED]))
        lossy, self.lossy = self.lossy, False
        self.tell(StateChanged(final))
        self.lossy = lossy
        self.told_members = self.told_joining = 0
        self.starts()

    def is_told_of_a_clock_that_was_set(self) -> None:
        self.clock_off_s = self.draw.draw(st.sampled_from([-3600.0, 0.0, 3600.0]))

    def is_carried_over(self) -> None:
        """As `ledger.json` holds it."""
        self.ledger = Ledger.from_json(json.loads(json.dumps(self.ledger.to_json())))

    def check(self) -> None:
        found = result_of(self.ledger, T0 + self.now_s, NO_TERMS)
        check_sums(found)
        open_s = (self.now_s - self.since_s) * (self.told_members + self.told_joining)
        assert sum(found.seconds.values()) == pytest.approx(self.worker_s + open_s, rel=0.005, abs=1e-3)
        assert found.elapsed_s <= self.now_s + 1e-3


THINGS = (
    Life.starts, Life.trains, Life.trains, Life.trains, Life.evaluates, Life.saves, Life.joins, Life.resizes,
    Life.waits, Life.fails, Life.exports, Life.ends, Life.is_told_of_a_clock_that_was_set, Life.is_carried_over,
)  # fmt: skip


@SLOW
@given(st.lists(st.sampled_from(THINGS), max_size=25), st.booleans(), st.data())
def test_every_second_of_every_worker_is_counted_once(things: list, lossy: bool, draw: st.DataObject) -> None:
    life = Life(draw)
    life.starts()
    life.lossy = lossy
    for thing in things:
        thing(life)
        life.check()


seconds = st.floats(allow_nan=True, allow_infinity=True)
steps = st.integers(-5, 50)


@SLOW
@given(
    st.lists(
        st.tuples(
            st.sampled_from(EVENT_TYPES),
            st.floats(-5.0, 5.0),
            st.fixed_dictionaries(
                {"seconds": seconds, "step": steps, "from_step": steps, "detected_s": seconds, "earlier_s": seconds,
                 "world_size": st.integers(-1, 3)}
            ),
            st.sampled_from(["import", "train", "export", "?"]),
            st.sampled_from(list(RunState)),
        ),
        max_size=60,
    )
)  # fmt: skip
def test_no_event_makes_it_wrong(told: list) -> None:
    """Clocks of other hosts run ahead and behind, and numbers are anything."""
    ledger = Ledger()
    for number, (kind, off_s, fields, phase, state) in enumerate(told, start=1):
        known = {each.name for each in fields_of(kind)} - ({"state"} if kind is ScaleAnswered else set())
        every = {**fields, "phase": phase, "state": state, "rank": 0}
        if kind is WorkersReserved:
            every["nodes"] = nodes({"a": number % 3}, {"b": number % 2}).nodes
        ledger.on_event(event(kind, T0 + number + off_s, **{k: v for k, v in every.items() if k in known}), T0 + number)
        if number % 3 == 0:
            ranks = (Rank(0.01 + abs(off_s), fields["seconds"]),) * 2
            ledger.on_step(step_report(number, T0 + number + off_s, ranks, 0.01 + abs(off_s)), T0 + number)
        found = result_of(ledger, T0 + number, NO_TERMS)
        check_sums(found)
        assert all(math.isfinite(value) for value in found.seconds.values())
        assert set(found.seconds) <= set(TimeClass)
