"""Two drivers of one run: one is stopped or gone, another takes over, and only the records of one count."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from orchestrator.atomic_files import read_json
from orchestrator.checkpoint.format.checkpoint_manifest import Manifest, read_manifest
from orchestrator.checkpoint.storage.checkpoint_catalog import list_checkpoints, verify_checkpoint
from orchestrator.checkpoint.storage.durable import commit
from orchestrator.checkpoint.storage.storage import open_storage
from orchestrator.domain.errors import CheckpointError
from orchestrator.domain.events import RunState, StateChanged
from orchestrator.domain.lease import Lease
from orchestrator.store.data_proof import prove
from orchestrator.store.lease.lease_places import LeaseBucket, LeaseDirectory, LeaseEntry, LeasePlace
from orchestrator.store.run_history import current_steps, read_events
from orchestrator.store.run_store import RunStore
from tests.cluster.gang_runs import (
    all_pids,
    left_in_shared_memory,
    own_temporary_directory,
    ray_processes,
    shared_memory,
    write_job,
)
from tests.cluster.s3_server import BUCKET, S3Server, environment
from tests.cluster.standing import PACED, Driver, standing_cluster

pytestmark = pytest.mark.faults

STEPS, SHORT_STEPS, SHORT_TTL_S = 200, 80, 4.0
JOB: dict[str, Any] = {
    "train": {"steps": STEPS, "global_batch": 12, "lr": 1e-3},
    "zero": {"stage": 1},
    "resources": {"workers": 2},
    "checkpoint": {"memory_interval_steps": 1, "interval_steps": 10, "keep_last": 100},
    "recovery": {"memory_kept_s": 60},
}
AS_THE_OLD_DRIVER = """
import contextlib, json, sys
from orchestrator.checkpoint.memory.wire import Channel
from orchestrator.clusters.ray.joined_cluster import JoinedCluster
from orchestrator.domain.lease import first_generation, token_of
from orchestrator.gang.vaults.adoption import find_vaults

JoinedCluster(sys.argv[1]).start()
found, old = [], first_generation(1) + 1
size = {"world_size": 2, "payload_bytes": 4096, "slot_state_bytes": 100}
for vault in find_vaults(sys.argv[2]):
    answers = []
    for request, payload in (
        ({"do": "create", "generation": old, "rank": 0, **size}, b"{}"),
        ({"do": "copy", "generation": old, "rank": 0, "slot": 0, "step": 9, "state_bytes": 2, "index_bytes": 2, **size},
         b"{}{}" + bytes(4096)),
        ({"do": "peers", "generation": old, "addresses": []}, b""),
        ({"do": "forget", "before": old + 1}, b""),
    ):
        with contextlib.closing(Channel.connect(vault.hello.address, vault.token, 5.0)) as channel:
            try:
                answers.append(channel.ask(request, payload)[0])
            except OSError as error:
                answers.append(str(error))
    with contextlib.closing(Channel.connect(vault.hello.address, vault.token, 5.0)) as channel:
        held = channel.ask({"do": "inventory"})[0]["held"]
    found.append({"answers": answers, "tokens": sorted({token_of(each["generation"]) for each in held})})
