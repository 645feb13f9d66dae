"""`convoy drill` on a real cluster: what it says is what happened."""

import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import psutil
import pytest

from orchestrator.checkpoint.storage.checkpoint_catalog import list_checkpoints, verify_checkpoint
from orchestrator.drill import limited_disk, node_network
from tests.cluster.gang_runs import all_pids, ray_processes, write_job
from tests.cluster.s3_server import BUCKET, S3Server, environment

pytestmark = [pytest.mark.faults, pytest.mark.usefixtures("temporary_directory")]

CONVOY = str(Path(sys.executable).with_name("convoy"))


def drill(
    directory: Path, job: Path, *options: str, env: dict[str, str] | None = None
) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [CONVOY, "drill", str(job), "--json", *options],
        capture_output=True,
        text=True,
        timeout=300,
        cwd=directory,
        env=surroundings(directory, env),
    )


def surroundings(directory: Path, env: dict[str, str] | None = None) -> dict[str, str]:
    return {**os.environ, "CONVOY_HOME": str(directory / "runs"), "OMP_NUM_THREADS": "1", **(env or {})}


def survived(ended: subprocess.CompletedProcess[str]) -> tuple[dict[str, Any], dict[str, Any]]:
    """The scorecard, and its only fault."""
    assert ended.returncode == 0, ended.stderr[-3000:]
    card = json.loads(ended.stdout)
    assert card["survived"] is True
    (result,) = card["faults"]
    assert 0 <= result["detection_s"] <= result["first_step_s"] < 60
    return card, result


def events_of(directory: Path, card: dict[str, Any], *kinds: str) -> list[dict[str, Any]]:
    lines = (directory / "runs" / card["run"] / "events.jsonl").read_text().splitlines()
    return [event for event in map(json.loads, lines) if event["kind"] in kinds]


def a_job(directory: Path, **resources: object) -> Path:
    return write_job(
        directory,
        train={"steps": 30, "global_batch": 12, "lr": 1e-3},
        zero={"stage": 2},
        resources=resources,
        cluster={"nodes": 3, "cpus_per_node": 1},
        checkpoint={"interval_steps": 4, "keep_last": 3},
    )


@pytest.mark.soak  # each part of it has a shorter test
@pytest.mark.parametrize("fault", ["silence-node", "corrupt-shard"])
def test_a_fault_is_survived_and_scored(fault: str, tmp_path: Path) -> None:
    # Storage is looked at only where memory holds nothing.
    memory = "false" if fault == "corrupt-shard" else "true"
    arguments = ("--fault", fault, "--set", f"checkpoint.memory={memory}")
    if fault == "corrupt-shard":  # wherever checkpoints are kept
        arguments = (*arguments, "--set", f"checkpoint.storage={tmp_path / 'elsewhere'}")
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


@pytest.mark.soak  # each part of it has a shorter test
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


@pytest.mark.soak  # each part of it has a shorter test
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
    ended = drill(tmp_path, a_job(tmp_path, workers=2), "--fault", "slow-rank", "--set", "train.steps=100")
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
    assert not (tmp_path / "runs").exists(), "the drill started a run before it refused"


def test_more_faults_than_steps_are_told_before_anything_runs(tmp_path: Path) -> None:
    ended = drill(tmp_path, a_job(tmp_path, workers=2), "--fault", "kill-worker", "--times", "20")
    assert ended.returncode == 2
    assert "20 faults need at least 41 steps, the job has 30" in ended.stderr
    assert not (tmp_path / "runs").exists()


@pytest.mark.soak  # each part of it has a shorter test
def test_what_does_not_survive_is_said(tmp_path: Path) -> None:
    ended = drill(tmp_path, a_job(tmp_path, workers=3), "--fault", "kill-node")
    assert ended.returncode == 1
    card = json.loads(ended.stdout)
    assert (card["survived"], card["finished"]) == (False, False)
    assert "cannot hold 3 workers" in card["reason"]
    assert card["faults"][0]["first_step_s"] is None


