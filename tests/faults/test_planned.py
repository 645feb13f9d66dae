"""Changes that are known before they happen: scaling, nodes about to go, waiting for nodes. Nothing is lost."""

import contextlib
import json
import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any

import psutil
import pytest

from orchestrator.clusters.ray.node_processes import descendants, is_head, node_id_of, raylet_of
from orchestrator.data.samples.data_verify import verify_run
from orchestrator.data.samples.dataset import TokenDataset
from orchestrator.domain.events import (
    CheckpointSaved,
    ClusterReady,
    Event,
    EventBody,
    GangResized,
    GangWaiting,
    NodeDraining,
    RecoveryFinished,
    RecoveryStarted,
    RunState,
    ScaleAnswered,
    StateChanged,
    WorkerStarted,
)
from orchestrator.domain.events.event_codec import encode_body
from orchestrator.domain.step_report import StepReport
from orchestrator.goodput.time_class import LossCause, TimeClass
from orchestrator.run.launcher import RunOutcome, run_job
from orchestrator.spec.loading.load import load_job
from orchestrator.store.run_history import read_steps
from tests.cluster.foreign_cluster import ForeignCluster
from tests.cluster.gang_runs import (
    ENTRIES,
    Recording,
    all_pids,
    kill_worker,
    left_in_shared_memory,
    own_temporary_directory,
    ray_processes,
    shared_memory,
    write_job,
)
from tests.faults.ledger_account import Records, check_ledger

pytestmark = [pytest.mark.faults, pytest.mark.usefixtures("temporary_directory")]

BATCH, STEPS = 12, 60
JOB: dict[str, Any] = {
    "train": {"steps": STEPS, "global_batch": BATCH, "lr": 1e-3},
    "zero": {"stage": 1},
    "resources": {"workers": {"min": 1, "max": 3}},
    "cluster": {"nodes": 3, "cpus_per_node": 1},
    "checkpoint": {"memory_interval_steps": 1, "at_end": False},
    "recovery": {"hang_timeout_s": 120.0},  # training is held on purpose
}


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> list[float]:
    """Losses of the job when nothing happens to it."""
    directory = tmp_path_factory.mktemp("undisturbed")
    with own_temporary_directory():
        job = load_job(write_job(directory, **{**JOB, "resources": {"workers": 1}, "cluster": {"nodes": 1}}))
        outcome = run_job(job, directory / "runs", [], threading.Event())
    assert outcome.state is RunState.SUCCEEDED
    return [step.loss for step in read_steps(outcome.run_dir / "steps.jsonl")]


@pytest.fixture
def foreign() -> Iterator[ForeignCluster]:
    """Two nodes of one CPU that belong to somebody else."""
    cluster = ForeignCluster(2)
    yield cluster
    cluster.close()


class Watcher(Recording):
    """Knows which process is on which node, and can hold training at a step boundary. `then` is called once, in the
    driver's thread, when a step has been reported that a lost node could not undo."""

    def __init__(self, runs: Path, then: Callable[["Watcher"], None] = lambda _: None) -> None:
        super().__init__()
        self.runs, self.then = runs, then
        self.pids: dict[int, int] = {}
        self.safe = threading.Event()
        self.on: dict[type[EventBody], Callable[[dict[str, Any]], None]] = {}

    def on_event(self, event: Event) -> None:
        super().on_event(event)
        if isinstance(event.body, WorkerStarted):
            self.pids[event.body.rank] = event.body.pid
        if type(event.body) in self.on:
            self.on[type(event.body)](encode_body(event.body))

    def on_step(self, report: StepReport) -> None:
        super().on_step(report)
        if report.step >= 5 and report.protected_step is not None and not self.safe.is_set():
            self.safe.set()
            (self.runs / "safe").touch()
            self.then(self)

    def hold(self, generation: int) -> None:
        """Stand still, until the driver wants the gang to be formed anew."""
        (self.runs / f"hold-{generation}").touch()

    def raylet(self, rank: int) -> psutil.Process:
        return raylet_of(self.pids[rank])

    def rank_elsewhere(self) -> int:
        """A rank that is not on the head node."""
        return next(rank for rank in self.pids if not is_head(self.raylet(rank)))

    @property
    def address(self) -> str:
        return str(self.of(ClusterReady)[0]["address"])

    @property
    def sizes(self) -> list[int]:
        """Workers, as they changed from step to step."""
        found: list[int] = []
        for step in self.steps:
            if not found or found[-1] != step.world_size:
                found.append(step.world_size)
        return found


def start(directory: Path, watcher: Recording, stop: threading.Event | None = None, **changes: Any) -> RunOutcome:
    job = load_job(write_job(directory, **{**JOB, **changes}))
    return run_job(job, directory / "runs", [watcher], stop or threading.Event(), f"{ENTRIES}:train_held")


