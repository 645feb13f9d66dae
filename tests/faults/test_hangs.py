"""Workers that stand still while their nodes live: named by their stacks, given up, and not seen in the losses."""

import json
import os
import signal
import socket
import subprocess
import threading
import time
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit
from urllib.request import urlopen

import psutil
import pytest

from orchestrator.clusters.ray.node_processes import descendants, raylet_of
from orchestrator.domain.events import (
    Event,
    RecoveryFinished,
    RecoveryReason,
    RecoveryStarted,
    RunState,
    WorkerHung,
    WorkerStarted,
)
from orchestrator.gang.vaults.vault_clients import VaultClients
from orchestrator.goodput.time_class import TimeClass
from orchestrator.run.launcher import TRAIN_ENTRY, RunOutcome, run_job
from orchestrator.spec.loading.load import load_job
from orchestrator.store.run_history import read_steps
from tests.cluster.gang_runs import (
    ENTRIES,
    Recording,
    Strike,
    StrikeWhenProtected,
    all_pids,
    command_of,
    curve,
    kill_worker,
    left_in_shared_memory,
    own_temporary_directory,
    ray_processes,
    shared_memory,
    write_job,
)
from tests.cluster.standing import PACED
from tests.faults.ledger_account import check_ledger, cost_of

pytestmark = [pytest.mark.faults, pytest.mark.usefixtures("temporary_directory")]

BATCH = 12
PAUSE_S = 20.0
SETTLE_S = 6.0
"""After a pause: whoever is wrongly given up is given up by then."""
LOSSES = ("worker.failed", "worker.hung", "recovery.started")
JOB: dict[str, Any] = {
    "train": {"steps": 24, "global_batch": BATCH, "lr": 1e-3},
    "zero": {"stage": 1},
    "resources": {"workers": 2},
    "cluster": {"nodes": 2},
    "checkpoint": {"memory_interval_steps": 1},
}


HELD = f"{ENTRIES}:train_held"
"""Slow until the worker is replaced: a driver that is late must not strike a gang that has finished."""


def train(directory: Path, recording: Recording, entry: str = TRAIN_ENTRY, **changes: Any) -> RunOutcome:
    recording.safe_after(RecoveryFinished, directory / "runs")
    job = load_job(write_job(directory, **{**JOB, **changes}))
    return run_job(job, directory / "runs", [recording], threading.Event(), entry)


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> list[float]:
    """Losses of the job when nothing happens to it."""
    directory = tmp_path_factory.mktemp("undisturbed")
    with own_temporary_directory():
        return curve(train(directory, Recording()), BATCH)


def stop_process(pid: int) -> None:
    os.kill(pid, signal.SIGSTOP)


def stacks(outcome: RunOutcome, rank: int) -> str:
    return (outcome.run_dir / "incidents" / "incident-001-stacks" / f"rank-{rank}.txt").read_text()


def test_a_stopped_process_is_named_and_replaced(tmp_path: Path, undisturbed: list[float]) -> None:
    pids, shm = all_pids(), shared_memory()
    struck = StrikeWhenProtected(4, 1, stop_process)
    # Stacks are taken at half that time, when the process still counts as heard: its own are never to come.
    outcome = train(tmp_path, struck, HELD, recovery={"hang_timeout_s": 5})
    assert (outcome.state, outcome.reason, struck.struck) == (RunState.SUCCEEDED, None, 1)
    assert curve(outcome, BATCH) == undisturbed
    (hung,) = struck.of(WorkerHung)
    assert hung["rank"] == 1
    assert "stopped" in hung["reason"]
    assert hung["stacks"] == "incidents/incident-001-stacks"
    assert hung["seconds"] < 9
    (started,) = struck.of(RecoveryStarted)
    assert (started["rank"], started["source"]) == (1, "vaults")
    (finished,) = struck.of(RecoveryFinished)
    assert finished["world_size"] == 2
    cost = cost_of(check_ledger(outcome.run_dir))
    assert cost.reason is RecoveryReason.HANG
    assert cost.seconds[TimeClass.RECOVERY_DETECTION] >= 2 * 4.0  # of both, since the last progress
    assert "orchestrator/train/step_loop.py" in stacks(outcome, 0)  # said by itself
    assert "orchestrator/train/step_loop.py" in stacks(outcome, 1)  # read out of its memory
    page = (outcome.run_dir / "incidents" / "incident-001.md").read_text()
    assert "## Stack of worker 1" in page
    assert "worker 1 hangs" in page
    assert not Path(f"/proc/{struck.pid}").exists()
    assert ray_processes(pids) == []
    assert left_in_shared_memory(shm) == set()


