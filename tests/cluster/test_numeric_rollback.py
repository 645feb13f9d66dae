"""Whole runs that meet a loss that is no number: what is decided, what is left out, and that nothing else shows."""

import threading
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from orchestrator.atomic_files import read_json
from orchestrator.checkpoint.format.checkpoint_manifest import read_manifest
from orchestrator.data.samples.data_verify import Proof
from orchestrator.domain.events import FaultInjected, NumericFaultFound, RecoveryFinished, RecoveryStarted, RunState
from orchestrator.domain.fault_plan import Arranged
from orchestrator.domain.policy.numeric import FaultKind, Injection, NumericFault, Skip
from orchestrator.domain.run_layout import RunLayout
from orchestrator.run.launcher import RunOutcome, resume_run, run_job
from orchestrator.spec.loading.load import load_job
from orchestrator.store.data_proof import prove
from orchestrator.store.run_history import current_steps
from orchestrator.store.run_store import RunStore
from orchestrator.store.skip_file import read_skips
from tests.cluster.gang_runs import (
    Recording,
    all_pids,
    left_in_shared_memory,
    ray_processes,
    shared_memory,
    write_job,
)
from tests.cluster.train_processes import TrainProcesses, train_plan

pytestmark = [pytest.mark.faults, pytest.mark.usefixtures("temporary_directory")]

BATCH = 12
STEPS = 16


