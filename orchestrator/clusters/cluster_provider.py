"""The interface between a run and its cluster."""

from collections.abc import Collection, Mapping
from typing import Protocol, Self

from orchestrator.clusters.placement import NodeCapacity, WorkerRequest


class ClusterProvider(Protocol):
    """The cluster of one run. `LocalCluster` starts one on this machine, `JoinedCluster` uses one that exists.

    All methods are for the driver's thread.
    """

    def start(self) -> Self:
        """Bring the cluster up, or reach the one that exists, and connect this process to it as driver. Raises
        ClusterError."""

    def close(self) -> None:
        """Leave the cluster. If it was started for this run, all of its processes end. Idempotent."""

    @property
    def address(self) -> str:
        """`host:port` of its GCS; empty before `start`."""

    @property
    def start_s(self) -> float:
        """How long `start` took."""

    def nodes(self) -> tuple[NodeCapacity, ...]:
        """Every live node that is not draining, the head first."""

    def labels(self, node_ids: Collection[str]) -> Mapping[str, Mapping[str, str]]:
        """Labels of these nodes by id, see `node_labels.canonical_labels`; empty for a node that is unknown. Asks the
        cluster only about nodes that it has not been asked about before: labels do not change."""

    @property
    def one_host(self) -> bool:
        """All nodes are on the driver's host. They share its memory and processors, and their processes can be
        inspected and signalled from here."""

    @property
    def outlives_driver(self) -> bool:
        """The cluster stays when the driver ends or dies. Its vaults can then keep the run's state for another driver,
        and its workers have to be ended. Otherwise every process ends with the driver."""

    @property
    def autoscales(self) -> bool:
        """An autoscaler adds nodes when resources are requested."""

    def can_never_hold(self, request: WorkerRequest) -> bool:
        """The minimum of the request would not fit even if everything else ended, and no node can join. False if nodes
        may join."""

    def memory_per_node_bytes(self, request: WorkerRequest) -> int:
        """Host memory of the smallest node that could hold a worker of the request."""

    def memory_per_worker_bytes(self, request: WorkerRequest, workers: int) -> int:
        """A worker's share of the memory of its node, if so many workers are spread evenly."""

    @property
    def data_processes(self) -> int:
        """How many processes that prepare data keep the cluster busy."""

    def remember(self, pids: Collection[int]) -> None:
        """Make sure that these worker processes have ended after `close`, if that is this provider's to do."""

    def start_warning(self) -> str | None:
        """Why worker processes start more slowly than they should; each reason once."""

    @property
    def resume_hint(self) -> str:
        """How a user continues the run after this cluster is gone."""
