"""Looking at processes: this one, another one, one that is stopped."""

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from orchestrator.gang.agent.process_activity import look_at
from orchestrator.gang.health.stacks import end_worker, foreign_stacks, own_stacks

pytestmark = pytest.mark.unit

STUCK = """
import time
def a_place_to_be_stuck_in():
    print("there", flush=True)
    time.sleep(60)
a_place_to_be_stuck_in()
"""


@pytest.fixture
def stuck() -> Iterator[subprocess.Popen[bytes]]:
    process = subprocess.Popen([sys.executable, "-c", STUCK], stdout=subprocess.PIPE)
    assert process.stdout is not None
    process.stdout.readline()
    yield process
    process.kill()
    process.wait()
    process.stdout.close()


def is_stopped(pid: int) -> bool | None:
    look = look_at(pid)
    return look.stopped if look is not None else None


def until(pid: int, stopped: bool | None) -> None:
    deadline = time.monotonic() + 10.0
    while is_stopped(pid) is not stopped:
        assert time.monotonic() < deadline
        time.sleep(0.01)


def test_a_stopped_process_is_seen_and_read(stuck: subprocess.Popen[bytes]) -> None:
    assert is_stopped(stuck.pid) is False
    stuck.send_signal(signal.SIGSTOP)
    until(stuck.pid, True)
    assert "a_place_to_be_stuck_in" in foreign_stacks(stuck.pid).text
    until(stuck.pid, True)  # looking did not wake it
    stuck.send_signal(signal.SIGCONT)
    until(stuck.pid, False)


def test_a_process_that_is_gone_is_said_to_be(stuck: subprocess.Popen[bytes]) -> None:
    stuck.kill()
    stuck.wait()
    assert is_stopped(stuck.pid) is None
    taken = foreign_stacks(stuck.pid)
    assert taken.text.startswith("no stacks")
    assert taken.waits is None


def test_the_training_thread_comes_first() -> None:
    parked = threading.Event()
    thread = threading.Thread(target=parked.wait, name="parked")
    thread.start()
    try:
        taken = own_stacks(thread.ident)
    finally:
        parked.set()
        thread.join()
    assert taken.text.startswith(f"training thread ({thread.ident})\n")
    assert "test_the_training_thread_comes_first" in taken.text
    assert taken.waits is False


def test_a_collective_is_told_by_its_frames(tmp_path: Path) -> None:
    file = tmp_path / "torch" / "distributed" / "distributed_c10d.py"
    parked, ready = threading.Event(), threading.Event()
    names: dict[str, object] = {"parked": parked, "ready": ready}
    exec(compile("def all_reduce():\n    ready.set()\n    parked.wait()\n", str(file), "exec"), names)
    thread = threading.Thread(target=names["all_reduce"])  # type: ignore[arg-type]
    thread.start()
    ready.wait()
    try:
        assert own_stacks(thread.ident).waits is True
        assert own_stacks(threading.get_ident()).waits is False
        assert own_stacks(None).waits is None
    finally:
        parked.set()
        thread.join()


def test_only_processes_of_ray_are_ended(stuck: subprocess.Popen[bytes]) -> None:
    end_worker(stuck.pid)
    time.sleep(0.1)
    assert stuck.poll() is None
    named = subprocess.Popen(
        ["bash", "-c", f"exec -a ray::ConvoyWorker.run {sys.executable} -c 'import time; time.sleep(60)'"]
    )
    deadline = time.monotonic() + 10.0
    while not Path(f"/proc/{named.pid}/cmdline").read_bytes().startswith(b"ray::"):
        assert time.monotonic() < deadline
        time.sleep(0.01)
    os.kill(named.pid, signal.SIGSTOP)
    end_worker(named.pid)
    assert named.wait(timeout=10) == -signal.SIGKILL
    end_worker(named.pid)  # gone: nothing happens
