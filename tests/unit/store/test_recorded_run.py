"""A run that an earlier version recorded is still shown and proved: `recorded/version-1`."""

import json
import shutil
from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest
from click.testing import CliRunner

from orchestrator.cli.commands.data_command import data
from orchestrator.cli.commands.goodput_command import goodput
from orchestrator.cli.commands.runs_commands import runs, show
from orchestrator.cli.display.plain_display import describe
from orchestrator.cli.display.run_view import ShownRun
from orchestrator.domain.events import (
    Event,
    RecoveryFinished,
    RecoveryStarted,
    RunCreated,
    RunState,
    StateChanged,
    UnknownEvent,
)
from orchestrator.domain.events.event_codec import encode_event
from orchestrator.goodput.ledger_recorder import LedgerRecorder
from orchestrator.goodput.ledger_result import LedgerResult
from orchestrator.goodput.worker_terms import WorkerTerms
from orchestrator.metrics.jsonl import read_jsonl
from orchestrator.metrics.run_recorder import RunRecorder
from orchestrator.store.recorded_progress import read_progress
from orchestrator.store.run_history import current_steps, facts_after, read_events
from orchestrator.store.run_store import RunStore

pytestmark = pytest.mark.unit
RECORDED = Path(__file__).parent / "recorded" / "version-1"


@pytest.fixture
def home(tmp_path: Path) -> Path:
    """A home directory with the run in it, and with the data where the run's record says."""
    identity = json.loads((RECORDED / "run" / "run.json").read_text())["id"]
    run = tmp_path / "runs" / identity
    shutil.copytree(RECORDED / "run", run)
    shutil.copytree(RECORDED / "prepared", tmp_path / "prepared")
    facts = json.loads((run / "data.json").read_text())
    (run / "data.json").write_text(json.dumps({**facts, "directory": str(tmp_path / "prepared")}))
    return tmp_path / "runs"


def test_every_event_of_it_is_known_and_nothing_of_it_is_lost() -> None:
    for file in (RECORDED / "run" / "events.jsonl", RECORDED / "events-of-a-recovery.jsonl"):
        events = list(read_events(file))
        assert not [event for event in events if isinstance(event.body, UnknownEvent) or event.extra]
        written = [{**line, "v": 2} for line in read_jsonl(file)]
        again = [encode_event(event) for event in events]
        # Fields that events have got since then stand at their defaults.
        assert [{name: new[name] for name in old} for new, old in zip(again, written, strict=True)] == written


def test_its_recovery_is_told_as_ever() -> None:
    view, told = ShownRun(), []
    for event in read_events(RECORDED / "events-of-a-recovery.jsonl"):
        view.on_event(event)
        if isinstance(event.body, RecoveryStarted | RecoveryFinished | StateChanged):
            told.append(describe(event.body, view))
    assert view.state is RunState.SUCCEEDED
    assert [line for line in told if line and "recover" in line] == [
        "recovering: worker 2 was lost at step 20, continuing from step 20 (vaults)",
        "recovered in 1.5 s with 3 workers, 0 steps recomputed",
    ]


def test_it_is_shown(home: Path) -> None:
    shown = CliRunner().invoke(show, ["last", "--home", str(home)])
    assert shown.exit_code == 0, shown.output
    for line in (
        "step        8 of 8",
        "workers     2, micro batch 4, accumulation 1",
        "loss        5.6924 -> 5.4103 (-5.0%)",
        "validation  5.6694 -> 5.3886 (-5.0%)",
        "checkpoints 2 written",
        "memory      818.5 MiB resident at peak, most 409.6 MiB in a worker",
    ):
        assert line in shown.output
    listed = CliRunner().invoke(runs, ["--home", str(home)]).output
    assert "succeeded" in listed
    facts = json.loads(CliRunner().invoke(show, ["last", "--json", "--home", str(home)]).output)
    assert facts["plan"]["world_size"] == 2
    assert sorted(saved["step"] for saved in facts["checkpoints"]) == [4, 8]
    assert [evaluation["step"] for evaluation in facts["evaluations"]] == [0, 4, 8]


def test_its_worker_time_is_worked_out_from_its_records(home: Path) -> None:
    """Its ledger holds wall time by other categories."""
    found = json.loads(CliRunner().invoke(goodput, ["last", "--json", "--home", str(home)]).output)
    assert sum(found["seconds"].values()) == pytest.approx(found["reserved_s"])
    assert found["reserved_s"] == pytest.approx(2 * (1795846583.4328744 - 1795846573.9900718))  # from its cluster on
    assert 0.4 < found["seconds"]["productive"] < 0.9
    assert {"startup", "evaluation", "export", "idle_tail", "checkpoint_stall"} <= set(found["seconds"])
    shown = CliRunner().invoke(show, ["last", "--home", str(home)]).output
    assert "Where 18.9 s of worker time went (goodput 4%" in shown


def test_its_ledger_is_continued_by_a_resume(home: Path) -> None:
    layout = RunStore(home).read("last").layout
    now_s = 1795846583.4328744 + 100.0
    recorder = LedgerRecorder(layout, lambda: now_s, WorkerTerms(), partial(facts_after, layout))
    recorder.on_event(Event(RunCreated("small", "hash", "0.2"), now_s))
    assert recorder.snapshot().reserved_s == pytest.approx(18.8856, abs=1e-3)
    assert recorder.snapshot().tokens == sum(step.tokens for step in current_steps(layout.steps))
    assert LedgerResult.from_json(json.loads(layout.ledger.read_text())).reserved_s == pytest.approx(18.8856, abs=1e-3)


def test_its_steps_are_read_and_its_data_is_proved(home: Path) -> None:
    layout = RunStore(home).read("last").layout
    steps = current_steps(layout.steps)
    assert [step.step for step in steps] == list(range(1, 9))
    assert [len(step.ranks.every) for step in steps] == [2] * 8
    assert steps[7].ranks.spread.checkpoint_s.max == pytest.approx(0.057654)
    progress = read_progress(layout)
    assert (progress.step, progress.total_steps, progress.workers) == (8, 8, 2)
    proved = CliRunner().invoke(data, ["verify", "last", "--home", str(home)])
    assert proved.exit_code == 0, proved.output


def test_a_resumed_run_has_steps_of_both_versions(home: Path) -> None:
    """A driver of today repeats the last two steps of the run, which continued from the checkpoint of step 6."""
    layout = RunStore(home).read("last").layout
    recorder = RunRecorder(layout)
    for step in current_steps(layout.steps)[6:]:
        recorder.on_step(replace(step, time_s=step.time_s + 100.0))
    recorder.close()
    assert [line.get("v") for line in read_jsonl(layout.steps)] == [None] * 8 + [2, 2]
    assert [step.step for step in current_steps(layout.steps)] == list(range(1, 9))
    assert [line["step"] for line in read_jsonl(layout.ranks)] == [7, 8]
    proved = CliRunner().invoke(data, ["verify", "last", "--home", str(home)])
    assert proved.exit_code == 0, proved.output
    shown = CliRunner().invoke(show, ["last", "--json", "--home", str(home)])
    assert json.loads(shown.output)["training"]["peak_rss_bytes"] == [429506560, 428732416]
