"""A driver that is killed while its run trains on a cluster that goes on: another one loses no committed step."""

import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest
from click.testing import CliRunner

from orchestrator.atomic_files import read_json
from orchestrator.checkpoint.format.checkpoint_manifest import MANIFEST
from orchestrator.cli.main import cli
from orchestrator.domain.events import RecoveryReason, RunState
from orchestrator.goodput.time_class import RECOVERY_CLASSES, TimeClass
from orchestrator.run.launcher import run_job
from orchestrator.spec.loading.load import load_job
from orchestrator.store.data_proof import prove
from orchestrator.store.run_history import current_steps
from orchestrator.store.run_store import RunStore
from tests.cluster.gang_runs import (
    all_pids,
    left_in_shared_memory,
    own_temporary_directory,
    ray_processes,
    shared_memory,
    write_job,
)
from tests.cluster.standing import PACED, Driver, standing_cluster
from tests.faults.ledger_account import check_ledger, cost_of

pytestmark = pytest.mark.faults

STEPS = 100
JOB: dict[str, Any] = {
    "train": {"steps": STEPS, "global_batch": 12, "lr": 1e-3},
    "zero": {"stage": 1},
    "resources": {"workers": 2},
    "checkpoint": {"memory_interval_steps": 1},
    "recovery": {"memory_kept_s": 30},
}


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> list[float]:
    """Losses of the job on a local cluster."""
    directory = tmp_path_factory.mktemp("undisturbed")
    with own_temporary_directory():
        outcome = run_job(load_job(write_job(directory, **JOB)), directory / "runs", [], threading.Event())
    assert outcome.state is RunState.SUCCEEDED
    return [step.loss for step in current_steps(outcome.run_dir / "steps.jsonl")]


@pytest.fixture(scope="module")
def standing() -> Iterator[str]:
    """The address of a cluster that outlives the runs of several tests. Nothing of it is left in the end."""
    pids, shm = all_pids(), shared_memory()
    with own_temporary_directory():  # `ray_processes` looks for those that use it
        with standing_cluster(2) as address:
            yield address
        wait_until_gone(lambda: ray_processes(pids), 5.0)
        assert left_in_shared_memory(shm) == set()


def losses(home: Path) -> list[float]:
    """Of the only run, after the proof that its data is exact."""
    record = RunStore(home).read("last")
    assert record.state is RunState.SUCCEEDED
    assert prove(record).ok
    return [step.loss for step in current_steps(record.layout.steps)]


def killed_at(home: Path, step: int, *arguments: str) -> Driver:
    """A driver that was SIGKILLed at a step."""
    driver = Driver(home, *arguments, program=PACED)
    driver.read_until_step(step)
    driver.kill()
    return driver


def pid_of(driver: Driver, rank: int) -> int:
    (pid,) = [int(event["pid"]) for event in driver.of("worker.started") if event["rank"] == rank]
    return pid


def wait_until_gone(processes: Callable[[], list[str]], patience_s: float) -> None:
    deadline = time.monotonic() + patience_s
    while processes() and time.monotonic() < deadline:
        time.sleep(0.1)
    assert processes() == []


def ours() -> list[str]:
    """Processes of workers and vaults on this module's clusters, also those that were idle before."""
    return [line for line in ray_processes(set()) if "ray::Convoy" in line]


def test_another_driver_adopts_the_vaults(tmp_path: Path, standing: str, undisturbed: list[float]) -> None:
    home = tmp_path / "runs"
    job = write_job(tmp_path, **JOB, cluster={"address": standing})
    first = killed_at(home, 30, str(job))
    record = RunStore(home).read("last")
    assert record.lost
    damaged = record.layout.checkpoint(10)  # that storage has nothing whole must not end what memory can go on with
    damaged.mkdir(parents=True)
    (damaged / MANIFEST).write_text("{")
    second = Driver(home, "--resume", "last")
    assert second.end() == 0, second.errors()
    assert [event["path"] for event in second.of("checkpoint.rejected")] == [str(damaged)]
    (adopted,) = second.of("vaults.adopted")
    assert adopted["vaults"] == 2
    assert adopted["step"] >= first.of("step")[-1]["step"] - 1
    assert second.of("step")[0]["step"] == adopted["step"] + 1
    assert adopted["time_s"] - second.started_s < 30
    print(
        f"adopted {adopted['time_s'] - second.started_s:.1f} s after its start, {adopted['seconds']:.2f} s of it "
        f"adoption; first step after {second.of('step')[0]['time_s'] - second.started_s:.1f} s"
    )
    assert ours() == []
    assert losses(home) == undisturbed
    cost = cost_of(check_ledger(record.layout.root))
    assert (cost.incident, cost.reason) == (None, RecoveryReason.DRIVER_LOST)
    last, again = first.of("step")[-1], second.of("step")[0]
    assert cost.steps_recomputed <= 1
    # From the reservation of the second driver's workers to its first step, both of them.
    (reserved,) = [event["time_s"] for event in second.of("workers.reserved")][:1]
    begins_s = again["time_s"] - again["step_time_s"]
    rebuilt = sum(cost.seconds.get(each, 0.0) for each in RECOVERY_CLASSES)
    assert rebuilt == pytest.approx(2 * (begins_s - reserved), abs=2 * (again["step_time_s"] + 0.25))
    assert cost.seconds.get(TimeClass.RECOMPUTED, 0.0) <= 2 * 3 * (last["step_time_s"] + 0.25)
    left = read_json(record.layout.durability)
    assert left is not None
    assert (left["kept"], left["storage_step"]) == (False, STEPS)
    assert all("token" not in file.read_text() for file in [record.layout.durability, record.layout.state])


