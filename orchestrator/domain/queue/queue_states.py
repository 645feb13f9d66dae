"""The states of a run in a server's queue, and the transitions between them. Pure: the documentation draws this table,
the store follows it. What an active run does (preparing, running, recovering, ...) is its own state, see `run_states`.
"""

from dataclasses import dataclass
from enum import StrEnum


class QueueState(StrEnum):
    """Where a submitted run is."""

    BLOCKED = "blocked"
    """Waits for the runs that it comes after."""
    QUEUED = "queued"
    """Waits for capacity."""
    STARTING = "starting"
    """Capacity is booked and its driver is being started."""
    ACTIVE = "active"
    """Its driver drives it."""
    SUSPENDING = "suspending"
    """Gives its capacity to others: its driver saves the state and ends."""
    SUSPENDED = "suspended"
    """Waits for capacity to go on with the next step."""
    PAUSING = "pausing"
    """As `suspending`, because a person asked."""
    PAUSED = "paused"
    """Waits for a person to resume it."""
    BACKOFF = "backoff"
    """Failed for a reason that may pass; waits until it is tried again."""
    CANCELLING = "cancelling"
    """Its driver is being ended for good."""
    SUCCEEDED = "succeeded"
    FAILED = "failed"
    CANCELLED = "cancelled"


FINAL = frozenset({QueueState.SUCCEEDED, QueueState.FAILED, QueueState.CANCELLED})
WAITING = frozenset({QueueState.QUEUED, QueueState.SUSPENDED})
"""May be given capacity."""
HOLDING = frozenset(
    {QueueState.STARTING, QueueState.ACTIVE, QueueState.SUSPENDING, QueueState.PAUSING, QueueState.CANCELLING}
)
"""Capacity is booked for them."""


@dataclass(frozen=True)
class QueueTransition:
    """From one state to another."""

    source: QueueState
    target: QueueState
    when: str
    """For people."""


