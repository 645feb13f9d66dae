"""What a running Ray cluster offers, as one JSON object: `python -m orchestrator.gang.facts ADDRESS`.

Run in a process of its own with a time limit: connecting to a cluster that does not answer takes long.
"""

import contextlib
import json
import sys
from typing import Any


def cluster_facts(address: str) -> dict[str, Any]:
    """Joins as a driver and leaves. Keys: ray, nodes (ip, alive, resources), total, available.

    Raises whatever Ray raises.
    """
    import ray

    ray.init(address=address, log_to_driver=False, logging_level="ERROR", configure_logging=False)
    try:
        nodes = [
            {"ip": node["NodeManagerAddress"], "alive": node["Alive"], "resources": _plain(node.get("Resources", {}))}
            for node in ray.nodes()
        ]
        total, available = _plain(ray.cluster_resources()), _plain(ray.available_resources())
        return {"ray": ray.__version__, "nodes": nodes, "total": total, "available": available}
    finally:
        ray.shutdown()


def _plain(resources: dict[str, float]) -> dict[str, float]:
    """Without the marker each node has of itself."""
    return {name: amount for name, amount in resources.items() if not name.startswith("node:")}


def main(address: str) -> int:
    """Print the facts, or `{"error": ...}` with exit code 1."""
    try:
        with contextlib.redirect_stdout(sys.stderr):
            facts = cluster_facts(address)
    except Exception as error:  # noqa: BLE001  # Ray raises many kinds; all mean that it cannot be used
        print(json.dumps({"error": f"{type(error).__name__}: {error}"}))
        return 1
    print(json.dumps(facts))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1]))
