"""`ledger.json`: written, read, continued by a later driver, and worked out again if it is missing or older."""

import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from orchestrator.domain.events import CheckpointRejected, Event, RecoveryReason, RunCreated, StateChanged, WorkerPhase
from orchestrator.domain.run_layout import RunLayout
from orchestrator.goodput.ledger_recorder import Fact, LedgerRecorder, shown
from orchestrator.goodput.ledger_result import LedgerResult
from orchestrator.goodput.time_class import TimeClass
from orchestrator.goodput.worker_terms import WorkerTerms
from tests.events import event
from tests.unit.goodput.story import NO_TERMS, T0, Rank, nodes, step_report

pytestmark = pytest.mark.unit


def facts(steps: int) -> Iterator[Fact]:
    """Two workers from 0 s, training from 5 s, a second a step."""
    yield event(RunCreated, T0)
    yield Event(nodes({"a": 2}), T0)
    yield event(WorkerPhase, T0 + 5.0, phase="train")
    for step in range(1, steps + 1):
        yield step_report(step, T0 + 5.0 + step, (Rank(),) * 2)


class Recorded:
    """What a run has on disk, and a recorder whose clock is that of the facts."""

    def __init__(self, root: Path, terms: WorkerTerms = NO_TERMS) -> None:
        self.layout, self.terms = RunLayout(root), terms
        self.facts: list[Fact] = []
        self.now_s = T0
        self.asked: list[float | None] = []

    def recorder(self) -> LedgerRecorder:
        return LedgerRecorder(self.layout, lambda: self.now_s, self.terms, self.after)

    def after(self, time_s: float | None) -> list[Fact]:
        self.asked.append(time_s)
        return [fact for fact in self.facts if time_s is None or fact.time_s > time_s]

    def feed(self, recorder: LedgerRecorder, steps: int) -> None:
        for fact in facts(steps):
            self.now_s = fact.time_s
            self.facts.append(fact)
            if isinstance(fact, Event):
                recorder.on_event(fact)
            else:
                recorder.on_step(fact)


def test_the_file_holds_the_result(tmp_path: Path) -> None:
    run = Recorded(tmp_path, WorkerTerms(1, 3.6))
    recorder = run.recorder()
    run.feed(recorder, steps=3)
    recorder.close()
    read = LedgerResult.from_json(json.loads(run.layout.ledger.read_text()))
    assert read == recorder.snapshot()
    assert read.seconds == {TimeClass.STARTUP: pytest.approx(10.0), TimeClass.PRODUCTIVE: pytest.approx(6.0)}
    assert read.cost is not None
    assert read.cost.spent_usd == pytest.approx(16.0 * 0.001)


def test_it_is_written_every_few_seconds_and_at_each_state(tmp_path: Path) -> None:
    run = Recorded(tmp_path)
    recorder = run.recorder()
    recorder.on_event(event(RunCreated, T0))
    first = run.layout.ledger.read_text()
    run.now_s = T0 + 4.0
    recorder.on_event(event(WorkerPhase, T0 + 4.0, phase="build"))
    assert run.layout.ledger.read_text() == first
    recorder.on_event(event(StateChanged, T0 + 4.0, state="starting"))
    assert run.layout.ledger.read_text() != first


def test_a_killed_driver_loses_nothing_that_was_recorded(tmp_path: Path) -> None:
    run = Recorded(tmp_path)
    run.feed(run.recorder(), steps=9)  # the file is of the fifth second after the last writing, not closed
    written = LedgerResult.from_json(json.loads(run.layout.ledger.read_text()))
    assert written.tokens < 1800
    again = run.recorder()
    assert run.asked[-1] == written.time_s
    assert again.snapshot().tokens == 1800
    assert again.snapshot().seconds[TimeClass.PRODUCTIVE] == pytest.approx(18.0)


def test_what_a_driver_reports_before_it_takes_up_the_run_costs_the_one_before_nothing(tmp_path: Path) -> None:
    run = Recorded(tmp_path)
    run.feed(run.recorder(), steps=3)
    again = run.recorder()
    run.now_s = T0 + 100.0
    again.on_event(event(CheckpointRejected, T0 + 100.0))
    again.on_event(event(RunCreated, T0 + 101.0))
    found = again.snapshot()
    assert (found.reserved_s, found.elapsed_s) == (pytest.approx(16.0), pytest.approx(8.0))
    assert [each.reason for each in found.by_incident] == [RecoveryReason.DRIVER_LOST]


@pytest.mark.parametrize("text", ["", "{}", '{"elapsed_s": 1.0, "goodput": 0.5, "seconds": {"training": 0.5}}', "[1]"])
def test_without_a_ledger_of_this_version_it_is_worked_out(tmp_path: Path, text: str) -> None:
    run = Recorded(tmp_path)
    run.facts = list(facts(4))
    run.layout.ledger.write_text(text)
    run.now_s = T0 + 9.0
    assert run.recorder().snapshot().seconds[TimeClass.PRODUCTIVE] == pytest.approx(8.0)
    read = shown(None, lambda: WorkerTerms(0, 1.0), run.after)
    assert read is not None
    assert read.seconds[TimeClass.PRODUCTIVE] == pytest.approx(8.0)
    assert read.cost is not None
    assert shown({}, lambda: NO_TERMS, lambda _: ()) is None


def test_a_disk_that_refuses_it_is_reported_once(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = Recorded(tmp_path / "missing")
    recorder = run.recorder()
    recorder.close()
    recorder.close()
    assert capsys.readouterr().err.count("cannot write") == 1
