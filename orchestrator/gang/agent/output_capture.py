"""Captures what a worker process writes to stdout and stderr as lines, output of C and C++ libraries included.

The two descriptors point to a file, and a thread follows that file. A pipe would not do: a library that prints much
while it holds the interpreter lock would fill the pipe and wait forever for the thread that empties it. A file also
outlives the process, so the last output of a killed process can still be read.
"""

import contextlib
import os
import sys
import threading
from collections.abc import Callable
from pathlib import Path

from orchestrator.lasting_thread import LastingThread

POLL_S = 0.1
KEEP_BYTES = 32 * 1024 * 1024
"""The file is emptied at this size once all of it has been read; its lines are in the run's logs by then."""
MAX_LINE_BYTES = 16 * 1024


class LineSplitter:
    """Cuts a stream of bytes into lines, at newlines and at the carriage returns of progress bars."""

    def __init__(self) -> None:
        self._rest = b""

    def feed(self, data: bytes) -> list[str]:
        """Complete lines without line ends; empty lines are dropped, overlong ones cut."""
        pieces = (self._rest + data).replace(b"\r", b"\n").split(b"\n")
        self._rest = pieces.pop()
        if len(self._rest) > MAX_LINE_BYTES:
            pieces.append(self._rest)
            self._rest = b""
        return [text for piece in pieces if (text := _text(piece))]

    def flush(self) -> list[str]:
        """The rest without a newline."""
        rest, self._rest = self._rest, b""
        return [text] if (text := _text(rest)) else []


def _text(piece: bytes) -> str:
    return piece[:MAX_LINE_BYTES].decode("utf-8", errors="replace").rstrip()


class OutputCapture:
    """Redirects descriptors 1 and 2 of this process to `path` and hands lines to `sink` from a thread."""

    def __init__(self, path: Path, sink: Callable[[list[str]], None]) -> None:
        self.path = path
        self._sink = sink
        self._splitter = LineSplitter()
        self._offset = 0
        self._lock = threading.Lock()
        self._ended = threading.Event()
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_TRUNC, 0o600)
        with contextlib.suppress(OSError, ValueError):
            sys.stdout.flush()
            sys.stderr.flush()
        os.dup2(descriptor, 1)
        os.dup2(descriptor, 2)
        os.close(descriptor)
        # Ray gives Python its own stream objects over other descriptors: point them at ours, line by line.
        sys.stdout = os.fdopen(os.dup(1), "w", buffering=1, encoding="utf-8", errors="replace")
        sys.stderr = os.fdopen(os.dup(2), "w", buffering=1, encoding="utf-8", errors="replace")
        self._reader = path.open("rb", buffering=0)
        LastingThread("output", self._follow)

    def drain(self) -> None:
        """Pass on everything written so far, including an unfinished last line."""
        with contextlib.suppress(OSError, ValueError):
            sys.stdout.flush()
            sys.stderr.flush()
        self._read()
        with self._lock:
            rest = self._splitter.flush()
        if rest:
            self._sink(rest)

    def _follow(self) -> bool:
        if self._ended.wait(POLL_S):
            return False
        self._read()
        return True

    def _read(self) -> None:
        with self._lock:
            self._reader.seek(self._offset)
            data = self._reader.read(4 * 1024 * 1024)
            if not data:
                return
            self._offset += len(data)
            lines = self._splitter.feed(data)
            if self._offset > KEEP_BYTES and self._offset == os.fstat(self._reader.fileno()).st_size:
                os.truncate(self.path, 0)  # a line written at this very moment can be lost
                self._offset = 0
        if lines:
            self._sink(lines)


def last_lines(path: Path, count: int) -> list[str]:
    """The end of a captured file; empty if it cannot be read (on another host)."""
    try:
        with path.open("rb") as file:
            file.seek(max(0, path.stat().st_size - 256 * 1024))
            splitter = LineSplitter()
            return (splitter.feed(file.read()) + splitter.flush())[-count:]
    except OSError:
        return []
