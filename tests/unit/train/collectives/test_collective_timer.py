"""What is counted as waiting for other ranks."""

import threading
import time
from pathlib import Path

import pytest
import torch
import torch.distributed as dist

from orchestrator.train.collectives.collective_timer import CollectiveTimer
from orchestrator.train.step_timing import HostClock

pytestmark = pytest.mark.unit


def test_collectives_are_timed_apart_and_by_phase(tmp_path: Path) -> None:
    """Two ranks of one process, on threads: the second comes late, so the first waits."""
    late_s = 0.3
    store = dist.FileStore(str(tmp_path / "store"), 2)
    groups: dict[int, dist.ProcessGroupGloo] = {}

    def join(rank: int) -> None:
        groups[rank] = dist.ProcessGroupGloo(store, rank, 2)

    threads = [threading.Thread(target=join, args=(rank,)) for rank in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()

    def come_late() -> None:
        time.sleep(late_s)
        groups[1].allreduce([torch.ones(1)]).wait()

    collectives = CollectiveTimer()
    clock = HostClock(collectives)
    plain = dist.Work.wait
    with collectives.running():
        other = threading.Thread(target=come_late)
        other.start()
        with clock.phase("forward"):
            time.sleep(0.05)
        with clock.phase("backward"):
            groups[0].allreduce([torch.ones(1)]).wait()
        other.join()
    assert dist.Work.wait is plain
    seconds, waited = clock.seconds(), clock.waited()
    assert waited["forward"] == 0.0
    assert 0.1 < waited["backward"] <= seconds["backward"]
    assert collectives.seconds == pytest.approx(waited["backward"])  # the other thread's is not counted
    assert clock.waited() == {}
