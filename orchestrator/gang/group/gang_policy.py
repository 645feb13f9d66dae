"""What the driver makes of the facts about a gang. Pure: no Ray, no clock."""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum

from orchestrator.domain.engine_errors import Cause, find_cause
from orchestrator.domain.generation import WorkerFailure
from orchestrator.domain.policy.hang import SILENT_S

GATHER_S = 1.0
"""After a first failure, how long others are listened to: the one who caused it may report later than its victims."""
GRACE_S = 2.5
"""From the wish to stop to killing workers that have not stopped by themselves: all has to be over within 5 s."""


@dataclass(frozen=True)
class GangFacts:
    """Everything a decision depends on; times are seconds on the driver's monotonic clock."""

    now_s: float
    world_size: int
    returned: int
    failures: tuple[WorkerFailure, ...] = ()
    stop_since_s: float | None = None
    """When a stop was asked for."""


class Action(StrEnum):
    """What to do next."""

    CONTINUE = "continue"
    FINISH = "finish"
    """Every worker returned."""
    FAIL = "fail"
    """End the run; `root_cause` names why."""
    STOP = "stop"
    """Ask workers to stop, and wait."""
    KILL = "kill"
    """They were asked and did not."""


def decide(facts: GangFacts) -> Action:
    """The next action."""
    if facts.returned == facts.world_size:
        return Action.FINISH
    if facts.stop_since_s is not None:
        # Workers fail when their peers stop first: that is not a failure of the run any more.
        if facts.now_s - facts.stop_since_s >= GRACE_S:
            return Action.KILL
        return Action.KILL if facts.returned + len(facts.failures) >= facts.world_size else Action.STOP
    if facts.failures:
        first_s = min(failure.seen_s for failure in facts.failures)
        all_over = facts.returned + len(facts.failures) >= facts.world_size
        certain = not all(failure.is_consequence for failure in facts.failures)
        if all_over or certain or facts.now_s - first_s >= GATHER_S:
            return Action.FAIL
    return Action.CONTINUE


ARRIVAL_S = 3.0
"""How long those who are ready wait for others that are about to be."""


@dataclass(frozen=True)
class Quiet:
    """How long a worker that should be training has not been heard of, by the driver's clock."""

    node_id: str
    quiet_s: float


def silent_nodes(workers: Sequence[Quiet], limit_s: float = SILENT_S) -> list[str]:
    """Nodes none of whose workers has been heard of for `limit_s`: the first of the two signals that a node is lost.

    Where that is all of them it says more about the driver's own network than about the nodes: none is named.
    """
    heard = {worker.node_id for worker in workers if worker.quiet_s < limit_s}
    silent = sorted({worker.node_id for worker in workers} - heard)
    return silent if heard else []


def wants_regroup(ready: int, arriving: int, waited_s: float) -> bool:
    """Whether to form the gang anew for those who are ready, or to wait for who is about to be."""
    return ready > 0 and (arriving == 0 or waited_s >= ARRIVAL_S)


def root_cause(failures: Sequence[WorkerFailure]) -> WorkerFailure:
    """The failure that the others follow from: a death or an exception of its own before a failed collective,
    then the first one seen."""
    return min(failures, key=lambda failure: (failure.is_consequence, failure.seen_s, failure.rank))


CPU_PATIENCE_S = 2.0
"""How long a worker may take to leave its collective; then its process is given up."""
GPU_PATIENCE_S = 15.0
"""The same on a GPU: the kernels that are queued before the collective have to end, and its communicators are torn
down."""
GPU_STEPS = 2.0
"""Or this many steps, if that is longer."""


def patience_s(gpus: bool, step_s: float) -> float:
    """How long to wait for a survivor; `step_s`: of the last step."""
    return max(GPU_PATIENCE_S, GPU_STEPS * step_s) if gpus else CPU_PATIENCE_S


FATAL = re.compile(r"Fatal Python error: ([A-Z][\w ]+)|\*\*\* (SIG[A-Z]+) received")
NAMES = {"Segmentation fault": "SIGSEGV", "Aborted": "SIGABRT", "Bus error": "SIGBUS", "Illegal instruction": "SIGILL",
         "Floating point exception": "SIGFPE"}  # fmt: skip


@dataclass(frozen=True)
class Death:
    """Why a process died. `text` continues "its process"."""

    text: str
    hint: str | None
    cause: Cause | None = None


def explain_death(ray_message: str, last_lines: Sequence[str], oom_kills: int) -> Death:
    """Why a worker's process died, from Ray's message, its last output, and the number of processes the kernel killed
    for memory on that host since the run began.

    Only a process's parent learns its exit status, and that is Ray, which does not tell. SIGKILL is what is left when
    nothing else explains the end: other fatal signals leave a trace in the output, an exit leaves its code with Ray.
    """
    if re.search(r"low on memory|out of memory \(OOM\)\.|memory monitor|OutOfMemory", ray_message):
        text = "was killed by Ray's memory monitor: its host ran out of memory"
        return Death(text, MEMORY_HINT, Cause.OUT_OF_MEMORY)
    for line in reversed(last_lines):
        if found := FATAL.search(line):
            name = found.group(2) or NAMES.get(found.group(1).strip(), found.group(1).strip())
            hint = "its last output and the stacks at that moment are in its log"
            return Death(f"was killed by {name}", hint, _device_error(last_lines))
    if found := re.search(r"exit code (\d+)", ray_message):
        return Death(f"ended itself with exit code {found.group(1)}", "something in the worker called exit")
    if oom_kills:
        text = "was killed by SIGKILL, most likely by the kernel for want of memory"
        return Death(text, MEMORY_HINT, Cause.OUT_OF_MEMORY)
    return Death(
        "was killed by SIGKILL, or left by _exit: it left no trace, as another signal would have",
        "somebody or something killed it; if that was the kernel for want of memory, `dmesg` on its host says so",
    )


def _device_error(last_lines: Sequence[str]) -> Cause | None:
    """The error of a GPU that a process printed before a signal ended it, if it printed one."""
    causes = [find_cause(line) for line in last_lines]
    return next((cause for cause in causes if cause is not None and cause.ends_process), None)


MEMORY_HINT = "lower train.micro_batch, raise zero.stage, or give workers more memory"


def unseen_lines(tail: Sequence[str], received: Sequence[str]) -> list[str]:
    """Lines at the end of a file that did not arrive before its process died. `received` are the last that did."""
    if not received:
        return list(tail)
    for start in range(len(tail), 0, -1):
        length = min(start, len(received))
        if list(tail[start - length : start]) == list(received[-length:]):
            return list(tail[start:])
    return list(tail)
