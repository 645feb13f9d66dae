"""The run controller through every transition of its table, with scripted workers and a clock that is stepped by
hand."""

import threading
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest

from orchestrator.atomic_files import read_json
from orchestrator.checkpoint.format.exported import PROVENANCE, provenance
from orchestrator.data.prepare import PreparedData
from orchestrator.domain.errors import CheckpointError, ClusterError
from orchestrator.domain.events import (
    CheckpointRejected,
    Event,
    EventBody,
    GangResized,
    RecoveryFinished,
    RecoveryStarted,
    RunState,
    StateChanged,
    WarningIssued,
)
from orchestrator.domain.events.event_codec import encode_body
from orchestrator.domain.generation import Adopted
from orchestrator.domain.run_states import FINAL_STATES, TRANSITIONS
from orchestrator.domain.step_report import StepReport
from orchestrator.metrics.event_bus import EventBus
from orchestrator.metrics.run_recorder import RunRecorder
from orchestrator.run.clock import Clock
from orchestrator.run.driver_lease import LeaseChoice, lease_of_new_run
from orchestrator.run.restore_points import RestorePoint, RestorePoints
from orchestrator.run.run_context import RunContext
from orchestrator.run.run_handle import RunHandle, RunOutcome
from orchestrator.spec.job import JobSpec
from orchestrator.store.run_history import read_events
from orchestrator.store.run_store import RunStore
from tests.unit.checkpoint.written import flip_byte, write_checkpoint
from tests.unit.run.scripted_group import (
    Generation,
    HandClock,
    MakeReport,
    Reform,
    Script,
    ScriptedGroup,
    ScriptedPreparation,
)
from tests.unit.train.builders import manifest_with, spec_with

pytestmark = pytest.mark.unit

LAST = 10
P, S, R, C, W = RunState.PREPARING, RunState.STARTING, RunState.RUNNING, RunState.RECOVERING, RunState.WAITING
OK, F, X = RunState.SUCCEEDED, RunState.FAILED, RunState.STOPPED


class Seen:
    def __init__(self) -> None:
        self.events: list[Event] = []
        self.order: list[str] = []

    def on_event(self, event: Event) -> None:
        self.events.append(event)
        self.order.append(event.body.kind)

    def on_step(self, report: StepReport) -> None:
        self.order.append(f"step {report.step}")

    def of(self, kind: type[EventBody]) -> list[dict[str, object]]:
        return [encode_body(event.body) for event in self.events if isinstance(event.body, kind)]

    @property
    def states(self) -> list[RunState]:
        return [RunState(str(fields["state"])) for fields in self.of(StateChanged)]


class Bench:
    """One run with scripted workers."""

    def __init__(self, tmp_path: Path, report: MakeReport, spec: JobSpec) -> None:
        store = RunStore(tmp_path / "runs")
        self.layout = store.create("test")
        self.clock, self.seen, self.stop = HandClock(), Seen(), threading.Event()
        clock = Clock(self.clock.unix, self.clock.monotonic)
        lease = lease_of_new_run(self.layout, LeaseChoice(), self.stop)
        self.run = RunContext(spec, tmp_path, self.layout, store, self.stop, EventBus(), lease, clock=clock)
        self.handle = RunHandle(self.run)
        self.handle.watch("the test", self.seen)
        self._report = report
        self.data = PreparedData(tmp_path, manifest_with(), True)
        self.group: ScriptedGroup | None = None
        self.preparation: ScriptedPreparation | None = None

    def drive(self, script: Script, **preparation: object) -> RunOutcome:
        self.group = ScriptedGroup(self.run.spec, script, self.clock, self._report, self.export)
        self.preparation = ScriptedPreparation(self.data, script, **preparation)  # type: ignore[arg-type]
        try:
            return self.handle.drive(lambda run, desk: self.group, self.preparation)  # type: ignore[arg-type,return-value]
        finally:
            self.handle.close()

    def save(self, step: int) -> Path:
        return write_checkpoint(self.layout.checkpoints, step, {"w": np.arange(8, dtype=np.float32)})

    def export(self, step: int) -> None:
        self.layout.export.mkdir(exist_ok=True)
        (self.layout.export / "model.safetensors").write_bytes(b"weights")
        (self.layout.export / PROVENANCE).write_text(provenance(self.layout.export, {"step": step}))


def job(**recovery: object) -> JobSpec:
    spec = spec_with(train={"steps": LAST})
    return spec.model_copy(update={"recovery": spec.recovery.model_copy(update=recovery)})


@pytest.fixture
def bench(tmp_path: Path, report: MakeReport) -> Bench:
    return Bench(tmp_path, report, job())


