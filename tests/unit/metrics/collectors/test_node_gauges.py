import pytest

from orchestrator.domain.events import TrainingPlanned, WorkerStarted
from orchestrator.metrics.collectors.node_gauges import NODES_NAMED, NodeGauges
from tests.events import event

pytestmark = pytest.mark.unit


def nodes(gauges: NodeGauges) -> list[tuple[str, str]]:
    return [
        (sample.labels["node"], sample.labels["hostname"]) for family in gauges.collect() for sample in family.samples
    ]


def start(gauges: NodeGauges, rank: int, node: str, host: str) -> None:
    gauges.on_event(event(WorkerStarted, rank=rank, node_id=node, host=host))


def test_each_node_of_the_present_gang_has_one_series() -> None:
    gauges = NodeGauges(("run-1", "job"))
    for rank, node in enumerate("aabb"):
        start(gauges, rank, node, f"host-{node}")
    assert nodes(gauges) == [("a", "host-a"), ("b", "host-b")]
    gauges.on_event(event(TrainingPlanned, world_size=2))
    start(gauges, 1, "c", "host-c")
    assert nodes(gauges) == [("a", "host-a"), ("c", "host-c")]
    start(gauges, 0, "", "")  # recorded by a version that did not say
    assert nodes(gauges) == [("a", "host-a"), ("c", "host-c")]


def test_the_number_of_series_is_bounded() -> None:
    gauges = NodeGauges(("run-1", "job"))
    for rank in range(2 * NODES_NAMED):
        start(gauges, rank, f"node-{rank}", f"host-{rank}")
    assert len(nodes(gauges)) == NODES_NAMED
