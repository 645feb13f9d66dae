"""A cluster that another process owns: a run joins it, a test adds nodes to it and takes nodes from it.

As a program (`python -m tests.cluster.foreign_cluster NODES CPUS`) it is that process: it prints the address and the
ids of the nodes, then does what the lines on stdin say.
"""

import contextlib
import os
import subprocess
import sys
from pathlib import Path

import psutil

from orchestrator.clusters.ray.local.local_cluster import LocalCluster

ROOT = Path(__file__).resolve().parents[2]


class ForeignCluster:
    """Started by `__init__`, ended by `close`. Node 0 is the head."""

    def __init__(self, nodes: int, cpus: float = 1.0) -> None:
        self._process = subprocess.Popen(
            [sys.executable, "-m", "tests.cluster.foreign_cluster", str(nodes), str(cpus)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            cwd=ROOT,
            env={**os.environ, "OMP_NUM_THREADS": "1"},
        )
        self.address, *self.node_ids = self._answer().split()

    def add(self) -> str:
        """A node joins; its id."""
        self.node_ids.append(self._do("add"))
        return self.node_ids[-1]

    def kill(self, index: int) -> None:
        """A node dies, with every process of it."""
        self._do(f"kill {index}")

    def drain(self, index: int, notice_s: float) -> None:
        """A node is announced to go. It does not, unless `kill` is called."""
        self._do(f"drain {index} {notice_s}")

    def close(self) -> None:
        """All processes end."""
        self._process.kill()
        self._process.wait()

    def _do(self, command: str) -> str:
        assert self._process.stdin is not None
        self._process.stdin.write(command + "\n")
        self._process.stdin.flush()
        return self._answer()

    def _answer(self) -> str:
        assert self._process.stdout is not None
        line = self._process.stdout.readline().strip()
        assert line, "the cluster's process ended"
        return line


def main(nodes: int, cpus: float) -> None:
    """Hold a cluster until stdin ends."""

    from orchestrator.clusters.ray.draining import drain

    cluster = LocalCluster(nodes, {"CPU": cpus, "memory": 2e9}).start()

    def node_id(index: int) -> str:
        command = " ".join(map(str, cluster.processes[index + 1].args))
        return command.partition("--node_id=")[2].split()[0]

    print(cluster.address, *(node_id(index) for index in range(nodes)), flush=True)
    for line in sys.stdin:
        what, *values = line.split()
        if what == "add":
            print(cluster.add_node(), flush=True)
        elif what == "kill":
            raylet = psutil.Process(cluster.processes[int(values[0]) + 1].pid)
            for process in [raylet, *raylet.children(recursive=True)]:
                with contextlib.suppress(psutil.NoSuchProcess):
                    process.kill()
            print("killed", flush=True)
        elif what == "drain":
            drain(cluster.address, node_id(int(values[0])), float(values[1]), "a test takes it away")
            print("drained", flush=True)
    cluster.close()


if __name__ == "__main__":
    main(int(sys.argv[1]), float(sys.argv[2]))
