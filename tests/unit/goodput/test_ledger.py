import random
from collections.abc import Callable
from pathlib import Path

import pytest

from orchestrator.atomic_files import read_json
from orchestrator.domain.events import (
    EVENT_TYPES,
    CheckpointRestored,
    CheckpointSaved,
    ClusterReady,
    DataProgress,
    DataReady,
    EvalFinished,
    EventBody,
    ModelExported,
    RecoveryStarted,
    RunCreated,
    RunState,
    ScaleAnswered,
    StateChanged,
    WorkerFailed,
    WorkerPhase,
    WorkerStarted,
)
from orchestrator.domain.events.event_codec import fields_of
from orchestrator.domain.run_layout import RunLayout
from orchestrator.domain.step_report import StepReport
from orchestrator.metrics.ledger import Category, Ledger, LedgerRecorder
from tests import events

pytestmark = pytest.mark.unit
Make = Callable[..., StepReport]


def event(ledger: Ledger, kind: type[EventBody], time_s: float, **fields: object) -> None:
    ledger.on_event(events.event(kind, time_s, **fields), time_s)


def a_run(report: Make) -> Ledger:
    """110 s: each phase of a run with a length of its own."""
    ledger = Ledger(0.0)
    event(ledger, RunCreated, 1.0)
    event(ledger, DataProgress, 2.0, phase="scan")
    event(ledger, DataReady, 12.0, seconds=10.0)
    event(ledger, ClusterReady, 18.0, seconds=6.0)
    event(ledger, StateChanged, 18.0, state="starting")
    event(ledger, WorkerStarted, 24.0, rank=0, seconds=6.0)
    event(ledger, WorkerPhase, 26.0, phase="build")
    event(ledger, WorkerPhase, 31.0, phase="train")
    event(ledger, StateChanged, 31.0, state="running")
    event(ledger, EvalFinished, 34.0, seconds=3.0)
    for step in range(1, 51):
        ledger.on_step(report(step, time_s=34.0 + step, data_wait_s=0.1), 34.0 + step)
    event(ledger, CheckpointSaved, 88.0, seconds=4.0, step=50)
    event(ledger, WorkerPhase, 89.0, phase="export")
    event(ledger, ModelExported, 95.0, seconds=5.0)
    event(ledger, StateChanged, 96.0, state="succeeded")
    return ledger


def test_every_second_of_a_run_has_its_place(report: Make) -> None:
    value = a_run(report).to_json(100.0)
    seconds = value["seconds"]
    assert seconds["preparing_data"] == pytest.approx(10.0)
    assert seconds["starting_cluster"] == pytest.approx(6.0)
    assert seconds["starting_workers"] == pytest.approx(8.0)
    assert seconds["building"] == pytest.approx(5.0)
    assert seconds["evaluating"] == pytest.approx(3.0)
    assert seconds["training"] == pytest.approx(45.0)
    assert seconds["data_wait"] == pytest.approx(5.0)
    assert seconds["checkpointing"] == pytest.approx(4.0)
    assert seconds["exporting"] == pytest.approx(7.0)
    assert seconds["other"] == pytest.approx(2.0 + 1.0 + 4.0)
    assert sum(seconds.values()) == pytest.approx(value["elapsed_s"]) == pytest.approx(100.0)
    assert value["goodput"] == pytest.approx(0.45)


def test_a_checkpoint_inside_a_step_is_booked_once(report: Make) -> None:
    ledger = Ledger(0.0)
    event(ledger, WorkerPhase, 0.0, phase="train")
    event(ledger, CheckpointSaved, 2.9, seconds=2.0, step=1)
    step = report(1, time_s=3.0, step_time_s=3.0)
    ledger.on_step(step, 3.0)
    assert ledger.seconds[Category.CHECKPOINTING] == pytest.approx(2.0)
    assert ledger.seconds[Category.DATA_WAIT] == pytest.approx(0.1)