def train(directory: Path, recording: Recording, arranged: Arranged, **recovery: Any) -> RunOutcome:
    job = write_job(
        directory,
        train={"steps": STEPS, "global_batch": BATCH, "micro_batch": BATCH // 2, "lr": 1e-3},
        zero={"stage": 1},
        checkpoint={"interval_steps": 5},
        recovery=recovery,
    )
    stop = recording.stop or threading.Event()
    return run_job(load_job(job), directory / "runs", [recording], stop, arranged=arranged)


def proof_of(outcome: RunOutcome) -> Proof:
    return prove(RunStore(outcome.run_dir.parent).read(outcome.run_id))


def losses(outcome: RunOutcome) -> list[float]:
    return [step.loss for step in current_steps(RunLayout(outcome.run_dir).steps)]


def losses_without(
    outcome: RunOutcome, processes: TrainProcesses, directory: Path, skips: tuple[tuple[int, int], ...]
) -> list[float]:
    """Of undisturbed training on the run's data that never had these samples."""
    layout = RunLayout(outcome.run_dir)
    data = Path(str((read_json(layout.data) or {})["directory"]))
    plan = train_plan(load_job(layout.spec).spec, data, directory / "reference", 2)
    return processes.run(replace(plan, skips=skips), 2).losses


def test_a_loss_that_is_no_number_is_rolled_back_from(tmp_path: Path, train_processes: TrainProcesses) -> None:
    pids, shm = all_pids(), shared_memory()
    recording = Recording()
    outcome = train(tmp_path, recording, Arranged(injections=(Injection("nan", 8, 1),)))
    assert (outcome.state, outcome.reason) == (RunState.SUCCEEDED, None)
    assert len(recording.of(FaultInjected)) == 1
    (fault,) = recording.of(NumericFaultFound)
    assert (fault["fault"], fault["step"], fault["rank"], fault["action"]) == ("loss_not_finite", 8, 1, "rollback")
    (started,) = recording.of(RecoveryStarted)
    assert (started["step"], started["skipped"]) == (7, [84, 12])
    assert 5 <= started["from_step"] <= 7  # the vaults may hold a newer state than storage
    assert recording.of(RecoveryFinished)[0]["steps_recomputed"] == 7 - started["from_step"]
    assert losses(outcome) == losses_without(outcome, train_processes, tmp_path, ((84, 12),))
    proof = proof_of(outcome)
    assert (proof.ok, proof.samples, proof.skipped_samples, proof.end_position) == (True, 192, 12, 204)
    (skip,) = read_skips(RunLayout(outcome.run_dir))
    assert proof.skips[0].first == skip.first == 84
    assert read_manifest(RunLayout(outcome.run_dir).checkpoint(15)).extra["skips"] == [[84, 12]]
    page = RunLayout(outcome.run_dir).incident(1).read_text()
    assert page.startswith("# Incident 1: numeric fault at step 8")
    assert "12 samples, [84, 96) of the order" in page
    assert ray_processes(pids) == []
    assert left_in_shared_memory(shm) == set()


def test_a_spike_takes_the_batch_before_it_along(tmp_path: Path, train_processes: TrainProcesses) -> None:
    recording = Recording()
    injections = (Injection("spike", 12, 0),)
    outcome = train(tmp_path, recording, Arranged(injections=injections), loss_spike={"window": 8})
    assert (outcome.state, outcome.reason) == (RunState.SUCCEEDED, None)
    (fault,) = recording.of(NumericFaultFound)
    assert (fault["fault"], fault["step"], fault["rank"], fault["from_step"]) == ("loss_spike", 12, 0, 10)
    assert losses(outcome) == losses_without(outcome, train_processes, tmp_path, ((120, 24),))
    proof = proof_of(outcome)
    assert (proof.ok, proof.skipped_samples) == (True, 24)


def test_a_run_that_is_resumed_leaves_the_same_samples_out(tmp_path: Path, train_processes: TrainProcesses) -> None:
    recording = Recording(threading.Event())  # stops it at its second step
    given = Skip(36, 24, 0, 1.0, None)
    stopped = train(tmp_path, recording, Arranged(skips=(given,)))
    assert stopped.state is RunState.STOPPED
    resumed = Recording()
    outcome = resume_run(stopped.run_dir, tmp_path / "runs", [resumed], threading.Event())
    assert outcome.state is RunState.SUCCEEDED
    assert losses(outcome) == losses_without(outcome, train_processes, tmp_path, ((36, 24),))
    assert [step.first_position for step in current_steps(RunLayout(outcome.run_dir).steps)][2:5] == [24, 60, 72]
    proof = proof_of(outcome)
    assert (proof.ok, proof.skipped_samples, proof.end_position) == (True, 24, (STEPS + 2) * BATCH)


def test_stop_ends_the_run_with_what_was_good(tmp_path: Path) -> None:
    recording = Recording()
    outcome = train(tmp_path, recording, Arranged(injections=(Injection("nan", 10, 0),)), on_nan="stop")
    assert (outcome.state, outcome.exit_code, outcome.step) == (RunState.FAILED, 1, 9)
    assert outcome.reason is not None
    assert outcome.reason.startswith("the loss is nan at step 10 on rank 0 (samples [108, 120) of the order)\nhint: ")
    assert "recovery.on_nan: rollback_and_skip" in outcome.reason
    assert recording.of(NumericFaultFound)[0]["action"] == "stop"
    assert [path.name for path in RunLayout(outcome.run_dir).checkpoints.iterdir()] == ["step-00000005"]
    assert not RunLayout(outcome.run_dir).skips.exists()
    assert proof_of(outcome).ok


def test_it_gives_up_where_it_does_not_help(tmp_path: Path) -> None:
    """One rollback is behind it already, a second one is not allowed."""
    before = NumericFault(FaultKind.LOSS, 2, 12, BATCH, float("nan"), 0)
    arranged = Arranged((Injection("nan", 9, 1),), (Skip(12, BATCH, 0, 1.0, before),))
    recording = Recording()
    outcome = train(tmp_path, recording, arranged, max_rollbacks=1)
    assert (outcome.state, outcome.exit_code, outcome.step) == (RunState.FAILED, 1, 8)
    assert outcome.reason is not None
    assert "step 9 on rank 1" in outcome.reason
    assert "rolled back once within 1000 steps (recovery.max_rollbacks is 1)" in outcome.reason
    assert "hint: training itself diverges: start a new run with a lower train.lr" in outcome.reason
    assert [fields["action"] for fields in recording.of(NumericFaultFound)] == ["give_up"]
    assert RunLayout(outcome.run_dir).checkpoint(5).is_dir()
    assert proof_of(outcome).skips[0].fault is not None
    assert proof_of(outcome).ok
