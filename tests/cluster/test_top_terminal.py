"""`convoy top` in a terminal: it follows a run that trains, costs little, and ends with a key."""

import os
import pty
import select
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import psutil
import pytest

from orchestrator.domain.events import RunState
from orchestrator.domain.run_layout import RunLayout
from orchestrator.metrics.run_recorder import RunRecorder
from orchestrator.store.run_store import RunStore
from tests.unit.run_facts.made import beginning, step

pytestmark = pytest.mark.cluster

STEPS_BEFORE = 2000
STEP_S = 0.05
WATCHED_S = 4.0
MOST_SHARE = 0.05
"""Of a core, for a frame each second of a run that makes twenty steps a second."""
LONGEST_S = 60.0


class Terminal:
    """A process with a terminal of its own, 80 columns wide."""

    def __init__(self, *arguments: str) -> None:
        self.pid, self._descriptor = pty.fork()
        if self.pid == 0:
            os.environ.update(COLUMNS="80", LINES="40", TERM="xterm")
            os.execv(sys.executable, [sys.executable, "-m", "orchestrator", *arguments])
        self.seen = b""

    def read_until(self, text: bytes) -> None:
        """Wait until it has drawn a text."""
        deadline = time.monotonic() + LONGEST_S
        while text not in self.seen:
            assert time.monotonic() < deadline, self.seen[-2000:]
            self.read(0.1)

    def read(self, wait_s: float) -> None:
        """What it draws within so many seconds."""
        poll = select.poll()  # `select` takes no descriptor above 1,023
        poll.register(self._descriptor, select.POLLIN)
        if poll.poll(wait_s * 1000.0):
            try:
                self.seen += os.read(self._descriptor, 1 << 16)
            except OSError:  # it has ended
                time.sleep(wait_s)

    def press(self, key: bytes) -> None:
        os.write(self._descriptor, key)

    def exit_code(self) -> int:
        """Wait for its end."""
        deadline = time.monotonic() + LONGEST_S
        while time.monotonic() < deadline:
            pid, status = os.waitpid(self.pid, os.WNOHANG)
            if pid:
                os.close(self._descriptor)
                return os.waitstatus_to_exitcode(status)
            self.read(0.05)
        raise AssertionError("it does not end")


@contextmanager
def training(layout: RunLayout) -> Iterator[None]:
    """A run that makes a step every `STEP_S`."""
    recorder, stop = RunRecorder(layout), threading.Event()
    for each in beginning():
        recorder.on_event(each)
    for number in range(1, STEPS_BEFORE + 1):
        recorder.on_step(step(number))

    def train() -> None:
        number = STEPS_BEFORE
        while not stop.wait(STEP_S):
            number += 1
            recorder.on_step(step(number, time_s=time.time(), step_time_s=STEP_S))

    thread = threading.Thread(target=train)
    thread.start()
    try:
        yield
    finally:
        stop.set()
        thread.join()
        recorder.close()


@pytest.mark.parametrize("arguments", [["last"], []])
def test_it_follows_a_run_and_costs_little(tmp_path: Path, arguments: list[str]) -> None:
    store = RunStore(tmp_path)
    layout = store.create("tiny")
    store.set_state(layout, RunState.RUNNING)
    with training(layout):
        terminal = Terminal("top", *arguments, "--home", str(tmp_path))
        terminal.read_until(b"running")
        process = psutil.Process(terminal.pid)
        before, until_s = process.cpu_times(), time.monotonic() + WATCHED_S
        while time.monotonic() < until_s:
            terminal.read(0.1)
        after = process.cpu_times()
        terminal.press(b"q")
        assert terminal.exit_code() == 0
    spent_s = after.user + after.system - before.user - before.system
    assert spent_s <= MOST_SHARE * WATCHED_S, f"{spent_s:.2f} s of CPU in {WATCHED_S:.0f} s"
    drawn = terminal.seen.decode(errors="replace")
    assert "2,0" in drawn
    assert drawn.count("tiny-") >= 3, "a frame each second"
