"""A short real run in which a worker is killed and the number of workers changes, scraped by a real Prometheus."""

import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from orchestrator.domain.events import CheckpointSaved, EvalFinished, GangResized, RecoveryFinished, RunCreated
from orchestrator.domain.run_layout import RunLayout
from orchestrator.domain.step_report import StepReport
from orchestrator.run.launcher import RunOutcome, run_job
from orchestrator.spec.loading.load import load_job
from orchestrator.store.exchange.scale_files import ask
from orchestrator.store.run_store import read_record
from tests.cluster.gang_runs import ENTRIES, StrikeWhenProtected, kill_worker, write_job
from tests.monitoring.prometheus_server import PrometheusServer

JOB: dict[str, Any] = {
    "train": {"steps": 400, "global_batch": 12, "lr": 1e-3, "eval_interval_steps": 8},
    "data": {
        "sources": [{"files": ["corpus/*.txt"], "format": "lines"}],
        "sequence_length": 16,
        "validation": {"fraction": 0.05, "max_samples": 8},
    },
    "zero": {"stage": 1},
    "resources": {"workers": {"min": 1, "max": 2}},
    "cluster": {"nodes": 2, "cpus_per_node": 1, "usd_per_hour": 2.5},
    "checkpoint": {"memory_interval_steps": 1, "interval_steps": 10, "at_end": False},
}
SETTLE_S = 3.0
"""From the last event to the end: a few scrapes."""
WAITED_FOR = (RecoveryFinished, CheckpointSaved, EvalFinished)


def scraped_twice(server: PrometheusServer, job: str) -> bool:
    """Whether Prometheus has a run of the job already, and would see an increase."""
    return bool(server.instant(f'count_over_time(convoy_recoveries_total{{job="{job}"}}[1m]) >= 2', time.time()))


class StrikeWhenScraped(StrikeWhenProtected):
    """Kills a worker when Prometheus knows the run: what happens before its first scrape is no increase."""

    def __init__(self, scraped: Callable[[], bool]) -> None:
        super().__init__(6, 1, kill_worker)
        self._scraped = scraped

    def on_step(self, report: StepReport) -> None:
        if not self.struck and not self._scraped():
            self.at = report.step + 1
        super().on_step(report)


class Drill(StrikeWhenScraped):
    """Kills a worker, asks for one worker less when the run has recovered, and stops the run when all has happened."""

    def __init__(self, runs: Path, stop: threading.Event, scraped: Callable[[], bool]) -> None:
        super().__init__(scraped)
        self.runs, self.ending = runs, stop
        self.asked_s = 0.0
        self.begun_s, self.ended_s = time.time(), 0.0

    def on_step(self, report: StepReport) -> None:
        super().on_step(report)
        if self.of(RecoveryFinished) and not self.asked_s and report.world_size == 2:
            self.asked_s = time.time()
            run = next(event.body.run_id for event in self.events if isinstance(event.body, RunCreated))
            record = read_record(RunLayout(self.runs / run))
            assert record is not None
            ask(record, 1, "the drill", False)
        done = self.asked_s and report.world_size == 1 and self.of(GangResized) and all(map(self.of, WAITED_FOR))
        if done and not self.ended_s:
            self.ended_s = time.time() + SETTLE_S
        if self.ended_s and time.time() > self.ended_s:
            self.ending.set()


def drill(directory: Path, port: int, scraped: Callable[[], bool]) -> tuple[RunOutcome, Drill]:
    """Run it, with its metrics at the port. Its steps take a third of a second."""
    stop = threading.Event()
    watcher = Drill(directory / "runs", stop, scraped)
    job = load_job(write_job(directory, "drilled", **JOB, metrics={"port": port}))
    return run_job(job, directory / "runs", [watcher], stop, f"{ENTRIES}:train_held"), watcher
