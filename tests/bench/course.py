"""The course of our runs under real faults: what is done to them, and where the seconds of a recovery go."""

import contextlib
import itertools
import os
import signal
import statistics
import threading
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from orchestrator.clusters.ray.node_processes import descendants, raylet_of
from orchestrator.domain.events import (
    DataProgress,
    Event,
    GangResized,
    RecoveryFinished,
    RecoveryStarted,
    WorkerLog,
    WorkerPhase,
    WorkerStarted,
)
from orchestrator.domain.events.event_codec import encode_body
from orchestrator.domain.step_report import StepReport
from orchestrator.run.launcher import RunOutcome, run_job
from orchestrator.spec.loading.load import load_job
from tests.bench.head_and_nodes import HeadAndNodes
from tests.bench.peer_processes import end_processes, say
from tests.cluster.gang_runs import Recording, write_job

MODEL_4M = {"n_layer": 5, "n_embd": 256, "n_head": 4}
"""4.0 M parameters with the vocabulary of the text that the benchmarks write: as many as the peers'."""
MODEL_110M = {"n_layer": 16, "n_embd": 768, "n_head": 12}
"""114 M parameters."""
NODES = 4
GLOBAL_BATCH = 12
SEQUENCE_LENGTH = 64
STEADY_STEPS = 8
"""Steps of a full gang before the next fault."""


def train(
    directory: Path, address: str, observer: "Course", model: dict[str, int], limit_s: float, **changes: Any
) -> RunOutcome:
    """Run a job on the cluster at `address` until its observer stops it, `limit_s` at most. Raises RuntimeError where
    it fails or takes too long; `changes` replace sections of the job."""
    sections = {
        "model": {"architecture": "gpt2", "config": model},
        "data": {"sources": [{"files": ["corpus/*.txt"]}], "sequence_length": SEQUENCE_LENGTH},
        "train": {"steps": 1_000_000, "global_batch": GLOBAL_BATCH, "lr": 1e-4, "schedule": "constant"},
        "checkpoint": {"interval_steps": "never", "at_end": False},
        "cluster": {"address": address},
        **changes,
    }
    timer = threading.Timer(limit_s, observer.expire)
    timer.start()
    try:
        job = load_job(write_job(directory, name="bench", **sections))
        outcome = run_job(job, directory / "runs", [observer], observer.over)
    finally:
        timer.cancel()
        end_processes(observer.stopped_pids)
    if observer.expired:
        raise RuntimeError(f"not done within {limit_s:.0f} s: {observer.last_words()}")
    if not observer.over.is_set():
        raise RuntimeError(f"the run ended before its benchmark: {outcome.state}: {outcome.reason}")
    return outcome


class Course(Recording):
    """Observer that knows the processes of the present gang and since when it stands. All calls are the driver's."""

    def __init__(self) -> None:
        super().__init__()
        self.over = threading.Event()
        self.expired = False
        self.pids: dict[int, int] = {}
        """Of the present gang, by rank."""
        self.steps_since_change = 0
        self.stopped_pids: list[int] = []
        """Processes that stand still and must be ended by whoever stopped them."""

    def on_event(self, event: Event) -> None:
        super().on_event(event)
        if isinstance(event.body, RecoveryStarted | GangResized):
            self.pids.clear()
            self.steps_since_change = 0
        elif isinstance(event.body, WorkerStarted):
            self.pids[int(event.body.rank)] = int(event.body.pid)

    def on_step(self, report: StepReport) -> None:
        super().on_step(report)
        self.steps_since_change += 1

    def expire(self) -> None:
        """The time is over."""
        self.expired = True
        self.over.set()

    def steady(self, report: StepReport, workers: int) -> bool:
        """Whether the gang is full, has trained for a while, and its state lies in the vaults."""
        full = report.world_size == workers == len(self.pids)
        return full and self.steps_since_change >= STEADY_STEPS and report.protected_step is not None

    def last_words(self) -> str:
        """Of the run, for an error."""
        kinds = (WorkerLog, DataProgress)
        told = [f"{event.body}" for event in self.events if not isinstance(event.body, kinds)]
        return f"step {self.steps[-1].step if self.steps else 0}\n" + "\n".join(line[:300] for line in told[-12:])


@dataclass(frozen=True)
class Parts:
    """Where the seconds of one recovery go, in order."""

    detection_s: float
    """From the fault to the driver's knowing of it."""
    unblocking_s: float
    """Until the survivors have left their collectives and it is decided what to go on from."""
    forming_s: float
    """Until rank 0 of the new gang runs."""
    rendezvous_s: float
    build_s: float
    """Model and engine."""
    restore_s: float
    first_step_s: float

    @property
    def seconds(self) -> float:
        """From the fault to the end of the first new step."""
        return sum(getattr(self, part.name) for part in fields(self))


