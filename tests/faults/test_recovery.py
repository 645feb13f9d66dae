"""Workers and nodes that are killed while they train: the run goes on, and its loss curve does not show it."""

import contextlib
import os
import signal
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil
import pytest
from ray.util.placement_group import placement_group_table

from orchestrator.clusters.ray.node_processes import descendants, raylet_of
from orchestrator.domain.events import (
    CheckpointRejected,
    EventBody,
    GangResized,
    ModelExported,
    RecoveryFinished,
    RecoveryReason,
    RecoveryStarted,
    RunState,
    WarningIssued,
    WorkerStarted,
)
from orchestrator.domain.fault_plan import Arranged, NodeAddress
from orchestrator.domain.step_report import StepReport
from orchestrator.drill.process_faults import send
from orchestrator.goodput.time_class import LossCause, TimeClass
from orchestrator.run.launcher import TRAIN_ENTRY, RunOutcome, run_job
from orchestrator.spec.loading.load import load_job
from tests.cluster.gang_runs import (
    ENTRIES,
    Recording,
    Strike,
    StrikeWhenProtected,
    all_pids,
    command_of,
    curve,
    kill_worker,
    left_in_shared_memory,
    own_temporary_directory,
    ray_processes,
    shared_memory,
    write_job,
)
from tests.faults.ledger_account import check_ledger, cost_of

pytestmark = [pytest.mark.faults, pytest.mark.usefixtures("temporary_directory")]

BATCH = 12
JOB: dict[str, Any] = {
    "train": {"steps": 24, "global_batch": BATCH, "lr": 1e-3},
    "zero": {"stage": 1},
    "resources": {"workers": 2},
    "cluster": {"nodes": 2},
    "checkpoint": {"interval_steps": 5},
}


def kill_node(pid: int) -> None:
    """The raylet of that worker and every process of it, as when a machine loses its power."""
    send(raylet_of(pid), signal.SIGKILL)


def train(
    directory: Path,
    recording: Recording,
    entry: str = TRAIN_ENTRY,
    safe_after: type[EventBody] = RecoveryFinished,
    **changes: Any,
) -> RunOutcome:
    recording.safe_after(safe_after, directory / "runs")
    job = load_job(write_job(directory, **{**JOB, **changes}))
    return run_job(job, directory / "runs", [recording], threading.Event(), entry)


PACED = f"{ENTRIES}:train_held"
"""Steps of a third of a second: whatever the machine is busy with, state reaches the vaults within a few."""
THIRTY = {"steps": 30, "global_batch": BATCH, "lr": 1e-3}


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> Callable[[int], list[float]]:
    """Losses of the job's so many steps when nothing happens to it."""
    known: dict[int, list[float]] = {}

    def losses(steps: int) -> list[float]:
        if steps not in known:
            with own_temporary_directory():
                directory = tmp_path_factory.mktemp("undisturbed")
                known[steps] = curve(train(directory, Recording(), train={**JOB["train"], "steps": steps}), BATCH)
        return known[steps]

    return losses


def test_want_of_memory_halves_the_micro_batch(tmp_path: Path) -> None:
    changes: dict[str, Any] = {
        "model": {"architecture": "gpt2", "config": {"n_layer": 4, "n_embd": 32, "n_head": 4}},
        "data": {"sources": [{"files": ["corpus/*.txt"]}], "sequence_length": 256},
        "train": {"steps": 3, "global_batch": BATCH * 8, "lr": 1e-3},
        "zero": {"stage": 0},  # the others ask for buckets of 2 GB, and never touch most of them
    }
    undisturbed, starved = Recording(), Recording()
    first = train(tmp_path, undisturbed, **changes)
    assert first.state is RunState.SUCCEEDED
    assert undisturbed.steps[0].micro_batch == BATCH * 4
    entry = f"{ENTRIES}:train_short_of_memory"
    job = load_job(write_job(tmp_path, **{**JOB, **changes}))
    second = run_job(job, tmp_path / "runs", [starved], threading.Event(), entry)
    assert (second.state, second.reason) == (RunState.SUCCEEDED, None)
    assert starved.steps[0].micro_batch < BATCH * 4
    assert starved.steps[0].micro_batch * starved.steps[0].accumulation >= BATCH * 4
    assert any("out of memory" in fields["message"] for fields in starved.of(WarningIssued))
    losses = [step.loss for step in starved.steps[-3:]]
    assert losses == pytest.approx([step.loss for step in undisturbed.steps], rel=1e-5)


