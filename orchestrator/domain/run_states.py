"""The states of a run, and the transitions between them. Pure: the documentation draws this table, the run controller
follows it."""

from dataclasses import dataclass
from typing import Generic, TypeVar

from orchestrator.domain.events import RunState

FINAL_STATES = frozenset({RunState.SUCCEEDED, RunState.FAILED, RunState.STOPPED})


S = TypeVar("S")


@dataclass(frozen=True)
class Transition(Generic[S]):
    """From one state to another."""

    source: S
    target: S
    when: str
    """For people."""


def _from_all(target: RunState, when: str) -> tuple[Transition[RunState], ...]:
    return tuple(Transition(source, target, when) for source in RunState if source not in FINAL_STATES)


TRANSITIONS = (
    Transition(RunState.PREPARING, RunState.STARTING, "the cluster, the workers and the data are ready"),
    Transition(RunState.STARTING, RunState.RUNNING, "the workers train"),
    Transition(RunState.STARTING, RunState.RECOVERING, "a worker failed before training began"),
    Transition(RunState.STARTING, RunState.WAITING, "fewer workers than the minimum remain"),
    Transition(RunState.STARTING, RunState.SUCCEEDED, "no step was left, and the export is complete"),
    Transition(RunState.RUNNING, RunState.RECOVERING, "a worker failed, or the numbers of a step must not count"),
    Transition(RunState.RUNNING, RunState.WAITING, "a planned change leaves fewer workers than the minimum"),
    Transition(RunState.RUNNING, RunState.SUCCEEDED, "the last step is saved and the export is complete"),
    Transition(RunState.RECOVERING, RunState.RECOVERING, "another worker failed during the recovery"),
    Transition(RunState.RECOVERING, RunState.WAITING, "fewer workers than the minimum are left"),
    Transition(RunState.RECOVERING, RunState.RUNNING, "the workers train again"),
    Transition(RunState.RECOVERING, RunState.SUCCEEDED, "no step was left, and the export is complete"),
    Transition(RunState.WAITING, RunState.RECOVERING, "enough workers are available after a failure"),
    Transition(RunState.WAITING, RunState.STARTING, "enough workers are available after a planned change"),
    *_from_all(RunState.FAILED, "the run cannot recover, or its budget of failures is used up"),
    *_from_all(RunState.STOPPED, "a stop was requested"),
    Transition(RunState.FAILED, RunState.PREPARING, "the run is resumed"),
    Transition(RunState.STOPPED, RunState.PREPARING, "the run is resumed"),
)
"""Every transition that a driver makes. A driver that resumes a run whose driver is lost starts in `preparing` from
whatever state the record shows."""

_ALLOWED = frozenset((each.source, each.target) for each in TRANSITIONS)


def is_allowed(source: RunState, target: RunState) -> bool:
    """Whether the table has this transition."""
    return (source, target) in _ALLOWED


def transitions_markdown() -> str:
    """The table as Markdown, for the documentation. Transitions to `failed` and `stopped` are one row each."""
    rows = ["| from | to | when |", "| --- | --- | --- |"]
    shared: set[tuple[RunState, str]] = set()
    for each in TRANSITIONS:
        if each.target in (RunState.FAILED, RunState.STOPPED):
            if (each.target, each.when) in shared:
                continue
            shared.add((each.target, each.when))
            rows.append(f"| any state that is not final | `{each.target}` | {each.when} |")
        else:
            rows.append(f"| `{each.source}` | `{each.target}` | {each.when} |")
    return "\n".join(rows) + "\n"
