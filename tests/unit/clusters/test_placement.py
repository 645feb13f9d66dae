"""Whether workers fit, how many, and what is said where they do not."""

import pytest

from orchestrator.clusters.placement import (
    NodeCapacity,
    WorkerRequest,
    can_ever_fit,
    choose_workers,
    explain,
    fitting_workers,
    local_resources,
    place,
    request_of,
)
from orchestrator.spec.resources import ClusterSpec, ResourcesSpec, WorkersRange

pytestmark = pytest.mark.unit


def node(cpus: float, free: float | None = None, **more: float) -> NodeCapacity:
    total = {"CPU": cpus, **more}
    return NodeCapacity("id", "10.0.0.1", total, {**total, "CPU": cpus if free is None else free})


def request(
    minimum: int, cpus: float, maximum: int | None = None, placement: str = "spread", **more: float
) -> WorkerRequest:
    return WorkerRequest({"CPU": cpus, **more}, minimum, maximum or minimum, placement)


def test_workers_do_not_straddle_nodes() -> None:
    nodes = [node(3), node(3)]
    assert fitting_workers(nodes, {"CPU": 2}, "spread") == 2
    assert fitting_workers(nodes, {"CPU": 1}, "strict_spread") == 2
    assert fitting_workers(nodes, {"CPU": 1}, "strict_pack") == 3
    assert fitting_workers([node(4, free=1)], {"CPU": 1}, "pack") == 1
    assert fitting_workers([node(4, free=1)], {"CPU": 1}, "pack", total=True) == 4
    assert fitting_workers([node(4, memory=2**30)], {"CPU": 1, "memory": 2**29}, "pack") == 2
    assert fitting_workers([node(0.3)], {"CPU": 0.1}, "pack") == 3


def test_as_many_as_fit_within_the_bounds() -> None:
    nodes = [node(2), node(2)]
    assert choose_workers(request(1, 1, 8), nodes, global_batch=64) == 4
    assert choose_workers(request(1, 1, 3), nodes, global_batch=64) == 3
    assert choose_workers(request(5, 1, 8), nodes, global_batch=64) is None
    assert choose_workers(request(1, 1, 8), nodes, global_batch=2) == 2


def test_what_is_said_where_it_does_not_fit() -> None:
    nodes = [node(2), node(2), node(2)]
    error = explain(request(4, 2), nodes)
    assert "4 workers of 2 CPUs" in error.message
    assert "3 nodes" in error.message
    assert "3 such workers fit" in error.message
    assert error.hint == "ask for resources.workers: 3, or resources.cpus_per_worker: 1"


def test_what_others_occupy_is_told_apart() -> None:
    nodes = [node(4, free=1)]
    asked = request(3, 1)
    assert can_ever_fit(asked, nodes)
    message = explain(asked, nodes, waited_s=60).message
    assert message.startswith("after 60 s ")
    assert "1 CPU free of 4 CPUs" in message
    assert "(4 after other work there has ended)" in message


def test_a_resource_that_nobody_has_is_named() -> None:
    asked = request(1, 1, GPU=1)
    assert not can_ever_fit(asked, [node(8)])
    assert "no node offers GPU" in (explain(asked, [node(8)]).hint or "")


def test_strictness_is_offered_to_be_dropped() -> None:
    asked = request(3, 1, placement="strict_spread")
    assert "resources.placement: spread" in (explain(asked, [node(4)]).hint or "")


def test_a_local_cluster_offers_what_the_job_needs() -> None:
    spec = ResourcesSpec(workers=5, cpus_per_worker=2, memory_per_worker="1GiB", custom={"rack": 1})
    offered = local_resources(spec, ClusterSpec(nodes=2), host_memory_bytes=8 * 2**30)
    assert offered == {"CPU": 6.0, "memory": float(4 * 2**30), "rack": 3}
    nodes = [NodeCapacity(str(i), "127.0.0.1", offered, offered) for i in range(2)]
    assert choose_workers(request_of(spec), nodes, 64) == 5
    assert local_resources(spec, ClusterSpec(nodes=2, cpus_per_node=1.0), 2**30)["CPU"] == 1.0


def test_a_range_is_a_request() -> None:
    asked = request_of(ResourcesSpec(workers=WorkersRange(min=2, max=6), gpus_per_worker=1))
    assert (asked.minimum, asked.maximum, asked.bundle) == (2, 6, {"CPU": 1.0, "GPU": 1.0})


def test_workers_on_gpus_are_packed_unless_the_job_says_otherwise() -> None:
    assert request_of(ResourcesSpec(workers=2)).placement == "spread"
    assert request_of(ResourcesSpec(workers=2, gpus_per_worker=1)).placement == "pack"
    assert request_of(ResourcesSpec(workers=2, gpus_per_worker=1, placement="spread")).placement == "spread"


def test_workers_get_places_as_the_placement_says() -> None:
    nodes = [
        NodeCapacity(name, "10.0.0.1", {"CPU": 9.0}, {"CPU": free}) for name, free in (("a", 1), ("b", 3), ("c", 2))
    ]
    assert place(nodes, {"CPU": 1}, "spread", 5) == ["a", "b", "c", "b", "c"]
    assert place(nodes, {"CPU": 1}, "pack", 4) == ["b", "b", "b", "c"]
    assert place(nodes, {"CPU": 1}, "strict_spread", 3) == ["a", "b", "c"]
    assert place(nodes, {"CPU": 1}, "strict_pack", 3) == ["b", "b", "b"]
