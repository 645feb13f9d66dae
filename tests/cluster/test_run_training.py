"""Real training through the gang: stopped and resumed, killed, and with files that travel."""

import json
import threading
from pathlib import Path
from typing import Any

import pytest

from orchestrator.checkpoint.storage.checkpoint_catalog import list_checkpoints
from orchestrator.data.samples.data_verify import verify_run
from orchestrator.data.samples.dataset import TokenDataset
from orchestrator.domain.errors import UsageError
from orchestrator.domain.events import RunCreated, RunState
from orchestrator.domain.step_report import StepReport
from orchestrator.gang.file_transfer import TRANSPORT_VARIABLE
from orchestrator.run.launcher import RunOutcome, resume_run, run_job
from orchestrator.spec.loading.load import load_job
from tests.cluster.gang_runs import (
    Recording,
    Strike,
    all_pids,
    kill_worker,
    ray_processes,
    write_job,
)

pytestmark = [pytest.mark.cluster, pytest.mark.usefixtures("temporary_directory")]


class StopAt(Recording):
    """Asks for a stop at a step."""

    def __init__(self, step: int, stop: threading.Event) -> None:
        super().__init__()
        self.at, self.asked = step, stop

    def on_step(self, report: StepReport) -> None:
        super().on_step(report)
        if report.step == self.at:
            self.asked.set()


def train(directory: Path, recording: Recording, stop: threading.Event | None = None, **changes: Any) -> RunOutcome:
    return run_job(
        load_job(write_job(directory, **changes)), directory / "runs", [recording], stop or threading.Event()
    )


def steps_on_disk(outcome: RunOutcome) -> list[StepReport]:
    lines = (outcome.run_dir / "steps.jsonl").read_text().splitlines()
    return [StepReport.from_json(json.loads(line)) for line in lines]


def test_stopped_then_resumed_with_another_number_of_workers(tmp_path: Path) -> None:
    pids, stop = all_pids(), threading.Event()
    changes: dict[str, Any] = {
        "train": {"steps": 60, "global_batch": 4, "lr": 1e-3},
        "checkpoint": {"interval_steps": 5},
    }
    first = train(tmp_path, StopAt(12, stop), stop, **changes)
    assert (first.state, first.exit_code) == (RunState.STOPPED, 130)
    assert 12 <= first.step < 60
    saved = list_checkpoints(first.run_dir / "checkpoints")[0].step
    assert saved >= 10

    spec = first.run_dir / "spec.yaml"
    spec.write_text(spec.read_text().replace("workers: 2", "workers: 1"))
    seen = Recording()
    second = resume_run(first.run_dir, tmp_path / "runs", [seen], threading.Event())
    assert (second.reason, second.state, second.run_id) == (None, RunState.SUCCEEDED, first.run_id)
    assert seen.steps[0].step == saved + 1
    assert seen.steps[-1].step == 60
    assert seen.of(RunCreated)[0]["resumed_from_step"] == saved
    directory = Path(json.loads((second.run_dir / "data.json").read_text())["directory"])
    assert verify_run(steps_on_disk(second), TokenDataset.open(directory), 4).ok
    with pytest.raises(UsageError, match="has succeeded"):
        resume_run(first.run_dir, tmp_path / "runs", [], threading.Event())
    assert ray_processes(pids) == []


def test_a_killed_worker_is_named_not_its_victims(tmp_path: Path) -> None:
    pids = all_pids()
    seen = Strike(3, 1, kill_worker)
    outcome = train(tmp_path, seen, train={"steps": 5000, "global_batch": 4, "lr": 1e-3}, recovery={"max_failures": 0})
    assert (outcome.state, outcome.exit_code) == (RunState.FAILED, 1)
    assert outcome.reason is not None
    assert outcome.reason.startswith("worker of rank 1 failed: its process was killed by SIGKILL")
    assert outcome.step >= 3
    assert ray_processes(pids) == []


def test_training_where_no_path_is_shared(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(TRANSPORT_VARIABLE, "remote")
    outcome = train(tmp_path, Recording())
    assert outcome.reason is None
    assert list_checkpoints(outcome.run_dir / "checkpoints")[0].problem is None
    assert (outcome.run_dir / "export" / "config.json").is_file()
