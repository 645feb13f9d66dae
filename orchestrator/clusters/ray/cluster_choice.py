"""The cluster that a job asks for."""

from collections.abc import Callable, Mapping, Sequence

import psutil

from orchestrator.clusters.cluster_provider import ClusterProvider
from orchestrator.clusters.placement import local_resources
from orchestrator.clusters.ray.gpus import gpus_for
from orchestrator.clusters.ray.joined_cluster import JoinedCluster
from orchestrator.clusters.ray.local.local_cluster import LocalCluster
from orchestrator.domain.fault_plan import NodeAddress
from orchestrator.domain.generation import ClusterSize
from orchestrator.spec.job import JobSpec


def cluster_for(
    spec: JobSpec,
    driver_env: Mapping[str, str],
    worker_env: Mapping[str, str],
    places: Sequence[NodeAddress],
    preload: Sequence[str],
    warn: Callable[[str], None],
) -> ClusterProvider:
    """The cluster that the spec names, else a local one; not started. `driver_env`: it may hide GPUs. For `places` and
    `preload` see `LocalCluster`."""
    if spec.cluster.address is not None:
        return JoinedCluster(spec.cluster.address)
    offered = local_resources(spec.resources, spec.cluster, psutil.virtual_memory().available)
    gpus = gpus_for(spec.resources.gpus_per_worker, driver_env, warn)
    return LocalCluster(spec.cluster.nodes or 1, offered, gpus, worker_env, places=places, preload=preload)


def cluster_size(cluster: ClusterProvider) -> ClusterSize:
    """What a cluster that has been started offers in all."""
    nodes = cluster.nodes()
    return ClusterSize(
        address=cluster.address,
        nodes=len(nodes),
        cpus=sum(node.total.get("CPU", 0.0) for node in nodes),
        gpus=sum(node.total.get("GPU", 0.0) for node in nodes),
        seconds=cluster.start_s,
    )