def test_what_a_failure_interrupts_is_lost(report: Make) -> None:
    ledger = Ledger(0.0)
    event(ledger, WorkerPhase, 0.0, phase="train")
    ledger.on_step(report(1, time_s=1.0), 1.0)
    event(ledger, WorkerFailed, 5.0, rank=1, error="boom")
    event(ledger, StateChanged, 6.0, state="failed")
    assert ledger.seconds[Category.LOST] == pytest.approx(4.0)
    assert ledger.seconds[Category.TRAINING] == pytest.approx(0.9)


def test_steps_after_the_checkpoint_gone_back_to_are_lost_across_drivers(report: Make) -> None:
    first = Ledger(0.0)
    event(first, WorkerPhase, 0.0, phase="train")
    for step in range(1, 11):
        first.on_step(report(step, time_s=float(step), data_wait_s=0.0), float(step))
        if step == 5:
            event(first, CheckpointSaved, 5.0, step=5, seconds=0.0)
    second = Ledger(1000.0, carried=first.to_json(10.0))
    event(second, CheckpointRestored, 1002.0, step=5, seconds=2.0)
    value = second.to_json(1002.0)
    assert value["elapsed_s"] == pytest.approx(12.0)
    assert value["seconds"]["lost"] == pytest.approx(5.0)
    assert value["seconds"]["training"] == pytest.approx(5.0)
    assert value["seconds"]["restoring"] == pytest.approx(2.0)


def test_whatever_happens_the_seconds_add_up(report: Make) -> None:
    for seed in range(50):
        draw = random.Random(seed)
        ledger, now_s = Ledger(0.0), 0.0
        for number in range(200):
            now_s += draw.random() * 3
            # Clocks of other hosts run ahead and behind.
            time_s = now_s + draw.uniform(-5, 5)
            if draw.random() < 0.3:
                ledger.on_step(report(number + 1, time_s, draw.random() * 5, draw.random()), now_s)
            else:
                fields = {
                    "seconds": draw.random() * 10,
                    "step": draw.randrange(20),
                    "phase": draw.choice(["import", "build", "train", "export", "?"]),
                    "state": draw.choice([RunState.STARTING, RunState.RUNNING, RunState.FAILED, RunState.STOPPED]),
                }
                kind = draw.choice(EVENT_TYPES)
                known = {field.name for field in fields_of(kind)} - ({"state"} if kind is ScaleAnswered else set())
                given = {name: value for name, value in fields.items() if name in known}
                ledger.on_event(events.event(kind, time_s, **given), now_s)
            assert min(ledger.seconds.values()) >= 0
        value = ledger.to_json(now_s)
        assert sum(value["seconds"].values()) == pytest.approx(value["elapsed_s"]) == pytest.approx(now_s)


def test_the_file_is_written_and_gone_on_from(tmp_path: Path) -> None:
    times = iter([float(t) for t in range(100)])
    layout = RunLayout(tmp_path)
    recorder = LedgerRecorder(layout, lambda: next(times))
    recorder.on_event(events.event(StateChanged, 1.0, state="starting"))
    recorder.close()
    before = read_json(layout.ledger)
    assert before is not None
    assert LedgerRecorder(layout, lambda: 500.0).snapshot()["elapsed_s"] == pytest.approx(before["elapsed_s"])
    layout.ledger.write_text("{}")
    assert LedgerRecorder(layout, lambda: 500.0).snapshot()["elapsed_s"] == 0.0


