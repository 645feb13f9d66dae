"""What a worker's process does according to the kernel: I/O, CPU time, threads that are blocked in storage.

Read from /proc, which costs about a millisecond, and only while the training thread reports no progress itself.
"""

import os
import platform
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from orchestrator.domain.policy.activity import Usage, is_working
from orchestrator.domain.policy.hang import Phase

IDLE_S = 2.0
"""How long the training thread may be silent before the process is inspected."""
PAUSE_S = 1.0
"""Between two inspections of an agent's own process."""
BLOCKED_S = 1.0
"""A thread counts as blocked if every inspection over this time found it blocked: slow storage often blocks threads
briefly."""
_IOCTL = {"x86_64": "16", "aarch64": "29"}
_TICKS_PER_S = os.sysconf("SC_CLK_TCK")


@dataclass(frozen=True)
class Look:
    """One inspection of a process."""

    stopped: bool
    """Whether it is stopped by SIGSTOP, not by a debugger."""
    blocked: frozenset[int]
    """Threads that the kernel has blocked in storage."""


def look_at(pid: int | str) -> Look | None:
    """Inspect a process of this host (`self`: this one); None if there is none."""
    process = Path(f"/proc/{pid}")
    try:
        state = _fields(process / "stat")[0]
        threads = [int(entry.name) for entry in (process / "task").iterdir()]
    except OSError:
        return None
    return Look(state == "T", frozenset(thread for thread in threads if _in_storage(process / "task" / str(thread))))


def _in_storage(thread: Path) -> bool:
    try:
        state = _fields(thread / "stat")[0]
        if state not in "DS":
            return False
        call = (thread / "syscall").read_text()
    except PermissionError:
        call = ""
    except OSError:  # it has ended
        return False
    return waits_for_storage(state, call, platform.machine())


def waits_for_storage(state: str, call: str, machine: str) -> bool:
    """Whether a thread in `state`, one letter of /proc/PID/stat, is blocked in storage. `call`: its /proc/PID/syscall,
    empty if that cannot be read.

    An uninterruptible sleep (D) is a wait for storage unless the thread called a device driver (`ioctl`), as with a
    lost GPU. A sleep outside of any system call (-1) is a page fault: of a mapped file, or of memory that was swapped
    out.
    """
    number = call.split(maxsplit=1)[0] if call else ""
    if state == "D":
        return number != _IOCTL.get(machine)
    return state == "S" and number == "-1"


class BlockedThreads:
    """Whether the same thread of a process is blocked in successive inspections."""

    def __init__(self) -> None:
        self._since_s: dict[int, float] = {}

    def take(self, blocked: Iterable[int], now_s: float) -> bool:
        """Whether a thread has been blocked for `BLOCKED_S` now."""
        self._since_s = {thread: self._since_s.get(thread, now_s) for thread in blocked}
        return any(now_s - since_s >= BLOCKED_S for since_s in self._since_s.values())

    def shift(self, gap_s: float) -> None:
        """The observer was paused for this long."""
        self._since_s = {thread: since_s + gap_s for thread, since_s in self._since_s.items()}


class Activity:
    """The activity of this process. `sample` is only for the agent thread that answers polls."""

    def __init__(self, trainer: int) -> None:
        """`trainer`: the training thread's native id."""
        self.count = 0
        """How often the process was found working."""
        self.blocked = False
        self._trainer = trainer
        self._threads = BlockedThreads()
        self._phase = Phase.START
        self._before: Usage | None = None
        self._next_s = 0.0

    def sample(self, phase: Phase, idle_s: float, now_s: float) -> None:
        """Inspect the process if it is time. `idle_s`: since the training thread last reported anything."""
        if idle_s < IDLE_S:
            self.blocked, self._before = False, None
            self._threads.take((), now_s)
            return
        if now_s < self._next_s:
            return
        self._next_s = now_s + PAUSE_S
        own = look_at("self")
        self.blocked = self._threads.take(own.blocked if own is not None else (), now_s)
        usage = usage_of(self._trainer)
        if self._before is None or phase is not self._phase:
            self._phase, self._before = phase, usage
        elif is_working(self._before, usage, phase, idle_s):
            self._before = usage
            self.count += 1


def usage_of(trainer: int) -> Usage:
    """What this process has used; 0 for values that the kernel does not count. `trainer`: a thread's native id."""
    own, thread = Path("/proc/self"), Path(f"/proc/self/task/{trainer}")
    storage = _counters(own / "io", ("read_bytes", "write_bytes"))
    calls = _counters(thread / "io", ("rchar", "wchar"))
    return Usage(storage + calls, _cpu_s(thread, (11, 12)), _cpu_s(own, (13, 14)) + _descendants_cpu_s(os.getpid()))


def _descendants_cpu_s(pid: int, depth: int = 8) -> float:
    """CPU seconds of a process's descendants, including ended ones that were waited for."""
    if depth == 0:
        return 0.0
    total_s = 0.0
    for child in _children(pid):
        total_s += _cpu_s(Path(f"/proc/{child}"), (11, 12, 13, 14)) + _descendants_cpu_s(child, depth - 1)
    return total_s


def _children(pid: int) -> list[int]:
    found: list[int] = []
    try:
        threads = list(Path(f"/proc/{pid}/task").iterdir())
    except OSError:
        return found
    for thread in threads:
        try:
            found += [int(child) for child in (thread / "children").read_text().split()]
        except OSError:  # the thread has ended, or this kernel has no such list
            continue
    return found


def _cpu_s(of: Path, which: tuple[int, ...]) -> float:
    """Of /proc/PID/stat, counted from the state."""
    try:
        fields = _fields(of / "stat")
    except OSError:
        return 0.0
    return sum(int(fields[index]) for index in which) / _TICKS_PER_S


def _counters(file: Path, names: tuple[str, ...]) -> int:
    """The sum of counters of /proc/PID/io."""
    try:
        lines = file.read_text().splitlines()
    except OSError:
        return 0
    return sum(int(line.partition(":")[2]) for line in lines if line.partition(":")[0] in names)


def _fields(stat: Path) -> list[str]:
    """What follows the command's name in /proc/PID/stat: the state first."""
    return stat.read_text(errors="replace").rpartition(")")[2].split()
