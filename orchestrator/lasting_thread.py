"""A background thread that outlives exceptions: it reports them and goes on. Under all layers.

A plain thread that raises ends, and nobody notices what it was there for: copies stop, a port goes deaf, figures stay
as they were. What runs as long as its owner is a `LastingThread` instead.
"""

import contextlib
import sys
import threading
from collections.abc import Callable, Iterator

FIRST_PAUSE_S = 0.05
LONGEST_PAUSE_S = 5.0
"""After failures in a row the pause doubles from the first to the longest."""


class LastingThread:
    """Calls `turn` until it returns False or `stop` is called. Started at once, as a daemon."""

    def __init__(self, name: str, turn: Callable[[], bool], report: Callable[[str], None] | None = None) -> None:
        """`turn` does one piece of work, waits for at most a bounded time, and says whether to go on. What it raises is
        given to `report` as one line (default: stderr, once for each text in a row), and the next turn follows after a
        pause. Raises RuntimeError when the process may have no more threads.
        """
        self.name = name
        self._turn, self._report = turn, report or self._print
        self._printed = ""
        self._stopped = threading.Event()
        self._thread = threading.Thread(target=self._run, name=name, daemon=True)
        self._thread.start()

    @property
    def alive(self) -> bool:
        """Whether there will be further turns."""
        return self._thread.is_alive()

    def stop(self) -> None:
        """No turn begins after this one. Does not wait; see `join`."""
        self._stopped.set()

    def join(self, timeout_s: float) -> bool:
        """Wait for the end after `stop`; whether it has ended. Called in the thread itself, it does not wait."""
        if self._thread is not threading.current_thread():
            self._thread.join(timeout_s)
        return not self._thread.is_alive()

    def _run(self) -> None:
        pause_s = FIRST_PAUSE_S
        while not self._stopped.is_set():
            try:
                if not self._turn():
                    return
                pause_s = FIRST_PAUSE_S
            except Exception as error:  # noqa: BLE001  # whatever it is, the next turn may succeed
                self._tell(f"{self.name}: {type(error).__name__}: {error}")
                self._stopped.wait(pause_s)
                pause_s = longer(pause_s)

    def _tell(self, text: str) -> None:
        try:
            self._report(text)
        except Exception as error:  # noqa: BLE001  # a report that fails must not end the thread either
            self._print(f"{text} (and the report of that: {error!r})")

    def _print(self, text: str) -> None:
        if text != self._printed:
            self._printed = text
            print(f"warning: {text}", file=sys.stderr, flush=True)


@contextlib.contextmanager
def repeating(
    name: str, act: Callable[[], object], every_s: float, report: Callable[[str], None] | None = None
) -> Iterator[None]:
    """Call `act` in the background, now and `every_s` after each call, until the end of the context, which does not
    wait for a call in progress. See `LastingThread` for `report` and for what happens if it raises."""
    ending = threading.Event()

    def turn() -> bool:
        act()
        return not ending.wait(every_s)

    thread = LastingThread(name, turn, report)
    try:
        yield
    finally:
        ending.set()
        thread.stop()


def longer(pause_s: float) -> float:
    """The pause after one more failure in a row."""
    return min(LONGEST_PAUSE_S, 2 * pause_s)
