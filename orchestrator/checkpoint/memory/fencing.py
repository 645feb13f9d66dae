"""Fencing of old writers: finds and ends processes that have a vault's shared memory mapped.

A worker writes its cell without a request. A driver that takes over a run must be sure that the workers of the previous
gang no longer do, even if their node's raylet or the network does not report on them.
"""

import contextlib
import os
import signal
import time
from collections.abc import Collection
from pathlib import Path

WAIT_S = 2.0
"""How long the kernel may take to end a process that was killed."""


def maps(pid: int, descriptor: int) -> bool:
    """Whether a process of this host has mapped the file that our `descriptor` names. Its pid may be another's by now,
    so the file counts, not the pid."""
    inode = os.fstat(descriptor).st_ino
    try:
        lines = Path(f"/proc/{pid}/maps").read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return False
    return any("/memfd:convoy-" in line and line.split(maxsplit=5)[4] == str(inode) for line in lines)


def end_writers(writers: Collection[tuple[int, int]]) -> tuple[list[int], list[int]]:
    """SIGKILL those (pid, descriptor) that have the descriptor's file mapped; returns the pids that ended and the pids
    that are left.

    Waits at most `WAIT_S` for their end.
    """
    killed: list[tuple[int, int]] = []
    for pid, descriptor in writers:
        if pid != os.getpid() and maps(pid, descriptor):
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.kill(pid, signal.SIGKILL)
            killed.append((pid, descriptor))
    left = killed
    deadline = time.monotonic() + WAIT_S
    while left and time.monotonic() < deadline:
        left = [(pid, descriptor) for pid, descriptor in left if maps(pid, descriptor)]
        if left:
            time.sleep(0.01)
    still = {pid for pid, _ in left}
    return sorted({pid for pid, _ in killed} - still), sorted(still)
