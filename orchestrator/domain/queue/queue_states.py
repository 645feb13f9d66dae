"""The states of a run in a server's queue, and the transitions between them. Pure: the documentation draws this table,
the store follows it. What an active run does (preparing, running, recovering, ...) is its own state, see `run_states`.
"""

from enum import StrEnum

from orchestrator.domain.run_states import Transition


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


_S = QueueState
QUEUE_TRANSITIONS = (
    Transition(_S.BLOCKED, _S.QUEUED, "the runs before it have succeeded"),
    Transition(_S.BLOCKED, _S.FAILED, "a run before it has failed or was cancelled"),
    Transition(_S.BLOCKED, _S.PAUSED, "a person pauses it"),
    Transition(_S.QUEUED, _S.STARTING, "capacity is booked for it"),
    Transition(_S.QUEUED, _S.PAUSED, "a person pauses it"),
    Transition(_S.STARTING, _S.ACTIVE, "its driver has taken the lease"),
    Transition(_S.STARTING, _S.SUCCEEDED, "no step was left"),
    Transition(_S.STARTING, _S.FAILED, "its driver did not start, or the run has failed; it is not tried again"),
    Transition(_S.STARTING, _S.BACKOFF, "its driver did not start, and is tried again later"),
    Transition(_S.STARTING, _S.QUEUED, "its driver did not start; nothing was begun"),
    Transition(_S.STARTING, _S.SUSPENDED, "its driver did not start; an earlier one had begun"),
    Transition(_S.ACTIVE, _S.STARTING, "its driver is gone and another one is started"),
    Transition(_S.ACTIVE, _S.SUCCEEDED, "the run has succeeded"),
    Transition(_S.ACTIVE, _S.FAILED, "the run has failed, and is not tried again"),
    Transition(_S.ACTIVE, _S.BACKOFF, "the run has failed, and is tried again later"),
    Transition(_S.ACTIVE, _S.SUSPENDED, "the cluster went away, or its driver was stopped"),
    Transition(_S.ACTIVE, _S.SUSPENDING, "others need its capacity more"),
    Transition(_S.STARTING, _S.SUSPENDING, "others need its capacity more"),
    Transition(_S.SUSPENDING, _S.SUSPENDED, "its driver has saved the state and ended"),
    Transition(_S.SUSPENDING, _S.SUCCEEDED, "it reached its last step meanwhile"),
    Transition(_S.SUSPENDING, _S.FAILED, "the run has failed meanwhile, or its time is used up"),
    Transition(_S.SUSPENDING, _S.BACKOFF, "the run has failed meanwhile, and is tried again later"),
    Transition(_S.SUSPENDING, _S.PAUSING, "a person pauses it"),
    Transition(_S.SUSPENDED, _S.STARTING, "capacity is booked for it"),
    Transition(_S.SUSPENDED, _S.PAUSED, "a person pauses it"),
    Transition(_S.ACTIVE, _S.PAUSING, "a person pauses it"),
    Transition(_S.STARTING, _S.PAUSING, "a person pauses it"),
    Transition(_S.PAUSING, _S.PAUSED, "its driver has saved the state and ended"),
    Transition(_S.PAUSING, _S.SUCCEEDED, "it reached its last step meanwhile"),
    Transition(_S.PAUSING, _S.FAILED, "the run has failed meanwhile"),
    Transition(_S.PAUSED, _S.BLOCKED, "a person resumes it, and runs before it have not succeeded yet"),
    Transition(_S.PAUSED, _S.QUEUED, "a person resumes it, and it had not begun"),
    Transition(_S.PAUSED, _S.SUSPENDED, "a person resumes it"),
    Transition(_S.BACKOFF, _S.SUSPENDED, "it is time to try again"),
    Transition(_S.BACKOFF, _S.QUEUED, "it is time to try again, and it had not begun"),
    Transition(_S.BACKOFF, _S.PAUSED, "a person pauses it"),
    Transition(_S.FAILED, _S.QUEUED, "a person tries it again, and it had not begun"),
    Transition(_S.FAILED, _S.SUSPENDED, "a person tries it again"),
    Transition(_S.FAILED, _S.BLOCKED, "a person tries it again, and runs before it have not succeeded yet"),
    Transition(_S.CANCELLED, _S.SUSPENDED, "a person tries it again"),
    Transition(_S.CANCELLED, _S.QUEUED, "a person tries it again, and it had not begun"),
    Transition(_S.CANCELLED, _S.BLOCKED, "a person tries it again, and runs before it have not succeeded yet"),
    *(
        Transition(source, _S.CANCELLED, "a person cancels it")
        for source in (_S.BLOCKED, _S.QUEUED, _S.SUSPENDED, _S.PAUSED, _S.BACKOFF)
    ),
    *(
        Transition(source, _S.CANCELLING, "a person cancels it")
        for source in (_S.STARTING, _S.ACTIVE, _S.SUSPENDING, _S.PAUSING)
    ),
    Transition(_S.CANCELLING, _S.CANCELLED, "its driver has ended"),
    Transition(_S.CANCELLING, _S.SUCCEEDED, "it reached its last step meanwhile"),
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
