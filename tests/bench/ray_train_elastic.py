"""Seconds stock elastic Ray Train needs from a fault to its first step afterwards: the peer of our recoveries.

A fresh cluster a case: a head that only leads and four nodes of one CPU, each with the processes a real node has.
A fault strikes right after a step, with a checkpoint committed. What counts is the first step that a new start of
the worker group finishes, even where it only repeats a step that was done before.
"""

import contextlib
import itertools
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil

from tests.bench.measure import environment, kill_tree
from tests.bench.peer_processes import PEERS, end_processes, extensions_copy, say, with_environment

MODEL_4M = {"n_layer": 4, "n_embd": 256, "n_head": 4, "vocab_size": 4096, "n_positions": 128}
NODES = 4
LEAST = 2
GLOBAL_BATCH = 12
"""Divides by 2, 3 and 4 workers."""

SEQUENCE_LENGTH = 64
CHECKPOINT_EVERY = 5
STRIKE_AFTER_STEP = 12
CASES = ("worker-killed", "node-killed", "node-silent", "gang-lost", "nodes-lost")
PREFIX = "cvb-"
"""Of a run's directory, before our process id. Short: a socket's path has at most 107 bytes."""

START_TIMEOUT_S = 240.0
RECOVERY_TIMEOUT_S = 400.0


@dataclass(frozen=True)
class Recovery:
    """One fault and what came of it. Seconds count from the fault."""

    case: str
    stage: int
    seconds: float
    """To the end of the first step of the new worker group."""
    entered_s: float
    """To the entry of the new group's rank 0 into the training function."""
    restore_s: float
    """Reading the checkpoint, with its conversion where the world size changed; part of `seconds`."""
    workers_before: int
    workers_after: int
    steps_recomputed: int
    step_s: float
    """Of an undisturbed step, median."""


@dataclass(frozen=True)
class ElasticRun:
    """A run in progress and where it writes what it does."""

    directory: Path
    process: subprocess.Popen[bytes]
    log: Path

    def events(self, kind: str) -> list[dict[str, Any]]:
        path = self.directory / "events.jsonl"
        lines = path.read_text().splitlines(keepends=True) if path.exists() else []
        found = [json.loads(line) for line in lines if line.endswith("\n")]
        return [event for event in found if event["event"] == kind]

    def workers(self, attempt: str) -> dict[int, int]:
        """Process id of every rank."""
        folder = self.directory / f"ranks-{attempt}"
        return {int(path.name): int(path.read_text()) for path in folder.iterdir()}

    def node_of(self, pid: int) -> int:
        """Process id of the raylet above a worker."""
        above = {parent.pid for parent in psutil.Process(pid).parents()}
        (raylet,) = above & set(self.raylets())
        return raylet

    def raylets(self) -> list[int]:
        return json.loads((self.directory / "nodes.json").read_text())

    def wait_for_step(self, after_step: int, other_than: str | None, timeout_s: float) -> dict[str, Any]:
        """The first step event beyond `after_step` of an attempt other than the given one. Raises RuntimeError."""
        deadline = time.monotonic() + timeout_s
        while time.monotonic() < deadline and self.process.poll() is None:
            for event in self.events("step"):
                if event["attempt"] != other_than and event["step"] > after_step:
                    return event
            time.sleep(0.02)
        why = f"ended with {self.process.returncode}" if self.process.poll() is not None else "was too slow"
        raise RuntimeError(f"Ray Train {why}:\n{self.log.read_text()[-4000:]}")

    def wait_for_commit(self, timeout_s: float) -> None:
        """Until a checkpoint lies in storage and the controller knows it. Raises RuntimeError."""
        deadline = time.monotonic() + timeout_s
        while not (self.directory / "storage/peer/checkpoint_manager_snapshot.json").exists():
            if time.monotonic() > deadline:
                raise RuntimeError(f"no checkpoint was committed:\n{self.log.read_text()[-4000:]}")
            time.sleep(0.02)