def test_a_killed_worker_is_replaced_and_cannot_be_seen_in_the_losses(
    tmp_path: Path, undisturbed: Callable[[int], list[float]]
) -> None:
    pids, shm = all_pids(), shared_memory()
    struck = StrikeWhenProtected(12, 1, kill_worker)
    outcome = train(tmp_path, struck, PACED, train=THIRTY, checkpoint={"memory_interval_steps": 1})
    assert (outcome.state, outcome.reason, struck.struck) == (RunState.SUCCEEDED, None, 1)
    assert curve(outcome, BATCH) == undisturbed(30)
    (started,) = struck.of(RecoveryStarted)
    assert (started["rank"], started["source"]) == (1, "vaults")
    assert started["from_step"] >= started["step"] - 2
    assert "SIGKILL" in started["cause"]
    (finished,) = struck.of(RecoveryFinished)
    assert (finished["step"], finished["world_size"]) == (started["from_step"] + 1, 2)
    assert finished["steps_recomputed"] == started["step"] - started["from_step"]
    survivor, *others = [fields["pid"] for fields in struck.of(WorkerStarted) if fields["rank"] == 0]
    assert others == [survivor]  # the same process went on
    page = (outcome.run_dir / "incidents" / "incident-001.md").read_text()
    assert "training continues" in page
    assert cost_of(check_ledger(outcome.run_dir)).reason is RecoveryReason.WORKER_DIED
    assert ray_processes(pids) == []
    assert left_in_shared_memory(shm) == set()


def test_a_gang_shrinks_at_once_and_grows_when_the_replacement_is_ready(
    tmp_path: Path, undisturbed: Callable[[int], list[float]]
) -> None:
    struck = StrikeWhenProtected(7, 2, kill_worker)
    outcome = train(
        tmp_path,
        struck,
        PACED,
        GangResized,
        train={**JOB["train"], "steps": 80},
        resources={"workers": {"min": 1, "max": 3}},
        cluster={"nodes": 3},
    )
    assert (outcome.state, outcome.reason, struck.struck) == (RunState.SUCCEEDED, None, 1)
    assert struck.of(RecoveryFinished)[0]["world_size"] == 2
    (resized,) = struck.of(GangResized)
    assert (resized["before"], resized["world_size"]) == (2, 3)
    sizes = [step.world_size for step in struck.steps]
    assert sizes[0] == 3
    assert sizes[-1] == 3
    assert next(step.step for step in struck.steps if step.step > resized["step"]) == resized["step"] + 1
    ledger = check_ledger(outcome.run_dir)
    # The replacement starts while the others train, then all of them leave training for the next gang.
    (change,) = [event.time_s for event in struck.events if isinstance(event.body, GangResized)]
    last = next(step for step in struck.steps if step.step == resized["step"])
    joined = next(step for step in struck.steps if step.step == resized["step"] + 1)
    assert last.time_s <= change <= joined.time_s
    between_s = joined.time_s - joined.step_time_s - last.time_s
    assert ledger.seconds[TimeClass.RESIZING] >= 2 * between_s
    assert ledger.lost_s[LossCause.RESIZING] == pytest.approx(ledger.seconds[TimeClass.RESIZING])
    assert curve(outcome, BATCH) == pytest.approx(undisturbed(80), rel=1e-5)


