"""Starting, joining and leaving clusters."""

import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from orchestrator.clusters.ray.joined_cluster import JoinedCluster
from orchestrator.clusters.ray.local.local_cluster import LocalCluster
from orchestrator.clusters.ray.local.local_files import sweep_stale
from orchestrator.clusters.ray.node_processes import descendants
from orchestrator.domain.errors import ClusterError
from orchestrator.domain.events import ClusterReady, RunState, WarningIssued
from orchestrator.gang.file_transfer import TRANSPORT_VARIABLE
from tests.cluster.gang_runs import all_pids, left_in_shared_memory, ray_processes, run, shared_memory, state_of

pytestmark = [pytest.mark.cluster, pytest.mark.usefixtures("temporary_directory")]


HOLD_A_CLUSTER = """
import sys, time
from orchestrator.clusters.ray.local.local_cluster import LocalCluster
cluster = LocalCluster(2, {"CPU": 1.0, "memory": 2e9}).start()
import ray
@ray.remote(num_cpus=1)
class Idle:
    def pid(self):
        import os
        return os.getpid()
idle = [Idle.remote() for _ in range(int(sys.argv[1]))]
ray.get([actor.pid.remote() for actor in idle])
print(cluster.address, flush=True)
time.sleep(120)
"""


def hold_cluster(actors: int) -> tuple[subprocess.Popen[str], str]:
    """Another process's cluster of two nodes of one CPU, and its address."""
    process = subprocess.Popen([sys.executable, "-c", HOLD_A_CLUSTER, str(actors)], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    address = process.stdout.readline().strip()
    assert address, "the cluster did not start"
    return process, address


@pytest.fixture
def foreign_cluster() -> Iterator[str]:
    process, address = hold_cluster(actors=0)
    yield address
    process.kill()
    process.wait()


def test_only_loopback_is_listened_on() -> None:
    before = {process.pid for process in descendants(os.getpid())}
    cluster = LocalCluster(2, {"CPU": 1.0, "memory": 2e9}).start()
    try:
        import ray

        ray.get(ray.remote(num_cpus=1)(_nothing).remote())
        own = {process.pid for process in descendants(os.getpid())} - before
        listening = {
            connection.laddr.ip
            for pid in [*own, os.getpid()]
            if psutil.pid_exists(pid)
            for connection in _connections(pid)
            if connection.status == psutil.CONN_LISTEN
        }
        assert listening <= {"127.0.0.1", "::ffff:127.0.0.1"}
        assert listening
        assert len(cluster.nodes()) == 2
    finally:
        cluster.close()


def _nothing() -> None:
    """Brings up a worker process."""


def _connections(pid: int) -> list[psutil._ntuples.pconn]:
    try:
        return psutil.Process(pid).net_connections(kind="inet")
    except psutil.Error:
        return []


def test_signal_handlers_survive() -> None:
    seen = threading.Event()
    before = signal.signal(signal.SIGTERM, lambda *_: seen.set())
    cluster = LocalCluster(1, {"CPU": 1.0, "memory": 2e9}).start()
    try:
        os.kill(os.getpid(), signal.SIGTERM)
        assert seen.wait(5.0)
    finally:
        signal.signal(signal.SIGTERM, before)
        cluster.close()


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
def test_a_killed_driver_leaves_no_process(number: int, tmp_path: Path) -> None:
    pids, shm = all_pids(), shared_memory()
    process, _ = hold_cluster(actors=2)
    assert len(ray_processes(pids)) >= 5
    process.send_signal(number)
    process.wait()
    deadline = time.monotonic() + 5.0
    while ray_processes(pids) and time.monotonic() < deadline:
        time.sleep(0.1)
    assert ray_processes(pids) == []
    assert left_in_shared_memory(shm) == set()


def test_directories_of_killed_drivers_are_swept(tmp_path: Path) -> None:
    stale = tmp_path / "convoy-ray-stale"
    (stale / "session").mkdir(parents=True)
    (stale / "lock").touch()
    sweep_stale(tmp_path)
    assert not stale.exists()


def test_a_run_on_a_cluster_that_is_there(foreign_cluster: str, tmp_path: Path) -> None:
    outcome, seen = run(tmp_path, "ring", cluster={"address": foreign_cluster})
    assert outcome.state is RunState.SUCCEEDED
    assert seen.of(ClusterReady)[0]["address"] == foreign_cluster
    cluster = JoinedCluster(foreign_cluster).start()
    try:
        deadline = time.monotonic() + 5.0
        while sum(node.free["CPU"] for node in cluster.nodes()) < 2 and time.monotonic() < deadline:
            time.sleep(0.1)
        assert sum(node.free["CPU"] for node in cluster.nodes()) == 2  # everything was given back
    finally:
        cluster.close()


def test_files_travel_where_paths_do_not(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(TRANSPORT_VARIABLE, "remote")
    outcome, _ = run(tmp_path, "through_files")
    assert outcome.reason is None
    assert (outcome.run_dir / "from-rank-1.txt").read_text() == "written elsewhere"


def test_what_does_not_fit_is_refused_at_once(foreign_cluster: str, tmp_path: Path) -> None:
    started = time.monotonic()
    outcome, _ = run(tmp_path, "ring", resources={"workers": 4}, cluster={"address": foreign_cluster})
    assert time.monotonic() - started < 10.0
    assert (outcome.state, outcome.exit_code) == (RunState.FAILED, 1)
    assert outcome.reason is not None
    assert "the cluster cannot hold 4 workers of 1 CPU" in outcome.reason
    assert "It has 2 nodes: 127.0.0.1 (1 CPU); 127.0.0.1 (1 CPU). 2 such workers fit" in outcome.reason
    assert "ask for resources.workers: 2" in outcome.reason
    assert state_of(outcome)["state"] == "failed"


def test_memory_that_this_machine_has_not_is_refused_at_once(tmp_path: Path) -> None:
    outcome, _ = run(tmp_path, "ring", resources={"workers": 2, "memory_per_worker": "100TiB"})
    assert outcome.state is RunState.FAILED
    assert "2 workers of 1 CPU, 1.02e+05 GiB of memory" in (outcome.reason or "")
    assert "resources.memory_per_worker: " in (outcome.reason or "")


def test_a_busy_cluster_is_waited_for_then_named(tmp_path: Path) -> None:
    process, address = hold_cluster(actors=1)
    try:
        resources = {"workers": 2, "placement_timeout_s": 2.0}
        outcome, _ = run(tmp_path, "ring", resources=resources, cluster={"address": address})
    finally:
        process.kill()
        process.wait()
    assert outcome.state is RunState.FAILED
    assert outcome.reason is not None
    assert outcome.reason.startswith("after 2 s the cluster cannot hold 2 workers of 1 CPU")
    assert "0 CPUs free of 1 CPU" in outcome.reason
    assert "(2 after other work there has ended)" in outcome.reason


def test_an_elastic_job_takes_what_there_is(tmp_path: Path) -> None:
    outcome, seen = run(
        tmp_path, "ring", resources={"workers": {"min": 1, "max": 4}}, cluster={"nodes": 1, "cpus_per_node": 2}
    )
    assert outcome.state is RunState.SUCCEEDED
    assert len([f for f in seen.of(WarningIssued) if f["message"].startswith("facts")]) == 2


@pytest.mark.parametrize("address", ["127.0.0.1:1", "ray://127.0.0.1:10001", "nonsense"])
def test_no_cluster_at_an_address(address: str) -> None:
    started = time.monotonic()
    with pytest.raises(ClusterError, match=address.split(":")[0]) as caught:
        JoinedCluster(address).start()
    assert caught.value.hint
    assert time.monotonic() - started < 15.0


def test_something_else_at_an_address() -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        started = time.monotonic()
        with pytest.raises(ClusterError, match="does not answer as a Ray GCS"):
            JoinedCluster(f"127.0.0.1:{port}").start()
        assert time.monotonic() - started < 15.0
