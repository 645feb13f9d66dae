"""Whether the cluster of a driver is gone for good. Ray itself ends a driver only after a minute without a GCS."""

from collections.abc import Callable

import psutil

from orchestrator.clusters.ray.node_processes import raylets_here
from orchestrator.clusters.ray.reachability import listens

LOOK_S = 2.0
"""From one look to the next."""
LOOKS = 2
"""In a row, before a cluster counts as gone."""


class ClusterGuard:
    """Two signals: the GCS takes no connections, and every raylet of this host that belonged to it has ended. A GCS
    that is only restarted leaves its raylets alone."""

    def __init__(
        self,
        address: str,
        listening: Callable[[str], bool] = listens,
        raylets: Callable[[str], set[psutil.Process]] = raylets_here,
    ) -> None:
        """`address`: of the GCS."""
        self._address, self._listening, self._raylets = address, listening, raylets
        self._known: set[psutil.Process] = set()
        self._due_s, self._looks = float("-inf"), 0

    def gone(self, now_s: float) -> bool:
        """Whether it is gone; `now_s`: on the monotonic clock. Looks every `LOOK_S` only. Waits a second at most."""
        if now_s < self._due_s:
            return False
        self._due_s = now_s + LOOK_S
        if self._listening(self._address):
            self._looks = 0
            self._known = {each for each in self._known if each.is_running()} or self._raylets(self._address)
            return False
        # Without a raylet that was seen, nothing can be said: they may be in another container.
        if self._known and not any(each.is_running() for each in self._known):
            self._looks += 1
        return self._looks >= LOOKS
