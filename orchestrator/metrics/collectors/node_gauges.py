"""Which nodes and which host names the ranks are on."""

from collections.abc import Iterable, Mapping

from prometheus_client.core import Metric as Family
from prometheus_client.registry import Collector

from orchestrator.domain.events import Event, TrainingPlanned, WorkerStarted
from orchestrator.metrics.catalog import resource_metrics
from orchestrator.metrics.collectors.families import Common, family

NODES_NAMED = 256
"""Nodes with a series: the first in the order of the ranks."""


class NodeGauges(Collector):
    """Fed with a run's events; knows the present gang."""

    def __init__(self, common: Common) -> None:
        self._common = common
        self._of_rank: dict[int, tuple[str, str]] = {}
        """By rank: id of the node in the cluster, host name."""

    def on_event(self, event: Event) -> None:
        """Learn where a rank is, and which ranks there are no longer."""
        match event.body:
            case TrainingPlanned(world_size=world_size):
                for rank in [rank for rank in self._of_rank if rank >= world_size]:
                    del self._of_rank[rank]
            case WorkerStarted(rank=rank, host=host, node_id=node_id) if host:
                self._of_rank[rank] = (node_id, host)

    @property
    def hosts(self) -> Mapping[int, str]:
        """Host name by rank."""
        return {rank: host for rank, (_, host) in self._of_rank.copy().items()}

    def collect(self) -> Iterable[Family]:
        known = self._of_rank.copy()  # events come in another thread
        nodes = list(dict.fromkeys(known[rank] for rank in sorted(known)))[:NODES_NAMED]
        yield family(resource_metrics.NODE_INFO, self._common, dict.fromkeys(nodes, 1))