class StopTheNext(StrikeWhenProtected):
    """Kills a worker, and stops the one that takes its place before it has made a step."""

    def on_event(self, event: Event) -> None:
        before = self.pid
        super().on_event(event)
        if self.struck == 1 and self.pid != before and self.pid is not None:
            self.struck += 1
            stop_process(self.pid)


def test_a_worker_that_stands_still_during_a_recovery_prolongs_it(tmp_path: Path, undisturbed: list[float]) -> None:
    struck = StopTheNext(4, 1, kill_worker)
    outcome = train(tmp_path, struck, HELD)
    assert (outcome.state, outcome.reason, struck.struck) == (RunState.SUCCEEDED, None, 2)
    assert curve(outcome, BATCH) == undisturbed
    assert [fields["rank"] for fields in struck.of(WorkerHung)] == [1]
    assert [fields["source"] for fields in struck.of(RecoveryStarted)] == ["vaults", "vaults"]
    assert (outcome.run_dir / "incidents" / "incident-002-stacks" / "rank-1.txt").exists()


def test_a_thread_that_never_comes_back_is_named_by_its_stack(tmp_path: Path, undisturbed: list[float]) -> None:
    recording = Recording()
    outcome = train(tmp_path, recording, f"{ENTRIES}:hang_in_python")
    assert (outcome.state, outcome.reason) == (RunState.SUCCEEDED, None)
    assert curve(outcome, BATCH) == undisturbed
    (hung,) = recording.of(WorkerHung)
    assert (hung["rank"], hung["step"], hung["phase"]) == (1, 12, "optimizer")
    assert "in no collective, while the others wait in exchange of step 12" in hung["reason"]
    assert "a_lock_nobody_gives_back" in hung["stack"]
    assert "a_lock_nobody_gives_back" in stacks(outcome, 1)
    assert "a_lock_nobody_gives_back" not in stacks(outcome, 0)
    page = (outcome.run_dir / "incidents" / "incident-001.md").read_text()
    assert "a_lock_nobody_gives_back" in page


def test_where_all_stand_still_all_are_replaced(tmp_path: Path, undisturbed: list[float]) -> None:
    recording = Recording()
    outcome = train(tmp_path, recording, f"{ENTRIES}:everybody_hangs")
    assert (outcome.state, outcome.reason) == (RunState.SUCCEEDED, None)
    assert curve(outcome, BATCH) == undisturbed
    (hung,) = recording.of(WorkerHung)
    assert (hung["rank"], hung["step"], hung["phase"]) == (None, 12, "forward")
    assert all("a_lock_nobody_gives_back" in stacks(outcome, rank) for rank in range(2))
    pids = [fields["pid"] for fields in recording.of(WorkerStarted)]
    assert len(set(pids)) == 4
    (started,) = recording.of(RecoveryStarted)
    assert (started["source"], started["from_step"]) == ("vaults", 11)


def quiet_events(outcome: RunOutcome) -> list[str]:
    """Kinds of events that a run in which nobody was lost does not have."""
    lines = (outcome.run_dir / "events.jsonl").read_text().splitlines()
    return [kind for line in lines if (kind := json.loads(line)["kind"]) in LOSSES]


