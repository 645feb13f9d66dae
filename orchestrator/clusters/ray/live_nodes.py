"""The nodes of the cluster that this process has joined: resources and labels."""

from collections.abc import Collection, Mapping

from orchestrator.clusters.node_labels import canonical_labels
from orchestrator.clusters.placement import NodeCapacity

HEAD_RESOURCE = "node:__internal_head__"
"""A resource that Ray gives to the head alone."""


def live_nodes() -> tuple[NodeCapacity, ...]:
    """Nodes that are alive and not about to go, the head first, with total and free resources and canonical labels."""
    import ray
    from ray._private.state import available_resources_per_node, state

    free, draining = available_resources_per_node(), state.get_draining_nodes()
    found = []
    for node in ray.nodes():
        if node["Alive"] and node["NodeID"] not in draining:
            total = {str(k): float(v) for k, v in node["Resources"].items()}
            available = free.get(node["NodeID"], {})
            found.append(
                NodeCapacity(
                    node_id=node["NodeID"],
                    address=node["NodeManagerAddress"],
                    total=total,
                    free={k: float(available.get(k, 0.0)) for k in total},
                    labels=canonical_labels(node["Labels"]),
                )
            )
    return tuple(sorted(found, key=lambda n: (HEAD_RESOURCE not in n.total, n.node_id)))


class NodeLabels:
    """Labels of nodes by id, as they were when each was first asked about. A node's labels do not change."""

    def __init__(self) -> None:
        self._known: dict[str, Mapping[str, str]] = {}

    def of(self, node_ids: Collection[str]) -> Mapping[str, Mapping[str, str]]:
        """Of these nodes; empty for one that the cluster does not know."""
        import ray

        if any(node_id not in self._known for node_id in node_ids):
            self._known.update({node["NodeID"]: canonical_labels(node["Labels"]) for node in ray.nodes()})
        return {node_id: self._known.get(node_id, {}) for node_id in node_ids}
