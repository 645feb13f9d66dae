"""A vault that ends alone, while its node and its workers live: another takes its place, nothing healthy is lost."""

import os
import signal
import socket
import threading
import time
from pathlib import Path
from typing import Any

import psutil
import pytest

from orchestrator.clusters.ray.node_processes import descendants, raylet_of
from orchestrator.domain.events import (
    Event,
    GangResized,
    MetricsServing,
    RecoveryFinished,
    RecoveryStarted,
    RunState,
    WarningIssued,
    WorkerStarted,
)
from orchestrator.domain.step_report import StepReport
from orchestrator.run.launcher import TRAIN_ENTRY, RunOutcome, run_job
from orchestrator.spec.loading.load import load_job
from tests.cluster.gang_runs import (
    ENTRIES,
    Recording,
    all_pids,
    command_of,
    curve,
    left_in_shared_memory,
    own_temporary_directory,
    ray_processes,
    shared_memory,
    write_job,
)
from tests.cluster.scraping import Scraper

pytestmark = [pytest.mark.faults, pytest.mark.usefixtures("temporary_directory")]

BATCH = 12
JOB: dict[str, Any] = {
    "train": {"steps": 70, "global_batch": BATCH, "lr": 1e-3},
    "zero": {"stage": 1},
    "resources": {"workers": 2},
    "cluster": {"nodes": 2, "cpus_per_node": 1},
    "checkpoint": {"memory_interval_steps": 1, "interval_steps": 50},
    "metrics": {"port": 0},
}
STOPPED_S = 4.0


def train(directory: Path, recording: Recording, entry: str = TRAIN_ENTRY) -> RunOutcome:
    return run_job(load_job(write_job(directory, **JOB)), directory / "runs", [recording], threading.Event(), entry)


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> list[float]:
    """Losses of the job when nothing happens to it."""
    directory = tmp_path_factory.mktemp("undisturbed")
    with own_temporary_directory():
        return curve(train(directory, Recording()), BATCH)


class Watching(Recording):
    """Knows the workers' processes and the vaults of their nodes."""

    def __init__(self) -> None:
        super().__init__()
        self.pids: dict[int, int] = {}

    def on_event(self, event: Event) -> None:
        super().on_event(event)
        if isinstance(event.body, WorkerStarted):
            self.pids[int(event.body.rank)] = int(event.body.pid)

    def vault(self, rank: int) -> psutil.Process:
        """Of a rank's node."""
        raylet = raylet_of(self.pids[rank])
        (vault,) = [each for each in descendants(raylet.pid) if "ray::ConvoyVault" in command_of(each)]
        return vault

    def warnings(self) -> list[str]:
        return [fields["message"] for fields in self.of(WarningIssued)]


class OneAfterTheOther(Watching):
    """Stops rank 0's vault for a while; then kills rank 1's; then, when the state is kept again, worker 1."""

    def __init__(self) -> None:
        super().__init__()
        self.slow = self.killed = 0
        """Pids of the two vaults."""
        self.continued_s: float | None = None
        self.killed_at = self.struck_at = 0
        self.named: list[str] = []
        """Warnings from the vault's end on, until the worker's."""
        self.scraped = Scraper()

    def on_event(self, event: Event) -> None:
        super().on_event(event)
        if isinstance(event.body, MetricsServing):
            self.scraped.begin(event.body.url)

    def on_step(self, report: StepReport) -> None:
        super().on_step(report)
        kept = report.protected_step
        if not self.slow and kept is not None:
            slow = self.vault(0)
            self.slow = slow.pid
            slow.suspend()
            threading.Timer(STOPPED_S, self._go_on, [slow]).start()
        elif not self.killed and self.continued_s is not None and kept is not None and kept >= report.step - 1:
            assert self.warnings() == []  # it was slow, no more
            assert self.vault(0).pid == self.slow
            self.killed, self.killed_at = self.vault(1).pid, report.step
            os.kill(self.killed, signal.SIGKILL)
        elif self.killed and not self.struck_at and kept is not None and kept > self.killed_at + 1:
            self.named = self.warnings()
            assert self.vault(1).pid != self.killed
            self.struck_at = report.step
            os.kill(self.pids[1], signal.SIGKILL)

    def _go_on(self, vault: psutil.Process) -> None:
        vault.resume()
        self.continued_s = time.monotonic()