@contextlib.contextmanager
def elastic_run(stage: int, model: dict[str, int], nodes: int = NODES, least: int = LEAST) -> Iterator[ElasticRun]:
    """Start a cluster and an elastic run on it; afterwards every process and file of it is gone."""
    sweep_stale()
    directory = Path(tempfile.mkdtemp(prefix=f"{PREFIX}{os.getpid()}-"))
    config = {
        "stage": stage,
        "model": model,
        "global_batch": GLOBAL_BATCH,
        "sequence_length": SEQUENCE_LENGTH,
        "checkpoint_every": CHECKPOINT_EVERY,
        "steps": 1_000_000,
    }
    private = {"RAY_TMPDIR": str(directory), "TMPDIR": str(directory), **extensions_copy(directory)}
    # The same for both sides: Ray's default runs workers at nice 15.
    env = environment({"RAY_USAGE_STATS_ENABLED": "0", "RAY_worker_niceness": "0", **private})
    script = [sys.executable, str(PEERS / "ray_train_elastic.py"), "--directory", str(directory)]
    options = ["--config", json.dumps(config), "--nodes", str(nodes), "--least", str(least)]
    log = directory / "driver.log"
    try:
        with log.open("w") as output:
            process = subprocess.Popen(
                [*script, *options], env=env, stdin=subprocess.DEVNULL, stdout=output, stderr=subprocess.STDOUT
            )
        try:
            yield ElasticRun(directory, process, log)
        finally:
            kill_tree(process)
            process.wait()
    finally:
        sweep(directory)


def sweep(directory: Path) -> None:
    """End what still runs for this directory, and remove it."""
    end_processes(with_environment("RAY_TMPDIR", str(directory)))
    shutil.rmtree(directory, ignore_errors=True)


def sweep_stale() -> None:
    """Remove what a benchmark left that was killed."""
    for directory in Path(tempfile.gettempdir()).glob(f"{PREFIX}*-*"):
        owner = directory.name.split("-")[1]
        if owner.isdigit() and not psutil.pid_exists(int(owner)):
            sweep(directory)


def recovery(case: str, stage: int, model: dict[str, int] | None = None) -> Recovery:
    """Start a run, strike it once, and wait for its next step. Raises RuntimeError where it does not come."""
    if case not in CASES:
        raise ValueError(f"no case {case!r}; there are {', '.join(CASES)}")
    say(f"Ray Train, elastic ({LEAST}, {NODES}), ZeRO-{stage}, {case}: start")
    with elastic_run(stage, model or MODEL_4M) as run:
        before = run.wait_for_step(STRIKE_AFTER_STEP, None, START_TIMEOUT_S)
        if before["world"] != NODES:
            raise RuntimeError(f"the run started with {before['world']} workers, not {NODES}")
        run.wait_for_commit(START_TIMEOUT_S)
        attempt = before["attempt"]
        struck = strike(run, case, attempt)
        last = max(event["step"] for event in run.events("step"))
        say(f"struck after step {last} with {before['world']} workers")
        after = run.wait_for_step(0, attempt, RECOVERY_TIMEOUT_S)
        entered = next(e for e in run.events("enter") if e["attempt"] == after["attempt"])
        ready = next(e for e in run.events("ready") if e["attempt"] == after["attempt"])
        result = Recovery(
            case=case,
            stage=stage,
            seconds=after["time_s"] - struck,
            entered_s=entered["time_s"] - struck,
            restore_s=ready["restore_s"],
            workers_before=before["world"],
            workers_after=after["world"],
            steps_recomputed=last - int(ready["step"]),
            step_s=step_seconds([e["time_s"] for e in run.events("step") if e["attempt"] == attempt]),
        )
    say(f"first step after {result.seconds:.1f} s with {result.workers_after} workers")
    return result


def step_seconds(times_s: list[float]) -> float:
    """Median distance between the ends of steps."""
    gaps = sorted(b - a for a, b in itertools.pairwise(times_s))
    return gaps[len(gaps) // 2]


def strike(run: ElasticRun, case: str, attempt: str) -> float:
    """Break something for real; Unix time of it. The victim is the last rank, or its node."""
    workers = run.workers(attempt)
    victim = workers[max(workers)]
    if case == "worker-killed":
        return send(signal.SIGKILL, [victim])
    if case == "gang-lost":
        return send(signal.SIGKILL, list(workers.values()))
    if case == "nodes-lost":
        struck = send(signal.SIGKILL, [pid for raylet in run.raylets() for pid in family(raylet)])
        request = run.directory / "add-nodes.new"
        request.write_text(str(NODES))
        request.rename(run.directory / "add-nodes")
        return struck
    number = signal.SIGSTOP if case == "node-silent" else signal.SIGKILL
    return send(number, family(run.node_of(victim)))


def family(pid: int) -> list[int]:
    """A node: its raylet first, so that it cannot react, and all processes below it."""
    return [pid, *(child.pid for child in psutil.Process(pid).children(recursive=True))]


def send(number: signal.Signals, pids: list[int]) -> float:
    struck = time.time()
    for pid in pids:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, number)
    return struck
