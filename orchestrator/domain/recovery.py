"""Whether a run that lost a worker goes on. Pure: failures with their times go in, a verdict comes out."""

from collections.abc import Sequence
from dataclasses import dataclass

WINDOW_S = 3600.0
"""The failure budget counts failures within this time."""


@dataclass(frozen=True)
class RunFailure:
    """One failure of the gang, as the budget sees it."""

    time_s: float
    """Seconds on any clock that only goes forward."""
    step: int
    """Furthest step the run had finished."""
    raised: bool
    """A worker's own code raised; no process and no node was lost."""


@dataclass(frozen=True)
class Budget:
    """How much a run puts up with."""

    max_failures: int
    max_without_progress: int


@dataclass(frozen=True)
class Verdict:
    """`recover`, or the reason to give up: None where the failure itself is the reason."""

    recover: bool
    reason: str | None = None
    hint: str | None = None


def judge(failures: Sequence[RunFailure], budget: Budget) -> Verdict:
    """What to do after the last of `failures`, which are all of this driver's, oldest first; at least one.

    An exception of the worker's own code is not recovered from: the same code on the same data raises it again.
    """
    last = failures[-1]
    if last.raised or budget.max_failures == 0:
        return Verdict(False)
    recent = [failure for failure in failures if last.time_s - failure.time_s < WINDOW_S]
    if len(recent) > budget.max_failures:
        return Verdict(
            False,
            f"{len(recent)} failures within an hour, recovery.max_failures is {budget.max_failures}",
            "find out what takes the workers (the last one is below), or raise recovery.max_failures",
        )
    tries = budget.max_without_progress
    if len(failures) >= tries and len({failure.step for failure in failures[-tries:]}) == 1:
        return Verdict(
            False,
            f"{tries} failures in a row at step {last.step}, no step was finished between them",
            "something at this step ends workers each time: memory, most likely, or a machine that is broken",
        )
    return Verdict(True)
