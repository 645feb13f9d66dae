"""Copies that a thread makes while training goes on, and the host's, which are made when `begin` returns."""

import threading
import time

import pytest
import torch

from orchestrator.checkpoint.memory.cells import Cell, CellSize
from orchestrator.train.snapshot import staging
from orchestrator.train.snapshot.staging import BackgroundStaging, Copy, HostStaging, staging_for

pytestmark = pytest.mark.unit


class Gate:
    """A tick that holds the copying thread up after each piece."""

    def __init__(self) -> None:
        self.open = threading.Event()
        self.ticks = 0

    def __call__(self) -> None:
        self.ticks += 1
        assert self.open.wait(10.0)


def pieces(count: int = 3) -> list[Copy]:
    return [Copy(torch.full((8,), float(i + 1)), torch.zeros(8)) for i in range(count)]


def all_copied(copies: list[Copy]) -> bool:
    return all(torch.equal(copy.target, torch.full((8,), float(i + 1))) for i, copy in enumerate(copies))


def test_the_host_has_copied_when_it_returns() -> None:
    ended: list[str | None] = []
    copies, host = pieces(), staging_for(torch.device("cpu"))
    assert isinstance(host, HostStaging)
    assert not host.overlaps
    host.begin(copies, ended.append)
    assert ended == [None]
    assert all_copied(copies)
    assert host.wait(0.0)


def test_a_fence_waits_for_the_copy() -> None:
    ended: list[str | None] = []
    gate, copies = Gate(), pieces()
    background = BackgroundStaging(gate)
    background.fence()  # nothing is under way
    background.begin(copies, ended.append)
    assert not background.wait(0.02)
    assert ended == []
    assert not torch.equal(copies[2].target, copies[2].source)
    timer = threading.Timer(0.05, gate.open.set)
    timer.start()
    background.fence()
    assert ended == [None]
    for copy in copies:
        copy.source.zero_()  # the update
    assert all_copied(copies)
    assert background.stalled_s() >= 0.02
    assert background.stalled_s() == 0.0
    assert gate.ticks == 3
    background.close()


def test_one_copy_at_a_time(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(staging, "BEGIN_LIMIT_S", 0.02)
    gate = Gate()
    background = BackgroundStaging(gate)
    background.begin(pieces(), lambda problem: None)
    with pytest.raises(RuntimeError, match="while the previous one"):
        background.begin(pieces(), lambda problem: None)
    gate.open.set()
    assert background.wait(10.0)
    background.begin(pieces(), lambda problem: None)
    background.close()


def test_the_next_copy_waits_for_the_end_of_the_word_of_the_last() -> None:
    """Its vault may have replicated it before the thread that has told the vault goes on."""
    told, go_on = threading.Event(), threading.Event()
    background = BackgroundStaging()

    def done(problem: str | None) -> None:
        told.set()
        assert go_on.wait(10.0)

    background.begin(pieces(), done)
    assert told.wait(10.0)
    threading.Timer(0.03, go_on.set).start()
    background.begin(copies := pieces(), done)
    assert background.wait(10.0)
    assert all_copied(copies)
    background.close()


def test_a_copy_that_fails_is_told_and_holds_nothing_up() -> None:
    ended: list[str | None] = []
    background = BackgroundStaging()
    background.begin([Copy(torch.zeros(8), torch.zeros(3))], ended.append)
    background.fence()
    (problem,) = ended
    assert problem is not None
    assert problem.startswith("RuntimeError: ")
    copies = pieces()
    background.begin(copies, ended.append)
    background.fence()
    assert ended[1:] == [None]
    assert all_copied(copies)
    background.close()


def test_a_device_that_does_not_finish_fails_the_copy(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(staging, "COPY_LIMIT_S", 0.05)

    class Stuck(BackgroundStaging):
        def _copied(self, event: object) -> bool:
            return False

    ended: list[str | None] = []
    background = Stuck()
    background.begin(pieces(), ended.append)
    assert background.wait(10.0)
    assert ended == ["the device has not copied it within 0 s"]
    background.close()


def test_memory_is_given_up_after_the_last_copy_and_before_it_is_unmapped(monkeypatch: pytest.MonkeyPatch) -> None:
    """Page-locked memory has to be unlocked while it is mapped, and not while a device writes it."""
    monkeypatch.setattr(staging, "CLOSE_LIMIT_S", 0.02)
    story: list[str] = []

    class Pinning(BackgroundStaging):
        def pin(self, memory: memoryview) -> str | None:
            self.memory: memoryview | None = memory
            return None

        def _release(self) -> None:
            assert self.memory is not None
            self.memory[4096] = 1  # raises if it is not mapped any more
            self.memory = None
            story.append("released")

    gate = Gate()
    background = Pinning(gate)
    cell = Cell.create(CellSize(4096, 100), "test")
    background.pin(cell.memory)
    copy = Copy(torch.ones(1024), torch.frombuffer(cell.payload(0), dtype=torch.float32, count=1024))
    background.begin([copy], lambda problem: story.append("copied"))
    del copy
    background.close()  # the copy takes longer than it waits
    cell.close()
    assert story == []
    gate.open.set()
    deadline = time.monotonic() + 10.0
    while len(story) < 2:
        assert time.monotonic() < deadline
        time.sleep(0.005)
    assert story == ["copied", "released"]
