"""One run's way through a cluster: start it, reserve, start workers, keep them warm, train, tear down."""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import psutil

from orchestrator.checkpoint.inventory import WholeStep, whole_steps
from orchestrator.domain.events import Observer
from orchestrator.domain.session import TrainPlan
from orchestrator.gang.cluster import Cluster, start_local
from orchestrator.gang.decide import wants_regroup
from orchestrator.gang.joining import connect
from orchestrator.gang.placement import (
    Request,
    explain,
    fitting_workers,
    group_on,
    local_resources,
    request_of,
    reserve,
)
from orchestrator.gang.worker_actor import worker_environment
from orchestrator.spec.job import JobSpec


@dataclass(frozen=True)
class ClusterSize:
    """What a run got hold of."""

    address: str
    nodes: int
    cpus: float
    gpus: float
    seconds: float


class GangDriver:
    """The cluster and the gang of one run. Every method is for one thread; `close` ends everything."""

    def __init__(self, spec: JobSpec, env: dict[str, str], stopped: Callable[[], bool]) -> None:
        """`env` is the driver's environment."""
        self._spec, self._env, self._stopped = spec, env, stopped
        self.request: Request = request_of(spec.resources)
        self._worker_env = worker_environment(spec.resources.cpus_per_worker, spec.resources.gpus_per_worker, env)
        self._cluster: Cluster | None = None
        self._gang: Any = None
        self._vaults: Any = None

    def connect(self) -> ClusterSize:
        """Start the local cluster, or join the one that the spec names. Raises ClusterError."""
        cluster = self._spec.cluster
        if cluster.address is not None:
            self._cluster = connect(cluster.address)
        else:
            offered = local_resources(self._spec.resources, cluster, psutil.virtual_memory().available)
            self._cluster = start_local(cluster.nodes or 1, offered, _gpus(), self._worker_env)
        nodes = self._cluster.nodes()
        return ClusterSize(
            address=self._cluster.address,
            nodes=len(nodes),
            cpus=sum(node.total.get("CPU", 0.0) for node in nodes),
            gpus=sum(node.total.get("GPU", 0.0) for node in nodes),
            seconds=self._cluster.seconds,
        )

    def start_workers(self, warm: tuple[str, ...]) -> int | None:
        """Reserve and start as many workers as fit; they import `warm` meanwhile. None where stopped.

        Raises ClusterError that says what was asked, what there is, and what would fit.
        """
        from orchestrator.gang.gang import Gang

        cluster = self._require_cluster()
        spec = self._spec
        found = reserve(
            self.request,
            cluster.nodes,
            cluster.autoscales,
            spec.resources.placement_timeout_s,
            spec.train.global_batch,
            self._stopped,
        )
        if found is None:
            return None
        if self._vaults is None and spec.checkpoint.memory:
            from orchestrator.gang.vaults import Vaults

            self._vaults = Vaults(cluster.local)
        self._gang = Gang(found, self.request, self._worker_env, cluster.local, self._vaults)
        self._gang.replicas = spec.checkpoint.replicas
        asked = spec.recovery.hang_timeout_s
        self._gang.hangs.asked_s = None if asked == "auto" else asked
        self._gang.warm(warm)
        return len(found)

    def reform(self) -> int | None:
        """Form the next gang of who is left and who has come; how many workers it has. None where stopped.

        Where that is fewer than the minimum, wait for those who take the empty places; the states in the vaults are
        safe meanwhile. Raises ClusterError where they can never come.
        """
        gang, cluster, minimum = self._gang, self._require_cluster(), self.request.minimum
        self.seek()
        enough_since_s: float | None = None
        while not self._stopped():
            gang.recruits.look()
            if gang.survivors >= minimum:
                return int(gang.reform(self._target))
            now_s = time.monotonic()
            if gang.survivors + gang.recruits.ready >= minimum:
                enough_since_s = now_s if enough_since_s is None else enough_since_s
                if wants_regroup(gang.recruits.ready, gang.recruits.arriving, now_s - enough_since_s):
                    return int(gang.reform(self._target))
            elif cluster.local and cluster.hopeless(self.request):
                raise explain(self.request, cluster.nodes())
            time.sleep(0.02)
        return None

    def seek(self) -> None:
        """Have workers started for the empty places, in the background; they join when they are ready."""
        strict = self.request.placement.startswith("strict")
        self._gang.seek(self._target, None if strict else lambda: group_on(None, self.request.bundle))

    @property
    def _target(self) -> int:
        return min(self.request.maximum, max(self._spec.train.global_batch, self.request.minimum))

    def survey(self) -> list[WholeStep]:
        """The steps that the vaults hold whole, the newest first."""
        return whole_steps(self._vaults.survey()) if self._vaults is not None else []

    def executor(self) -> Any:
        """An `Executor` over this cluster's nodes."""
        from orchestrator.gang.executor import RayExecutor
        from orchestrator.gang.member import cpu_count

        cluster = self._require_cluster()
        cpus = cpu_count() if cluster.local else int(sum(node.total.get("CPU", 0.0) for node in cluster.nodes()))
        return RayExecutor(max(1, cpus), self._stopped)

    def memory_per_worker_bytes(self, workers: int) -> int:
        """Host memory that one worker may use: what the spec reserves, or its share of its node."""
        asked = self.request.bundle.get("memory")
        if asked:
            return int(asked)
        cluster = self._require_cluster()
        if cluster.local:
            return int(psutil.virtual_memory().available) // workers
        nodes = [node for node in cluster.nodes() if fitting_workers([node], self.request.bundle, "pack", total=True)]
        per_node = -(-workers // max(1, len(nodes)))
        return int(min((node.total.get("memory", 0.0) for node in nodes), default=0.0)) // per_node

    def train(self, entry: str, plan: TrainPlan, readable: Sequence[str], observers: Sequence[Observer]) -> Any:
        """Run `entry` on the gang; a `GangOutcome`, or None where it was stopped before it began."""
        if not self._gang.ready(self._stopped):
            return None
        cluster = self._require_cluster()
        if cluster.local:
            cluster.worker_pids |= self._gang.worker_pids
        return self._gang.run(entry, plan, readable, observers, self._stopped)

    def close(self) -> None:
        """End the workers and leave the cluster; a local one ends with every process of it. Idempotent."""
        cluster, self._cluster = self._cluster, None
        gang, self._gang = self._gang, None
        vaults, self._vaults = self._vaults, None
        if cluster is None:
            return
        try:
            if gang is not None and not cluster.local:
                gang.kill()
            if vaults is not None and not cluster.local:
                vaults.close()
        finally:
            cluster.close()

    def _require_cluster(self) -> Cluster:
        if self._cluster is None:
            raise RuntimeError("not connected")
        return self._cluster


def _gpus() -> int:
    """NVIDIA GPUs of this machine, without loading a library for it."""
    from pathlib import Path

    return len(list(Path("/proc/driver/nvidia/gpus").glob("*")))
