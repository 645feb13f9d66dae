"""What vaults count of snapshots and of their copies, as the driver is told."""

import time

import pytest

from orchestrator.checkpoint.memory.copy_totals import CopyFigures
from orchestrator.checkpoint.memory.vault import Vault
from tests.unit.checkpoint.memory.test_vault import SIZE, TOKEN, channel, create, eventually, fill, key

pytestmark = pytest.mark.unit
BYTES = SIZE.payload_bytes


def told(vault: Vault) -> CopyFigures:
    answer, _ = channel(vault).ask({"do": "inventory"})
    return CopyFigures.from_json(answer["copies"])


def test_snapshots_are_queued_until_their_peers_have_them() -> None:
    here, peer = (Vault("127.0.0.1", TOKEN, lambda: 1 << 30) for _ in range(2))
    try:
        worker = channel(here)
        cell = create(worker)
        assert told(here) == CopyFigures(0, 0, 0, told(here).replicated_counts, 0.0, 0)
        fill(cell, 1)
        worker.send({"do": "filled", **key(1)})
        eventually(lambda: told(here).snapshots == 1)
        waiting = told(here)
        assert (waiting.snapshot_bytes, waiting.queued_bytes) == (BYTES, BYTES), "nobody has said where copies go"
        assert (waiting.replicated_bytes, sum(waiting.replicated_counts)) == (0, 0)
        time.sleep(0.06)
        channel(here).ask({"do": "peers", "generation": 3, "addresses": [peer.address]})
        eventually(lambda: told(here).queued_bytes == 0)
        arrived = told(here)
        assert (arrived.replicated_bytes, sum(arrived.replicated_counts)) == (BYTES, 1)
        assert arrived.replicated_s >= 0.05, "from the snapshot on, not from the last attempt"
        assert told(peer).snapshots == told(peer).queued_bytes == 0, "a copy for a peer is no snapshot"
    finally:
        here.close()
        peer.close()
