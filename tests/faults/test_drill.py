"""`convoy drill` on a real cluster: what it says is what happened."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.cluster.gang_runs import write_job

pytestmark = pytest.mark.faults


def drill(directory: Path, job: Path, *options: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [str(Path(sys.executable).with_name("convoy")), "drill", str(job), "--json", *options],
        capture_output=True,
        text=True,
        timeout=300,
        cwd=directory,
        env={**os.environ, "CONVOY_HOME": str(directory / "runs"), "OMP_NUM_THREADS": "1"},
    )


def a_job(directory: Path, **resources: object) -> Path:
    return write_job(
        directory,
        train={"steps": 30, "global_batch": 12, "lr": 1e-3},
        zero={"stage": 2},
        resources=resources,
        cluster={"nodes": 3, "cpus_per_node": 1},
        checkpoint={"interval_steps": 4, "keep_last": 3},
    )


@pytest.mark.parametrize("fault", ["silence-node", "corrupt-shard"])
def test_a_fault_is_survived_and_scored(fault: str, tmp_path: Path) -> None:
    # Storage is looked at only where memory holds nothing.
    memory = "false" if fault == "corrupt-shard" else "true"
    arguments = ("--fault", fault, "--set", f"checkpoint.memory={memory}")
    ended = drill(tmp_path, a_job(tmp_path, workers={"min": 1, "max": 3}), *arguments)
    assert ended.returncode == 0, ended.stderr[-3000:]
    card = json.loads(ended.stdout)
    assert card["survived"] is True
    (result,) = card["faults"]
    assert (result["fault"], result["workers_before"]) == (fault, 3)
    assert result["workers_after"] == 2  # who is replaced joins later
    assert 0 <= result["detection_s"] < result["first_step_s"] < 60
    assert result["steps_recomputed"] >= (4 if fault == "corrupt-shard" else 0)
    events = (tmp_path / "runs" / card["run"] / "events.jsonl").read_text()
    assert events.count('"recovery.finished"') == 1
    assert ("checkpoint.rejected" in events) == (fault == "corrupt-shard")


def test_a_loss_that_is_no_number_is_compared_with_a_run_without_its_samples(tmp_path: Path) -> None:
    """Three runs: undisturbed, disturbed, and undisturbed without the samples that the second left out."""
    from_storage = ("--set", "checkpoint.memory=false")  # memory would hold a step that depends on the machine's pace
    ended = drill(tmp_path, a_job(tmp_path, workers=2), "--fault", "nan", *from_storage)
    assert ended.returncode == 0, ended.stderr[-3000:]
    card = json.loads(ended.stdout)
    assert (card["survived"], card["max_loss_difference"], card["samples_left_out"]) == (True, 0.0, 12)
    (result,) = card["faults"]
    assert (result["fault"], result["step"], result["steps_recomputed"]) == ("nan", 15, 3)
    assert 0 <= result["detection_s"] < result["first_step_s"] < 60
    runs = [path for path in (tmp_path / "runs").iterdir() if (path / "run.json").exists()]
    assert len(runs) == 3
    assert sum("fault.injected" in (path / "events.jsonl").read_text() for path in runs) == 1


def test_a_worker_that_hangs_is_given_up_and_replaced(tmp_path: Path) -> None:
    ended = drill(tmp_path, a_job(tmp_path, workers=2), "--fault", "hang-rank")
    assert ended.returncode == 0, ended.stderr[-3000:]
    card = json.loads(ended.stdout)
    (result,) = card["faults"]
    assert (result["fault"], result["workers_before"], result["workers_after"]) == ("hang-rank", 2, 2)
    assert result["detection_s"] > 4  # nobody is given up for a moment's silence
    events = (tmp_path / "runs" / card["run"] / "events.jsonl").read_text()
    assert events.count('"worker.hung"') == 1


def test_a_slow_worker_is_named_and_lives(tmp_path: Path) -> None:
    ended = drill(tmp_path, a_job(tmp_path, workers=2), "--fault", "slow-rank", "--set", "train.steps=160")
    assert ended.returncode == 0, ended.stderr[-3000:]
    card = json.loads(ended.stdout)
    assert card["survived"] is True
    (result,) = card["faults"]
    assert (result["steps_recomputed"], result["workers_after"]) == (0, 2)
    lines = (tmp_path / "runs" / card["run"] / "events.jsonl").read_text().splitlines()
    events = [json.loads(line) for line in lines]
    assert [e for e in events if e["kind"] in ("worker.failed", "worker.hung", "recovery.started")] == []
    slow = next(e for e in events if e["kind"] == "worker.slow" and e["slow"] and e["rank"] == result["rank"])
    assert slow["ratio"] >= 1.5


def test_slowness_needs_steps_to_be_seen_in(tmp_path: Path) -> None:
    ended = drill(tmp_path, a_job(tmp_path, workers=2), "--fault", "slow-rank")
    assert ended.returncode == 2
    assert "too few" in ended.stderr


def test_what_does_not_survive_is_said(tmp_path: Path) -> None:
    ended = drill(tmp_path, a_job(tmp_path, workers=3), "--fault", "kill-node")
    assert ended.returncode == 1
    card = json.loads(ended.stdout)
    assert (card["survived"], card["finished"]) == (False, False)
    assert "cannot hold 3 workers" in card["reason"]
    assert card["faults"][0]["first_step_s"] is None