def test_lost_answers_lose_nothing(tmp_path: Path) -> None:
    outcome = train(tmp_path, Recording(), f"{ENTRIES}:polls_fail", train={**JOB["train"], "steps": 200})
    assert (outcome.state, outcome.reason) == (RunState.SUCCEEDED, None)
    assert quiet_events(outcome) == []
    assert [step.step for step in read_steps(outcome.run_dir / "steps.jsonl")] == list(range(1, 201))


def test_one_failed_probe_takes_nobody_away(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A worker and its node's vault stand still until a probe of the vault has failed for real; then they go on.

    Not the raylet, which Ray gives up for good after such a time.
    """
    stopped: list[psutil.Process] = []
    probes: list[bool | None] = []
    probe = VaultClients.answers

    def observed(vaults: VaultClients, node_id: str) -> bool | None:
        probes.append(probe(vaults, node_id))
        if probes[-1] is False:
            (tmp_path / "runs" / "safe").touch()
            for process in stopped:
                process.send_signal(signal.SIGCONT)
        return probes[-1]

    def stop_node(pid: int) -> None:
        raylet = raylet_of(pid)
        stopped.extend(child for child in descendants(raylet.pid) if command_of(child).startswith("ray::"))
        for process in stopped:
            process.send_signal(signal.SIGSTOP)

    monkeypatch.setattr(VaultClients, "answers", observed)
    struck = Strike(4, 1, stop_node)
    outcome = train(tmp_path, struck, HELD, train={**JOB["train"], "steps": 60})
    assert (outcome.state, outcome.reason, struck.struck, len(stopped)) == (RunState.SUCCEEDED, None, 1, 2)
    assert False in probes
    assert quiet_events(outcome) == []


def test_a_driver_that_was_paused_blames_nobody(tmp_path: Path) -> None:
    """Nor does one whose metrics were scraped by somebody who hung up, and by somebody who got no answer."""
    job = write_job(tmp_path, **{**JOB, "train": {"steps": 100_000, "global_batch": BATCH, "lr": 1e-3}})
    env = {**os.environ, "CONVOY_HOME": str(tmp_path / "runs"), "CONVOY_METRICS_PORT": "0"}
    with (tmp_path / "out.txt").open("wb") as out:
        driver = subprocess.Popen([*PACED, "run", str(job)], stdout=out, stderr=out, env=env)
    try:
        run_dir = wait_for(lambda: next((tmp_path / "runs").glob("gang-*/steps.jsonl"), None)).parent
        url = next(e["url"] for e in events_of(run_dir) if e["kind"] == "metrics.serving")
        address = (urlsplit(url).hostname or "", urlsplit(url).port or 0)
        with socket.create_connection(address) as caller:
            caller.sendall(b"GET /metrics HTTP/1.1\r\n")
        before = len(list(read_steps(run_dir / "steps.jsonl")))
        driver.send_signal(signal.SIGSTOP)
        with pytest.raises(OSError, match="timed out"):
            urlopen(url, timeout=PAUSE_S)
        driver.send_signal(signal.SIGCONT)
        wait_for(lambda: len(list(read_steps(run_dir / "steps.jsonl"))) > before + 50 or None)
        time.sleep(SETTLE_S)
        steps = list(read_steps(run_dir / "steps.jsonl"))
        # Training went on meanwhile, and what was said meanwhile was not lost.
        assert [step.step for step in steps] == list(range(1, len(steps) + 1))
        assert max(after.time_s - before.time_s for before, after in pairwise(steps)) < PAUSE_S / 2
        assert [e["kind"] for e in events_of(run_dir) if e["kind"] in LOSSES] == []
    finally:
        driver.send_signal(signal.SIGCONT)
        driver.send_signal(signal.SIGINT)
        assert driver.wait(timeout=20) == 130


def events_of(run_dir: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (run_dir / "events.jsonl").read_text().splitlines()]


def wait_for(look: Callable[[], Any], timeout_s: float = 90.0) -> Any:
    deadline = time.monotonic() + timeout_s
    while (found := look()) is None:
        assert time.monotonic() < deadline
        time.sleep(0.1)
    return found
