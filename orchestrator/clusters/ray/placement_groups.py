"""Reservations: a placement group of Ray for each worker."""

import contextlib
import secrets
import time
from collections.abc import Callable, Sequence
from functools import partial
from typing import TYPE_CHECKING

from orchestrator.clusters.placement import (
    NodeCapacity,
    Resources,
    WorkerRequest,
    can_ever_fit,
    choose_workers,
    explain,
    fitting_workers,
    place,
)

if TYPE_CHECKING:
    from orchestrator.clusters.ray.handles import PlacementGroup

NODE_ID_LABEL = "ray.io/node-id"
PLACE_PREFIX = "convoy-place:"
"""How the names of all reservations begin; the id of the run follows."""


def reserve(
    request: WorkerRequest,
    read_nodes: Callable[[], Sequence[NodeCapacity]],
    waits: bool,
    timeout_s: float,
    global_batch: int,
    stopped: Callable[[], bool],
    run_id: str = "",
) -> "list[PlacementGroup] | None":
    """A placement group for each of as many workers as fit, all of them or none; None if `stopped`.

    One group per worker: Ray places a group whose node is lost again by itself as soon as any node has room for it. A
    single group of many bundles would wait until all of its lost ones fit at once.

    A request that can never fit is refused at once, unless the cluster `waits` for nodes of its own (an autoscaler).
    Resources in use by others are waited for, `timeout_s` at most. Raises ClusterError that says what is missing.
    """
    started = time.monotonic()
    while not stopped():
        nodes = read_nodes()
        if not waits and not can_ever_fit(request, nodes):
            raise explain(request, nodes)
        count = choose_workers(request, nodes, global_batch)
        left_s = timeout_s - (time.monotonic() - started)
        if left_s <= 0:
            raise explain(request, nodes, timeout_s - left_s)
        if count is None and not waits:
            time.sleep(0.2)
            continue
        if count is None:
            _draw_nodes(request, left_s, stopped)
            continue
        groups = [
            group_on(node_id, request.bundle, run_id)
            for node_id in place(nodes, request.bundle, request.placement, count)
        ]
        if all_placed(groups, left_s, stopped, partial(_fits_still, request, read_nodes, count)):
            return groups
        release(groups)
    return None


def group_on(node_id: str | None, bundle: Resources, run_id: str = "") -> "PlacementGroup":
    """A reservation for one worker, on that node if it has room, otherwise on any that has. Its name contains the run:
    see `release_of_run`."""
    from ray.util.placement_group import placement_group

    name = f"{_group_prefix(run_id)}{secrets.token_hex(4)}" if run_id else ""
    # Only STRICT_PACK takes a target; for one bundle all strategies mean the same.
    return placement_group([dict(bundle)], strategy="STRICT_PACK", name=name, _soft_target_node_id=node_id)


def group_bound_to(node_id: str, bundle: Resources, run_id: str) -> "PlacementGroup":
    """A reservation for one worker on that node and nowhere else, as soon as it has room. Every raylet has its id as a
    label (https://docs.ray.io/en/latest/ray-core/scheduling/labels.html)."""
    from ray.util.placement_group import placement_group

    name, bound_to = f"{_group_prefix(run_id)}{secrets.token_hex(4)}", {NODE_ID_LABEL: node_id}
    return placement_group([dict(bundle)], strategy="STRICT_PACK", name=name, bundle_label_selector=[bound_to])


def release_of_run(run_id: str) -> None:
    """Give back the reservations of an earlier driver of a run. Ray does that only when it sees the end of that
    driver's process, which may be stopped or cut off."""
    from ray.exceptions import RayError
    from ray.util import get_placement_group, placement_group_table

    for entry in placement_group_table().values():
        if entry["name"].startswith(_group_prefix(run_id)) and entry["state"] != "REMOVED":
            with contextlib.suppress(RayError, ValueError):  # removed meanwhile
                release([get_placement_group(entry["name"])])


def _group_prefix(run_id: str) -> str:
    return f"{PLACE_PREFIX}{run_id}:"


def release(groups: "Sequence[PlacementGroup]") -> None:
    """Give reservations back."""
    from ray.exceptions import RayError
    from ray.util.placement_group import remove_placement_group

    for group in groups:
        with contextlib.suppress(RayError):
            remove_placement_group(group)


def all_placed(
    groups: "Sequence[PlacementGroup]", patience_s: float, stopped: Callable[[], bool], possible: Callable[[], bool]
) -> bool:
    """Whether all of these have their nodes within `patience_s`. It is given up when `stopped`, or not `possible`."""
    deadline = time.monotonic() + patience_s
    for group in groups:
        while not group.wait(max(0.0, min(0.5, deadline - time.monotonic()))):
            # Impossible: a node that was still counted is gone, or another job took its room.
            if stopped() or time.monotonic() >= deadline or not possible():
                return False
    return True


def _fits_still(request: WorkerRequest, read_nodes: Callable[[], Sequence[NodeCapacity]], count: int) -> bool:
    return fitting_workers(read_nodes(), request.bundle, request.placement, total=True) >= count


def _draw_nodes(request: WorkerRequest, patience_s: float, stopped: Callable[[], bool]) -> None:
    """Have an autoscaler add nodes: it does so for a pending group of all workers."""
    from ray.util.placement_group import placement_group

    group = placement_group([dict(request.bundle)] * request.minimum, strategy=request.placement.upper())
    try:
        all_placed([group], patience_s, stopped, lambda: True)
    finally:
        release([group])


def node_of(group: "PlacementGroup") -> str | None:
    """The id of the node that a reservation is on; None if it has none, or Ray does not say."""
    from ray.exceptions import RayError
    from ray.util.placement_group import placement_group_table

    try:
        where: dict[int, str] = placement_group_table(group).get("bundles_to_node_id", {})
    except RayError:
        return None
    return where.get(0)


def placed_after_s(group: "PlacementGroup") -> float | None:
    """From the request of a reservation until it had its node, in seconds; None if Ray does not say."""
    from ray.exceptions import RayError
    from ray.util.placement_group import placement_group_table

    try:
        entry = placement_group_table(group)
    except RayError:
        return None
    latency_ms = entry.get("stats", {}).get("end_to_end_creation_latency_ms")
    return float(latency_ms) / 1000.0 if latency_ms and entry.get("state") == "CREATED" else None
