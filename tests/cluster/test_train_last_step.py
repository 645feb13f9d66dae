"""The end of a run whose last step's state is not where it should be: the model is exported, or it is said why not."""

import os
import time
from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from orchestrator.checkpoint.format.exported import export_problem
from orchestrator.checkpoint.memory.vault import Vault
from orchestrator.checkpoint.memory.wire import Channel
from orchestrator.checkpoint.storage.checkpoint_catalog import list_checkpoints, verify_checkpoint
from orchestrator.domain.events import CheckpointFailed, CheckpointSaved, EventBody, ModelExported, WarningIssued
from orchestrator.domain.session import Leave, PeerState, ShardPlace, TrainPlan, VaultAccess
from orchestrator.spec.job import JobSpec
from tests.cluster.train_processes import Outcome, TrainProcesses, train_plan

pytestmark = [pytest.mark.cluster, pytest.mark.timeout(300)]

TOKEN = "a token"
STEPS = 8


@pytest.fixture
def vault() -> Iterator[Vault]:
    made = Vault("127.0.0.1", TOKEN, lambda: 1 << 30)
    with closing(made), closing(Channel.connect(made.address, TOKEN, 5.0)) as driver:
        for generation in (1, 2):
            driver.ask({"do": "peers", "generation": generation, "addresses": []})
        yield made


def access(vault: Vault, generation: int) -> tuple[VaultAccess, VaultAccess]:
    one = VaultAccess(vault.address, os.getpid(), TOKEN, generation)
    return one, one


def held_steps(vault: Vault) -> dict[int, int]:
    """By generation, the newest step that both ranks have there."""
    with closing(Channel.connect(vault.address, TOKEN, 5.0)) as channel:
        items = channel.ask({"do": "inventory"})[0]["held"]
    of = {(item["generation"], item["rank"], item["step"]) for item in items}
    both = [(generation, step) for generation, rank, step in of if rank == 0 and (generation, 1, step) in of]
    return dict(sorted(both))


def restored(plan: TrainPlan, vault: Vault, step: int) -> TrainPlan:
    """The plan of a gang that goes on from the vault."""
    shards = tuple(ShardPlace(rank, (vault.address,)) for rank in (0, 1))
    return replace(plan, peer_state=PeerState(1, step, shards))


def of(outcome: Outcome, kind: type[EventBody]) -> list[dict[str, Any]]:
    return [fields for found, fields in outcome.events if found is kind]


def block(directory: Path) -> Path:
    """A file where a directory of checkpoints is to be: nothing can be written there."""
    directory.parent.mkdir(parents=True, exist_ok=True)
    directory.write_text("in the way")
    return directory


def test_a_last_step_that_lies_in_memory_alone_is_saved_and_exported(
    train_processes: TrainProcesses,
    make_spec: Callable[..., JobSpec],
    prepared_lines: Path,
    tmp_path: Path,
    vault: Vault,
) -> None:
    """The gang before could save it nowhere; storage is good again. No step is made anew."""
    spec = make_spec(steps=STEPS, stage=1, checkpoint={"memory_interval_steps": 2})
    plan = train_plan(spec, prepared_lines, tmp_path / "run", 2, export=True)
    in_the_way = block(tmp_path / "run" / "checkpoints")
    first = train_processes.run(plan, 2, vaults=access(vault, 1))
    assert [result.step for result in first.results] == [STEPS, STEPS]
    assert all(result.finished and result.unsaved for result in first.results)
    assert (of(first, ModelExported), of(first, CheckpointSaved)) == ([], [])
    assert len(of(first, CheckpointFailed)) == 4
    assert held_steps(vault) == {1: STEPS}

    in_the_way.unlink()
    second = train_processes.run(restored(plan, vault, STEPS), 2, vaults=access(vault, 2))
    assert [(result.step, result.finished, result.unsaved) for result in second.results] == [(STEPS, True, None)] * 2
    assert second.steps == []
    (saved,) = of(second, CheckpointSaved)
    assert saved["step"] == STEPS
    manifest = verify_checkpoint(Path(saved["path"]))
    assert (manifest.step, manifest.extra["validation_loss"]) == (STEPS, second.evaluations[STEPS])
    assert export_problem(tmp_path / "run" / "export", STEPS) is None

    third = train_processes.run(replace(plan, resume_from=saved["path"]), 2)
    assert (third.steps, of(third, CheckpointSaved)) == ([], [])
    for run in (second, third):
        (exported,) = of(run, ModelExported)
        assert exported["engines"] == 0  # its memory is the export's by then
    assert [entry.step for entry in list_checkpoints(tmp_path / "run" / "checkpoints")] == [STEPS]


def test_a_checkpoint_asked_for_at_the_end_is_made_without_an_export_too(
    train_processes: TrainProcesses,
    make_spec: Callable[..., JobSpec],
    prepared_lines: Path,
    tmp_path: Path,
    vault: Vault,
) -> None:
    spec = make_spec(steps=STEPS, stage=1, checkpoint={"memory_interval_steps": 2, "at_end": True})
    plan = train_plan(spec, prepared_lines, tmp_path / "run", 2)
    # Asked to leave after the last step, the gang hands it to the vault whatever the interval.
    train_processes.run(
        replace(plan, run_dir=str(tmp_path / "other")), 2, STEPS, Leave.REGROUP, vaults=access(vault, 1)
    )
    deadline = time.monotonic() + 10.0
    while held_steps(vault) != {1: STEPS}:
        assert time.monotonic() < deadline, held_steps(vault)
    second = train_processes.run(restored(plan, vault, STEPS), 2, vaults=access(vault, 2))
    assert second.steps == []
    assert [fields["step"] for fields in of(second, CheckpointSaved)] == [STEPS]
    assert not (tmp_path / "run" / "export").exists()


def test_where_storage_fails_at_the_last_step_the_runs_directory_takes_it(
    train_processes: TrainProcesses, make_spec: Callable[..., JobSpec], prepared_lines: Path, tmp_path: Path
) -> None:
    storage = block(tmp_path / "storage")
    spec = make_spec(steps=3, stage=1, checkpoint={"storage": str(storage), "memory": False})
    outcome = train_processes.run(train_plan(spec, prepared_lines, tmp_path / "run", 2, export=True), 2)
    assert [result.unsaved for result in outcome.results] == [None, None]
    assert [fields["place"] for fields in of(outcome, CheckpointFailed)] == [f"{storage}/run"] * 4
    (saved,) = of(outcome, CheckpointSaved)
    assert saved["path"] == str(tmp_path / "run" / "checkpoints" / "step-00000003")
    (warning,) = of(outcome, WarningIssued)
    assert "is in the run's directory" in warning["message"]
    assert export_problem(tmp_path / "run" / "export", 3) is None
