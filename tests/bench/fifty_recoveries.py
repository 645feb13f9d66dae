"""What fifty recoveries leave in one process: memory, threads and file descriptors of a worker that survives them all.

Of two workers with a tiny model one is killed every few steps; a standby process takes its place.
"""

import signal
import tempfile
from dataclasses import dataclass
from pathlib import Path

import psutil

from orchestrator.domain.events import Event, RecoveryFinished
from orchestrator.domain.step_report import StepReport
from tests.bench.course import Course, send, train
from tests.bench.elastic_restore import own_bytes
from tests.bench.head_and_nodes import head_and_nodes
from tests.bench.measure import Row
from tests.bench.peer_processes import say

WORKERS, STANDBY = 2, 2
FIRST, LAST = 5, 50
STEPS_BETWEEN = 5
TINY = {"n_layer": 1, "n_embd": 32, "n_head": 2}
LIMIT_S = 450.0
MEMORY_BYTES = 32 << 20
"""The constant that memory may grow by between the fifth and the last recovery; threads and descriptors: by none."""


@dataclass(frozen=True)
class Held:
    """What the survivor has, some steps after a recovery."""

    recoveries: int
    memory_bytes: int
    threads: int
    descriptors: int


class Survivor(Course):
    """Kills the worker that is not the survivor, again and again."""

    def __init__(self) -> None:
        super().__init__()
        self.held: list[Held] = []
        self._pid: int | None = None
        self._recoveries = 0
        self._waits = False

    def on_event(self, event: Event) -> None:
        super().on_event(event)
        if isinstance(event.body, RecoveryFinished):
            self._recoveries += 1
            self._waits = False

    def expire(self) -> None:
        """As far as it came is a result too, if it came further than the first look."""
        if len(self.held) > FIRST:
            self.over.set()
        else:
            super().expire()

    def on_step(self, report: StepReport) -> None:
        super().on_step(report)
        there = report.world_size == WORKERS == len(self.pids) and report.protected_step is not None
        if self._waits or not there or self.steps_since_change < STEPS_BETWEEN:
            return
        if self._pid is None:
            self._pid = self.pids[0]
        if self._pid not in self.pids.values():
            super().expire()  # the survivor did not survive: an observer must not raise
            return
        process = psutil.Process(self._pid)
        self.held.append(Held(self._recoveries, own_bytes(self._pid), process.num_threads(), process.num_fds()))
        if self._recoveries >= LAST:
            self.over.set()
            return
        self._waits = True
        send(signal.SIGKILL, [pid for pid in self.pids.values() if pid != self._pid])


def survived(scratch: Path, limit_s: float = LIMIT_S) -> list[Held]:
    """What was held after each recovery; fewer than `LAST` where the time did not suffice."""
    say(f"Convoy: {LAST} recoveries of one process")
    with head_and_nodes(WORKERS) as cluster, tempfile.TemporaryDirectory(dir=scratch) as directory:
        survivor = Survivor()
        train(
            Path(directory),
            cluster.address,
            survivor,
            TINY,
            limit_s,
            resources={"workers": WORKERS, "standby": STANDBY},
            recovery={"max_failures": 10 * LAST},
            checkpoint={"memory_interval_steps": 1, "interval_steps": "never", "at_end": False},
        )
    return survivor.held


def rows(held: list[Held]) -> list[Row]:
    """Memory, threads and descriptors; not met where fewer recoveries were made than there must be."""
    first = next(each for each in held if each.recoveries >= FIRST)
    last, mebi = held[-1], 1 << 20
    grown = last.memory_bytes - first.memory_bytes
    whole = last.recoveries >= LAST
    name = f"after {last.recoveries} recoveries, against after {first.recoveries}"
    note = "" if whole else f"{LAST} recoveries did not fit into {LIMIT_S:.0f} s"
    limit = MEMORY_BYTES / mebi
    threads = f"{last.threads} against {first.threads}"
    files = f"{last.descriptors} against {first.descriptors}"
    return [
        Row(
            f"memory {name}",
            f"{grown / mebi:+.1f} MiB",
            "",
            None,
            f"<= +{limit:.0f} MiB",
            whole and grown <= MEMORY_BYTES,
            note,
        ),
        Row(f"threads {name}", threads, "", None, "+0", whole and last.threads <= first.threads),
        Row(f"file descriptors {name}", files, "", None, "+0", whole and last.descriptors <= first.descriptors),
    ]


def measure(scratch: Path) -> list[Row]:
    return rows(survived(scratch))
