"""Runs shell commands in pseudo-terminals and keeps what they print, with times."""

import codecs
import contextlib
import fcntl
import os
import pty
import struct
import subprocess
import termios
import threading
import time
from collections.abc import Mapping, Sequence

from tests.recording.timeline import Output, Pane

PROMPT = "\x1b[32m$\x1b[0m "
READ_BYTES = 65536
LOOK_S = 1.2
"""A command stands at the prompt for so long before it runs, so that it can be read."""


class Recorder:
    """Terminals side by side. Thread-safe; times are seconds since `began_s` (Unix)."""

    def __init__(self, panes: Sequence[Pane], environment: Mapping[str, str]) -> None:
        self.outputs: list[Output] = []
        self.began_s = time.time()
        self._panes, self._environment = panes, dict(environment)
        self._lock = threading.Lock()
        for index in range(len(panes)):
            self._add(index, PROMPT)

    def now_s(self) -> float:
        """Seconds since the recording began."""
        return time.time() - self.began_s

    def start(self, pane: int, command: str) -> "Command":
        """Run a command of bash; it is shown as it is given, line by line."""
        self._add(pane, command.replace("\n", "\r\n"))
        time.sleep(LOOK_S)
        self._add(pane, "\r\n")
        return Command(self, pane, command, self._panes[pane], self._environment)

    def _add(self, pane: int, text: str) -> None:
        with self._lock:
            self.outputs.append(Output(self.now_s(), pane, text))


class Command:
    """One that runs. It is killed if it is still there when the block ends."""

    def __init__(self, recorder: Recorder, pane: int, command: str, size: Pane, environment: Mapping[str, str]) -> None:
        self._recorder, self._pane = recorder, pane
        self._ours, theirs = pty.openpty()
        fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", size.rows, size.columns, 0, 0))
        self._process = subprocess.Popen(
            ["bash", "-c", command],
            stdin=theirs, stdout=theirs, stderr=theirs, env=environment, start_new_session=True,
        )  # fmt: skip
        os.close(theirs)
        self._reader = threading.Thread(target=self._read, name=f"pane-{pane}", daemon=True)
        self._reader.start()

    def __enter__(self) -> "Command":
        return self

    def __exit__(self, *_: object) -> None:
        if self._process.poll() is None:
            self._process.terminate()
            with contextlib.suppress(subprocess.TimeoutExpired):
                self._process.wait(10)
        if self._process.poll() is None:
            self._process.kill()

    @property
    def ended(self) -> bool:
        """Whether it has ended."""
        return self._process.poll() is not None

    def text(self) -> str:
        """What its pane has shown so far, control sequences included."""
        return "".join(output.text for output in list(self._recorder.outputs) if output.pane == self._pane)

    def wait(self, timeout_s: float) -> int:
        """Its exit code. Raises subprocess.TimeoutExpired."""
        code = self._process.wait(timeout_s)
        self._reader.join(5.0)
        self._recorder._add(self._pane, PROMPT)
        return code

    def _read(self) -> None:
        decoder = codecs.getincrementaldecoder("utf-8")("replace")
        with open(self._ours, "rb", buffering=0) as stream, contextlib.suppress(OSError):  # noqa: PTH123
            while data := stream.read(READ_BYTES):  # OSError: its other end is closed
                self._recorder._add(self._pane, decoder.decode(data))
