"""Checkpoints that take longer than any bound of a hang, on a disk that is slow for real: slow is not hung."""

import json
import random
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from orchestrator.checkpoint.storage.checkpoint_catalog import list_checkpoints
from orchestrator.domain.events import CheckpointSaved, CheckpointStarted, RunState, WarningIssued
from orchestrator.domain.policy import hang
from orchestrator.domain.step_report import StepReport
from orchestrator.gang.agent.process_activity import BLOCKED_S, BlockedThreads, look_at
from orchestrator.run.launcher import run_job
from orchestrator.spec.loading.load import load_job
from tests.cluster.gang_runs import ENTRIES, Recording, write_job
from tests.cluster.slow_disk import SlowDisk

pytestmark = [pytest.mark.faults, pytest.mark.usefixtures("temporary_directory")]

BOUND_S = 5.0
BYTES_PER_S = 3 << 20
LOSSES = {"worker.failed", "worker.hung", "recovery.started"}
JOB: dict[str, Any] = {
    # 2.1 million parameters: a checkpoint of 25 MB.
    "model": {"architecture": "gpt2", "config": {"n_layer": 2, "n_embd": 288, "n_head": 2}},
    "train": {"steps": 12, "global_batch": 4, "lr": 1e-3},
    "recovery": {"hang_timeout_s": BOUND_S},
}


TINY: dict[str, Any] = {
    "model": {"architecture": "gpt2", "config": {"n_layer": 1, "n_embd": 32, "n_head": 2}},
    "recovery": {"hang_timeout_s": 2 * BOUND_S},
}


@pytest.fixture
def slow_disk(tmp_path: Path) -> Iterator[SlowDisk]:
    disk = SlowDisk(tmp_path, 200 << 20)
    yield disk
    disk.close()


def test_a_checkpoint_on_a_slow_disk_is_no_hang(
    tmp_path: Path, slow_disk: SlowDisk, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The vaults write that of step 10 in the background, which costs training a moment; that of the last step is
    written while training stands still, and takes several times as long as a step may go without progress."""
    for bound in ("CHECKPOINT_FLOOR_S", "FIRST_CHECKPOINT_S"):  # read by the driver, which is this process
        monkeypatch.setattr(hang, bound, BOUND_S, raising=False)
    slow_disk.limit("write", BYTES_PER_S)
    checkpoint = {"interval_steps": 10, "storage": str(slow_disk.path), "memory_interval_steps": 1}
    recording, job = Recording(), load_job(write_job(tmp_path, **JOB, checkpoint=checkpoint))
    # Held back a little: the vaults are ready by step 10 then.
    outcome = run_job(job, tmp_path / "runs", [recording], threading.Event(), f"{ENTRIES}:train_held")
    assert (outcome.state, outcome.reason) == (RunState.SUCCEEDED, None)
    kinds = [json.loads(line)["kind"] for line in (outcome.run_dir / "events.jsonl").read_text().splitlines()]
    assert LOSSES.isdisjoint(kinds)
    assert [fields["step"] for fields in recording.of(CheckpointStarted)] == [10]
    saved = {fields["step"]: fields for fields in recording.of(CheckpointSaved)}
    assert saved[12]["write_seconds"] is None
    assert saved[12]["seconds"] > 2 * BOUND_S
    assert saved[10]["seconds"] < BOUND_S
    assert [(found.step, found.problem) for found in list_checkpoints(slow_disk.path / outcome.run_id)] == [
        (12, None),
        (10, None),
    ]


class Stalling(Recording):
    """Lets the disk of the token files answer nothing for a while, once, when a step has been reported."""

    def __init__(self, disk: SlowDisk, at: int, stall_s: float) -> None:
        super().__init__()
        self.disk, self.at, self.stall_s = disk, at, stall_s
        self.longest_s = 0.0
        self._last_s = time.monotonic()

    def on_step(self, report: StepReport) -> None:
        super().on_step(report)
        now_s = time.monotonic()
        if report.step > self.at:
            self.longest_s = max(self.longest_s, now_s - self._last_s)
        self._last_s = now_s
        if report.step == self.at:
            for tokens in {path.resolve() for path in self.disk.path.rglob("*.tokens")}:
                self.disk.forget_unmapped(tokens)
            self.disk.limit("read", 1)
            threading.Timer(self.stall_s, self.disk.limit, ("read", 0)).start()


@pytest.mark.soak
def test_token_files_on_a_disk_that_does_not_answer_for_a_while_cost_nobody(
    tmp_path: Path, slow_disk: SlowDisk
) -> None:
    job = load_job(write_job(tmp_path, **{**JOB, **TINY}))
    words = random.Random(0).choices(["quick", "brown", "fox", "jumps", "over", "lazy", "dog"], k=4_000_000)
    (tmp_path / "corpus" / "0.txt").write_text(" ".join(words))
    job = load_job(job.path, [f"data.cache_dir={slow_disk.path}"])
    recording = Stalling(slow_disk, 5, 5 * BOUND_S)
    outcome = run_job(job, tmp_path / "runs", [recording], threading.Event(), f"{ENTRIES}:train_held")
    assert (outcome.state, outcome.reason) == (RunState.SUCCEEDED, None)
    assert recording.longest_s > 3 * BOUND_S
    kinds = [json.loads(line)["kind"] for line in (outcome.run_dir / "events.jsonl").read_text().splitlines()]
    assert LOSSES.isdisjoint(kinds)
    warnings = [fields["message"] for fields in recording.of(WarningIssued)]
    assert any("does not answer" in message for message in warnings), warnings


READING = """
import mmap, sys
with open(sys.argv[1], "rb") as file:
    print("there", flush=True)
    sys.stdin.readline()
    data = mmap.mmap(file.fileno(), 0, prot=mmap.PROT_READ) if sys.argv[2] == "mapped" else file
    sys.stdout.write(str(len(data[4096:8192] if sys.argv[2] == "mapped" else data.read())))
"""


@pytest.mark.parametrize("how", ["read", "mapped"])
def test_a_process_that_waits_for_its_disk_is_seen_to(slow_disk: SlowDisk, how: str) -> None:
    """As a worker whose token files, which are mapped into memory, lie on a disk that does not answer."""
    file = slow_disk.path / "tokens"
    file.write_bytes(bytes(1 << 20))
    slow_disk.forget_cached()
    command = [sys.executable, "-c", READING, str(file), how]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        assert process.stdout.readline() == "there\n"
        assert not blocked_for_s(process.pid, 2 * BLOCKED_S)
        slow_disk.limit("read", 1)
        process.stdin.write("go on\n")
        process.stdin.flush()
        assert blocked_for_s(process.pid, 5 * BLOCKED_S)
        assert process.poll() is None
        slow_disk.limit("read", 0)
        assert process.stdout.read() == str(1 << 20 if how == "read" else 4096)


def blocked_for_s(pid: int, patience_s: float) -> bool:
    """Whether a thread of a process counts as blocked in storage before so much time is over."""
    threads, deadline = BlockedThreads(), time.monotonic() + patience_s
    while time.monotonic() < deadline:
        look = look_at(pid)
        if look is not None and threads.take(look.blocked, time.monotonic()):
            return True
        time.sleep(0.05)
    return False
