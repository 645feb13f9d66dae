"""What the kernel says of real processes and threads: this one, its children, others."""

import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from orchestrator.domain.policy.activity import IO_BYTES
from orchestrator.domain.policy.hang import Phase
from orchestrator.gang.agent.process_activity import (
    BLOCKED_S,
    IDLE_S,
    PAUSE_S,
    Activity,
    BlockedThreads,
    look_at,
    usage_of,
    waits_for_storage,
)

pytestmark = pytest.mark.unit

READ = "0 0x3 0x7f 0x1000 0x0 0x0 0x0 0x7ffd 0x7f00"
PAGE_FAULT = "-1 0x7ffd 0x7f00"


@pytest.mark.parametrize(
    ("state", "call", "machine", "expected"),
    [
        ("D", READ, "x86_64", True),
        ("D", PAGE_FAULT, "x86_64", True),
        ("D", "", "x86_64", True),  # the kernel keeps it to itself
        ("D", "16 0x5 0xc0 0x7f", "x86_64", False),  # ioctl: a device driver
        ("D", "29 0x5 0xc0 0x7f", "aarch64", False),
        ("D", "16 0x5 0xc0 0x7f", "aarch64", True),
        ("S", PAGE_FAULT, "x86_64", True),
        ("S", "202 0x7f 0x80 0x0", "x86_64", False),  # futex: a lock
        ("S", READ, "x86_64", False),  # a socket
        ("R", "running", "x86_64", False),
        ("T", READ, "x86_64", False),
    ],
)
def test_who_waits_for_storage(state: str, call: str, machine: str, expected: bool) -> None:
    assert waits_for_storage(state, call, machine) is expected


def test_a_thread_is_blocked_when_all_looks_found_it_so() -> None:
    threads = BlockedThreads()
    assert not threads.take({1}, 0.0)
    assert not threads.take({1, 2}, BLOCKED_S / 2)
    assert threads.take({1, 2}, BLOCKED_S)
    assert not threads.take({2}, BLOCKED_S + 0.1)
    assert not threads.take((), BLOCKED_S + 0.2)
    assert not threads.take({2}, 2 * BLOCKED_S)
    threads.shift(10.0)
    assert not threads.take({2}, 10.0 + 2.5 * BLOCKED_S)
    assert threads.take({2}, 10.0 + 3 * BLOCKED_S)


def test_a_process_at_rest_is_neither_stopped_nor_blocked() -> None:
    look = look_at("self")
    assert look is not None
    assert not look.stopped
    assert threading.get_native_id() not in look.blocked
    assert look_at(2**22 + 1) is None


def test_io_and_cpu_of_the_training_thread_are_counted(tmp_path: Path) -> None:
    trainer = threading.get_native_id()
    before = usage_of(trainer)
    (tmp_path / "x").write_bytes(bytes(IO_BYTES))
    until = time.thread_time() + 0.1
    while time.thread_time() < until:
        pass
    after = usage_of(trainer)
    assert after.io_bytes - before.io_bytes >= IO_BYTES
    assert after.cpu_s - before.cpu_s >= 0.05
    assert after.children_cpu_s == pytest.approx(before.children_cpu_s, abs=0.05)


def test_a_lock_uses_nothing() -> None:
    stuck, trainer = threading.Event(), []
    thread = threading.Thread(target=lambda: (trainer.append(threading.get_native_id()), stuck.wait()))
    thread.start()
    while not trainer:
        time.sleep(0.001)
    before = usage_of(trainer[0])
    time.sleep(0.2)
    after = usage_of(trainer[0])
    stuck.set()
    thread.join()
    assert after.cpu_s == before.cpu_s
    assert after.io_bytes - before.io_bytes < IO_BYTES


SPINNING = "import subprocess, sys; subprocess.run([sys.executable, '-c', 'while True: pass'])"


def test_cpu_of_childrens_children_is_counted() -> None:
    """As of a compiler that a build tool starts."""
    trainer = threading.get_native_id()
    before = usage_of(trainer).children_cpu_s
    child = subprocess.Popen([sys.executable, "-c", SPINNING], start_new_session=True)
    try:
        wait_for(lambda: usage_of(trainer).children_cpu_s - before > 0.2)
    finally:
        os.killpg(child.pid, 9)
        child.wait()


def wait_for(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 30.0
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.05)


class Clock:
    """Time as a test wants it."""

    def __init__(self) -> None:
        self.now_s = 100.0
        self.idle_s = 0.0

    def on(self, activity: Activity, phase: Phase) -> int:
        """A sample a moment later; what it has counted."""
        self.now_s += PAUSE_S
        self.idle_s += PAUSE_S
        activity.sample(phase, self.idle_s, self.now_s)
        return activity.count


def test_a_silent_thread_that_writes_is_seen_to_work(tmp_path: Path) -> None:
    activity, clock = Activity(threading.get_native_id()), Clock()
    clock.idle_s = IDLE_S
    assert clock.on(activity, Phase.CHECKPOINT) == 0  # from here on
    assert clock.on(activity, Phase.CHECKPOINT) == 0
    (tmp_path / "x").write_bytes(bytes(IO_BYTES))
    assert clock.on(activity, Phase.CHECKPOINT) == 1
    assert clock.on(activity, Phase.CHECKPOINT) == 1
    assert not activity.blocked


def test_nothing_of_an_earlier_phase_counts(tmp_path: Path) -> None:
    activity, clock = Activity(threading.get_native_id()), Clock()
    clock.idle_s = IDLE_S
    clock.on(activity, Phase.RESTORE)
    (tmp_path / "x").write_bytes(bytes(IO_BYTES))
    assert clock.on(activity, Phase.CHECKPOINT) == 0
    assert clock.on(activity, Phase.CHECKPOINT) == 0


def test_a_thread_that_reports_is_not_looked_at(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("orchestrator.gang.agent.process_activity.usage_of", lambda trainer: pytest.fail("looked"))
    activity = Activity(threading.get_native_id())
    for tenth in range(100):
        activity.sample(Phase.FORWARD, IDLE_S - 0.1, 100.0 + tenth / 10)


def test_cpu_counts_where_a_rank_is_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("orchestrator.domain.policy.activity.CPU_S", 0.1)
    activity, clock = Activity(threading.get_native_id()), Clock()
    clock.idle_s = IDLE_S
    clock.on(activity, Phase.MODEL)
    until = time.thread_time() + 0.15
    while time.thread_time() < until:
        pass
    assert clock.on(activity, Phase.MODEL) == 1
