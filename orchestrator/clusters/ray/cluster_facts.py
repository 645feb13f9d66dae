"""What a running Ray cluster offers, as one JSON object: `python -m orchestrator.clusters.ray.cluster_facts ADDRESS`.

Run in a process of its own with a time limit: Ray in a process cannot be made to give up.
"""

import contextlib
import json
import sys
from collections.abc import Mapping
from typing import Any

from orchestrator.domain.errors import ClusterError


def cluster_facts(address: str) -> dict[str, Any]:
    """Joins as a run would, and leaves. Keys: ray (version), nodes (address, total, free: resources by name).

    Raises ClusterError.
    """
    import ray

    from orchestrator.clusters.ray.joined_cluster import JoinedCluster

    cluster = JoinedCluster(address).start()
    try:
        nodes = [
            {"address": node.address, "total": _plain(node.total), "free": _plain(node.free)}
            for node in cluster.nodes()
        ]
    finally:
        cluster.close()
    return {"ray": ray.__version__, "nodes": nodes}


def _plain(resources: Mapping[str, float]) -> dict[str, float]:
    """Without the marker each node has of itself."""
    return {name: amount for name, amount in resources.items() if not name.startswith("node:")}


def main(address: str) -> int:
    """Print the facts, or `{"error": ..., "hint": ...}` with exit code 1."""
    try:
        with contextlib.redirect_stdout(sys.stderr):
            facts = cluster_facts(address)
    except ClusterError as error:
        print(json.dumps({"error": error.message, "hint": error.hint}))
        return 1
    print(json.dumps(facts))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1]))
