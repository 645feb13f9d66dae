"""Workers that stand still while their nodes live: named by their stacks, given up, and not seen in the losses."""

import json
import os
import signal
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from orchestrator.data.dataset import TokenDataset
from orchestrator.data.verify import final_lineage, verify_run
from orchestrator.domain.events import EventKind, RunState
from orchestrator.service import TRAIN_ENTRY, RunOutcome, run_job
from orchestrator.spec.load import load_job
from orchestrator.store.history import read_steps
from tests.cluster.gang_runs import (
    ENTRIES,
    Recording,
    Strike,
    all_pids,
    own_temporary_directory,
    ray_processes,
    shared_memory,
    write_job,
)

pytestmark = pytest.mark.faults

BATCH = 12
JOB: dict[str, Any] = {
    "train": {"steps": 24, "global_batch": BATCH, "lr": 1e-3},
    "zero": {"stage": 1},
    "resources": {"workers": 2},
    "cluster": {"nodes": 2},
    "checkpoint": {"memory_interval_steps": 1},
}


@pytest.fixture(autouse=True)
def temporary_directory(tmp_path: Path) -> Iterator[Path]:
    """See `own_temporary_directory`. After `tmp_path`, which is made under the usual one."""
    with own_temporary_directory() as directory:
        yield directory


def train(directory: Path, recording: Recording, entry: str = TRAIN_ENTRY, **changes: Any) -> RunOutcome:
    job = load_job(write_job(directory, **{**JOB, **changes}))
    return run_job(job, directory / "runs", [recording], threading.Event(), entry)


def curve(outcome: RunOutcome) -> list[float]:
    """Losses of the final lineage, after the proof that its data is exact."""
    steps = list(read_steps(outcome.run_dir / "steps.jsonl"))
    data = Path(json.loads((outcome.run_dir / "data.json").read_text())["directory"])
    assert verify_run(steps, TokenDataset.open(data), BATCH).ok
    return [step.loss for step in final_lineage(steps, BATCH)[0]]


def stop_process(pid: int) -> None:
    os.kill(pid, signal.SIGSTOP)


def stacks(outcome: RunOutcome, rank: int) -> str:
    return (outcome.run_dir / "incidents" / "incident-001-stacks" / f"rank-{rank}.txt").read_text()


def test_a_stopped_process_is_named_and_replaced(tmp_path: Path) -> None:
    pids, shm = all_pids(), shared_memory()
    undisturbed = train(tmp_path, Recording())
    struck = Strike(12, 1, stop_process)
    outcome = train(tmp_path, struck)
    assert (outcome.state, outcome.reason, struck.struck) == (RunState.SUCCEEDED, None, 1)
    assert curve(outcome) == curve(undisturbed)
    (hung,) = struck.of(EventKind.WORKER_HUNG)
    assert hung["rank"] == 1
    assert "stopped" in hung["reason"]
    assert hung["stacks"] == "incidents/incident-001-stacks"
    assert hung["seconds"] < 9
    (started,) = struck.of(EventKind.RECOVERY_STARTED)
    assert (started["rank"], started["source"]) == (1, "vaults")
    (finished,) = struck.of(EventKind.RECOVERED)
    assert finished["world_size"] == 2
    assert "orchestrator/train/loop.py" in stacks(outcome, 0)  # said by itself
    assert "orchestrator/train/loop.py" in stacks(outcome, 1)  # read out of its memory
    page = (outcome.run_dir / "incidents" / "incident-001.md").read_text()
    assert "## Stack of worker 1" in page
    assert "worker 1 hangs" in page
    assert not Path(f"/proc/{struck.pid}").exists()
    assert ray_processes(pids) == []
    assert shared_memory() == shm


def test_a_thread_that_never_comes_back_is_named_by_its_stack(tmp_path: Path) -> None:
    undisturbed, recording = train(tmp_path, Recording()), Recording()
    outcome = train(tmp_path, recording, f"{ENTRIES}:hang_in_python")
    assert (outcome.state, outcome.reason) == (RunState.SUCCEEDED, None)
    assert curve(outcome) == curve(undisturbed)
    (hung,) = recording.of(EventKind.WORKER_HUNG)
    assert (hung["rank"], hung["step"], hung["phase"]) == (1, 12, "optimizer")
    assert "in no collective, the others wait in exchange of step 12" in hung["reason"]
    assert "a_lock_nobody_gives_back" in hung["stack"]
    assert "a_lock_nobody_gives_back" in stacks(outcome, 1)
    assert "a_lock_nobody_gives_back" not in stacks(outcome, 0)
    page = (outcome.run_dir / "incidents" / "incident-001.md").read_text()
    assert "a_lock_nobody_gives_back" in page
    survivor, *others = [fields["pid"] for fields in recording.of(EventKind.WORKER_STARTED) if fields["rank"] == 0]
    assert others == [survivor]  # the same process went on
