"""Forms the next gang after a loss: from the workers that are left and those that have joined since."""

import time
from collections.abc import Callable
from typing import TYPE_CHECKING

from orchestrator.clusters.cluster_provider import ClusterProvider
from orchestrator.clusters.placement import explain
from orchestrator.domain.errors import ClusterError
from orchestrator.domain.generation import Shortage
from orchestrator.gang.elastic.liveness_probe import LivenessProbe
from orchestrator.gang.elastic.resize_policy import Lineup, Wait, lineup, replaced_later, worth_telling
from orchestrator.gang.elastic.resizer import leave_lost_nodes
from orchestrator.gang.elastic.scale_requests import ScaleRequests
from orchestrator.gang.group.gang_policy import wants_regroup

if TYPE_CHECKING:
    from orchestrator.gang.group.worker_group import Gang

LOOK_S = 0.02
"""From one look at the workers that join to the next."""


class Reformation:
    """One wait for enough workers. The states in the vaults are safe meanwhile."""

    def __init__(
        self,
        gang: "Gang",
        cluster: ClusterProvider,
        planned: ScaleRequests,
        seek: Callable[[], None],
        waits: Callable[[Shortage | None], None],
        max_wait_s: float | None,
    ) -> None:
        """`seek` starts workers for the empty places. `waits` is called when there is more to wait for than processes
        that start, and again with None when that is over. `max_wait_s`: of the job; None: no limit."""
        self._gang, self._cluster, self._planned, self._seek = gang, cluster, planned, seek
        self._waits, self._max_wait_s = waits, max_wait_s
        self._began_s = time.monotonic()
        self._enough_since_s = float("inf")
        self._probe = LivenessProbe()
        self._told = False

    def form(self, stopped: Callable[[], bool]) -> int | None:
        """How many workers the next gang has; None if stopped. Waits while there are fewer than the minimum.

        Raises ClusterError if there can never be enough, or not within the limit.
        """
        gang, request = self._gang, self._planned.request
        gang.head.outlast(gang.saves, stopped)
        gang.replace_lost()
        leave_lost_nodes(gang)
        if not replaced_later(len(gang.staying), gang.recruits.coming, request.minimum, request.maximum):
            self._seek()
        while not stopped():
            line = self._look(time.monotonic())
            if line is not None:
                if self._told:
                    self._waits(None)
                return gang.reform(line)
            time.sleep(LOOK_S)
        return None

    def _look(self, now_s: float) -> Lineup | None:
        """The next gang, if it is to be formed now. Raises ClusterError."""
        gang, recruits = self._gang, self._gang.recruits
        if self._planned.look(gang.members, now_s) or recruits.pause_ended():
            self._seek()
        recruits.look()
        if self._probe.look(gang.members):  # a worker that waited is lost too: its place is empty as well
            gang.replace_lost()
            self._seek()
        request = self._planned.request
        line = lineup(len(gang.staying), recruits.ready, len(gang.doomed), request.minimum, request.maximum)
        if line is None:
            if self._cluster.can_never_hold(request):
                raise explain(request, self._cluster.nodes())
            self._wait(now_s)
            return None
        self._enough_since_s = min(self._enough_since_s, now_s)
        waited_s = now_s - self._enough_since_s
        forms = line.kept >= request.minimum or line.lent or wants_regroup(recruits.ready, recruits.arriving, waited_s)
        return line if forms else None

    def _wait(self, now_s: float) -> None:
        """There are too few workers. Raises ClusterError if that has been so for as long as the job permits."""
        gang, request, recruits = self._gang, self._planned.request, self._gang.recruits
        starting = recruits.ready + recruits.arriving
        wait = Wait(len(gang.staying), request.minimum, starting, now_s - self._began_s, self._told)
        limit_s = self._max_wait_s
        if limit_s is not None and wait.waited_s > limit_s:
            raise ClusterError(
                f"waited {limit_s:g} s for {wait.need} workers, {wait.have} available: recovery.max_wait_s",
                hint="resume the run when more nodes are available, or allow fewer workers (resources.workers.min)",
            )
        if worth_telling(wait):
            self._told = True
            self._waits(Shortage(wait.have, wait.need))
