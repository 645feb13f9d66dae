"""Which failures of a run are tried again, and when. Pure."""

from dataclasses import dataclass

RUN_FAILED = 1
"""Exit code of a driver that failed, also before it had the run."""
USER_ERROR = 2
"""Exit code of a driver that found a mistake of the user: another try would find it again."""
FIRST_PAUSE_S = 10.0
LONGEST_PAUSE_S = 600.0
"""The pause doubles with each failure, from the first to the longest."""
HEALTHY_S = 3600.0
"""A run that was active for so long has used up none of its budget before."""
MOST_LOST_DRIVERS = 3
"""Drivers that may vanish in a row without a step between them; one more counts as a failure of the run."""


@dataclass(frozen=True)
class RetryVerdict:
    """What becomes of a run that has failed."""

    again: bool
    failures: int
    """That count against its budget, this one included."""
    pause_s: float = 0.0


def backoff_s(failures: int) -> float:
    """Seconds before the next try after so many failures."""
    return min(LONGEST_PAUSE_S, FIRST_PAUSE_S * 2.0 ** min(20, max(0, failures - 1)))


def judge_failure(exit_code: int | None, failures: int, retries: int, active_s: float) -> RetryVerdict:
    """Whether a run is tried again. `failures`: before this one; `retries`: its budget; `active_s`: how long it was
    active before it failed."""
    count = 1 if active_s >= HEALTHY_S else failures + 1
    if exit_code == USER_ERROR or count > retries:
        return RetryVerdict(False, count)
    return RetryVerdict(True, count, backoff_s(count))