class LooksAtPlaces(StrikeWhenProtected):
    """What state all of the run's reservations are in, a few steps after the recovery."""

    places: list[str]

    def on_step(self, report: StepReport) -> None:
        super().on_step(report)
        if self.of(RecoveryFinished) and report.step == 20:
            self.places = [str(place["state"]) for place in placement_group_table().values()]


def test_a_killed_node_leaves_a_smaller_gang(tmp_path: Path, undisturbed: Callable[[int], list[float]]) -> None:
    pids = all_pids()
    struck = LooksAtPlaces(7, 2, kill_node)
    outcome = train(
        tmp_path,
        struck,
        PACED,
        ModelExported,  # Ray takes a while to notice that the node has gone
        train=THIRTY,
        zero={"stage": 3},
        resources={"workers": {"min": 1, "max": 3}},
        cluster={"nodes": 3, "cpus_per_node": 1},
        checkpoint={"memory_interval_steps": 1},
    )
    assert (outcome.state, outcome.reason, struck.struck) == (RunState.SUCCEEDED, None, 1)
    assert struck.steps[0].world_size == 3
    (started,) = struck.of(RecoveryStarted)
    assert started["source"] == "vaults"
    (finished,) = struck.of(RecoveryFinished)
    assert finished["world_size"] == 2
    assert finished["steps_recomputed"] <= 1
    # Ray's head would look for room for the lost node's place without a pause.
    assert struck.places.count("CREATED") == 2
    assert "RESCHEDULING" not in struck.places
    cost = cost_of(check_ledger(outcome.run_dir))
    assert cost.reason in (RecoveryReason.NODE_DIED, RecoveryReason.WORKER_DIED)
    assert cost.steps_recomputed == finished["steps_recomputed"]
    assert curve(outcome, BATCH) == pytest.approx(undisturbed(30), rel=1e-5)
    assert ray_processes(pids) == []


RACKS = ("a", "a", "b", "b")


def kill_rack(_: int) -> None:
    """Both nodes of the rack that the head is not in, with every process of them, at once."""
    raylets = [each for each in descendants(os.getpid()) if '--labels={"rack": "b"}' in command_of(each)]
    assert len(raylets) == 2
    for process in [*raylets, *(child for raylet in raylets for child in descendants(raylet.pid))]:
        with contextlib.suppress(psutil.NoSuchProcess):
            process.kill()


def test_a_rack_of_two_nodes_is_lost_and_training_continues_from_memory(
    tmp_path: Path, undisturbed: Callable[[int], list[float]]
) -> None:
    struck = StrikeWhenProtected(7, 0, kill_rack)
    struck.safe_after(RecoveryFinished, tmp_path / "runs")
    changes: dict[str, Any] = {
        "train": THIRTY,
        "resources": {"workers": {"min": 1, "max": 4}},
        "cluster": {"nodes": 4, "cpus_per_node": 1},
        "checkpoint": {"memory_interval_steps": 1, "interval_steps": "never"},
    }
    arranged = Arranged(nodes=tuple(NodeAddress("127.0.0.1", "lo", None, {"rack": rack}) for rack in RACKS))
    job = load_job(write_job(tmp_path, **{**JOB, **changes}))
    outcome = run_job(job, tmp_path / "runs", [struck], threading.Event(), PACED, arranged)
    assert (outcome.state, outcome.reason, struck.struck) == (RunState.SUCCEEDED, None, 1)
    (started,) = struck.of(RecoveryStarted)
    assert started["source"] == "vaults"
    assert started["from_step"] >= started["step"] - 1
    assert [struck.steps[0].world_size, struck.steps[-1].world_size] == [4, 2]
    assert curve(outcome, BATCH) == pytest.approx(undisturbed(30), rel=1e-5)


VERIFIED = {"interval_steps": 5, "memory_interval_steps": 1, "verify_restore": True}


