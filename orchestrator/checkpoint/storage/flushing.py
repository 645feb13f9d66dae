"""Make a large file durable while it is written, in portions.

`write` only fills the page cache. If it is left to the end, one `fsync` writes everything: on a slow disk a single call
of many minutes, during which no progress can be reported and which looks like a hang.
"""

import os
import time
from collections.abc import Callable
from typing import Protocol

LEAST_BYTES = 1 << 20
MOST_BYTES = 64 << 20
TARGET_S = 1.0
"""A portion should not take longer than that."""


class WrittenFile(Protocol):
    """A file open for writing, with a buffer or without."""

    def flush(self) -> object: ...
    def fileno(self) -> int: ...


class SteadyFlush:
    """Call `wrote` after each write. What is left at the end is still for the writer to `fsync`."""

    def __init__(self, file: WrittenFile, clock: Callable[[], float] = time.monotonic) -> None:
        self._file, self._clock = file, clock
        self._portion_bytes = LEAST_BYTES
        self._pending_bytes = 0

    def wrote(self, count_bytes: int) -> None:
        """Flush to the device if a portion is complete. Raises OSError, e.g. if the disk is full."""
        self._pending_bytes += count_bytes
        if self._pending_bytes < self._portion_bytes:
            return
        started_s = self._clock()
        self._file.flush()
        os.fdatasync(self._file.fileno())
        self._pending_bytes = 0
        self._portion_bytes = next_portion(self._portion_bytes, self._clock() - started_s)


def next_portion(portion_bytes: int, seconds: float) -> int:
    """The size of the next portion after one that took `seconds`: small on a slow disk, large on a fast one."""
    if seconds > TARGET_S:
        return max(LEAST_BYTES, portion_bytes // 2)
    if seconds < TARGET_S / 4:
        return min(MOST_BYTES, portion_bytes * 2)
    return portion_bytes