def nothing_lost(outcome: RunOutcome, undisturbed: list[float], made_again: int = 0) -> None:
    """It ended well, its data is exact, its losses are those of the other run, and no step was made twice."""
    assert (outcome.state, outcome.reason) == (RunState.SUCCEEDED, None)
    steps = list(read_steps(outcome.run_dir / "steps.jsonl"))
    assert len(steps) <= STEPS + made_again
    data = Path(json.loads((outcome.run_dir / "data.json").read_text())["directory"])
    assert verify_run(steps, TokenDataset.open(data), BATCH).ok
    losses = {step.step: step.loss for step in steps}
    assert [losses[step] for step in range(1, STEPS + 1)] == pytest.approx(undisturbed, rel=1e-5)


def convoy(directory: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "orchestrator", *arguments],
        capture_output=True,
        text=True,
        timeout=120,
        env={**os.environ, "CONVOY_HOME": str(directory / "runs")},
    )


def drain(address: str, node_id: str, notice_s: float) -> None:
    from orchestrator.clusters.ray.draining import drain as announce

    announce(address, node_id, notice_s, "a test")


def free_cpus() -> float:
    from orchestrator.clusters.ray.live_nodes import live_nodes

    return sum(node.free["CPU"] for node in live_nodes())


def test_a_run_is_scaled_up_and_down_by_a_command(tmp_path: Path, undisturbed: list[float]) -> None:
    pids, shm = all_pids(), shared_memory()
    watcher = Watcher(tmp_path / "runs")
    said: list[subprocess.CompletedProcess[str]] = []
    freed: list[float] = []

    def ask() -> None:
        watcher.safe.wait(120)
        for generation, workers in ((1, 3), (2, 1)):
            watcher.hold(generation)
            said.append(convoy(tmp_path, "scale", "gang", "--workers", str(workers)))
        said.append(convoy(tmp_path, "scale", "gang", "--workers", "13"))

    def look(fields: dict[str, Any]) -> None:
        deadline = time.monotonic() + 5
        while fields["workers"] == 1 and fields["state"] == "done" and time.monotonic() < deadline and freed != [2.0]:
            freed[:] = [free_cpus()]

    watcher.on[ScaleAnswered] = look
    asking = threading.Thread(target=ask)
    asking.start()
    outcome = start(tmp_path, watcher, resources={"workers": 2})
    asking.join()
    nothing_lost(outcome, undisturbed)
    assert watcher.sizes == [2, 3, 1]
    assert watcher.of(RecoveryStarted) == []
    up, down, wrong = said
    first = {size: next(step.step for step in watcher.steps if step.world_size == size) for size in (3, 1)}
    assert (up.returncode, up.stderr) == (0, "")
    assert f"3 workers from step {first[3]} on" in up.stdout
    assert (down.returncode, down.stderr) == (0, "")
    assert f"1 worker from step {first[1]} on" in down.stdout
    assert wrong.returncode == 2
    assert freed == [2.0]  # what those had who left is there for others
    ledger = check_ledger(outcome.run_dir)
    assert ledger.by_incident == ()
    # From the last step of two and of three workers to the first of the next gang.
    changed_s = 0.0
    for last, following in pairwise(watcher.steps):
        if last.world_size != following.world_size:
            changed_s += (following.time_s - following.step_time_s - last.time_s) * min(last.world_size, 2)
    assert ledger.seconds[TimeClass.RESIZING] >= changed_s - 1.0
    assert "requested   1 workers (convoy scale)" in convoy(tmp_path, "show", "gang").stdout
    assert ray_processes(pids) == []
    assert left_in_shared_memory(shm) == set()


def test_workers_leave_a_node_before_it_goes(tmp_path: Path, undisturbed: list[float]) -> None:
    pids = all_pids()
    doomed: list[psutil.Process] = []

    def announce(watcher: Watcher) -> None:
        raylet = watcher.raylet(watcher.rank_elsewhere())
        doomed.append(raylet)
        watcher.hold(1)
        drain(watcher.address, node_id_of(raylet), 60.0)

    watcher = Watcher(tmp_path / "runs", announce)
    # The node ends as soon as nothing of ours is left there; what is left of it is killed all the same.
    watcher.on[GangResized] = lambda _: threading.Timer(0.5, kill_all, doomed).start()
    outcome = start(tmp_path, watcher, zero={"stage": 3})
    nothing_lost(outcome, undisturbed)
    (draining,) = watcher.of(NodeDraining)
    assert draining["node"]
    assert len(draining["ranks"]) == 1
    assert 50 < draining["notice_s"] <= 60
    (resized,) = watcher.of(GangResized)
    assert (resized["before"], resized["world_size"]) == (3, 2)
    assert watcher.sizes == [3, 2]
    assert watcher.of(RecoveryStarted) == []
    assert ray_processes(pids) == []


