"""Stacks of a process's threads: from the process itself if it can answer, else read from its memory."""

import contextlib
import os
import signal
import subprocess
import sys
import sysconfig
import threading
import traceback
from dataclasses import dataclass
from pathlib import Path

from orchestrator.clusters.ray.node_processes import is_worker
from orchestrator.domain.policy.hang import CollectiveCounts

PY_SPY_TIMEOUT_S = 10.0
_IN_A_COLLECTIVE = ("torch/distributed/", "deepspeed/comm/")
"""Paths of the frames of a thread that waits for other ranks."""


@dataclass(frozen=True)
class Stacks:
    """Stacks of all threads of one process, the innermost frame last."""

    text: str
    """The stacks as text, or why there are none."""
    waits: bool | None = None
    """Whether the training thread is in a collective; None: unknown."""
    counts: CollectiveCounts | None = None
    """Of its NCCL collectives; None: unknown, or there are none."""


def own_stacks(trainer: int | None) -> Stacks:
    """Stacks of this process, the training thread's first (`trainer`: its `threading.get_ident`)."""
    names = {thread.ident: thread.name for thread in threading.enumerate()}
    parts, waits = [], None
    frames = sys._current_frames()
    for ident in sorted(frames, key=lambda ident: ident != trainer):
        summary = traceback.extract_stack(frames[ident])
        if ident == trainer:
            waits = any(part in frame.filename for frame in summary for part in _IN_A_COLLECTIVE)
        title = "training thread" if ident == trainer else f"thread {names.get(ident, '?')}"
        parts.append(f"{title} ({ident})\n" + "".join(summary.format()))
    return Stacks("\n".join(parts), waits)


def foreign_stacks(pid: int) -> Stacks:
    """Stacks of another process on this host, read by py-spy without stopping the process. `waits` stays unknown."""
    command = Path(sysconfig.get_path("scripts")) / "py-spy"
    if not command.exists():
        return Stacks("no stacks: py-spy is not installed on this host")
    try:
        done = subprocess.run(
            [str(command), "dump", "--nonblocking", "--full-filenames", "--pid", str(pid)],
            capture_output=True,
            text=True,
            timeout=PY_SPY_TIMEOUT_S,
            check=False,
        )
    except subprocess.TimeoutExpired:
        return Stacks(f"no stacks: py-spy took longer than {PY_SPY_TIMEOUT_S:.0f} s")
    if done.returncode:
        return Stacks(f"no stacks: py-spy cannot read process {pid}: {done.stderr.strip().splitlines()[-1:]}")
    return Stacks(done.stdout)


def end_worker(pid: int) -> None:
    """SIGKILL a worker's process on this host, stopped or not. The kernel reuses pids: a process that is not a worker
    of Ray is left alone."""
    if is_worker(pid):
        with contextlib.suppress(OSError):
            os.kill(pid, signal.SIGKILL)
