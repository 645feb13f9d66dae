"""Data that changes between a stop and a resume, with real training."""

import threading
from pathlib import Path

import pytest

from orchestrator.data.tokens.tokenizer import load
from orchestrator.domain.events import ChangesAccepted, RunState
from orchestrator.domain.step_report import StepReport
from orchestrator.run.launcher import resume_run, run_job
from orchestrator.spec.loading.load import load_job
from orchestrator.store.data_proof import prove
from orchestrator.store.resume_check import ChangedError
from orchestrator.store.run_store import RunStore
from tests.cluster.gang_runs import Recording, all_pids, ray_processes, write_job

pytestmark = [pytest.mark.cluster, pytest.mark.usefixtures("temporary_directory")]


class StopAt(Recording):
    """Asks for a stop at a step."""

    def __init__(self, step: int, asked: threading.Event) -> None:
        super().__init__()
        self.at, self.asked = step, asked

    def on_step(self, report: StepReport) -> None:
        super().on_step(report)
        if report.step == self.at:
            self.asked.set()


def test_changed_texts_are_refused_then_accepted_with_the_same_tokenizer(tmp_path: Path) -> None:
    pids, home = all_pids(), tmp_path / "runs"
    job = write_job(
        tmp_path,
        train={"steps": 24, "global_batch": 4, "lr": 1e-3},
        checkpoint={"interval_steps": 5},
        resources={"workers": 1},
        cluster={"nodes": 1},
    )
    stop = threading.Event()
    first = run_job(load_job(job), home, [StopAt(8, stop)], stop)
    assert (first.reason, first.state) == ("stopped on request", RunState.STOPPED)
    own = load(first.run_dir / "tokenizer", "own")
    (tmp_path / "corpus" / "aa.txt").write_text("zebras quiver and jump over hazy vexing boxes\n" * 300)
    state = (first.run_dir / "run.json").read_bytes()
    seen = Recording()
    with pytest.raises(ChangedError, match=r"1 file was added to corpus/\*\.txt: corpus/aa\.txt"):
        resume_run(first.run_dir, home, [seen], threading.Event())
    assert (first.run_dir / "run.json").read_bytes() == state
    assert seen.events == []
    assert ray_processes(pids) == []

    second = resume_run(first.run_dir, home, [seen], threading.Event(), accept_changes=True)
    assert (second.reason, second.state) == (None, RunState.SUCCEEDED)
    (accepted,) = seen.of(ChangesAccepted)
    assert accepted["step"] == seen.steps[0].step - 1 >= 5
    assert load(first.run_dir / "export", "exported").text.key == own.text.key
    proof = prove(RunStore(home).read(first.run_id))
    assert (proof.ok, proof.steps) == (True, 24)
    assert [part.first_step for part in proof.parts] == [1, accepted["step"] + 1]
    assert ray_processes(pids) == []