def test_a_recovery_is_one_thing_whatever_it_consists_of(report: Make) -> None:
    ledger = Ledger(0.0)
    event(ledger, WorkerPhase, 0.0, phase="train")
    for step in range(1, 11):
        ledger.on_step(report(step, time_s=float(step)), float(step))
        if step == 8:
            event(ledger, CheckpointSaved, 8.0, step=8, seconds=0.0)
    event(ledger, WorkerFailed, 10.5, rank=1)
    event(ledger, StateChanged, 10.5, state="recovering")
    event(ledger, WorkerPhase, 12.0, phase="build")
    event(ledger, WorkerPhase, 14.0, phase="restore")
    event(ledger, CheckpointRestored, 15.0, step=8, seconds=1.0)
    event(ledger, WorkerPhase, 15.0, phase="train")
    event(ledger, StateChanged, 15.0, state="running")
    ledger.on_step(report(9, time_s=16.5), 16.5)
    seconds = ledger.to_json(16.5)["seconds"]
    assert seconds["lost"] == pytest.approx(0.5 + 2 * 0.9)
    assert seconds["recovering"] == pytest.approx(5.0)
    assert seconds["restoring"] == seconds["building"] == 0.0
    assert sum(seconds.values()) == pytest.approx(16.5)


def test_steps_made_again_from_the_beginning_are_lost(report: Make) -> None:
    """Without a checkpoint nothing is restored: the recovery's own event says where it goes on."""
    ledger = Ledger(0.0)
    event(ledger, WorkerPhase, 0.0, phase="train")
    for step in range(1, 11):
        ledger.on_step(report(step, time_s=float(step), data_wait_s=0.0), float(step))
    event(ledger, StateChanged, 10.0, state="recovering")
    event(ledger, RecoveryStarted, 10.0, checkpoint=None, source="beginning", from_step=0)
    seconds = ledger.to_json(10.0)["seconds"]
    assert (seconds["training"], seconds["lost"]) == (pytest.approx(0.0), pytest.approx(10.0))


def trained(report: Make, steps: int) -> Ledger:
    """Steps of a second each, all of it productive."""
    ledger = Ledger(0.0)
    event(ledger, WorkerPhase, 0.0, phase="train")
    for step in range(1, steps + 1):
        ledger.on_step(report(step, time_s=float(step), data_wait_s=0.0), float(step))
    return ledger


def recovered(ledger: Ledger, at_s: float, from_step: int, source: str) -> None:
    """A worker is lost, and training goes on from a step, as a run tells it."""
    event(ledger, WorkerFailed, at_s, rank=1)
    event(ledger, StateChanged, at_s, state="recovering")
    checkpoint = "/runs/x/checkpoints/step" if source == "storage" else None
    event(ledger, RecoveryStarted, at_s, from_step=from_step, source=source, checkpoint=checkpoint)


def test_a_recovery_from_vaults_that_makes_no_step_again_costs_none(report: Make) -> None:
    ledger = trained(report, 10)
    recovered(ledger, 10.0, 10, "vaults")
    event(ledger, CheckpointRestored, 12.0, step=10, path="vaults", seconds=0.5)
    ledger.on_step(report(11, time_s=13.0, data_wait_s=0.0), 13.0)
    value = ledger.to_json(13.0)
    assert value["seconds"]["lost"] == 0.0
    assert value["seconds"]["training"] == pytest.approx(11.0)
    assert value["seconds"]["recovering"] == pytest.approx(2.0)
    assert value["goodput"] == pytest.approx(11 / 13)


@pytest.mark.parametrize(("source", "from_step"), [("vaults", 9), ("storage", 6), ("beginning", 0)])
def test_what_is_made_again_is_lost_wherever_its_state_comes_from(report: Make, source: str, from_step: int) -> None:
    ledger = trained(report, 10)
    recovered(ledger, 10.25, from_step, source)
    seconds = ledger.to_json(10.25)["seconds"]
    assert seconds["lost"] == pytest.approx(10 - from_step + 0.25)  # with the one that was cut off
    assert seconds["training"] == pytest.approx(from_step)
    ledger.on_step(report(from_step + 1, time_s=14.0, data_wait_s=0.0), 14.0)
    assert ledger.to_json(14.0)["seconds"]["lost"] == pytest.approx(10 - from_step + 0.25)


