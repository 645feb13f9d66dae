"""Whether a worker that reports no progress is working all the same, by what its kernel counts. Pure.

Some long operations cannot report progress: an import, one call of `from_pretrained` or `save_file`, a compiler that
builds an operator. For these the kernel's counters of the process are a second signal. Each counter is used only in
phases in which a hang cannot move it.
"""

from dataclasses import dataclass

from orchestrator.domain.policy.hang import STEP_PHASES, Phase

IO_BYTES = 1 << 20
"""Bytes of I/O that count as progress. A Ray worker that does nothing writes about 16 KiB of logs a minute: that takes
longer than any bound to add up to so much."""
CPU_S = 1.0
"""CPU seconds that count as progress."""
BUSY_S = 4 * 3600.0
"""From here on CPU time no longer counts: code that loops forever uses it too."""

IO_PHASES = (frozenset(Phase) - STEP_PHASES - {Phase.START, Phase.RENDEZVOUS}) | {Phase.DATA}
LOCAL_PHASES = frozenset({Phase.IMPORT, Phase.MODEL, Phase.EXPORT})
"""Phases without collectives. In others CPU time proves nothing: a wait for a collective may be a busy loop."""
COMPILING_PHASES = frozenset({Phase.IMPORT, Phase.MODEL, Phase.BUILD})
"""Phases in which a child process may compile operators."""


@dataclass(frozen=True)
class Usage:
    """What a process has used since it began. Counters; they only grow."""

    io_bytes: int = 0
    """Read from and written to storage by the process, and through `read` and `write` by its training thread."""
    cpu_s: float = 0.0
    """Of the training thread."""
    children_cpu_s: float = 0.0
    """Of child processes and theirs, also of those that have ended."""


def is_working(before: Usage, now: Usage, phase: Phase, idle_s: float) -> bool:
    """Whether what was used between `before` and `now` counts as progress in `phase`.

    `idle_s`: seconds since the training thread last reported progress itself.
    """
    if phase in IO_PHASES and now.io_bytes - before.io_bytes >= IO_BYTES:
        return True
    if idle_s >= BUSY_S:
        return False
    if phase in COMPILING_PHASES and now.children_cpu_s - before.children_cpu_s >= CPU_S:
        return True
    return phase in LOCAL_PHASES and now.cpu_s - before.cpu_s >= CPU_S
