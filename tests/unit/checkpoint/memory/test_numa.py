"""Memory for a GPU's state is taken on the GPU's NUMA node."""

import os
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest

from orchestrator.checkpoint.memory.cells import Cell, CellSize
from orchestrator.checkpoint.memory.numa import node_of, preferring, thread_policy
from orchestrator.checkpoint.memory.peers import descriptor_path
from orchestrator.checkpoint.memory.vault import Vault
from orchestrator.checkpoint.memory.wire import Channel

pytestmark = pytest.mark.unit

PREFERRED = (1, 1)
"""Mode, and node 0 as a bit."""


def machine(root: Path, online: str, **devices: str) -> Path:
    (root / "devices/system/node").mkdir(parents=True)
    (root / "devices/system/node/online").write_text(f"{online}\n")
    for name, node in devices.items():
        (root / "bus/pci/devices" / name).mkdir(parents=True)
        (root / "bus/pci/devices" / name / "numa_node").write_text(f"{node}\n")
    return root


def test_the_node_of_a_device(tmp_path: Path) -> None:
    two = machine(tmp_path / "two", "0-1", **{"0000:dc:00.0": "1", "0000:3b:00.0": "0", "0000:01:00.0": "-1"})
    assert [node_of(f"0000:{bus}:00.0", two) for bus in ("DC", "3b", "01", "99")] == [1, 0, None, None]
    assert node_of("0000:3b:00.0", machine(tmp_path / "one", "0", **{"0000:3b:00.0": "0"})) is None
    assert node_of("0000:3b:00.0", tmp_path / "nothing") is None


def policy() -> tuple[int, int]:
    found = thread_policy()
    if found is None:
        pytest.skip("this kernel has no memory policies")
    return found[0], found[1][0]


def test_memory_is_preferred_on_a_node_within_and_as_before_afterwards() -> None:
    before = policy()
    assert before != PREFERRED
    with preferring(0):
        assert policy() == PREFERRED
        with preferring(None):
            assert policy() == PREFERRED
        with preferring(1):  # whoever has chosen a policy keeps it
            assert policy() == PREFERRED
    assert policy() == before
    with preferring(5000):
        assert policy() == before


@pytest.fixture
def vault() -> Iterator[Vault]:
    with closing(Vault("127.0.0.1", "a token", lambda: 1 << 30)) as made:
        yield made


def test_a_vault_takes_a_cell_where_its_worker_says(vault: Vault, monkeypatch: pytest.MonkeyPatch) -> None:
    size, usual = CellSize(4096, 100), policy()
    seen: list[tuple[int, int]] = []
    allocate = os.posix_fallocate

    def noting(descriptor: int, offset: int, count: int) -> None:
        seen.append(policy())
        allocate(descriptor, offset, count)

    monkeypatch.setattr(os, "posix_fallocate", noting)
    with closing(Channel.connect(vault.address, "a token", 5.0)) as worker:
        request = {"do": "create", "rank": 0, "world_size": 1, "payload_bytes": 4096, "slot_state_bytes": 100}
        for generation, where in enumerate(({}, {"numa_node": None}, {"numa_node": 0}), 1):
            answer, _ = worker.ask({**request, "generation": generation, **where}, b"index")
    Cell.attach(descriptor_path(os.getpid(), answer["descriptor"]), size).close()
    assert seen == [usual, usual, PREFERRED]