print(json.dumps(found))
"""
"""Asks the vaults of a run for what a driver with lease 1 may ask, and prints what they say and hold."""


@pytest.fixture
def standing() -> Iterator[str]:
    pids, shm = all_pids(), shared_memory()
    with own_temporary_directory():
        with standing_cluster(2) as address:
            yield address
        wait_for_the_end_of(pids)
        assert left_in_shared_memory(shm) == set()


@pytest.fixture
def bucket(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    server = S3Server(tmp_path)
    server.start()
    for variable, value in environment(server.port).items():
        monkeypatch.setenv(variable, value)
    yield f"s3://{BUCKET}/runs"
    server.kill()


def wait_for_the_end_of(pids: set[int]) -> None:
    deadline = time.monotonic() + 15.0
    while ray_processes(pids) and time.monotonic() < deadline:
        time.sleep(0.1)
    assert ray_processes(pids) == []


def lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def alter(place: LeasePlace, boot_id: str | None = None) -> None:
    """Let the first lease, whose driver does not run, be shorter; and its driver one of another machine."""
    entry = place.read(1)
    assert entry is not None
    assert entry.driver is not None
    driver = entry.driver if boot_id is None else replace(entry.driver, boot_id=boot_id)
    place.write(replace(entry, lease=replace(entry.lease, ttl_s=SHORT_TTL_S), driver=driver))


def test_of_two_drivers_one_gets_a_lease_in_a_bucket_and_a_manifest_stays_the_later_ones(bucket: str) -> None:
    storage = open_storage(f"{bucket}/conditions")
    places = [LeaseBucket(storage) for _ in range(2)]
    entries = [LeaseEntry(Lease(holder, 1), None) for holder in ("one", "two")]
    assert places[0].create(entries[0])
    assert not places[1].create(entries[1])
    assert places[1].read(1) == entries[0]
    assert places[0].create(entries[0]), "an answer may be lost, and the request repeated"
    assert (places[1].highest(), places[1].read(2)) == (1, None)

    data, version = storage.read_version("leases", "00000001.json")
    assert data == entries[0].to_bytes()
    assert storage.put_if("leases", "00000001.json", b"two", version)
    assert not storage.put_if("leases", "00000001.json", b"three", version)
    assert not storage.put_if("leases", "none", b"x", version)
    assert storage.read("leases", "00000001.json") == b"two"

    manifest = Manifest(1, 0, 0, 1, "Adam", {}, {}, False, (), ())
    for lease in (1, 2):
        commit(storage, "step-00000001", replace(manifest, lease=lease))
    with pytest.raises(CheckpointError, match="later driver"):
        commit(storage, "step-00000001", replace(manifest, lease=1))
    assert read_manifest("step-00000001", storage).lease == 2


def test_a_driver_that_is_stopped_and_continues_after_another_took_over_adds_nothing(
    tmp_path: Path, standing: str
) -> None:
    home = tmp_path / "runs"
    first = Driver(home, str(write_job(tmp_path, **JOB, cluster={"address": standing})), program=PACED)
    first.read_until_step(15)
    os.kill(first.process.pid, signal.SIGSTOP)
    record = RunStore(home).read("last")
    assert record.active, "it looks like a driver that lives: only its counter tells"
    alter(LeaseDirectory(record.directory))
    second = Driver(home, "--resume", "last", program=PACED)
    while not second.of("vaults.adopted"):
        assert second.process.poll() is None, second.errors()
        time.sleep(0.05)
    (adopted,) = second.of("vaults.adopted")
    assert adopted["vaults"] == 2
    assert adopted["time_s"] - second.started_s > SHORT_TTL_S
    second.read_until_step(adopted["step"] + 5)
    os.kill(first.process.pid, signal.SIGCONT)
    assert first.end() == 1
    assert f"was taken over by process {second.process.pid} on" in first.errors()
    asked = subprocess.run(
        [sys.executable, "-c", AS_THE_OLD_DRIVER, standing, record.id], capture_output=True, text=True, check=False
    )
    assert asked.returncode == 0, asked.stderr
    assert second.end() == 0, second.errors()

    vaults = json.loads(asked.stdout.splitlines()[-1])
    assert len(vaults) == 2
    for vault in vaults:
        assert all("is over" in answer for answer in vault["answers"]), vault
        assert vault["tokens"] == [2]
    layout = record.layout
    for path in (layout.steps, layout.events):
        assert {line["lease"] for line in lines(path)} == {1, 2}
    steps = current_steps(layout.steps)
    assert [step.step for step in steps] == list(range(1, STEPS + 1))
    last = RunStore(home).read("last")
    assert last.state is RunState.SUCCEEDED
    assert (read_json(layout.state) or {})["lease"] == 2
    assert prove(last).ok
    events = list(read_events(layout.events))
    taken_over_s = adopted["time_s"]
    assert [event.body.kind for event in events].count("run.created") == 2
    assert [event.body.state for event in events if isinstance(event.body, StateChanged)][-1] == "succeeded"
    assert "worker.failed" not in [event.body.kind for event in events if event.time_s > taken_over_s]
    saved = {
        each.step: verify_checkpoint(each.place).lease for each in list_checkpoints(open_storage(layout.checkpoints))
    }
    assert saved[10] == 1
    assert {token for step, token in saved.items() if step > adopted["step"]} == {2}


def test_a_run_is_resumed_on_another_machine_from_its_bucket_alone(tmp_path: Path, bucket: str) -> None:
    pids = all_pids()
    home, elsewhere = tmp_path / "runs", tmp_path / "another-disk"
    train = {**JOB["train"], "steps": SHORT_STEPS}
    job = write_job(tmp_path, **{**JOB, "train": train, "checkpoint": {"interval_steps": 10, "storage": bucket}})
    with own_temporary_directory():
        first = Driver(home, str(job), program=PACED)
        first.read_until_step(15)
        first.read_until_saved(10)
        run_id = RunStore(home).read("last").id
        url = f"{bucket}/{run_id}"
        place = LeaseBucket(open_storage(url))
        refused = Driver(elsewhere, "--resume", url)
        assert refused.end() == 2
        assert f"process {first.process.pid} on" in refused.errors()
        first.kill()
        wait_for_the_end_of(pids)
        shutil.rmtree(home)
        shutil.rmtree(elsewhere)
        alter(place, boot_id="of the machine that is gone")
        started_s = time.monotonic()
        second = Driver(elsewhere, "--resume", url)
        assert second.end() == 0, second.errors()
    assert time.monotonic() - started_s > SHORT_TTL_S
    resumed = second.of("run.created")[0]["resumed_from_step"]
    assert resumed >= 10
    assert second.of("step")[0]["step"] == resumed + 1
    assert any("were lost with the driver" in event["message"] for event in second.of("warning"))
    record = RunStore(elsewhere).read(run_id)
    assert record.state is RunState.SUCCEEDED
    assert (record.directory / "export" / "convoy.json").is_file()
    assert (record.step, record.directory) == (SHORT_STEPS, elsewhere / run_id)
    assert all(path.exists() for path in (record.layout.spec, record.layout.fingerprints, record.layout.tokenizer))
    assert place.highest() == 2
    entry = place.read(2)
    assert entry is not None
    assert entry.lease.released
    manifests = {each.step: each.manifest.lease for each in list_checkpoints(open_storage(url)) if each.manifest}
    assert manifests[SHORT_STEPS] == 2
    again = Driver(elsewhere, "--resume", url)
    assert again.end() == 2
    assert "reached its last step" in again.errors()
