"""Rank 0 is killed while it exports: the run goes on from its last step and ends with a whole export."""

import os
import signal
import time
from pathlib import Path

import pytest

from orchestrator.atomic_files import read_json
from orchestrator.checkpoint.format.exported import export_problem
from orchestrator.domain.events import ModelExported, RecoveryFinished, RecoveryStarted
from orchestrator.domain.run_layout import RunLayout
from orchestrator.goodput.time_class import TimeClass
from orchestrator.store.recorded_ledger import ledger_of
from tests.cluster.pauses import VARIABLE, Pauses, Point, let_runs_pause
from tests.faults.striking import STEPS, Striker, curve, train

pytestmark = [pytest.mark.faults, pytest.mark.usefixtures("temporary_directory")]

SURVEYED_S = 8.0


def kill_exporter(striker: Striker, rank: int) -> None:
    """Once its last step is on record, and the vaults hold it as far as they ever will: going on from there looked like
    the end."""
    while striker.steps[-1].step < STEPS:
        time.sleep(0.05)
    durability = striker.checkpoints.parent / "durability.json"
    deadline = time.monotonic() + SURVEYED_S
    while (read_json(durability) or {}).get("own_step") != STEPS and time.monotonic() < deadline:
        time.sleep(0.05)
    (left,) = striker.checkpoints.parent.glob(".export-*")
    assert list(left.rglob("*.safetensors")), "it is killed in the middle"
    os.kill(striker.pids[rank], signal.SIGKILL)


def test_the_model_is_exported_all_the_same(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(VARIABLE, str(tmp_path / "pauses"))
    let_runs_pause(monkeypatch.setattr)
    pauses = Pauses(tmp_path / "pauses")
    with Striker(pauses, kill_exporter) as striker:
        striker.plan(Point.EXPORT, 0, 0)
        outcome = train(tmp_path / "run", striker)
    assert striker.struck == 1, striker.story()
    curve(outcome)  # succeeded, and each step was made once
    (started,) = striker.of(RecoveryStarted)
    assert (started["step"], started["from_step"]) == (STEPS, STEPS), striker.story()
    assert started["source"] == "storage"  # the checkpoint that the export is made from
    (recovered,) = striker.of(RecoveryFinished)
    assert (recovered["step"], recovered["steps_recomputed"]) == (STEPS, 0)
    (exported,) = striker.of(ModelExported)
    assert exported["path"] == str(outcome.run_dir / "export")
    assert export_problem(outcome.run_dir / "export", STEPS) is None
    assert [path.name for path in outcome.run_dir.glob(".export*")] == []
    ledger = ledger_of(RunLayout(outcome.run_dir))
    assert ledger is not None
    assert TimeClass.RECOMPUTED not in ledger.seconds  # no step was cut off, and none is made again
    (cost,) = ledger.by_incident
    assert cost.seconds[TimeClass.RECOVERY_REBUILD] > 0.0
    assert [step.step for step in striker.steps] == list(range(1, STEPS + 1))
