"""What a server's own cluster offers of this machine."""

import os

import psutil
import pytest

from orchestrator.control.cluster import node_choice
from orchestrator.control.cluster.node_choice import ON_ANY_DEVICE, machine_nodes

pytestmark = pytest.mark.unit


def test_nodes_share_the_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(node_choice, "gpus_for", lambda gpus, environ, warn: ())
    found = machine_nodes(2)
    assert found.nodes == 2
    assert found.resources["CPU"] == max(1, len(os.sched_getaffinity(0)) // 2)
    assert 0 < 2 * found.resources["memory"] < psutil.virtual_memory().total
    assert "deepspeed" in found.preload
    assert machine_nodes(1, cpus_per_node=3.0).resources["CPU"] == 3.0


def test_nothing_that_decides_for_a_device_is_imported_ahead_on_a_machine_with_gpus(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(node_choice, "gpus_for", lambda gpus, environ, warn: ("0", "1"))
    found = machine_nodes(2)
    assert (found.gpus, found.preload[:2]) == (("0", "1"), ON_ANY_DEVICE)
    assert "deepspeed" not in found.preload
    assert machine_nodes(2, gpus=False).gpus == ()
