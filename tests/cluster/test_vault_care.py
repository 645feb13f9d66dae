"""A vault whose process lives but which takes no connections is replaced; one that is only slow is left alone."""

import time
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import psutil
import pytest

from orchestrator.clusters.ray.local.local_cluster import LocalCluster
from orchestrator.domain.events import Event
from orchestrator.gang.vaults import vault_care
from orchestrator.gang.vaults.vault_care import VaultCare
from orchestrator.gang.vaults.vault_clients import VaultClients

pytestmark = [pytest.mark.cluster, pytest.mark.usefixtures("temporary_directory")]

SLOW_S = 4.0
PATIENCE_S = 60.0


@pytest.fixture
def vaults() -> Iterator[VaultClients]:
    cluster = LocalCluster(1, {"CPU": 1.0, "memory": 2e9}).start()
    made = VaultClients(cluster, "of-a-test", kept_s=60.0, failure_domain=None)
    try:
        node_ids = [node.node_id for node in cluster.nodes()]
        made.start(node_ids)
        assert made.wait(node_ids, PATIENCE_S, lambda: False) == []
        yield made
        made.close()
    finally:
        cluster.close()


def gang_of(vaults: VaultClients) -> Any:
    """As much of a gang as its vaults' care looks at: it has no members."""
    node_ids = [contact.node for contact in vaults.contacts()]
    planned = SimpleNamespace(draining={})
    return SimpleNamespace(vaults=vaults, members=[], generation=1, planned=planned, node_ids=lambda: node_ids)


def test_a_deaf_vault_is_replaced_and_a_slow_one_is_not(vaults: VaultClients, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(vault_care, "DEAF_S", 2.0)
    gang = gang_of(vaults)
    care, told = VaultCare(gang), list[Event]()
    (node_id,) = gang.node_ids()

    def look() -> None:
        told.extend(care.round(time.monotonic()))
        time.sleep(0.05)

    before = vaults.access(node_id, 1)
    assert before is not None
    process = psutil.Process(before.pid)
    deadline = time.monotonic() + SLOW_S
    process.suspend()
    while time.monotonic() < deadline:
        look()
    process.resume()
    deadline = time.monotonic() + 2.0
    while time.monotonic() < deadline:
        look()
    assert (told, vaults.access(node_id, 1)) == ([], before)
    assert vaults.hears(node_id)

    # No descriptor is left for a connection; what is open goes on, Ray's calls too.
    process.rlimit(psutil.RLIMIT_NOFILE, (3, process.rlimit(psutil.RLIMIT_NOFILE)[1]))
    assert not vaults.hears(node_id)
    deadline = time.monotonic() + PATIENCE_S
    while vaults.access(node_id, 1) in (None, before):
        look()
        assert time.monotonic() < deadline, told
    (event,) = told
    assert f"(process {before.pid}) has accepted no connections for over 2 s" in event.body.message
    after = vaults.access(node_id, 1)
    assert after is not None
    assert after.pid != before.pid
    assert vaults.hears(node_id)


def test_a_vault_that_did_not_confirm_its_peers_is_told_again(vaults: VaultClients) -> None:
    (node_id,) = [contact.node for contact in vaults.contacts()]
    access = vaults.access(node_id, 1)
    assert access is not None
    asked = SimpleNamespace(requests=[])
    ask = vaults._ask

    def recording(to: str, request: dict[str, Any], timeout_s: float = 1.0) -> Any:
        answer = ask(to, request, timeout_s)
        asked.requests.append((request["do"], answer))
        return answer

    vaults._ask = recording  # type: ignore[method-assign]
    process = psutil.Process(access.pid)
    process.suspend()
    vaults.assign(1, [node_id], replicas=1)
    vaults.tell_again()
    process.resume()
    deadline = time.monotonic() + PATIENCE_S
    while asked.requests[-1][1] is None:
        vaults.tell_again()
        assert time.monotonic() < deadline
    count = len(asked.requests)
    vaults.tell_again()
    assert len(asked.requests) == count
    assert asked.requests[0] == ("peers", None)
