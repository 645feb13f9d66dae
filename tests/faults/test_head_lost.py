"""A cluster whose head dies for good while its driver and its nodes live: nothing is lost, and it is said why."""

import signal
import threading
import time
from pathlib import Path
from typing import Any

import psutil
import pytest

from orchestrator.domain.events import RunState
from orchestrator.gang.health.head import END_S, PARK_S
from orchestrator.run.launcher import run_job
from orchestrator.spec.loading.load import load_job
from orchestrator.store.data_proof import prove
from orchestrator.store.run_history import current_steps
from orchestrator.store.run_store import RunStore
from tests.bench.head_and_nodes import HeadAndNodes, head_and_nodes
from tests.cluster.gang_runs import all_pids, left_in_shared_memory, ray_processes, shared_memory, write_job
from tests.cluster.standing import PACED, Driver, standing_cluster

pytestmark = [pytest.mark.faults, pytest.mark.usefixtures("temporary_directory")]

STEPS = 300
LATE_S = 20.0
"""How long after its time a busy machine may do something."""
JOB: dict[str, Any] = {
    "train": {"steps": STEPS, "global_batch": 12, "lr": 1e-3},
    "zero": {"stage": 1},
    "resources": {"workers": 2},
    "checkpoint": {"memory_interval_steps": 1, "interval_steps": 1000},
}


def kill_head(cluster: HeadAndNodes) -> None:
    """The GCS and the raylet beside it, as when that machine loses its power."""
    children = psutil.Process(cluster.pid).children()
    (gcs,) = [child for child in children if child.name() == "gcs_server"]
    raylets = [child for child in children if child.name() == "raylet"]
    for process in (gcs, min(raylets, key=lambda raylet: raylet.create_time())):
        process.send_signal(signal.SIGKILL)


def go_on_elsewhere(home: Path) -> int:
    """Resume the failed run on another cluster to its end, with its data proved; the first step that it makes there."""
    record = RunStore(home).read("last")
    assert record.state is RunState.FAILED
    with standing_cluster(2) as address:
        second = Driver(home, "--resume", "last", "--set", f"cluster.address={address}")
        assert second.end() == 0, second.errors()
    assert f"address: {address}" in record.layout.spec.read_text()
    assert prove(RunStore(home).read("last")).ok
    return int(second.of("step")[0]["step"])


@pytest.mark.soak  # Ray gives a head a minute
@pytest.mark.timeout(600)
def test_a_lost_head_ends_the_run_with_a_checkpoint_and_a_reason(tmp_path: Path) -> None:
    pids, shm, home = all_pids(), shared_memory(), tmp_path / "runs"
    undisturbed = run_job(load_job(write_job(tmp_path, **JOB)), home, [], threading.Event())
    assert undisturbed.state is RunState.SUCCEEDED
    with head_and_nodes(2) as cluster:
        job = write_job(tmp_path, **JOB, cluster={"address": cluster.address})
        first = Driver(home, str(job), program=PACED)
        first.read_until_step(30)
        kill_head(cluster)
        killed_s = time.time()
        assert first.end() == 1, first.errors()
        assert END_S <= time.time() - killed_s <= END_S + LATE_S
    (told,) = [event for event in first.of("warning") if "head of the cluster" in event["message"]]
    assert cluster.address in told["message"]
    assert told["time_s"] - killed_s < LATE_S
    (saved,) = first.of("checkpoint.saved")
    assert PARK_S <= saved["time_s"] - killed_s <= PARK_S + LATE_S
    assert saved["step"] == first.of("step")[-1]["step"]  # every step that was made
    assert "the head of the cluster at" in first.errors()
    assert "--set cluster.address=HOST:PORT" in first.errors()
    assert go_on_elsewhere(home) == saved["step"] + 1
    losses = [step.loss for step in current_steps(RunStore(home).read("last").layout.steps)]
    assert losses == [step.loss for step in current_steps(undisturbed.run_dir / "steps.jsonl")]
    assert ray_processes(pids) == []
    assert left_in_shared_memory(shm) == set()


@pytest.mark.soak
@pytest.mark.timeout(600)
def test_a_head_and_a_worker_that_are_lost_together_leave_a_reason_and_the_last_checkpoint(tmp_path: Path) -> None:
    """Nobody can be replaced, and no step boundary comes any more."""
    pids, shm, home = all_pids(), shared_memory(), tmp_path / "runs"
    changes = {**JOB, "checkpoint": {"memory_interval_steps": 1, "interval_steps": 10}}
    with head_and_nodes(2) as cluster:
        job = write_job(tmp_path, **changes, cluster={"address": cluster.address})
        first = Driver(home, str(job), program=PACED)
        first.read_until_step(30)
        kill_head(cluster)
        psutil.Process(first.of("worker.started")[-1]["pid"]).kill()
        killed_s = time.time()
        assert first.end() == 1, first.errors()
        assert END_S <= time.time() - killed_s <= END_S + LATE_S
    assert "the head of the cluster at" in first.errors()
    assert go_on_elsewhere(home) in (21, 31)
    assert ray_processes(pids) == []
    assert left_in_shared_memory(shm) == set()
