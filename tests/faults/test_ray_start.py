"""Nodes that `ray start --block` made: what ends them for good, SIGTERM, is a notice first, and nothing is lost."""

import json
import os
import re
import secrets
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest

from orchestrator.clusters.ray.node_processes import descendants
from tests.cluster.gang_runs import own_temporary_directory, write_job

pytestmark = [pytest.mark.faults, pytest.mark.timeout(400)]

STARTED_S = 120.0
NOTICE_S = 25
"""Ray's own default is 30 s."""


def free_port() -> int:
    with socket.socket() as free:
        free.bind(("", 0))
        return int(free.getsockname()[1])


class RayNodes:
    """Nodes of one cluster, each made by a `ray start --block` of its own."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.nodes: list[subprocess.Popen[bytes]] = []
        self.env = {
            **os.environ,
            "RAY_AUTH_MODE": "token",
            "RAY_AUTH_TOKEN": secrets.token_hex(32),
            "RAY_USAGE_STATS_ENABLED": "0",
            "RAY_worker_niceness": "0",
            "RAY_GRACEFUL_SHUTDOWN_DRAIN_TIMEOUT_S": str(NOTICE_S),
            "OMP_NUM_THREADS": "1",
        }
        self._port, self._client_port = free_port(), free_port()
        self.address = ""

    def start(self) -> None:
        """One more; the first is the head."""
        common = ["--num-cpus=1", "--disable-usage-stats", "--block", "--include-dashboard=false"]
        if not self.nodes:
            first = 40000 if self._port < 30000 else 11000  # Ray insists that the ports of workers are others
            ports = [
                f"--min-worker-port={first}",
                f"--max-worker-port={first + 2000}",
                f"--ray-client-server-port={self._client_port}",
            ]
            which = ["--head", f"--port={self._port}", f"--temp-dir={self.directory}", *ports]
        else:
            which = [f"--address={self.address}"]
            common.remove("--include-dashboard=false")
        log = self.directory / f"node-{len(self.nodes)}.log"
        ray = str(Path(sys.executable).with_name("ray"))
        with log.open("wb") as file:
            process = subprocess.Popen([ray, "start", *which, *common], stdout=file, stderr=file, env=self.env)
        self.nodes.append(process)
        deadline = time.monotonic() + STARTED_S
        started = rf"Ray runtime started.*?([\d.]+:{self._port})" if not self.address else "Ray runtime started"
        while (said := re.search(started, log.read_text(), re.DOTALL)) is None:
            assert process.poll() is None, log.read_text()
            assert time.monotonic() < deadline, log.read_text()
            time.sleep(0.1)
        self.address = self.address or said[1]

    def close(self) -> None:
        """All processes end."""
        for process in self.nodes:
            family = [psutil.Process(process.pid)] if process.poll() is None else []
            for each in [*family, *(child for parent in family for child in descendants(parent.pid))]:
                try:
                    each.kill()
                except psutil.NoSuchProcess:
                    continue
            process.wait()


@pytest.fixture
def nodes(tmp_path: Path) -> Iterator[RayNodes]:
    """Two of them."""
    with own_temporary_directory() as directory:
        cluster = RayNodes(directory)
        try:
            cluster.start()
            cluster.start()
            yield cluster
        finally:
            cluster.close()


def test_sigterm_to_a_node_loses_nothing(tmp_path: Path, nodes: RayNodes) -> None:
    job = write_job(
        tmp_path,
        train={"steps": 4000, "global_batch": 12, "lr": 1e-3},
        resources={"workers": {"min": 1, "max": 2}},
        cluster={"address": nodes.address},
        checkpoint={"memory_interval_steps": 1},
    )
    command = [str(Path(sys.executable).with_name("convoy")), "run", str(job), "--json"]
    env = {**nodes.env, "CONVOY_HOME": str(tmp_path / "runs")}
    events: list[dict[str, Any]] = []
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=env) as run:
        assert run.stdout is not None
        assert run.stderr is not None
        told = seen = False
        for line in run.stdout:
            events.append(json.loads(line))
            step = events[-1] if events[-1]["kind"] == "step" else None
            if step and step["protected_step"] is not None and not told:
                told = True
                nodes.nodes[1].send_signal(signal.SIGTERM)
            if step and told and step["world_size"] == 1 and not seen:
                seen = True
                run.send_signal(signal.SIGINT)
        assert told, run.stderr.read()
    kinds = [event["kind"] for event in events]
    assert "recovery.started" not in kinds
    (draining,) = [event for event in events if event["kind"] == "node.draining"]
    assert draining["ranks"]
    assert draining["notice_s"] <= NOTICE_S
    (resized,) = [event for event in events if event["kind"] == "gang.resized"]
    assert (resized["before"], resized["world_size"]) == (2, 1)
    steps = [event["step"] for event in events if event["kind"] == "step"]
    assert steps == list(range(1, steps[-1] + 1))
    assert steps[-1] > resized["step"]
