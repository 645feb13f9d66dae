"""Stopping, checkpoints and resuming in real processes."""

import os
from collections.abc import Callable
from pathlib import Path

import pytest

from orchestrator.checkpoint.memory.vault import Vault
from orchestrator.domain.events import CheckpointSaved, ModelExported, SampleGenerated
from orchestrator.domain.policy.hang import Phase
from orchestrator.domain.session import Leave, VaultAccess
from orchestrator.spec.job import JobSpec
from tests.cluster.train_processes import TrainProcesses, train_plan
from tests.selection import every_day

pytestmark = [pytest.mark.cluster, pytest.mark.timeout(300)]


@pytest.mark.parametrize("stage", every_day([0, 1, 2, 3], 3))
def test_resuming_is_bitwise(
    stage: int, train_processes: TrainProcesses, make_spec: Callable[..., JobSpec], prepared_lines: Path, tmp_path: Path
) -> None:
    """A run with dropout, cut in two, has the losses of one that was not."""
    spec = make_spec(
        steps=10, global_batch=10, stage=stage, checkpoint={"interval_steps": 4}, config={"resid_pdrop": 0.1}
    )
    whole = train_processes.run(train_plan(spec, prepared_lines, tmp_path / "whole", 2), 2)
    saved = [fields for kind, fields in whole.events if kind is CheckpointSaved]
    assert [fields["step"] for fields in saved] == [4, 8, 10]
    # Two are kept, so the one of step 4 is gone.
    assert not Path(saved[0]["path"]).exists()

    plan = train_plan(spec, prepared_lines, tmp_path / "rest", 2, resume_from=saved[1]["path"])
    rest = train_processes.run(plan, 2)
    assert [r.step for r in rest.steps] == [9, 10]
    assert rest.losses == whole.losses[8:]
    assert rest.grad_norms == whole.grad_norms[8:]
    assert rest.evaluations == {10: whole.evaluations[10]}
    assert [r.first_position for r in rest.steps] == [80, 90]

    # What takes long with a large model reports progress on every rank; beats stay the same on all of them.
    assert all(parts[Phase.BUILD] and parts[Phase.CHECKPOINT] for parts in whole.parts)
    assert all(parts[Phase.RESTORE] for parts in rest.parts)
    for outcome in (whole, rest):
        assert outcome.beats[0] == outcome.beats[1]


def test_resuming_at_another_size_follows_the_curve(
    train_processes: TrainProcesses, make_spec: Callable[..., JobSpec], prepared_lines: Path, tmp_path: Path
) -> None:
    spec = make_spec(steps=10, stage=2, checkpoint={"interval_steps": 5})
    whole = train_processes.run(train_plan(spec, prepared_lines, tmp_path / "whole", 3), 3)
    path = next(fields["path"] for kind, fields in whole.events if kind is CheckpointSaved)
    other = make_spec(steps=10, stage=3, checkpoint={"at_end": False})
    rest = train_processes.run(train_plan(other, prepared_lines, tmp_path / "rest", 2, resume_from=path), 2)
    assert rest.losses == pytest.approx(whole.losses[5:], rel=1e-5)


def test_a_stop_ends_every_rank_after_the_same_step(
    train_processes: TrainProcesses, make_spec: Callable[..., JobSpec], prepared_lines: Path, tmp_path: Path
) -> None:
    """Only the last rank is asked; all agree, save and return. Going on from there gives the whole run's losses."""
    spec = make_spec(steps=8, stage=1)
    whole = train_processes.run(train_plan(spec, prepared_lines, tmp_path / "whole", 2), 2)
    cut = train_processes.run(train_plan(spec, prepared_lines, tmp_path / "cut", 2), 2, stop_at_step=5)
    assert [result.step for result in cut.results] == [5, 5]
    assert not any(result.finished for result in cut.results)
    assert cut.losses == whole.losses[:5]
    path = next(fields["path"] for kind, fields in cut.events if kind is CheckpointSaved)
    rest = train_processes.run(train_plan(spec, prepared_lines, tmp_path / "rest", 2, resume_from=path), 2)
    assert rest.losses == whole.losses[5:]
    assert all(result.finished for result in rest.results)


def test_a_rank_without_a_vault_does_not_leave_the_others_waiting_for_it(
    train_processes: TrainProcesses, make_spec: Callable[..., JobSpec], prepared_lines: Path, tmp_path: Path
) -> None:
    """Asked to leave for the gang to be formed anew, all save to storage: the vaults cannot hold the step whole."""
    spec = make_spec(steps=8, stage=1)
    vault = Vault("127.0.0.1", "a token", lambda: 1 << 30)
    try:
        access = VaultAccess(vault.address, os.getpid(), "a token", 1)
        plan = train_plan(spec, prepared_lines, tmp_path / "cut", 2)
        cut = train_processes.run(plan, 2, stop_at_step=5, wish=Leave.REGROUP, vaults=(access, None))
    finally:
        vault.close()
    assert [(result.step, result.regroup) for result in cut.results] == [(5, True)] * 2
    (saved,) = [fields for kind, fields in cut.events if kind is CheckpointSaved]
    assert saved["step"] == 5


def test_an_export_and_a_sample_end_the_run(
    train_processes: TrainProcesses, make_spec: Callable[..., JobSpec], prepared_lines: Path, tmp_path: Path
) -> None:
    spec = make_spec(steps=3, stage=3).model_copy(
        update={"generate": JobSpec.model_fields["generate"].annotation(prompt="def ")}
    )
    outcome = train_processes.run(train_plan(spec, prepared_lines, tmp_path / "run", 2, export=True), 2)
    events = dict(outcome.events)
    assert (tmp_path / "run" / "export" / "model.safetensors").is_file()
    assert events[ModelExported]["path"] == str(tmp_path / "run" / "export")
    assert events[SampleGenerated]["text"]
