"""Nodes that are gone: given up when nothing listens there any more, whether or not a collective failed."""

import threading
import time
from types import SimpleNamespace
from typing import Any

import pytest

from orchestrator.domain.generation import Ending
from orchestrator.gang.agent.ray_session import Assignment
from orchestrator.gang.agent.worker_actor import Hello
from orchestrator.gang.group.worker_handle import WorkerHandle
from orchestrator.gang.health import health_monitor as module
from orchestrator.gang.health.health_monitor import QUIET_S, HealthMonitor

pytestmark = pytest.mark.unit


class Vaults:
    """Of nodes; those named refuse connections."""

    def __init__(self, *refusing: str) -> None:
        self.refusing, self.lost = refusing, list[str]()

    def refuses(self, node_id: str) -> bool:
        return node_id in self.refusing

    def lose(self, node_id: str) -> None:
        self.lost.append(node_id)


def member(rank: int, quiet_s: float) -> WorkerHandle:
    hello = Hello(f"node-{rank}", "10.0.0.1", f"host-{rank}", 4711, "/tmp/output")
    found = WorkerHandle(None, hello, None, Assignment(rank, 2, 0, "10.0.0.1"), run_ref=object())
    found.renewed_s = time.monotonic() - quiet_s
    return found


def look(
    members: list[WorkerHandle], vaults: Vaults, raylets: tuple[str, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    """One look of a watch over a generation in which no collective has failed."""
    monkeypatch.setattr(module, "raylet_refuses", lambda node_id: node_id in raylets)
    gang: Any = SimpleNamespace(members=members, vaults=vaults, planned=SimpleNamespace(draining={}), seek_more=None)
    HealthMonitor(gang, None)._gone(time.monotonic())  # type: ignore[arg-type]


def test_a_quiet_node_where_nothing_listens_is_given_up_though_no_collective_failed(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """As with NCCL, whose collectives do not fail when a peer dies."""
    members, vaults = [member(0, 0.1), member(1, QUIET_S + 0.1)], Vaults("node-1")
    look(members, vaults, ("node-1",), monkeypatch)
    assert members[0].failure is None
    assert members[1].failure is not None
    assert members[1].failure.ending is Ending.NODE_DIED
    assert vaults.lost == ["node-1"]


def test_one_signal_is_not_enough(monkeypatch: pytest.MonkeyPatch) -> None:
    members = [member(0, 0.1), member(1, QUIET_S + 0.1)]
    look(members, Vaults("node-1"), (), monkeypatch)
    look(members, Vaults(), ("node-1",), monkeypatch)
    look([members[0], member(1, 0.2)], Vaults("node-1"), ("node-1",), monkeypatch)
    assert [each.failure for each in members] == [None, None]


def test_if_nobody_is_heard_it_is_the_driver_that_is_cut_off(monkeypatch: pytest.MonkeyPatch) -> None:
    members = [member(0, 5.0), member(1, 5.0)]
    look(members, Vaults("node-0", "node-1"), ("node-0", "node-1"), monkeypatch)
    assert [each.failure for each in members] == [None, None]


def test_a_rack_that_falls_silent_is_probed_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """A probe of a silent node takes its whole timeout: one after another, sixteen of them would take 20 s."""
    members = [member(0, 0.1), *(member(rank, 10.0) for rank in range(1, 17))]
    vaults, asked = Vaults(), threading.Barrier(16, timeout=10.0)

    def answers(_: object, node_id: str) -> bool:
        asked.wait()  # only if all are asked at the same time
        return node_id == "node-3"

    monkeypatch.setattr(module, "node_answers", answers)
    gang: Any = SimpleNamespace(members=members, vaults=vaults, planned=SimpleNamespace(draining={}), seek_more=None)
    monitor = HealthMonitor(gang, None)  # type: ignore[arg-type]
    for expected in (0, 15):
        monitor._silence(time.monotonic())
        assert sum(each.failure is not None for each in members) == expected
    assert members[3].failure is None
    assert len(vaults.lost) == 15
