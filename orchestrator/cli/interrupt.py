"""Ctrl-C: the first signal asks the run to stop; a second one, or five seconds, ends it at once. So does the loss of
the run to another driver."""

import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType

import psutil

from orchestrator.base_error import ConvoyError

SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)

STOP_DEADLINE_S = 4.5
"""From the first signal to killing what is left: everything must end within 5 s."""


class Interrupt:
    """What signals have asked for. `stop` is set by the first one."""

    def __init__(self) -> None:
        self.stop = threading.Event()
        self.first_signal: int | None = None
        self.lost: ConvoyError | None = None
        """Why the run is not this process's any more."""
        self._count = 0
        self._deadline_s = float("inf")

    def receive(self, number: int, frame: FrameType | None) -> None:
        """The signal handler: it only records the signal; the waiting loop acts."""
        self._count += 1
        if self.first_signal is None:
            self.first_signal = number
            self._deadline_s = time.monotonic() + STOP_DEADLINE_S
        self.stop.set()

    def lose(self, error: ConvoyError) -> None:
        """Another driver has taken the run over. For any thread."""
        self.lost = error
        self.stop.set()

    @property
    def forced(self) -> bool:
        """A second signal came, or the first one was too long ago."""
        return self._count > 1 or time.monotonic() >= self._deadline_s

    @property
    def why_forced(self) -> str:
        """Why the end was forced, as text."""
        return "second interrupt received" if self._count > 1 else f"it did not stop within {STOP_DEADLINE_S:g} s"

    @property
    def exit_code(self) -> int:
        """128 plus the signal, as shells do it."""
        return 128 + (self.first_signal or signal.SIGINT)

    @contextmanager
    def installed(self) -> Iterator[None]:
        """Handle signals meanwhile. A signal that the parent process ignores (nohup) stays ignored."""
        before = {}
        for number in SIGNALS:
            if signal.getsignal(number) is not signal.SIG_IGN:
                before[number] = signal.signal(number, self.receive)
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)


def end_now(exit_code: int, last_words: Callable[[], None]) -> None:
    """Kill every process this one started, say `last_words`, and end without waiting for anything."""
    # A terminal or disk that hangs must not keep us either.
    watchdog = threading.Timer(1.0, os._exit, args=(exit_code,))
    watchdog.daemon = True
    watchdog.start()
    processes = psutil.Process().children(recursive=True)
    # Stopped first, so that no parent among them starts another while its children are being killed.
    for number in (signal.SIGSTOP, signal.SIGKILL):
        for process in processes:
            try:
                process.send_signal(number)
            except psutil.NoSuchProcess:
                continue
    try:
        last_words()
    finally:
        os._exit(exit_code)