@dataclass(frozen=True)
class Struck:
    """One fault and what came of it."""

    fault: str
    parts: Parts
    steps_recomputed: int
    source: str
    """What training went on from: vaults, storage or beginning."""
    workers_after: int

    @property
    def seconds(self) -> float:
        return self.parts.seconds


def parts_of(struck_s: float, events: Sequence[Event], first_step: StepReport) -> Parts:
    """From the events since the fault and the first step after it."""
    phases = {e.body.phase: e.time_s for e in events if isinstance(e.body, WorkerPhase)}
    started = next(event for event in events if isinstance(event.body, RecoveryStarted))
    marks = [
        struck_s,
        float(started.body.detected_s),
        started.time_s,
        phases["rendezvous"],
        phases["build"],
        phases.get("restore", phases["train"]),
        phases["train"],
        first_step.time_s,
    ]
    return Parts(*(b - a for a, b in itertools.pairwise(marks)))


class Striker(Course):
    """Strikes with one fault after another, each when the gang is full again, and stops the run after the last."""

    def __init__(self, faults: Sequence[str], workers: int, cluster: HeadAndNodes) -> None:
        """`faults`: of `worker`, `workers`, `node`, `silent` and `nodes`; a node that is lost is replaced."""
        super().__init__()
        self.struck: list[Struck] = []
        self._left, self._workers, self._cluster = list(faults), workers, cluster
        self._fault: str | None = None
        self._struck_s = 0.0
        self._from_event = 0

    def on_event(self, event: Event) -> None:
        super().on_event(event)
        if self._fault is not None and isinstance(event.body, RecoveryFinished):
            self._take(self.steps[-1])  # the event follows the step that ended the recovery

    def on_step(self, report: StepReport) -> None:
        super().on_step(report)
        if self._fault is None and self.steady(report, self._workers):
            if self._left:
                self._strike(self._left.pop(0))
            else:
                self.over.set()

    def _take(self, report: StepReport) -> None:
        """The first new step is done."""
        fault, self._fault = self._fault, None
        assert fault is not None
        events = self.events[self._from_event :]
        started = next(encode_body(event.body) for event in events if isinstance(event.body, RecoveryStarted))
        finished = next(encode_body(event.body) for event in events if isinstance(event.body, RecoveryFinished))
        parts = parts_of(self._struck_s, events, report)
        self.struck.append(
            Struck(fault, parts, int(finished["steps_recomputed"]), str(started["source"]), report.world_size)
        )
        say(f"{fault}: {parts.seconds:.2f} s, {self.struck[-1].steps_recomputed} steps recomputed")
        if not self._left:
            self.over.set()
        elif fault in ("node", "silent"):
            end_processes(self.stopped_pids)
            self.stopped_pids.clear()
            threading.Thread(target=self._cluster.add, name="add-node", daemon=True).start()

    def _strike(self, fault: str) -> None:
        self._fault, self._from_event = fault, len(self.events)
        victim = self.pids[max(self.pids)]
        if fault in ("worker", "workers"):
            self._struck_s = send(signal.SIGKILL, [victim] if fault == "worker" else self.pids.values())
        elif fault == "nodes":
            self._struck_s = send(signal.SIGKILL, [pid for worker in self.pids.values() for pid in node_of(worker)])
            threading.Thread(target=self._add_all, name="add-nodes", daemon=True).start()
        elif fault == "node":
            self._struck_s = send(signal.SIGKILL, node_of(victim))
        else:
            self.stopped_pids += node_of(victim)
            self._struck_s = send(signal.SIGSTOP, self.stopped_pids)

    def _add_all(self) -> None:
        for _ in range(self._workers):
            self._cluster.add()


def node_of(pid: int) -> list[int]:
    """All processes of a worker's node, its raylet first, so that it cannot react."""
    raylet = raylet_of(pid)
    return [raylet.pid, *(child.pid for child in descendants(raylet.pid))]


def send(number: signal.Signals, pids: Iterable[int]) -> float:
    """Send a signal; Unix time of the first."""
    struck_s = time.time()
    for pid in pids:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, number)
    return struck_s


def where_they_go(struck: Sequence[Struck]) -> str:
    """The medians of the parts, in words."""
    found = []
    for part in fields(Parts):
        median = statistics.median(getattr(each.parts, part.name) for each in struck)
        found.append(f"{part.name.removesuffix('_s').replace('_', ' ')} {median:.2f}")
    return ", ".join(found) + " s"


def spread(values: Sequence[float]) -> str:
    """Median, and the range where there are several."""
    if len(values) == 1:
        return f"{values[0]:.2f} s"
    return f"{statistics.median(values):.2f} s ({min(values):.2f} to {max(values):.2f})"
