"""What is done to processes: signals to nodes, and a brake on one worker."""

import contextlib
import signal
import threading
import time

import psutil

from orchestrator.clusters.ray.node_processes import descendants

LONGEST_SLOWNESS_S = 60.0


class Brake:
    """Stops a process again and again for a moment, from a thread, until it is released: two thirds of the time."""

    def __init__(self, pid: int, burst_s: float) -> None:
        self._process, self._burst_s = psutil.Process(pid), burst_s
        self._released = threading.Event()
        self._thread = threading.Thread(target=self._run, name="brake", daemon=True)
        self._thread.start()

    def release(self) -> None:
        """Let it run; returns when it does."""
        self._released.set()
        self._thread.join()

    def _run(self) -> None:
        until_s = time.monotonic() + LONGEST_SLOWNESS_S
        with contextlib.suppress(psutil.NoSuchProcess):
            try:
                while not self._released.is_set() and time.monotonic() < until_s:
                    self._process.send_signal(signal.SIGSTOP)
                    time.sleep(self._burst_s)
                    self._process.send_signal(signal.SIGCONT)
                    self._released.wait(self._burst_s / 2)
            finally:
                self._process.send_signal(signal.SIGCONT)


def send(raylet: psutil.Process, number: signal.Signals) -> None:
    """A signal for a node's raylet and every process of it, as far as they are still there."""
    with contextlib.suppress(psutil.NoSuchProcess):
        for process in [raylet, *descendants(raylet.pid)]:
            with contextlib.suppress(psutil.NoSuchProcess):  # workers die with their raylet
                process.send_signal(number)