_S = QueueState
QUEUE_TRANSITIONS = (
    QueueTransition(_S.BLOCKED, _S.QUEUED, "the runs before it have succeeded"),
    QueueTransition(_S.BLOCKED, _S.FAILED, "a run before it has failed or was cancelled"),
    QueueTransition(_S.BLOCKED, _S.PAUSED, "a person pauses it"),
    QueueTransition(_S.QUEUED, _S.STARTING, "capacity is booked for it"),
    QueueTransition(_S.QUEUED, _S.PAUSED, "a person pauses it"),
    QueueTransition(_S.STARTING, _S.ACTIVE, "its driver has taken the lease"),
    QueueTransition(_S.STARTING, _S.SUCCEEDED, "no step was left"),
    QueueTransition(_S.STARTING, _S.FAILED, "its driver did not start, or the run has failed; it is not tried again"),
    QueueTransition(_S.STARTING, _S.BACKOFF, "its driver did not start, and is tried again later"),
    QueueTransition(_S.STARTING, _S.QUEUED, "its driver did not start; nothing was begun"),
    QueueTransition(_S.STARTING, _S.SUSPENDED, "its driver did not start; an earlier one had begun"),
    QueueTransition(_S.ACTIVE, _S.STARTING, "its driver is gone and another one is started"),
    QueueTransition(_S.ACTIVE, _S.SUCCEEDED, "the run has succeeded"),
    QueueTransition(_S.ACTIVE, _S.FAILED, "the run has failed, and is not tried again"),
    QueueTransition(_S.ACTIVE, _S.BACKOFF, "the run has failed, and is tried again later"),
    QueueTransition(_S.ACTIVE, _S.SUSPENDED, "the cluster went away, or its driver was stopped"),
    QueueTransition(_S.ACTIVE, _S.SUSPENDING, "others need its capacity more"),
    QueueTransition(_S.STARTING, _S.SUSPENDING, "others need its capacity more"),
    QueueTransition(_S.SUSPENDING, _S.SUSPENDED, "its driver has saved the state and ended"),
    QueueTransition(_S.SUSPENDING, _S.SUCCEEDED, "it reached its last step meanwhile"),
    QueueTransition(_S.SUSPENDING, _S.FAILED, "the run has failed meanwhile, or its time is used up"),
    QueueTransition(_S.SUSPENDING, _S.BACKOFF, "the run has failed meanwhile, and is tried again later"),
    QueueTransition(_S.SUSPENDING, _S.PAUSING, "a person pauses it"),
    QueueTransition(_S.SUSPENDED, _S.STARTING, "capacity is booked for it"),
    QueueTransition(_S.SUSPENDED, _S.PAUSED, "a person pauses it"),
    QueueTransition(_S.ACTIVE, _S.PAUSING, "a person pauses it"),
    QueueTransition(_S.STARTING, _S.PAUSING, "a person pauses it"),
    QueueTransition(_S.PAUSING, _S.PAUSED, "its driver has saved the state and ended"),
    QueueTransition(_S.PAUSING, _S.SUCCEEDED, "it reached its last step meanwhile"),
    QueueTransition(_S.PAUSING, _S.FAILED, "the run has failed meanwhile"),
    QueueTransition(_S.PAUSED, _S.BLOCKED, "a person resumes it, and runs before it have not succeeded yet"),
    QueueTransition(_S.PAUSED, _S.QUEUED, "a person resumes it, and it had not begun"),
    QueueTransition(_S.PAUSED, _S.SUSPENDED, "a person resumes it"),
    QueueTransition(_S.BACKOFF, _S.SUSPENDED, "it is time to try again"),
    QueueTransition(_S.BACKOFF, _S.QUEUED, "it is time to try again, and it had not begun"),
    QueueTransition(_S.BACKOFF, _S.PAUSED, "a person pauses it"),
    QueueTransition(_S.FAILED, _S.QUEUED, "a person tries it again, and it had not begun"),
    QueueTransition(_S.FAILED, _S.SUSPENDED, "a person tries it again"),
    QueueTransition(_S.FAILED, _S.BLOCKED, "a person tries it again, and runs before it have not succeeded yet"),
    QueueTransition(_S.CANCELLED, _S.SUSPENDED, "a person tries it again"),
    QueueTransition(_S.CANCELLED, _S.QUEUED, "a person tries it again, and it had not begun"),
    QueueTransition(_S.CANCELLED, _S.BLOCKED, "a person tries it again, and runs before it have not succeeded yet"),
    *(
        QueueTransition(source, _S.CANCELLED, "a person cancels it")
        for source in (_S.BLOCKED, _S.QUEUED, _S.SUSPENDED, _S.PAUSED, _S.BACKOFF)
    ),
    *(
        QueueTransition(source, _S.CANCELLING, "a person cancels it")
        for source in (_S.STARTING, _S.ACTIVE, _S.SUSPENDING, _S.PAUSING)
    ),
    QueueTransition(_S.CANCELLING, _S.CANCELLED, "its driver has ended"),
    QueueTransition(_S.CANCELLING, _S.SUCCEEDED, "it reached its last step meanwhile"),
)
"""Every transition that the queue makes."""

_ALLOWED = frozenset((each.source, each.target) for each in QUEUE_TRANSITIONS)


def is_queue_transition(source: QueueState, target: QueueState) -> bool:
    """Whether the table has this transition."""
    return (source, target) in _ALLOWED


def queue_transitions_markdown() -> str:
    """The table as Markdown, for the documentation. Transitions with the same target and reason are one row."""
    sources: dict[tuple[QueueState, str], list[QueueState]] = {}
    for each in QUEUE_TRANSITIONS:
        sources.setdefault((each.target, each.when), []).append(each.source)
    rows = ["| from | to | when |", "| --- | --- | --- |"]
    rows += [
        f"| {', '.join(f'`{source}`' for source in found)} | `{target}` | {when} |"
        for (target, when), found in sources.items()
    ]
    return "\n".join(rows) + "\n"
