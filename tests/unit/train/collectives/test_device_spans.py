"""Collectives of a device, with marks of a clock that the test moves: there is no GPU here."""

import threading
from datetime import timedelta
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import torch.distributed as dist

from orchestrator.train.collectives import device_spans
from orchestrator.train.collectives.device_spans import LAUNCHES, CollectiveSampler

pytestmark = pytest.mark.unit


class Device:
    """Its time, and the points that were recorded in it."""

    def __init__(self) -> None:
        self.now_ms = 0.0
        self.marks = 0
        self.reached = True

    def mark(self) -> "Point":
        self.marks += 1
        return Point(self)


class Point:
    def __init__(self, device: Device) -> None:
        self._device, self.at_ms = device, -1.0

    def record(self) -> None:
        self.at_ms = self._device.now_ms

    def elapsed_time(self, end: "Point") -> float:
        if not self._device.reached:
            raise RuntimeError("the device has not got there")
        return end.at_ms - self.at_ms


class Work:
    """What a launch returns: waiting for it takes the device some time."""

    def __init__(self, device: Device, takes_ms: float) -> None:
        self.device, self.takes_ms = device, takes_ms


@pytest.fixture
def device(monkeypatch: pytest.MonkeyPatch) -> Device:
    """`torch.distributed`'s classes launch and wait on it."""
    found = Device()

    def launch(group: object, takes_ms: float, options: object) -> Work:
        found.now_ms += 1.0  # the launch itself
        return Work(found, takes_ms)

    def wait(work: Any, timeout: timedelta = timedelta(0)) -> bool:
        found.now_ms += work.takes_ms
        return True

    monkeypatch.setattr(dist.ProcessGroup, "allreduce", launch)
    monkeypatch.setattr(dist.Work, "wait", wait)
    return found


WAITED, BACKGROUND = SimpleNamespace(asyncOp=False), SimpleNamespace(asyncOp=True)


def allreduce(takes_ms: float, options: object = WAITED) -> Any:
    return dist.ProcessGroup.allreduce(None, takes_ms, options)  # type: ignore[arg-type,call-overload]


def wait(work: Any) -> None:
    dist.Work.wait(work)


def test_a_collective_counts_by_phase_from_its_launch_or_from_the_wait_for_it(device: Device) -> None:
    sampler = CollectiveSampler(device.mark, interval_steps=1)
    with sampler.running():
        sampler.begin(1)
        sampler.phase = "backward"
        wait(allreduce(20.0))
        late = allreduce(30.0, BACKGROUND)
        device.now_ms += 500.0  # computes meanwhile
        sampler.phase = "optimizer"
        wait(late)
    found = sampler.seconds()
    assert found is not None
    assert found == {"backward": pytest.approx(0.021), "optimizer": pytest.approx(0.030)}


def test_only_one_step_in_many_is_sampled(device: Device) -> None:
    sampler = CollectiveSampler(device.mark, interval_steps=10)
    with sampler.running():
        found = {}
        for step in range(1, 31):
            sampler.begin(step)
            before = device.marks
            wait(allreduce(1.0))
            assert (device.marks > before) == (step % 10 == 0), "what is not sampled costs nothing"
            found[step] = sampler.seconds()
            wait(allreduce(1.0))  # of an evaluation after the step
        assert [step for step, seconds in found.items() if seconds] == [10, 20, 30]


def test_what_cannot_be_measured_is_absent(device: Device, monkeypatch: pytest.MonkeyPatch) -> None:
    sampler = CollectiveSampler(device.mark, interval_steps=1)
    with sampler.running():
        sampler.begin(1)
        assert sampler.seconds() is None, "there was none"
        sampler.begin(2)
        device.reached = False
        wait(allreduce(1.0))
        assert sampler.seconds() is None, "the device has not got there"
        device.reached = True
        monkeypatch.setattr(device_spans, "MAX_SPANS", 3)
        sampler.begin(3)
        for _ in range(4):
            wait(allreduce(1.0))
        assert sampler.seconds() is None, "a part would pass for all"
        sampler.begin(4)
        for _ in range(3):
            wait(allreduce(1.0))
        assert sampler.seconds() is not None


def test_torch_is_as_before_afterwards(device: Device) -> None:
    before = {name: getattr(dist.ProcessGroup, name) for name in LAUNCHES}
    waits = dist.Work.wait
    with CollectiveSampler(device.mark).running():
        assert dist.Work.wait is not waits
        assert dist.ProcessGroup.allreduce is not before["allreduce"]
    assert dist.Work.wait is waits
    assert {name: getattr(dist.ProcessGroup, name) for name in LAUNCHES} == before


def test_torchs_own_functions_are_seen(tmp_path: Path) -> None:
    """Real collectives of gloo, marked as those of a device are."""
    store = dist.FileStore(str(tmp_path / "store"), 1)
    dist.init_process_group("gloo", store=store, rank=0, world_size=1)
    device = Device()
    sampler = CollectiveSampler(device.mark, interval_steps=1)
    try:
        with sampler.running():
            sampler.begin(1)
            sampler.phase = "forward"
            dist.all_reduce(torch.ones(2))
            dist.all_gather_into_tensor(torch.empty(2), torch.ones(2))
            dist.broadcast(torch.ones(2), 0)
            thread = threading.Thread(target=lambda: dist.all_reduce(torch.ones(1)))  # as autograd's
            thread.start()
            thread.join()
            launched = list(sampler._spans)
            work = dist.all_reduce(torch.ones(2), async_op=True)
            assert work is not None
            work.wait()
        assert len(launched) == 4
        assert len(sampler._spans) == 5
        assert sampler._launched == {}, "each was waited for"
    finally:
        dist.destroy_process_group()
