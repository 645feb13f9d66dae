"""A server's own cluster: it outlives the server, is found again, mends itself, and leaves nothing behind."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
import pytest

from orchestrator.clusters.ray.local.keeper_files import KeeperFiles, KeptNodes
from orchestrator.control.cluster.kept_cluster import ensure_cluster, stop_cluster
from orchestrator.control.cluster.observed_cluster import ObservedCluster, kept_address
from orchestrator.domain.errors import ClusterError
from tests.cluster.gang_runs import all_pids, own_temporary_directory, ray_processes

pytestmark = pytest.mark.cluster

PATIENCE_S = 60.0
NODES = 3
KEPT = KeptNodes(NODES, {"CPU": 1.0, "memory": 1e9})
STARTER = """
import os, sys
from pathlib import Path
from orchestrator.clusters.ray.local.keeper_files import KeptNodes
from orchestrator.control.cluster.kept_cluster import ensure_cluster
ensure_cluster(Path(sys.argv[1]), KeptNodes(3, {"CPU": 1.0, "memory": 1e9}), os.environ)
os.kill(os.getpid(), 9)
"""


@pytest.fixture
def directory() -> Iterator[Path]:
    before = all_pids()
    with own_temporary_directory() as found:
        try:
            yield found / "server" / "cluster"
        finally:
            stop_cluster(found / "server" / "cluster")
        assert ray_processes(before) == []


def until(what: Callable[[], bool]) -> float:
    """Wait for something; how long it took."""
    began = time.monotonic()
    while not what():
        assert time.monotonic() - began < PATIENCE_S
        time.sleep(0.05)
    return time.monotonic() - began


def process_of(keeper: int, name: str) -> psutil.Process:
    """A process of the cluster."""
    return next(each for each in psutil.Process(keeper).children() if each.name() == name)


def test_the_cluster_outlives_its_starter_mends_itself_and_ends_on_request(directory: Path) -> None:
    killed = subprocess.run([sys.executable, "-c", STARTER, str(directory)], check=False)
    assert killed.returncode == -signal.SIGKILL
    found = ensure_cluster(directory, KEPT, os.environ)
    assert found == KeeperFiles(directory).cluster()
    cluster = ObservedCluster(kept_address(directory), os.environ)
    try:
        assert cluster.wait_for_nodes(PATIENCE_S)
        assert cluster.address == found.address
        first = {node.node_id for node in cluster.nodes() or ()}
        assert len(first) == NODES
        assert all(node.total["CPU"] == 1.0 == node.free["CPU"] for node in cluster.nodes() or ())
        assert (cluster.held(["a"]), cluster.autoscales) == ({}, False)

        process_of(found.keeper, "raylet").kill()
        until(lambda: len({node.node_id for node in cluster.nodes() or ()} - first) == 1)
        until(lambda: len(cluster.nodes() or ()) == NODES)

        gone = sorted(node.node_id for node in cluster.nodes() or ())[-1]
        cluster.drain(gone, "for a test", None)
        until(lambda: gone not in {node.node_id for node in cluster.nodes() or ()})
        with pytest.raises(ClusterError, match="has no live node"):
            cluster.drain("ff" * 28, "for a test", None)

        gcs = process_of(found.keeper, "gcs_server")
        gcs.suspend()
        until(lambda: cluster.nodes() is None)
        gcs.resume()
        until(lambda: cluster.nodes() is not None)
        gcs.kill()
        before = {node.node_id for node in cluster.nodes() or ()}
        until(lambda: cluster.address not in ("", found.address))
        assert before.isdisjoint(node.node_id for node in cluster.nodes() or ()), "nodes of a cluster that was replaced"
        until(lambda: len(cluster.nodes() or ()) == NODES)
    finally:
        cluster.close()
    assert stop_cluster(directory)
    assert not stop_cluster(directory)


def test_a_keeper_that_is_killed_takes_everything_with_it(directory: Path) -> None:
    before = all_pids()
    found = ensure_cluster(directory, KEPT, os.environ)
    os.kill(found.keeper, signal.SIGKILL)
    until(lambda: KeeperFiles(directory).keeper() is None)
    until(lambda: ray_processes(before) == [])
    assert not stop_cluster(directory)
    assert ensure_cluster(directory, KEPT, os.environ).address != found.address
