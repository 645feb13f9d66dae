"""Processes that are ended: only those that were meant, whatever has their number by now."""

import subprocess
import sys

import psutil
import pytest

from orchestrator.clusters.ray.local.local_cluster import LocalCluster
from orchestrator.clusters.ray.processes import kill_processes

pytestmark = pytest.mark.unit

SLEEP = [sys.executable, "-I", "-S", "-c", "import time; time.sleep(60)"]


def test_a_process_is_ended_and_waited_for() -> None:
    with subprocess.Popen(SLEEP) as child:
        assert kill_processes([psutil.Process(child.pid)], patience_s=5.0) == []
        assert child.wait() == -9
        assert kill_processes([], patience_s=0.0) == []


def test_a_process_that_has_the_number_of_one_that_is_gone_is_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    cluster = LocalCluster(1, {})
    with subprocess.Popen(SLEEP) as stranger:
        try:
            # As it is once a worker has ended and the kernel has given its number to another process.
            monkeypatch.setattr(psutil.Process, "create_time", lambda self: 1.0)
            cluster.remember([stranger.pid])
            monkeypatch.undo()
            (worker,) = cluster.workers
            worker._ident = (stranger.pid, 1.0)  # type: ignore[attr-defined]
            cluster.close()
            assert stranger.poll() is None
        finally:
            stranger.kill()


def test_processes_that_are_gone_already_are_not_remembered() -> None:
    child = subprocess.Popen(SLEEP)
    child.kill()
    child.wait()
    cluster = LocalCluster(1, {})
    cluster.remember([child.pid])
    assert cluster.workers == set()