def kill_all(raylet: psutil.Process) -> None:
    with contextlib.suppress(psutil.NoSuchProcess):
        for process in [raylet, *descendants(raylet.pid)]:
            with contextlib.suppress(psutil.NoSuchProcess):
                process.kill()


def test_a_doomed_worker_that_dies_before_the_boundary_is_an_ordinary_loss(
    tmp_path: Path, undisturbed: list[float]
) -> None:
    victim: list[int] = []

    def announce(watcher: Watcher) -> None:
        rank = watcher.rank_elsewhere()
        victim.append(watcher.pids[rank])
        watcher.hold(1)
        drain(watcher.address, node_id_of(watcher.raylet(rank)), 60.0)

    watcher = Watcher(tmp_path / "runs", announce)
    watcher.on[NodeDraining] = lambda _: kill_worker(victim[0])
    outcome = start(tmp_path, watcher)
    nothing_lost(outcome, undisturbed, made_again=2)
    (started,) = watcher.of(RecoveryStarted)
    assert started["source"] == "vaults"
    (finished,) = watcher.of(RecoveryFinished)
    assert finished["world_size"] == 2  # nobody is started on that node again
    assert finished["steps_recomputed"] <= 1
    assert watcher.sizes == [3, 2]


def test_below_the_minimum_it_waits_and_a_new_node_lets_it_go_on(
    tmp_path: Path, undisturbed: list[float], foreign: ForeignCluster
) -> None:
    seen: list[str] = []

    def announce(watcher: Watcher) -> None:
        watcher.hold(1)
        foreign.drain(1, 9.0)

    def help_it(fields: dict[str, Any]) -> None:
        foreign.kill(1)
        seen.append(convoy(tmp_path, "runs").stdout)
        foreign.add()

    watcher = Watcher(tmp_path / "runs", announce)
    watcher.on[GangWaiting] = help_it
    outcome = start(tmp_path, watcher, resources={"workers": 2}, cluster={"address": foreign.address})
    nothing_lost(outcome, undisturbed)
    (waiting,) = watcher.of(GangWaiting)
    assert (waiting["have"], waiting["need"]) == (1, 2)
    assert waiting["step"] == watcher.of(GangResized)[-1]["step"]
    assert "waiting" in seen[0]
    # Nor does it lie on one node's memory alone.
    assert waiting["step"] in [saved["step"] for saved in watcher.of(CheckpointSaved)]
    assert watcher.sizes == [2]
    assert watcher.of(RecoveryStarted) == []
    ledger, records = check_ledger(outcome.run_dir), Records(outcome.run_dir)
    states = [event for event in records.events if isinstance(event.body, StateChanged)]
    (since_s,) = [event.time_s for event in states if event.body.state is RunState.WAITING]
    until_s = next(event.time_s for event in states if event.time_s > since_s)
    waited = records.worker_s(since_s, until_s)
    assert ledger.seconds[TimeClass.WAITING] == pytest.approx(waited, rel=0.02, abs=0.25)
    assert ledger.lost_s[LossCause.WAITING] == pytest.approx(ledger.seconds[TimeClass.WAITING])


@pytest.mark.soak
def test_waiting_can_be_stopped(tmp_path: Path, foreign: ForeignCluster) -> None:
    stop, since_s = threading.Event(), [0.0]
    watcher = Watcher(tmp_path / "runs", lambda _: foreign.kill(1))

    def end(fields: dict[str, Any]) -> None:
        since_s[0] = time.monotonic()
        stop.set()

    watcher.on[GangWaiting] = end
    outcome = start(tmp_path, watcher, stop, resources={"workers": 2}, cluster={"address": foreign.address})
    assert (outcome.state, outcome.exit_code) == (RunState.STOPPED, 130)
    assert time.monotonic() - since_s[0] < 5.0


@pytest.mark.soak
def test_waiting_has_an_end_where_the_job_says_so(tmp_path: Path, foreign: ForeignCluster) -> None:
    watcher = Watcher(tmp_path / "runs", lambda _: foreign.kill(1))
    outcome = start(
        tmp_path,
        watcher,
        resources={"workers": 2},
        cluster={"address": foreign.address},
        recovery={"max_wait_s": 7.0, "hang_timeout_s": 120.0},
    )
    assert (outcome.state, outcome.exit_code) == (RunState.FAILED, 1)
    assert "waited 7 s for 2 workers" in (outcome.reason or "")
    assert len(watcher.of(GangWaiting)) == 1