ALL = range(1, LAST + 1)
DONE = Generation(ALL, exported=True)


@dataclass(frozen=True)
class Case:
    """A script, and the states that it goes through."""

    script: Callable[[], Script]
    states: tuple[RunState, ...]
    error: Exception | None = None
    """Of the preparation."""
    stops: bool = False
    """The preparation is stopped."""


def script(*generations: Generation, reforms: tuple[Reform, ...] = ()) -> Callable[[], Script]:
    return lambda: Script(list(generations), list(reforms))


KILLED = Generation(range(1, 5), in_memory=(4, 3), ends="killed")
AGAIN = Generation(trains=False, in_memory=(4,), ends="killed")
AFTER = Generation(range(5, LAST + 1), exported=True)
LEFT = Generation(range(1, 5), in_memory=(4,), ends="regroup")
SHORT = Reform(short_by=1)
ENOUGH = ClusterError("no node comes")
CASES = {
    "trained": Case(script(DONE), (P, S, R, OK)),
    "nothing left": Case(script(Generation(trains=False, exported=True)), (P, S, OK)),
    "killed": Case(script(KILLED, AFTER), (P, S, R, C, R, OK)),
    "killed before training": Case(script(Generation(trains=False, ends="killed"), DONE), (P, S, C, R, OK)),
    "killed twice": Case(script(KILLED, AGAIN, AFTER), (P, S, R, C, C, R, OK)),
    "killed, waits": Case(script(KILLED, AFTER, reforms=(SHORT,)), (P, S, R, C, W, C, R, OK)),
    "killed at the end": Case(
        script(Generation(ALL, in_memory=(LAST,), ends="killed"), Generation(trains=False, exported=True)),
        (P, S, R, C, OK),
    ),
    "leaves": Case(script(LEFT, AFTER), (P, S, R, OK)),
    "leaves, waits": Case(script(LEFT, AFTER, reforms=(SHORT,)), (P, S, R, W, S, R, OK)),
    "leaves before training": Case(
        script(Generation(trains=False, ends="regroup"), DONE, reforms=(SHORT,)), (P, S, W, S, R, OK)
    ),
    "no cluster": Case(script(), (P, F), error=ClusterError("no cluster", hint="start one")),
    "stopped early": Case(script(), (P, X), stops=True),
    "raises before training": Case(script(Generation(trains=False, ends="raised")), (P, S, F)),
    "stopped before training": Case(script(Generation(ends="not begun")), (P, S, X)),
    "raises": Case(script(Generation(range(1, 3), ends="raised")), (P, S, R, F)),
    "stopped": Case(script(Generation(range(1, 3), ends="stopped")), (P, S, R, X)),
    "raises while recovering": Case(
        script(KILLED, Generation(trains=False, ends="raised")), (P, S, R, C, F)
    ),
    "stopped while recovering": Case(script(KILLED, reforms=(Reform(size=None),)), (P, S, R, C, X)),
    "nobody comes": Case(script(KILLED, reforms=(Reform(short_by=1, error=ENOUGH),)), (P, S, R, C, W, F)),
    "stopped while waiting": Case(script(KILLED, reforms=(Reform(None, short_by=1),)), (P, S, R, C, W, X)),
}  # fmt: skip


@pytest.mark.parametrize("name", CASES)
def test_the_controller_goes_through(name: str, bench: Bench) -> None:
    case = CASES[name]
    outcome = bench.drive(case.script(), error=case.error, stops=case.stops)
    assert tuple(bench.seen.states) == case.states
    record = read_json(bench.layout.state) or {}
    assert (record["state"], record["reason"]) == (outcome.state.value, outcome.reason)
    assert outcome.exit_code == {OK: 0, F: 1, X: 130}[outcome.state]
    assert bench.group is not None
    assert bench.group.closed == 1
    assert (bench.layout.run_id, outcome.run_dir) == (outcome.run_id, bench.layout.root)


def test_the_cases_go_through_every_transition_of_the_table() -> None:
    made = {pair for case in CASES.values() for pair in zip(case.states, case.states[1:], strict=False)}
    table = {(each.source, each.target) for each in TRANSITIONS if each.source not in FINAL_STATES}
    assert made == table


@pytest.mark.parametrize("ended", [F, X])
def test_a_run_that_ended_can_be_resumed(ended: RunState, bench: Bench) -> None:
    """The transitions from final states are the claim of the next driver."""
    store = bench.run.store
    store.set_state(bench.layout, ended, "before")
    store.claim(bench.layout, 2)
    assert store.read(str(bench.layout.root)).state is P