def test_another_takes_its_place_and_protects_as_before(tmp_path: Path, undisturbed: list[float]) -> None:
    pids, shm = all_pids(), shared_memory()
    seen = OneAfterTheOther()
    seen.safe_after(RecoveryFinished, tmp_path / "runs")
    outcome = train(tmp_path, seen, f"{ENTRIES}:train_held")
    assert (outcome.state, outcome.reason) == (RunState.SUCCEEDED, None)
    (told,) = [warning for warning in seen.named if "has ended although its node is up" in warning]
    assert f"(process {seen.killed})" in told
    (started,) = seen.of(RecoveryStarted)  # of the worker alone: the vault's end interrupted nobody
    assert started["rank"] == 1
    assert started["source"] == "vaults"
    assert started["step"] - started["from_step"] <= 1
    assert seen.of(GangResized) == []
    assert curve(outcome, BATCH) == undisturbed
    assert ray_processes(pids) == []
    assert left_in_shared_memory(shm) == set()
    check_metrics(seen.scraped)


def check_metrics(scraped: Scraper) -> None:
    """Of a run of two workers on two nodes that has lost a vault and a worker, and has written a checkpoint."""
    scraped.end()

    def value(name: str, **labels: str) -> float:
        (found,) = scraped.of(name, **labels)
        return found

    state_bytes = value("convoy_snapshot_bytes_total")
    assert state_bytes > 0
    assert 0 < value("convoy_replication_bytes_total") <= state_bytes
    assert value("convoy_replication_duration_seconds_count") > 5
    assert value("convoy_snapshot_duration_seconds_count") > 5
    assert value("convoy_durable_write_duration_seconds_count") >= 1
    assert sum(scraped.of("convoy_recoveries_total")) == 1
    phases = {name: value("convoy_recovery_phase_seconds_total", phase=name) for name in PHASES}
    assert all(phases.values()), phases
    assert sum(phases.values()) == pytest.approx(value("convoy_recovery_duration_seconds_sum"), abs=0.3)
    assert len(scraped.of("convoy_node_info", hostname=socket.gethostname())) == 2
    for part in ("parameters", "optimizer"):
        predicted = value("convoy_memory_part_bytes", part=part, source="predicted")
        assert value("convoy_memory_part_bytes", part=part, source="measured") == pytest.approx(predicted, rel=0.2)
    assert value("convoy_memory_part_bytes", part="gradients", source="measured") > 0
    assert scraped.of("convoy_memory_part_bytes", part="activations", source="measured") == []
    assert 0 < value("convoy_communication_ratio") < 1
    assert value("convoy_slowest_rank") in (0, 1)
    assert value("convoy_driver_cpu_seconds_total") > 0
    assert 0 < value("convoy_driver_loop_lag_seconds") < 5
    assert not any(scraped.of("convoy_gpu_info"))


PHASES = ("decision", "rebuild", "restore", "first_step")
"""Of a recovery, without its detection, which is not a part of its duration."""


class BothAtOnce(Watching):
    """Kills rank 0's vault and worker 1, on two nodes, at the same moment."""

    def __init__(self, runs: Path) -> None:
        super().__init__()
        self.runs = runs
        self.struck = 0
        self.survivor = 0

    def on_step(self, report: StepReport) -> None:
        super().on_step(report)
        kept = report.protected_step
        if not self.struck and report.step >= 3 and kept is not None:
            self.struck, self.survivor = report.step, self.pids[0]
            os.kill(self.vault(0).pid, signal.SIGKILL)
            os.kill(self.pids[1], signal.SIGKILL)
        elif self.struck and kept is not None and kept > self.struck + 1:  # protected again
            (self.runs / "safe").touch()


def test_the_worker_beside_it_is_not_given_up(tmp_path: Path, undisturbed: list[float]) -> None:
    seen = BothAtOnce(tmp_path / "runs")
    outcome = train(tmp_path, seen, f"{ENTRIES}:train_held")
    assert (outcome.state, outcome.reason) == (RunState.SUCCEEDED, None)
    assert seen.struck
    (started,) = seen.of(RecoveryStarted)
    assert (started["rank"], started["source"]) == (1, "vaults")
    assert seen.pids[0] == seen.survivor  # the same process went on
    assert seen.steps[-1].protected_step is not None
    assert seen.steps[-1].protected_step > started["step"]
    assert curve(outcome, BATCH) == undisturbed
