"""When a driver believes that its cluster is gone."""

from typing import Any

import pytest

from orchestrator.control.drivers.cluster_guard import LOOK_S, LOOKS, ClusterGuard

pytestmark = pytest.mark.unit


class Raylet:
    """A process that may have ended."""

    def __init__(self) -> None:
        self.runs = True

    def is_running(self) -> bool:
        return self.runs


class Cluster:
    """A cluster that a guard looks at."""

    def __init__(self, *raylets: Any) -> None:
        self.listening, self.raylets, self.now_s = True, set(raylets), 0.0
        self.guard = ClusterGuard("head:1", lambda _: self.listening, lambda _: set(self.raylets))

    def looks(self, count: int) -> list[bool]:
        found = []
        for _ in range(count):
            found.append(self.guard.gone(self.now_s))
            self.now_s += LOOK_S
        return found


def test_a_cluster_without_gcs_and_raylets_is_gone() -> None:
    raylet = Raylet()
    cluster = Cluster(raylet)
    assert cluster.looks(3) == [False] * 3
    cluster.listening = raylet.runs = False
    assert cluster.looks(LOOKS) == [False] * (LOOKS - 1) + [True]


def test_a_gcs_that_restarts_is_waited_for() -> None:
    cluster = Cluster(Raylet())
    cluster.looks(1)
    cluster.listening = False
    assert not any(cluster.looks(10))


def test_nothing_is_said_of_raylets_that_were_never_seen() -> None:
    cluster = Cluster()
    cluster.looks(1)
    cluster.listening = False
    assert not any(cluster.looks(10))


def test_a_raylet_that_was_replaced_is_known_again() -> None:
    first, second = Raylet(), Raylet()
    cluster = Cluster(first)
    cluster.looks(1)
    first.runs, cluster.raylets = False, {second}
    cluster.looks(1)
    cluster.listening = False
    assert not any(cluster.looks(10))


def test_it_looks_now_and_then_only() -> None:
    raylet = Raylet()
    cluster = Cluster(raylet)
    cluster.looks(1)
    cluster.listening = raylet.runs = False
    assert not any(cluster.guard.gone(cluster.now_s + LOOK_S * LOOKS / 100 * each) for each in range(50))