def test_a_state_that_turns_out_newer_undoes_less(report: Make) -> None:
    """While it waits for workers a run looks again at what it can go on from."""
    ledger = trained(report, 10)
    recovered(ledger, 10.0, 4, "storage")
    assert ledger.to_json(10.0)["seconds"]["lost"] == pytest.approx(6.0)
    event(ledger, CheckpointRestored, 12.0, step=9, path="vaults", seconds=0.5)
    assert ledger.to_json(12.0)["seconds"]["lost"] == pytest.approx(1.0)
    ledger.on_step(report(10, time_s=13.0, data_wait_s=0.0), 13.0)
    assert ledger.to_json(13.0)["seconds"]["lost"] == pytest.approx(1.0)


def test_the_step_that_a_checkpoint_is_of_is_kept(report: Make) -> None:
    """Its event comes before the report of the step."""
    ledger = trained(report, 4)
    event(ledger, CheckpointSaved, 5.0, step=5, seconds=0.0)
    ledger.on_step(report(5, time_s=5.0, data_wait_s=0.0), 5.0)
    again = Ledger(100.0, carried=ledger.to_json(5.0))
    event(again, CheckpointRestored, 101.0, step=5, seconds=1.0)
    assert again.to_json(101.0)["seconds"]["lost"] == 0.0


def test_a_driver_that_goes_on_from_the_beginning_supersedes_what_the_one_before_made(report: Make) -> None:
    second = Ledger(1000.0, carried=trained(report, 10).to_json(10.0))
    event(second, WorkerPhase, 1001.0, phase="train")
    assert second.to_json(1001.0)["seconds"]["lost"] == 0.0
    second.on_step(report(1, time_s=1002.0, data_wait_s=0.0), 1002.0)
    seconds = second.to_json(1002.0)["seconds"]
    assert (seconds["lost"], seconds["training"]) == (pytest.approx(10.0), pytest.approx(1.0))


def test_a_step_that_a_killed_driver_did_not_see_end_is_lost(report: Make) -> None:
    killed = trained(report, 10).to_json(10.4)
    assert killed["seconds"]["training"] == pytest.approx(10.4)
    second = Ledger(1000.0, carried=killed)
    value = second.to_json(1000.0)
    assert (value["seconds"]["lost"], value["seconds"]["training"]) == (pytest.approx(0.4), pytest.approx(10.0))
    assert sum(value["seconds"].values()) == pytest.approx(value["elapsed_s"]) == pytest.approx(10.4)


def test_a_ledger_of_an_earlier_version_is_gone_on_from(report: Make) -> None:
    before = trained(report, 10).to_json(10.0)
    for key in ("trained_after_step", "going_on_from"):
        del before[key]
    second = Ledger(1000.0, carried={**before, "trained_at_checkpoint": {"0": 0.0, "5": 5.0}})
    event(second, CheckpointRestored, 1001.0, step=10, seconds=0.0)
    event(second, WorkerPhase, 1001.0, phase="train")
    second.on_step(report(11, time_s=1002.0, data_wait_s=0.0), 1002.0)
    seconds = second.to_json(1002.0)["seconds"]
    assert (seconds["lost"], seconds["training"]) == (pytest.approx(0.0), pytest.approx(11.0))


def test_an_export_without_a_step_to_make_ends_a_recovery(report: Make) -> None:
    ledger = trained(report, 10)
    event(ledger, WorkerPhase, 10.0, phase="export")
    recovered(ledger, 11.0, 10, "storage")
    event(ledger, WorkerPhase, 13.0, phase="restore")
    event(ledger, WorkerPhase, 14.0, phase="export")
    event(ledger, ModelExported, 16.0, seconds=2.0)
    event(ledger, StateChanged, 16.0, state="succeeded")
    seconds = ledger.to_json(16.0)["seconds"]
    assert (seconds["recovering"], seconds["exporting"]) == (pytest.approx(3.0), pytest.approx(3.0))
    assert seconds["lost"] == 0.0