def test_a_transition_that_the_table_does_not_have_is_a_bug(bench: Bench) -> None:
    bench.drive(script(DONE)())
    with pytest.raises(RuntimeError, match="a run cannot go from succeeded to recovering"):
        bench.handle._states.enter(C)


def test_a_recovery_continues_from_memory_and_says_what_it_cost(bench: Bench) -> None:
    killed = Generation(range(1, 6), saves=(2,), in_memory=(4, 3), ends="killed")
    bench.drive(script(killed, AFTER)())
    (started,) = bench.seen.of(RecoveryStarted)
    assert {name: started[name] for name in ("incident", "rank", "cause", "step", "from_step", "source")} == {
        "incident": 1, "rank": 1, "cause": "it killed", "step": 5, "from_step": 4, "source": "vaults",
    }  # fmt: skip
    assert (started["reason"], started["alive_s"]) == ("worker_died", pytest.approx(started["detected_s"] - 0.25))
    (finished,) = bench.seen.of(RecoveryFinished)
    assert {name: finished[name] for name in ("incident", "step", "world_size", "seconds", "steps_recomputed")} == {
        "incident": 1, "step": 5, "world_size": 2, "seconds": pytest.approx(1.0), "steps_recomputed": 1,
    }  # fmt: skip
    order = bench.seen.order
    assert order[order.index("recovery.finished") - 1] == "step 5"  # an observer has the step before what it ended
    assert bench.group is not None
    first, second = bench.group.plans
    assert (first.peer_state, first.resume_from) == (None, None)
    assert second.peer_state is not None
    assert (second.peer_state.step, len(second.peer_state.shards)) == (4, 2)


class Broken:
    """An observer that never works."""

    def on_event(self, event: Event) -> None:
        raise ZeroDivisionError("on purpose")

    def on_step(self, report: StepReport) -> None:
        raise ZeroDivisionError("on purpose")


def test_an_observer_that_fails_is_named_once_and_the_run_goes_on(bench: Bench) -> None:
    bench.handle.watch("the broken one", Broken())
    assert bench.drive(script(DONE)()).state is RunState.SUCCEEDED
    told = [fields["message"] for fields in bench.seen.of(WarningIssued)]
    assert told == ["the broken one failed and may be incomplete from here on: ZeroDivisionError: on purpose"]
    assert [event.body for event in read_events(bench.layout.events) if isinstance(event.body, WarningIssued)] == [
        WarningIssued(told[0])
    ]