@pytest.mark.soak
def test_a_worker_that_cannot_end_by_itself_is_ended_before_training_goes_on(
    tmp_path: Path, standing: str, undisturbed: list[float]
) -> None:
    home = tmp_path / "runs"
    first = Driver(home, str(write_job(tmp_path, **JOB, cluster={"address": standing})), program=PACED)
    first.read_until_step(20)
    stopped = pid_of(first, 1)
    os.kill(stopped, signal.SIGSTOP)
    first.kill()
    second = Driver(home, "--resume", "last")
    second.read_until_step(1)
    # It ends before the first step of the next gang, whichever process ends it.
    assert not psutil.pid_exists(stopped) or psutil.Process(stopped).status() == psutil.STATUS_ZOMBIE
    assert second.end() == 0, second.errors()
    assert second.of("vaults.adopted")[0]["step"] >= first.of("step")[-1]["step"] - 2
    assert ours() == []
    assert losses(home) == undisturbed


@pytest.mark.soak
def test_a_failed_run_can_be_gone_on_with_from_memory_for_a_while(
    tmp_path: Path, standing: str, undisturbed: list[float]
) -> None:
    home = tmp_path / "runs"
    recovery = {**JOB["recovery"], "max_failures": 0}
    job = write_job(tmp_path, **{**JOB, "recovery": recovery}, cluster={"address": standing})
    first = Driver(home, str(job), program=PACED)
    first.read_until_step(20)
    os.kill(pid_of(first, 0), signal.SIGKILL)
    assert first.end() == 1
    (kept,) = first.of("vaults.kept")
    assert kept["step"] >= first.of("step")[-1]["step"] - 1
    assert "convoy run --resume" in first.errors()
    assert len(ours()) == 2  # the vaults
    shown = CliRunner().invoke(cli, ["durability", "last", "--home", str(home)]).output
    assert "continue from there with `convoy run --resume`" in shown
    second = killed_at(home, kept["step"] + 20, "--resume", "last")
    assert second.of("vaults.adopted")[0]["step"] == kept["step"]
    assert second.of("vaults.adopted")[0]["workers_ended"] == 0
    third = Driver(home, "--resume", "last")
    assert third.end() == 0, third.errors()
    assert third.of("vaults.adopted")[0]["step"] >= kept["step"] + 19
    assert ours() == []
    assert losses(home) == undisturbed


def test_vaults_that_nobody_asks_for_end_by_themselves(tmp_path: Path, standing: str) -> None:
    home = tmp_path / "runs"
    killed_at(home, 20, str(write_job(tmp_path, **JOB, cluster={"address": standing})))
    killed_s = time.monotonic()
    wait_until_gone(lambda: [line for line in ours() if "Worker" in line], 10.0)
    assert len(ours()) == 2
    wait_until_gone(ours, 45.0)
    assert time.monotonic() - killed_s > 25.0


@pytest.mark.soak
@pytest.mark.usefixtures("temporary_directory")
def test_a_new_cluster_goes_on_from_storage(tmp_path: Path, undisturbed: list[float]) -> None:
    pids, shm, home = all_pids(), shared_memory(), tmp_path / "runs"
    checkpoint = {"memory_interval_steps": 1, "interval_steps": 25}
    with standing_cluster(2) as address:
        job = write_job(tmp_path, **{**JOB, "checkpoint": checkpoint}, cluster={"address": address})
        first = Driver(home, str(job), program=PACED)
        first.read_until_step(30)
        first.read_until_saved(25)
    # The head is gone, and every other node with it.
    first.kill()
    wait_until_gone(lambda: ray_processes(pids), 10.0)
    record = RunStore(home).read("last")
    with standing_cluster(2) as address:
        spec = record.layout.spec.read_text()
        lines = [f"  address: {address}" if line.startswith("  address:") else line for line in spec.splitlines()]
        record.layout.spec.write_text("\n".join(lines) + "\n")
        second = Driver(home, "--resume", "last")
        assert second.end() == 0, second.errors()
    assert second.of("vaults.adopted") == []
    resumed = second.of("run.created")[0]["resumed_from_step"]
    assert resumed >= 25
    assert second.of("step")[0]["step"] == resumed + 1
    # Workers may have gone on, up to a checkpoint, when their driver could write nothing down any more.
    steps = current_steps(record.layout.steps)
    assert [step.loss for step in steps] == [undisturbed[step.step - 1] for step in steps]
    assert steps[-1].step == STEPS
    missing = resumed - first.of("step")[-1]["step"]
    told = any("were lost with the driver" in event["message"] for event in second.of("warning"))
    assert told == (missing > 0)
    assert prove(record).ok == (missing <= 0)
    wait_until_gone(lambda: ray_processes(pids), 5.0)
    assert left_in_shared_memory(shm) == set()
