"""What the labels of a node say: its rack, its zone, its pool, and whether it is a spot machine. Pure.

Ray's own labels (https://docs.ray.io/en/latest/ray-core/scheduling/labels.html) come from the cloud or from KubeRay,
others from `ray start --labels`. Several keys mean the same; a node gets one canonical key for each meaning, beside
the labels that it has.
"""

from collections.abc import Mapping

RACK, ZONE, POOL, SPOT = "rack", "zone", "pool", "spot"

SOURCES: Mapping[str, tuple[str, ...]] = {
    RACK: ("rack", "topology.kubernetes.io/rack"),
    ZONE: ("zone", "ray.io/availability-zone", "topology.kubernetes.io/zone"),
    POOL: ("pool", "ray.io/node-group"),
    SPOT: ("spot", "ray.io/market-type"),
}
"""For each canonical key, the labels that it is read from; the first one that the node has counts."""
_SPOT_VALUES = ("spot", "true")


def canonical_labels(found: Mapping[str, str]) -> dict[str, str]:
    """The labels of a node, with `rack`, `zone`, `pool` and `spot` (`true` or `false`) added if anything says them."""
    labels = dict(found)
    for name, keys in SOURCES.items():
        value = next((found[key] for key in keys if found.get(key)), None)
        if value is not None:
            labels[name] = value if name != SPOT else str(value.lower() in _SPOT_VALUES).lower()
    return labels
