"""A node joins a gang of three that trains: how long training pauses, what is lost, when the new worker trains.

The pause is the time from the end of the last step of three workers to the end of the first of four, less a usual
step of four.
"""

import signal
import statistics
import tempfile
import threading
import time
from dataclasses import dataclass
from pathlib import Path

from orchestrator.domain.events import Event, RecoveryStarted
from orchestrator.domain.step_report import StepReport
from tests.bench.course import MODEL_4M, Course, node_of, send, spread, train
from tests.bench.head_and_nodes import HeadAndNodes, head_and_nodes
from tests.bench.measure import Row
from tests.bench.peer_processes import say

BEFORE = 3
TIMES = 2
LIMIT_S = 110.0
PAUSE_BARS_S = {1: 1.5, 3: 2.5}
ARRIVAL_BAR_S = 20.0


@dataclass(frozen=True)
class Join:
    """One node that came."""

    pause_s: float
    steps_lost: int
    """Made once more, or left out."""
    arrival_s: float
    """From the moment the cluster knew the node to the end of the new worker's first step."""


class Joiner(Course):
    """Has a node join, takes it away again, and so on; stops the run after the last one."""

    def __init__(self, times: int, cluster: HeadAndNodes) -> None:
        super().__init__()
        self.joins: list[Join] = []
        self._times, self._cluster = times, cluster
        self._asked = False
        self._arrived_s = 0.0
        self._change: tuple[StepReport, StepReport] | None = None

    def on_event(self, event: Event) -> None:
        super().on_event(event)
        if isinstance(event.body, RecoveryStarted):
            self._asked = False

    def on_step(self, report: StepReport) -> None:
        before = self.steps[-1] if self.steps else None
        super().on_step(report)
        if before is not None and (before.world_size, report.world_size) == (BEFORE, BEFORE + 1):
            self._change = (before, report)
        if self._change is not None and self.steady(report, BEFORE + 1):
            self._take(self._change)
        elif not self._asked and self._change is None and self.steady(report, BEFORE):
            self._asked = True
            threading.Thread(target=self._add, name="add-node", daemon=True).start()

    def _add(self) -> None:
        self._cluster.add()
        self._arrived_s = time.time()

    def _take(self, change: tuple[StepReport, StepReport]) -> None:
        last, first = change
        self._change = None
        usual_s = statistics.median(step.step_time_s for step in self.steps[-self.steps_since_change + 2 :])
        lost = abs(first.step - last.step - 1)
        pause_s = first.time_s - last.time_s - usual_s
        self.joins.append(Join(pause_s, lost, first.time_s - self._arrived_s))
        say(f"a node joined: training paused {pause_s:.2f} s")
        if len(self.joins) == self._times:
            self.over.set()
        else:
            send(signal.SIGKILL, node_of(self.pids[max(self.pids)]))


def joined_run(scratch: Path, stage: int, times: int = TIMES, limit_s: float = LIMIT_S) -> list[Join]:
    """Raises RuntimeError where it takes too long."""
    say(f"Convoy, ZeRO-{stage}: a node joins {BEFORE}, {times} times")
    with head_and_nodes(BEFORE) as cluster, tempfile.TemporaryDirectory(dir=scratch) as directory:
        joiner = Joiner(times, cluster)
        resources = {"workers": {"min": 1, "max": BEFORE + 1}}
        train(Path(directory), cluster.address, joiner, MODEL_4M, limit_s, zero={"stage": stage}, resources=resources)
    return joiner.joins


def rows(stage: int, joins: list[Join]) -> list[Row]:
    """Three lines a stage."""
    pauses, arrivals = [join.pause_s for join in joins], [join.arrival_s for join in joins]
    lost, bar_s = max(join.steps_lost for join in joins), PAUSE_BARS_S[stage]
    pause_met = statistics.median(pauses) <= bar_s
    arrival_met = statistics.median(arrivals) <= ARRIVAL_BAR_S
    name = f"a node joins, ZeRO-{stage}, {BEFORE} to {BEFORE + 1} workers"
    return [
        Row(f"{name}: pause of training", spread(pauses), "", None, f"<= {bar_s:g} s", pause_met),
        Row(f"{name}: steps lost", str(lost), "", None, "0", lost == 0),
        Row(f"{name}: until it trains", spread(arrivals), "", None, f"<= {ARRIVAL_BAR_S:g} s", arrival_met),
    ]


def measure(scratch: Path) -> list[Row]:
    return [row for stage in PAUSE_BARS_S for row in rows(stage, joined_run(scratch, stage))]
