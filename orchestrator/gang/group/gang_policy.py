"""Decisions about a gang, from facts: what to do next, and which failure caused the others. Pure: no Ray, no clock."""

from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum

from orchestrator.clusters.ray.worker_death import DeathKind, WorkerDeath, fatal_signal
from orchestrator.domain.engine_errors import Cause, find_cause
from orchestrator.domain.generation import WorkerFailure
from orchestrator.domain.policy.hang import SILENT_S

GATHER_S = 1.0
"""How long to wait for other reports after a first failure: its cause may be reported after its consequences."""
GRACE_S = 2.5
"""From a stop request to killing workers that have not stopped: everything must end within 5 s."""
SERVED_GRACE_S = 60.0
"""The same for a run of a server: a suspended run has to save its state, and nobody waits at a terminal."""


@dataclass(frozen=True)
class GangFacts:
    """All facts that a decision depends on; times are seconds on the driver's monotonic clock."""

    now_s: float
    world_size: int
    returned: int
    failures: tuple[WorkerFailure, ...] = ()
    stop_since_s: float | None = None
    """When a stop was requested."""
    grace_s: float = GRACE_S
    """From then until workers are killed."""


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
    """They were asked to stop and did not."""


def decide(facts: GangFacts) -> Action:
    """The next action."""
    if facts.returned == facts.world_size:
        return Action.FINISH
    if facts.stop_since_s is not None:
        # Workers fail when their peers stop first: that is no failure of the run.
        if facts.now_s - facts.stop_since_s >= facts.grace_s:
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
"""How long ready workers wait for others that are starting."""


@dataclass(frozen=True)
class Quiet:
    """How long a worker that should be training has sent nothing, by the driver's clock."""

    node_id: str
    quiet_s: float


def silent_nodes(workers: Sequence[Quiet], limit_s: float = SILENT_S) -> list[str]:
    """Nodes none of whose workers has sent anything for `limit_s`: the first of the two signals that a node is lost.

    Empty if that is every node: then the driver's own network is the likely cause.
    """
    heard = {worker.node_id for worker in workers if worker.quiet_s < limit_s}
    silent = sorted({worker.node_id for worker in workers} - heard)
    return silent if heard else []


def wants_regroup(ready: int, arriving: int, waited_s: float) -> bool:
    """Whether to form the next generation with the ready workers, rather than wait for those that are starting."""
    return ready > 0 and (arriving == 0 or waited_s >= ARRIVAL_S)


def root_cause(failures: Sequence[WorkerFailure]) -> WorkerFailure:
    """The failure that the others follow from: a death or an exception of its own before a failed collective,
    then the first one seen."""
    return min(failures, key=lambda failure: (failure.is_consequence, failure.seen_s, failure.rank))


CPU_PATIENCE_S = 2.0
"""How long a worker may take to leave its collective before its process is given up."""
GPU_PATIENCE_S = 15.0
"""The same on a GPU: the kernels that are queued before the collective have to end, and its communicators are torn
down."""
GPU_STEPS = 2.0
"""Or this many steps, if that is longer."""


def patience_s(gpus: bool, step_s: float) -> float:
    """How long to wait for a survivor; `step_s`: of the last step."""
    return max(GPU_PATIENCE_S, GPU_STEPS * step_s) if gpus else CPU_PATIENCE_S


@dataclass(frozen=True)
class Death:
    """Why a process died. `text` continues the words "its process"."""

    text: str
    hint: str | None
    cause: Cause | None = None


def explain_death(told: WorkerDeath, last_lines: Sequence[str], oom_kills: int) -> Death:
    """Why a worker's process died, from what Ray says, its last output, and the number of processes that the kernel
    killed for memory on that host since the run began.

    Only the parent of a process gets its exit status, and that is Ray, which does not report it. SIGKILL is assumed if
    nothing else explains the end: other fatal signals leave a trace in the output, and Ray reports an exit code.
    """
    if told.kind is DeathKind.OUT_OF_MEMORY:
        text = "was killed by Ray's memory monitor: its host ran out of memory"
        return Death(text, MEMORY_HINT, Cause.OUT_OF_MEMORY)
    signal = fatal_signal(last_lines)
    if signal is not None:
        hint = "its last output and the stacks at that moment are in its log"
        return Death(f"was killed by {signal}", hint, _device_error(last_lines))
    if told.exit_code is not None:
        return Death(f"ended itself with exit code {told.exit_code}", "code in the worker called exit")
    if oom_kills:
        text = "was killed by SIGKILL, most likely by the kernel OOM killer"
        return Death(text, MEMORY_HINT, Cause.OUT_OF_MEMORY)
    return Death(
        "was killed by SIGKILL, or called _exit: it left no trace, as another signal would have",
        "another process or a person killed it; if it was the kernel OOM killer, `dmesg` on its host shows it",
    )


def _device_error(last_lines: Sequence[str]) -> Cause | None:
    """The error of a GPU that a process printed before a signal ended it, if it printed one."""
    causes = [find_cause(line) for line in last_lines]
    return next((cause for cause in causes if cause is not None and cause.ends_process), None)


MEMORY_HINT = "lower train.micro_batch, raise zero.stage, or give workers more memory"


def unseen_lines(tail: Sequence[str], received: Sequence[str]) -> list[str]:
    """Lines at the end of a file that had not arrived when its process died. `received`: the last ones that did."""
    if not received:
        return list(tail)
    for start in range(len(tail), 0, -1):
        length = min(start, len(received))
        if list(tail[start - length : start]) == list(received[-length:]):
            return list(tail[start:])
    return list(tail)
