"""Which failures are tried again, and when."""

import pytest

from orchestrator.control.ticking.retry_policy import (
    FIRST_PAUSE_S,
    HEALTHY_S,
    LONGEST_PAUSE_S,
    USER_ERROR,
    backoff_s,
    judge_failure,
)

pytestmark = pytest.mark.unit


def test_pauses_double_up_to_a_bound() -> None:
    pauses = [backoff_s(failures) for failures in range(1, 12)]
    assert pauses[:3] == [FIRST_PAUSE_S, 2 * FIRST_PAUSE_S, 4 * FIRST_PAUSE_S]
    assert pauses == sorted(pauses)
    assert backoff_s(10_000) == LONGEST_PAUSE_S


@pytest.mark.parametrize("retries", [0, 1, 3])
def test_a_budget_is_used_up(retries: int) -> None:
    tries = [judge_failure(1, failures, retries, 0.0).again for failures in range(5)]
    assert tries == [failures < retries for failures in range(5)]


def test_a_mistake_of_the_user_is_final_whatever_the_budget() -> None:
    assert not judge_failure(USER_ERROR, 0, 100, HEALTHY_S).again


def test_a_run_that_was_healthy_for_long_has_its_budget_again() -> None:
    verdict = judge_failure(1, 3, 3, HEALTHY_S)
    assert (verdict.again, verdict.failures, verdict.pause_s) == (True, 1, FIRST_PAUSE_S)
    assert not judge_failure(1, 3, 3, HEALTHY_S - 1).again
