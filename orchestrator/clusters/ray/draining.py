"""Nodes that are about to go: asks the cluster's head for them once a second, and so also notices first that the head
does not answer.

`python -m orchestrator.clusters.ray.draining ADDRESS NODE_ID NOTICE_S MESSAGE` announces that a node goes, from a
process that is not part of the cluster.
"""

import sys
import threading
import time
from collections.abc import Mapping

from orchestrator.clusters.ray.gcs import GcsConnection
from orchestrator.clusters.ray.reachability import listens
from orchestrator.domain.errors import ClusterError
from orchestrator.lasting_thread import LastingThread

INTERVAL_S = 1.0
TIMEOUT_S = 5.0
"""Of one question: a GCS that hangs is asked again afterwards."""


class DrainWatch:
    """Asks once a second, in a thread of its own: a GCS that hangs must not hold up whoever asks this.

    Ray marks a node as draining where a cluster manager announces its end (a spot notice), on `ray drain-node`, and
    when `ray start --block` is sent SIGTERM. It tells when the node goes, not why. Such a node gets no new workers;
    it ends by itself as soon as nothing runs there any more, which may be long before.
    """

    def __init__(self, address: str) -> None:
        """`address`: of the GCS. Call `close` in the end."""
        self._address = address
        self._found: dict[str, float | None] = {}
        self._silent_since_s: float | None = None
        self._ended = threading.Event()
        self._gcs: GcsConnection | None = None
        LastingThread("drain-watch", self._watch)

    @property
    def draining(self) -> Mapping[str, float | None]:
        """By node id when it goes (Unix seconds; None where nobody says). Nodes that have gone stay."""
        return self._found

    @property
    def silent_s(self) -> float:
        """How long the head has neither answered nor taken a connection; 0 while it does either. One that is only slow
        is not silent."""
        since_s = self._silent_since_s
        return 0.0 if since_s is None else time.monotonic() - since_s

    def close(self) -> None:
        """Ask no more."""
        self._ended.set()

    def _watch(self) -> bool:
        from ray.exceptions import RayError

        if self._ended.wait(INTERVAL_S if self._gcs is not None else 0.0):
            return False
        try:
            self._gcs = self._gcs or GcsConnection.to(self._address)
            found = self._gcs.draining(TIMEOUT_S)
        except (RayError, OSError, RuntimeError):
            if listens(self._address):
                self._silent_since_s = None
            elif self._silent_since_s is None:
                self._silent_since_s = time.monotonic()
            self._ended.wait(INTERVAL_S)  # what was known holds
            return True
        self._silent_since_s = None
        # Replaced, never changed: readers need no lock.
        self._found = {**self._found, **found}
        return True


def drain(address: str, node_id: str, notice_s: float, message: str) -> None:
    """Have a cluster mark a node as about to go, as a cluster manager does. Nothing ends it but whoever says so.

    Raises ClusterError where the cluster refuses.
    """
    problem = GcsConnection.to(address).drain(node_id, notice_s, message, TIMEOUT_S)
    if problem is not None:
        raise ClusterError(f"node {node_id} cannot be drained: {problem}")


if __name__ == "__main__":
    drain(sys.argv[1], sys.argv[2], float(sys.argv[3]), sys.argv[4])