def test_a_recorder_that_raises_ends_the_run(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    """A disk that fails does not make it raise; a bug does, and a run without records must not go on."""

    def fails(self: RunRecorder, report: StepReport) -> None:
        raise ZeroDivisionError("on purpose")

    monkeypatch.setattr(RunRecorder, "on_step", fails)
    with pytest.raises(ZeroDivisionError):
        bench.drive(script(DONE)())
    assert bench.seen.states[-1] is RunState.FAILED


def test_a_failure_during_a_recovery_prolongs_it(bench: Bench) -> None:
    bench.drive(script(KILLED, AGAIN, AFTER, reforms=(Reform(short_by=1), Reform()))())
    first, second = bench.seen.of(RecoveryStarted)
    assert first["detected_s"] == second["detected_s"]
    (finished,) = bench.seen.of(RecoveryFinished)
    assert (finished["incident"], finished["seconds"]) == (2, pytest.approx(6.0))  # 5 s of waiting, and a step


def test_with_nothing_in_memory_storage_is_used_and_else_the_beginning(bench: Bench) -> None:
    bench.save(3)
    lost = Generation(range(1, 5), saves=(3,), ends="killed")
    bench.drive(script(lost, AFTER)())
    assert bench.group is not None
    plan = bench.group.plans[1]
    assert (plan.peer_state, plan.resume_from) == (None, str(bench.layout.checkpoint(3)))


def test_a_newer_checkpoint_is_preferred_to_memory(bench: Bench) -> None:
    bench.save(4)
    bench.drive(script(Generation(range(1, 5), saves=(4,), in_memory=(3,), ends="killed"), AFTER)())
    assert bench.group is not None
    assert bench.group.plans[1].resume_from == str(bench.layout.checkpoint(4))


def test_damaged_checkpoints_end_a_run_that_has_nothing_else(bench: Bench) -> None:
    flip_byte(next(bench.save(3).glob("*.bin")), 10)
    outcome = bench.drive(script(Generation(range(1, 5), ends="killed"))())
    assert outcome.state is F
    assert "has no complete checkpoint" in (outcome.reason or "")
    assert len(bench.seen.of(CheckpointRejected)) == 1


def test_a_state_that_is_not_what_was_saved_is_not_used_again(bench: Bench) -> None:
    bench.save(2)
    kept = Generation(range(1, 5), saves=(2,), in_memory=(4, 3), ends="killed")
    mismatch = Generation(trains=False, in_memory=(4, 3), ends="mismatch")
    bench.drive(script(kept, mismatch, Generation(range(3, LAST + 1), exported=True))())
    assert bench.group is not None
    assert [plan.resume_from for plan in bench.group.plans] == [None, None, str(bench.layout.checkpoint(2))]
    assert bench.seen.of(CheckpointRejected) == [{"path": "vaults", "reason": "it mismatch"}]


def test_out_of_memory_halves_the_micro_batch_and_keeps_the_global_batch(tmp_path: Path, report: MakeReport) -> None:
    bench = Bench(tmp_path, report, job())
    short = Generation(range(1, 3), in_memory=(2,), ends="out of memory")
    bench.drive(script(short, Generation(range(3, LAST + 1), exported=True))())
    assert bench.group is not None
    first, second = bench.group.plans
    assert (first.micro_batch, second.micro_batch, first.shares) == (6, 3, second.shares)
    assert "out of memory: micro batches of at most 3 instead of 6" in str(bench.seen.of(WarningIssued))


def test_the_budget_of_failures_ends_a_run_with_both_reasons(tmp_path: Path, report: MakeReport) -> None:
    bench = Bench(tmp_path, report, job(max_failures=1))
    outcome = bench.drive(script(KILLED, Generation((5,), in_memory=(5,), ends="killed"))())
    assert outcome.state is F
    assert (outcome.reason or "").startswith("2 failures within an hour, recovery.max_failures is 1")
    assert "the last: worker of rank 1 failed: it killed" in (outcome.reason or "")
    assert outcome.step == 5


def test_a_change_of_size_is_reported_and_costs_no_step(bench: Bench) -> None:
    bench.drive(script(LEFT, AFTER, reforms=(Reform(3),))())
    assert bench.seen.of(GangResized) == [{"step": 4, "before": 2, "world_size": 3}]
    assert bench.group is not None
    assert [len(plan.shares) for plan in bench.group.plans] == [2, 3]
    assert bench.seen.of(RecoveryStarted) == []


def test_vaults_that_were_adopted_are_what_a_resume_continues_from(bench: Bench) -> None:
    adopted = Script([AFTER], adopted=Adopted(2, 2, 0.1), in_memory=(4,))
    bench.drive(adopted, origin=RestorePoint(4, None, "checkpoints/step-00000004"))
    assert bench.group is not None
    assert bench.preparation is not None
    (plan,) = bench.group.plans
    assert plan.peer_state is not None
    assert (plan.peer_state.step, plan.resume_from, bench.preparation.recorded) == (4, None, [4])


def test_a_run_has_succeeded_when_its_export_is_there_whatever_workers_say(bench: Bench) -> None:
    outcome = bench.drive(script(Generation(ALL))())
    assert (outcome.state, outcome.step) == (F, LAST)
    assert "the model is not exported: there is no export in" in (outcome.reason or "")
    assert f"\nhint: convoy run --resume {bench.layout.run_id}" in (outcome.reason or "")


def test_a_disk_that_refuses_a_state_does_not_end_the_run(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    store, write = bench.run.store, RunStore.set_state

    def full(self: RunStore, layout: object, state: RunState, *rest: object) -> None:
        if state is C:
            raise OSError(28, "No space left on device")
        write(self, layout, state, *rest)  # type: ignore[arg-type]

    monkeypatch.setattr(type(store), "set_state", full)
    assert bench.drive(script(KILLED, AFTER)()).state is OK
    assert "the state `recovering` cannot be recorded" in str(bench.seen.of(WarningIssued))
    assert C in bench.seen.states


def test_a_bug_keeps_its_traceback_and_the_state_is_final(bench: Bench) -> None:
    with pytest.raises(ZeroDivisionError):
        bench.drive(script()(), error=ZeroDivisionError("a bug"))
    assert (read_json(bench.layout.state) or {})["state"] == "failed"
    assert bench.group is not None
    assert bench.group.closed == 1


@pytest.mark.parametrize("error", [CheckpointError("storage does not answer")])
def test_an_error_before_the_group_is_used_releases_nothing(error: Exception, bench: Bench) -> None:
    class Fails(ScriptedPreparation):
        def open(self, points: RestorePoints) -> None:
            raise error

    group = ScriptedGroup(bench.run.spec, script()(), bench.clock, lambda *_: None, bench.export)  # type: ignore[arg-type]
    outcome = bench.handle.drive(lambda run, desk: group, Fails(bench.data, script()()))
    assert (outcome.state, outcome.reason, group.closed) == (F, "storage does not answer", 0)
