"""Whether a run that lost a worker recovers. Pure: failures with their times go in, a verdict comes out."""

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
    out_of_memory: bool = False
    """The failure was caused by a lack of memory."""
    micro_batch: int = 1
    """Of the gang that failed."""
    before_samples: bool = False
    """Memory was short while the engine was built or restored, before any sample was fed."""

    @property
    def can_shrink(self) -> bool:
        """A smaller micro batch may be the cure: the global batch stays, accumulation makes up for it."""
        return self.out_of_memory and self.micro_batch > 1 and not self.before_samples


@dataclass(frozen=True)
class Budget:
    """Failures that a run tolerates."""

    max_failures: int
    max_without_progress: int


@dataclass(frozen=True)
class Verdict:
    """`recover`, or the reason to give up: None if the failure itself is the reason."""

    recover: bool
    micro_batch: int | None = None
    """Largest micro batch to continue with, if it must be smaller than before."""
    reason: str | None = None
    hint: str | None = None


def judge(failures: Sequence[RunFailure], budget: Budget) -> Verdict:
    """What to do after the last of `failures`, which are all of this driver's, oldest first; at least one.

    There is no recovery from an exception of the worker's own code: the same code on the same data raises it again.
    After running out of memory the run recovers with half the micro batch, as long as that can be halved. A halving
    does not count against the budget unless that is 0: there can be no more halvings than the micro batch has binary
    digits.
    """
    last = failures[-1]
    if (last.raised and not last.can_shrink) or budget.max_failures == 0:
        return Verdict(False)
    if last.can_shrink:
        return Verdict(True, last.micro_batch // 2)
    counted = [failure for failure in failures if not failure.can_shrink]
    recent = [failure for failure in counted if last.time_s - failure.time_s < WINDOW_S]
    if len(recent) > budget.max_failures:
        return Verdict(
            False,
            None,
            f"{len(recent)} failures within an hour, recovery.max_failures is {budget.max_failures}",
            "find the cause of the failures (the last one follows), or raise recovery.max_failures",
        )
    tries = budget.max_without_progress
    in_a_row = counted[-tries:]  # halving is a progress of its own
    if len(in_a_row) == tries and len({failure.step for failure in in_a_row}) == 1:
        return Verdict(
            False,
            None,
            f"{tries} failures in a row at step {last.step} without a finished step between them",
            "this step ends workers each time: the likely causes are memory or a broken machine",
        )
    return Verdict(True)