def test_a_restore_that_is_verified_makes_a_step_again(
    tmp_path: Path, undisturbed: Callable[[int], list[float]]
) -> None:
    struck = StrikeWhenProtected(13, 1, kill_worker)
    outcome = train(tmp_path, struck, PACED, train=THIRTY, checkpoint=VERIFIED)
    assert (outcome.state, outcome.reason) == (RunState.SUCCEEDED, None)
    (finished,) = struck.of(RecoveryFinished)
    assert finished["steps_recomputed"] >= 1
    assert struck.of(CheckpointRejected) == []
    assert curve(outcome, BATCH) == undisturbed(30)


def test_a_restore_that_is_not_what_was_saved_falls_back_to_storage(
    tmp_path: Path, undisturbed: Callable[[int], list[float]]
) -> None:
    struck = StrikeWhenProtected(13, 1, kill_worker)
    entry = f"{ENTRIES}:restores_something_else"
    outcome = train(tmp_path, struck, entry, train=THIRTY, checkpoint=VERIFIED)
    assert (outcome.state, outcome.reason) == (RunState.SUCCEEDED, None)
    (rejected,) = struck.of(CheckpointRejected)
    assert rejected["path"] == "vaults"
    assert "is not what was saved" in rejected["reason"]
    assert [started["source"] for started in struck.of(RecoveryStarted)] == ["vaults", "storage"]
    assert curve(outcome, BATCH) == undisturbed(30)


def test_a_spare_process_takes_the_place_at_once(tmp_path: Path, undisturbed: Callable[[int], list[float]]) -> None:
    before: set[int] = set()

    def note_and_kill(pid: int) -> None:
        before.update(all_pids())
        kill_worker(pid)

    struck = StrikeWhenProtected(30, 1, note_and_kill)  # by then the spares have imported everything
    resources = {"workers": 2, "standby": 1}
    outcome = train(
        tmp_path,
        struck,
        PACED,
        train={**JOB["train"], "steps": 80},
        resources=resources,
        checkpoint={"memory_interval_steps": 1},
    )
    assert (outcome.state, outcome.reason) == (RunState.SUCCEEDED, None)
    (finished,) = struck.of(RecoveryFinished)
    assert finished["world_size"] == 2
    replacement = struck.of(WorkerStarted)[-2:]
    assert {fields["pid"] for fields in replacement} <= before  # none was started for it
    assert curve(outcome, BATCH) == undisturbed(80)


def test_without_memory_it_goes_on_from_storage(tmp_path: Path) -> None:
    struck = Strike(7, 1, kill_worker)
    outcome = train(tmp_path, struck, PACED, checkpoint={"interval_steps": 5, "memory": False})
    assert (outcome.state, outcome.reason) == (RunState.SUCCEEDED, None)
    (started,) = struck.of(RecoveryStarted)
    assert (started["from_step"], started["source"]) == (5, "storage")
    cost = cost_of(check_ledger(outcome.run_dir))
    thrown_away = [step for step in struck.steps[: started["step"]] if step.step > 5]
    assert cost.steps_recomputed == len(thrown_away) >= 2
    assert cost.seconds[TimeClass.RECOMPUTED] >= 2 * sum(step.step_time_s for step in thrown_away)


def test_too_few_nodes_left_is_said_and_can_be_resumed(tmp_path: Path) -> None:
    struck = Strike(7, 1, kill_node)
    outcome = train(tmp_path, struck, PACED, cluster={"nodes": 2, "cpus_per_node": 1})
    assert (outcome.state, outcome.exit_code) == (RunState.FAILED, 1)
    assert outcome.reason is not None
    assert "cannot hold 2 workers" in outcome.reason
    assert (outcome.run_dir / "checkpoints" / "step-00000005").is_dir()
    assert "run failed" in (outcome.run_dir / "incidents" / "incident-001.md").read_text()