@pytest.mark.soak  # each part of it has a shorter test
def test_want_of_memory_halves_the_micro_batch(tmp_path: Path) -> None:
    card, result = survived(drill(tmp_path, a_job(tmp_path, workers=2), "--fault", "oom"))
    assert (result["fault"], result["step"], result["workers_after"]) == ("oom", 15, 2)
    assert card["max_loss_difference"] <= 1e-5
    plans = [(plan["micro_batch"], plan["accumulation"]) for plan in events_of(tmp_path, card, "plan")]
    assert plans == [(6, 1), (3, 2)]
    (recovery,) = events_of(tmp_path, card, "recovery.started")
    assert "allocate" in recovery["cause"] or "emory" in recovery["cause"]  # the allocator's own words
    # The process that had none lives on, and so does its node.
    pids = {(started["rank"], started["pid"]) for started in events_of(tmp_path, card, "worker.started")}
    assert len({pid for _, pid in pids}) == 2


def test_memory_that_cannot_be_made_do_with_is_told_before_anything_is_broken(tmp_path: Path) -> None:
    ended = drill(tmp_path, a_job(tmp_path, workers=2), "--fault", "oom", "--set", "train.micro_batch=1")
    assert ended.returncode == 2
    assert "cannot be halved" in ended.stderr
    assert "drill: oom" not in ended.stderr


def test_a_killed_driver_is_followed_by_another(tmp_path: Path) -> None:
    pids = all_pids()
    card, result = survived(drill(tmp_path, a_job(tmp_path, workers=2), "--fault", "kill-driver"))
    assert (result["fault"], result["rank"], card["max_loss_difference"]) == ("kill-driver", None, 0.0)
    first, second = events_of(tmp_path, card, "run.created")
    assert first["resumed_from_step"] is None
    assert result["steps_recomputed"] >= 15 - (second["resumed_from_step"] or 0)
    workers = [started["pid"] for started in events_of(tmp_path, card, "worker.started")]
    assert len(set(workers)) == 4
    assert events_of(tmp_path, card, "recovery.started", "vaults.adopted") == []
    assert ray_processes(pids) == []


@pytest.mark.soak  # each part of it has a shorter test
@pytest.mark.needs("mounts")
def test_a_full_disk_stops_no_training(tmp_path: Path) -> None:
    job = a_job(tmp_path, workers=2)
    options = ("--set", "train.steps=160", "--set", "checkpoint.interval_steps=10")
    card, result = survived(drill(tmp_path, job, "--fault", "disk-full", *options))
    assert (result["fault"], result["step"], result["steps_recomputed"]) == ("disk-full", 80, 0)
    assert card["max_loss_difference"] == 0.0
    failed = events_of(tmp_path, card, "checkpoint.failed")
    assert {event["fault"] for event in failed} == {"full"}
    assert all("No space left on device" in event["reason"] for event in failed)
    saved = [event["step"] for event in events_of(tmp_path, card, "checkpoint.saved")]
    assert 160 in saved
    assert any(step < 80 for step in saved)  # the one of step 70 may not have been written yet
    assert not {event["step"] for event in failed} & set(saved)
    assert events_of(tmp_path, card, "recovery.started", "worker.failed") == []
    # What the small file system held lies in the run's directory, whole.
    directory = tmp_path / "runs" / card["run"] / "checkpoints"
    assert str(directory) not in limited_disk.MOUNTS.read_text()
    assert next(found.step for found in list_checkpoints(directory)) == 160
    for found in list_checkpoints(directory):
        verify_checkpoint(found.path)


