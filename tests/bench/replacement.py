"""A worker of a local cluster is killed: how long until its replacement trains.

The time is from the signal to the end of the first step of a gang that is full again. The others train on meanwhile.
"""

import tempfile
import threading
import time
from pathlib import Path

from orchestrator.domain.events import Event, RecoveryFinished
from orchestrator.domain.step_report import StepReport
from tests.bench.course import MODEL_4M, Course, spread, train
from tests.bench.measure import Row
from tests.bench.peer_processes import say
from tests.cluster.gang_runs import kill_worker

WORKERS = 3
TIMES = 5
LIMIT_S = 180.0
BAR_S = 4.0
STAGES = (1, 3)


class Replaced(Course):
    """Kills a worker, waits until the gang is full again, and so on; stops the run after the last one."""

    def __init__(self) -> None:
        super().__init__()
        self.seconds: list[float] = []
        self._struck_s: float | None = None

    def on_event(self, event: Event) -> None:
        super().on_event(event)
        if isinstance(event.body, RecoveryFinished) and self._struck_s is not None:
            say(f"{event.body.world_size} workers go on after {time.time() - self._struck_s:.2f} s")

    def on_step(self, report: StepReport) -> None:
        shrunk = bool(self.steps) and self.steps[-1].world_size < WORKERS
        super().on_step(report)
        if self._struck_s is not None and report.world_size == WORKERS and (shrunk or self.steps_since_change == 1):
            self.seconds.append(report.time_s - self._struck_s)
            say(f"the replacement trains after {self.seconds[-1]:.2f} s")
            self._struck_s = None
            if len(self.seconds) == TIMES:
                self.over.set()
        elif self._struck_s is None and self.steady(report, WORKERS):
            self._struck_s = time.time()
            threading.Thread(target=kill_worker, args=(self.pids[WORKERS - 1],), daemon=True).start()


def replaced(scratch: Path, stage: int) -> list[float]:
    """Seconds of each time. Raises RuntimeError if it takes too long."""
    say(f"Convoy, ZeRO-{stage}: a worker of {WORKERS} is killed, {TIMES} times")
    observer = Replaced()
    with tempfile.TemporaryDirectory(dir=scratch) as directory:
        changes = {
            "zero": {"stage": stage},
            "resources": {"workers": {"min": 1, "max": WORKERS}},
            "cluster": {"nodes": WORKERS},
            "recovery": {"max_failures": 100},
        }
        train(Path(directory), "", observer, MODEL_4M, LIMIT_S, **changes)
    return observer.seconds


def measure(scratch: Path) -> list[Row]:
    rows = []
    for stage in STAGES:
        seconds = replaced(scratch, stage)
        met = sorted(seconds)[len(seconds) // 2] <= BAR_S
        name = f"worker killed to its replacement's first step, ZeRO-{stage}, local cluster of {WORKERS}"
        rows.append(Row(name, spread(seconds), "", None, f"<= {BAR_S:g} s", met))
    return rows
