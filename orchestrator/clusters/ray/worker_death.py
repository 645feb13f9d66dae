"""Why a worker's process ended, from what Ray says about it.

There are three sources: the type of Ray's exception, the death cause that the GCS has recorded for the actor, and the
exception's text. The type takes precedence over the recorded cause. The text decides only what the others lack: the
exit code, and everything if the GCS does not answer.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from ray.core.generated.common_pb2 import ActorDeathCause

RECORD_TIMEOUT_S = 0.3
"""For the GCS to say what it has recorded. It answers in milliseconds; one that is gone must not delay a recovery."""


class DeathKind(StrEnum):
    """What has ended."""

    NODE_DIED = "node died"
    PROCESS_DIED = "process died"
    OUT_OF_MEMORY = "out of memory"
    """Ray's memory monitor killed the process because its host ran out of memory."""
    UNKNOWN = "unknown"


@dataclass(frozen=True)
class WorkerDeath:
    """A worker's end, as Ray knows it."""

    kind: DeathKind
    message: str = ""
    """The first line of what Ray says."""
    exit_code: int | None = None
    """If the process has ended itself."""


def worker_death(error: Exception) -> WorkerDeath:
    """What an exception of Ray says about a worker that died. Asks the GCS if the exception alone does not tell, and
    waits `RECORD_TIMEOUT_S` at most."""
    return classify(error, _recorded_cause(error) if kind_by_type(error) is None else None)


def classify(error: Exception, cause: "ActorDeathCause | None" = None) -> WorkerDeath:
    """The same without asking. `cause`: the `ActorDeathCause` protobuf, if the GCS has one."""
    text = str(error)
    kind = kind_by_type(error) or _kind_by_cause(cause) or _kind_by_words(text)
    exited = _EXIT_CODE.search(text) if kind in (DeathKind.PROCESS_DIED, DeathKind.UNKNOWN) else None
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    return WorkerDeath(kind, lines[0] if lines else type(error).__name__, int(exited[1]) if exited else None)


def kind_by_type(error: Exception) -> DeathKind | None:
    """What the exception's type and fields tell; None if they do not."""
    from ray import exceptions

    if isinstance(error, exceptions.NodeDiedError):
        return DeathKind.NODE_DIED
    if isinstance(error, exceptions.OutOfMemoryError):
        return DeathKind.OUT_OF_MEMORY
    if isinstance(error, exceptions.WorkerCrashedError):
        return DeathKind.PROCESS_DIED
    if isinstance(error, exceptions.ActorUnavailableError):
        return DeathKind.UNKNOWN
    if isinstance(error, exceptions.RayActorError) and error.preempted:
        return DeathKind.NODE_DIED
    return None


def _kind_by_cause(cause: "ActorDeathCause | None") -> DeathKind | None:
    if cause is None:
        return None
    if cause.HasField("oom_context"):
        return DeathKind.OUT_OF_MEMORY
    if not cause.HasField("actor_died_error_context"):
        return None
    context = cause.actor_died_error_context
    if context.reason == context.NODE_DIED:
        return DeathKind.NODE_DIED
    return DeathKind.PROCESS_DIED if context.reason in (context.WORKER_DIED, context.RAY_KILL) else None


_NODE = re.compile(r"node has died|its node")
_MEMORY = re.compile(r"low on memory|out of memory \(OOM\)\.|memory monitor|OutOfMemory")
_PROCESS = re.compile(r"process has died|Worker (unexpectedly )?exit")
_EXIT_CODE = re.compile(r"exit code (\d+)")


def _kind_by_words(text: str) -> DeathKind:
    if _NODE.search(text):
        return DeathKind.NODE_DIED
    if _MEMORY.search(text):
        return DeathKind.OUT_OF_MEMORY
    return DeathKind.PROCESS_DIED if _PROCESS.search(text) else DeathKind.UNKNOWN


def _recorded_cause(error: Exception) -> "ActorDeathCause | None":
    from ray.exceptions import RayActorError, RayError

    from orchestrator.clusters.ray.gcs import GcsConnection

    if not isinstance(error, RayActorError) or not error.actor_id:
        return None
    try:
        return GcsConnection.of_this_process().death_cause(error.actor_id, RECORD_TIMEOUT_S)
    except (RayError, OSError, RuntimeError, ValueError):
        return None


_FATAL = re.compile(r"Fatal Python error: ([A-Z][\w ]+)|\*\*\* (SIG[A-Z]+) received")
_SIGNALS = {"Segmentation fault": "SIGSEGV", "Aborted": "SIGABRT", "Bus error": "SIGBUS",
            "Illegal instruction": "SIGILL", "Floating point exception": "SIGFPE"}  # fmt: skip


def fatal_signal(last_lines: Sequence[str]) -> str | None:
    """The signal that ended a process, from its last output: Python's `faulthandler` and the handler of Ray's library
    print it. None if neither did."""
    for line in reversed(last_lines):
        if found := _FATAL.search(line):
            return found[2] or _SIGNALS.get(found[1].strip(), found[1].strip())
    return None