@pytest.mark.soak  # each part of it has a shorter test
def test_a_bucket_that_is_down_stops_no_training(tmp_path: Path) -> None:
    server = S3Server(tmp_path)
    server.start()
    try:
        options = [f"checkpoint.storage=s3://{BUCKET}/drills", "train.steps=400", "checkpoint.interval_steps=20"]
        arguments = [word for option in options for word in ("--set", option)]
        job = a_job(tmp_path, workers=2)
        ended = drill(tmp_path, job, "--fault", "bucket-down", *arguments, env=environment(server.port))
        card, result = survived(ended)
    finally:
        server.kill()
    assert (result["fault"], result["step"], result["steps_recomputed"]) == ("bucket-down", 200, 0)
    assert card["max_loss_difference"] == 0.0
    failed = events_of(tmp_path, card, "checkpoint.failed")
    assert {event["fault"] for event in failed} == {"unreachable"}
    saved = [event["step"] for event in events_of(tmp_path, card, "checkpoint.saved")]
    assert 180 in saved
    assert any(200 < step < 400 for step in saved)
    assert saved[-1] >= 380
    assert events_of(tmp_path, card, "recovery.started", "worker.failed") == []


def test_a_bucket_is_needed_to_be_down(tmp_path: Path) -> None:
    ended = drill(tmp_path, a_job(tmp_path, workers=2), "--fault", "bucket-down")
    assert ended.returncode == 2
    assert "checkpoint.storage" in ended.stderr
    assert not (tmp_path / "runs").exists()


@pytest.mark.needs("networks")
def test_a_node_that_is_cut_off_is_gone_on_without(tmp_path: Path) -> None:
    """Its processes live on, on the other side; nothing they do counts, and they end with the run."""
    pids, job = all_pids(), a_job(tmp_path, workers={"min": 1, "max": 3})
    command = [CONVOY, "drill", str(job), "--json", "--fault", "partition", "--set", "train.steps=80"]
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd=tmp_path, env=surroundings(tmp_path)
    ) as process:
        lost = pid_of_who_was_lost(tmp_path, process)
        assert psutil.Process(lost).status() not in (psutil.STATUS_ZOMBIE, psutil.STATUS_STOPPED)
        stdout, stderr = process.communicate(timeout=200)
    ended = subprocess.CompletedProcess(command, process.returncode, stdout, stderr)
    card, result = survived(ended)
    assert (result["fault"], result["workers_before"], result["workers_after"]) == ("partition", 3, 2)
    assert result["steps_recomputed"] <= 2
    assert card["max_loss_difference"] <= 1e-5
    (failed,) = events_of(tmp_path, card, "worker.failed")
    assert failed["rank"] == result["rank"]
    addresses = {started["node"] for started in events_of(tmp_path, card, "worker.started")}
    assert len(addresses) == 3
    assert "127.0.0.1" not in addresses
    for found in list_checkpoints(tmp_path / "runs" / card["run"] / "checkpoints"):
        verify_checkpoint(found.path)
    assert not psutil.pid_exists(lost) or psutil.Process(lost).status() == psutil.STATUS_ZOMBIE
    assert ray_processes(pids) == []
    left = [
        *node_network.NAMESPACES.glob(f"convoy-drill-{process.pid}-*"),
        *Path("/sys/class/net").glob(f"cv{process.pid}*"),
    ]
    assert left == []


def pid_of_who_was_lost(directory: Path, drilling: subprocess.Popen[str]) -> int:
    """Its pid, as soon as the run has gone on without it."""
    deadline = time.monotonic() + 150
    while time.monotonic() < deadline and drilling.poll() is None:
        for path in (directory / "runs").glob("*/events.jsonl"):
            events = [json.loads(line) for line in path.read_text().splitlines() if line.endswith("}")]
            if any(event["kind"] == "recovery.finished" for event in events):
                (rank,) = [event["rank"] for event in events if event["kind"] == "worker.failed"]
                started = [e for e in events if e["kind"] == "worker.started" and e["rank"] == rank]
                return int(started[0]["pid"])
        time.sleep(0.02)
    raise AssertionError("nobody was lost")
