"""Tells another process what a Ray cluster has: `python -m orchestrator.clusters.ray.cluster_observer ADDRESS`.

Ray's client ends its process if the GCS is gone for a minute, and may hang if the GCS does: so it has a process of its
own, which whoever reads it ends and starts again. It writes a line of JSON to stdout every `INTERVAL_S`, see
`ClusterSight`, and reads requests to drain a node from stdin. It does not join the cluster, and ends when its stdin is
closed.
"""

import json
import queue
import sys
import threading
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass

from orchestrator.clusters.placement import NodeCapacity
from orchestrator.clusters.ray.gcs import GcsConnection
from orchestrator.clusters.ray.live_nodes import live_nodes
from orchestrator.clusters.ray.placement_groups import PLACE_PREFIX
from orchestrator.json_values import (
    JsonFields,
    JsonObject,
    flag,
    mapping,
    number_mapping,
    objects,
    parse_object,
    text,
    text_mapping,
)

INTERVAL_S = 0.5
DRAIN_TIMEOUT_S = 5.0
BOOKED = ("CREATED", "RESCHEDULING", "PREPARED")
"""States of placement groups that have places."""


@dataclass(frozen=True)
class ClusterSight:
    """What a cluster has at one moment."""

    nodes: tuple[NodeCapacity, ...]
    """Live ones that do not drain."""
    held: Mapping[str, Mapping[str, int]]
    """Workers by node for which there are reservations, by run."""
    autoscales: bool = False

    def to_json(self) -> JsonObject:
        """The fields as JSON values."""
        nodes: list[JsonObject] = [
            {
                "id": node.node_id,
                "address": node.address,
                "total": dict(node.total),
                "free": dict(node.free),
                "labels": dict(node.labels),
            }
            for node in self.nodes
        ]
        held = {run: dict(places) for run, places in self.held.items()}
        return {"nodes": nodes, "held": held, "autoscales": self.autoscales}

    @classmethod
    def from_json(cls, value: JsonFields) -> "ClusterSight":
        """Raises JsonShapeError."""
        nodes = tuple(
            NodeCapacity(
                text(node, "id"),
                text(node, "address"),
                number_mapping(node, "total"),
                number_mapping(node, "free"),
                text_mapping(node, "labels"),
            )
            for node in objects(value, "nodes")
        )
        held = mapping(value, "held")
        by_run = {run: {node: int(count) for node, count in number_mapping(held, run).items()} for run in held}
        return cls(nodes, by_run, flag(value, "autoscales"))


def look_at_cluster(gcs: GcsConnection) -> ClusterSight:
    """What the cluster has that this process is connected to. Raises RayError, or hangs with the GCS."""
    from ray._private.state import state

    held: dict[str, Counter[str]] = {}
    for group in state.placement_group_table().values():
        name = str(group["name"])
        if name.startswith(PLACE_PREFIX) and group["state"] in BOOKED:
            run = name.removeprefix(PLACE_PREFIX).rpartition(":")[0]
            held.setdefault(run, Counter()).update(node for node in group["bundles_to_node_id"].values() if node)
    return ClusterSight(live_nodes(), held, gcs.has_autoscaler())


def main(address: str) -> int:
    """Observe until stdin is closed; 1 if the GCS does not answer."""
    from ray._private.state import state
    from ray._raylet import GcsClientOptions  # type: ignore[attr-defined]
    from ray.exceptions import RayError

    requests: queue.Queue[str | None] = queue.Queue(maxsize=64)
    threading.Thread(target=_read, args=(requests,), daemon=True).start()
    try:
        gcs = GcsConnection.to(address)
        state._initialize_global_state(
            GcsClientOptions.create(address, None, allow_cluster_id_nil=True, fetch_cluster_id_if_nil=True)
        )
        while True:
            print(json.dumps(look_at_cluster(gcs).to_json()), flush=True)
            try:
                request = requests.get(timeout=INTERVAL_S)
            except queue.Empty:
                continue
            if request is None:
                return 0
            print(json.dumps(_drain(gcs, parse_object(request))), flush=True)
    except (RayError, OSError, RuntimeError, ConnectionError) as error:
        print(f"the GCS at {address} does not answer: {error}", file=sys.stderr, flush=True)
        return 1


def _drain(gcs: GcsConnection, request: JsonFields) -> JsonObject:
    """Carry out one request: `drain` (id of a node), `reason`, `notice_s` (null: no deadline)."""
    from ray.exceptions import RayError

    node_id, notice = text(request, "drain"), request.get("notice_s")
    notice_s = float(notice) if isinstance(notice, int | float) else None
    try:
        problem = gcs.drain(node_id, notice_s, text(request, "reason"), DRAIN_TIMEOUT_S)
    except RayError as error:
        problem = str(error)
    return {"drained": node_id, "problem": problem}


def _read(requests: "queue.Queue[str | None]") -> None:
    """Pass lines of stdin on; None at its end."""
    for line in sys.stdin:
        requests.put(line)
    requests.put(None)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1]))
