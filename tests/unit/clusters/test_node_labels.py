"""What the labels of a node say, whoever set them."""

import pytest

from orchestrator.clusters.node_labels import canonical_labels

pytestmark = pytest.mark.unit


def test_labels_of_ray_of_kubernetes_and_of_users_mean_the_same() -> None:
    cloud = {"ray.io/availability-zone": "eu-1a", "ray.io/market-type": "spot", "ray.io/node-group": "gpu"}
    assert canonical_labels(cloud) == {**cloud, "zone": "eu-1a", "spot": "true", "pool": "gpu"}
    pod = {"topology.kubernetes.io/zone": "eu-1b", "ray.io/market-type": "on-demand"}
    assert canonical_labels(pod) == {**pod, "zone": "eu-1b", "spot": "false"}
    own = {"rack": "r7", "zone": "z", "ray.io/availability-zone": "eu-1a"}
    assert canonical_labels(own) == own
    assert canonical_labels({"ray.io/node-id": "0a", "rack": ""}) == {"ray.io/node-id": "0a", "rack": ""}
