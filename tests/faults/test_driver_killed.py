"""A driver that is killed while its run trains on a cluster that goes on: another one loses no committed step."""

import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from orchestrator.domain.events import RunState
from orchestrator.metrics.json_file import read_json
from orchestrator.service import run_job
from orchestrator.spec.load import load_job
from orchestrator.store.history import current_steps
from orchestrator.store.proof import prove
from orchestrator.store.runs import RunStore
from tests.cluster.gang_runs import (
    all_pids,
    own_temporary_directory,
    ray_processes,
    shared_memory,
    write_job,
)
from tests.cluster.standing import Driver, standing_cluster

pytestmark = pytest.mark.faults

STEPS = 240
JOB: dict[str, Any] = {
    "train": {"steps": STEPS, "global_batch": 12, "lr": 1e-3},
    "zero": {"stage": 1},
    "resources": {"workers": 2},
    "checkpoint": {"memory_interval_steps": 1},
    "recovery": {"memory_kept_s": 30},
}


@pytest.fixture(autouse=True)
def temporary_directory(tmp_path: Path) -> Iterator[Path]:
    """See `own_temporary_directory`. After `tmp_path`, which is made under the usual one."""
    with own_temporary_directory() as directory:
        yield directory


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> list[float]:
    """Losses of the job on a local cluster."""
    directory = tmp_path_factory.mktemp("undisturbed")
    with own_temporary_directory():
        outcome = run_job(load_job(write_job(directory, **JOB)), directory / "runs", [], threading.Event())
    assert outcome.state is RunState.SUCCEEDED
    return [step.loss for step in current_steps(outcome.run_dir / "steps.jsonl")]


def losses(home: Path) -> list[float]:
    """Of the only run, after the proof that its data is exact."""
    record = RunStore(home).read("last")
    assert record.state is RunState.SUCCEEDED
    assert prove(record).ok
    return [step.loss for step in current_steps(record.layout.steps)]


def ours(since: set[int]) -> list[str]:
    """Processes of workers and vaults."""
    return [line for line in ray_processes(since) if "ray::Convoy" in line]


def test_another_driver_adopts_the_vaults(tmp_path: Path, undisturbed: list[float]) -> None:
    pids, shm, home = all_pids(), shared_memory(), tmp_path / "runs"
    with standing_cluster(2) as address:
        job = write_job(tmp_path, **JOB, cluster={"address": address})
        first = Driver(home, str(job))
        first.read_until_step(60)
        first.kill()
        record = RunStore(home).read("last")
        assert record.lost
        second = Driver(home, "--resume", "last")
        assert second.end() == 0, second.errors()
        (adopted,) = second.of("vaults.adopted")
        assert adopted["vaults"] == 2
        assert adopted["step"] >= first.of("step")[-1]["step"] - 1
        assert second.of("step")[0]["step"] == adopted["step"] + 1
        assert adopted["time_s"] - second.started_s < 30
        print(
            f"adopted {adopted['time_s'] - second.started_s:.1f} s after its start, {adopted['seconds']:.2f} s of it "
            f"adoption; first step after {second.of('step')[0]['time_s'] - second.started_s:.1f} s"
        )
        assert ours(pids) == []
    assert losses(home) == undisturbed
    left = read_json(record.layout.durability)
    assert left is not None
    assert (left["kept"], left["storage_step"]) == (False, STEPS)
    assert all("token" not in file.read_text() for file in [record.layout.durability, record.layout.state])
    deadline = time.monotonic() + 5.0
    while ray_processes(pids) and time.monotonic() < deadline:
        time.sleep(0.1)
    assert ray_processes(pids) == []
    assert shared_memory() == shm
