"""A cluster of its own process: a head that only leads, as the peers' clusters have, and nodes that come and go.

As a program (`python -m tests.bench.head_and_nodes NODES CPUS MEMORY_BYTES`) it is that process: it prints the
address, then adds a node for every line on stdin.
"""

import contextlib
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

from orchestrator.clusters.ray.local.local_cluster import LocalCluster
from orchestrator.gang.agent.worker_actor import worker_environment
from tests.bench.measure import environment
from tests.bench.peer_processes import end_processes, with_environment
from tests.cluster.gang_runs import own_temporary_directory

ROOT = Path(__file__).resolve().parents[2]
NODE_BYTES = 2_000_000_000


class HeadAndNodes:
    """The process seen from outside."""

    def __init__(self, nodes: int, cpus: float, memory_bytes: int) -> None:
        arguments = [str(nodes), str(cpus), str(memory_bytes)]
        self._process = subprocess.Popen(
            [sys.executable, "-m", "tests.bench.head_and_nodes", *arguments],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            cwd=ROOT,
            env=environment(),
        )
        self.address = self._answer()

    @property
    def pid(self) -> int:
        """The GCS's and the raylets' parent."""
        return self._process.pid

    def add(self) -> None:
        """A node joins; returns when the cluster knows it."""
        assert self._process.stdin is not None
        self._process.stdin.write("add\n")
        self._process.stdin.flush()
        self._answer()

    def end(self) -> None:
        """Idempotent."""
        self._process.kill()
        self._process.wait()

    def _answer(self) -> str:
        assert self._process.stdout is not None
        line = self._process.stdout.readline().strip()
        if not line:
            raise RuntimeError("the cluster's process ended")
        return line


@contextlib.contextmanager
def head_and_nodes(nodes: int, cpus: float = 1.0, memory_bytes: int = NODE_BYTES) -> Iterator[HeadAndNodes]:
    """Start it with that many nodes beside the head; afterwards every process and file of it is gone, also of those
    that were stopped and whose raylet is gone."""
    with own_temporary_directory() as directory:
        cluster = None
        try:
            cluster = HeadAndNodes(nodes, cpus, memory_bytes)
            yield cluster
        finally:
            if cluster is not None:
                cluster.end()
            end_processes(with_environment("TMPDIR", str(directory)))


def main(nodes: int, cpus: float, memory_bytes: float) -> None:
    """Hold a cluster until stdin ends."""
    cluster = LocalCluster(1, {"CPU": 0.0}, env=worker_environment(cpus, 0, os.environ)).start()
    offered = {"CPU": cpus, "memory": memory_bytes}
    for _ in range(nodes):
        cluster.add_node(offered)
    print(cluster.address, flush=True)
    for _ in sys.stdin:
        cluster.add_node(offered)
        print("added", flush=True)
    cluster.close()


if __name__ == "__main__":
    main(int(sys.argv[1]), float(sys.argv[2]), float(sys.argv[3]))
