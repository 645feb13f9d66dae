"""Keeps a local Ray cluster until it is asked to end:
`python -m orchestrator.control.cluster.cluster_keeper DIRECTORY KEPT` with the fields of `KeptNodes` as JSON.

Every process of the cluster dies with this one, whatever way that ends, and this one outlives whoever started it. A
node whose raylet was killed is replaced; a cluster whose GCS has died is replaced as a whole, at another address.
SIGTERM ends it.
"""

import os
import signal
import sys
import threading
import time
from pathlib import Path
from types import FrameType

from orchestrator.base_error import ConvoyError
from orchestrator.clusters.ray.local.keeper_files import KeeperFiles, KeptCluster, KeptNodes
from orchestrator.clusters.ray.local.local_cluster import LocalCluster
from orchestrator.gang.agent.worker_actor import worker_environment
from orchestrator.json_values import parse_object

LOOK_S = 0.5
"""From one look at the processes of the cluster to the next."""
FIRST_PAUSE_S, LONGEST_PAUSE_S = 1.0, 60.0
"""Before something is started again; twice as long each time that it ends soon."""
SOON_S = 120.0
GCS = -1
"""The index under which `LocalCluster.ended` lists it."""


class Keeper:
    """One directory's cluster. All methods but `stop` are for the thread that lives as long as the cluster."""

    def __init__(self, files: KeeperFiles, kept: KeptNodes) -> None:
        self._files, self._kept = files, kept
        self._ending = threading.Event()
        self._pauses: dict[int, tuple[float, float]] = {}
        """By index of a node: the last pause, and when it ended last."""
        self._drained: set[int] = set()

    def stop(self, number: int, frame: FrameType | None) -> None:
        """The handler of signals."""
        self._ending.set()

    def run(self) -> int:
        """Keep the cluster; the exit code. Raises ConvoyError if it does not start at first."""
        first = True
        while not self._ending.is_set():
            cluster = LocalCluster(
                self._kept.nodes,
                self._kept.resources,
                self._kept.gpus,
                env=worker_environment(1, int(bool(self._kept.gpus)), os.environ),
                preload=self._kept.preload,
            )
            try:
                cluster.bring_up()
                first = False
                self._files.announce(KeptCluster(cluster.address, os.getpid(), self._kept))
                self._drained.clear()
                self._watch(cluster)
            except ConvoyError as error:
                if first:
                    raise
                _say(error.message)
            finally:
                self._files.withdraw()
                cluster.close()
            self._ending.wait(self._pause_s(GCS))
        return 0

    def _watch(self, cluster: LocalCluster) -> None:
        """Until the end, or until the GCS has ended."""
        while not self._ending.wait(LOOK_S):
            ended = cluster.ended()
            if GCS in ended:
                _say("the GCS has ended: the cluster is started again")
                return
            for index in ended:
                if index not in self._drained:
                    self._replace(cluster, index)

    def _replace(self, cluster: LocalCluster, index: int) -> None:
        if cluster.processes[index + 1].returncode == 0:
            self._drained.add(index)  # a raylet that was drained ends by itself
            _say(f"node {index} has ended after it was drained")
            return
        if self._ending.wait(self._pause_s(index)):
            return
        try:
            node_id = cluster.replace_node(index)
            _say(f"node {index} has ended and was replaced by {node_id}")
        except ConvoyError as error:
            _say(error.message)

    def _pause_s(self, index: int) -> float:
        """How long to wait before this is started again."""
        pause_s, last_s = self._pauses.get(index, (0.0, float("-inf")))
        now_s = time.monotonic()
        soon = now_s - last_s < SOON_S
        pause_s = min(LONGEST_PAUSE_S, max(FIRST_PAUSE_S, 2 * pause_s)) if soon else FIRST_PAUSE_S
        self._pauses[index] = (pause_s, now_s)
        return pause_s


def _say(message: str) -> None:
    """Into the keeper's log."""
    print(message, file=sys.stderr, flush=True)


def main(directory: Path, kept: KeptNodes) -> int:
    """Keep a cluster; 0 also if another process keeps it."""
    files = KeeperFiles(directory)
    lock = files.take()
    if lock is None:
        return 0
    keeper = Keeper(files, kept)
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, keeper.stop)
    signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        return keeper.run()
    except ConvoyError as error:
        _say(f"error: {error.message}" + (f"\nhint: {error.hint}" if error.hint else ""))
        return 1
    finally:
        os.close(lock)


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1]), KeptNodes.from_json(parse_object(sys.argv[2]))))
