import pytest

from orchestrator.domain.policy.failure_budget import WINDOW_S, Budget, RunFailure, Verdict, judge

pytestmark = pytest.mark.unit
BUDGET = Budget(max_failures=2, max_without_progress=3)


def lost(time_s: float, step: int) -> RunFailure:
    return RunFailure(time_s, step, raised=False)


def test_a_lost_worker_is_got_over() -> None:
    assert judge([lost(0.0, 5)], BUDGET).recover


def test_an_exception_would_come_again() -> None:
    verdict = judge([RunFailure(0.0, 5, raised=True)], BUDGET)
    assert (verdict.recover, verdict.reason) == (False, None)


def test_no_budget_no_recovery() -> None:
    verdict = judge([lost(0.0, 5)], Budget(0, 3))
    assert (verdict.recover, verdict.reason) == (False, None)


def test_the_budget_is_of_an_hour() -> None:
    three = [lost(0.0, 1), lost(10.0, 2), lost(20.0, 3)]
    verdict = judge(three, BUDGET)
    assert not verdict.recover
    assert verdict.reason == "3 failures within an hour, recovery.max_failures is 2"
    assert judge([*three[:2], lost(WINDOW_S, 3)], BUDGET).recover


def test_no_progress_ends_it() -> None:
    wide = Budget(100, 3)
    assert judge([lost(0.0, 7), lost(1.0, 7)], wide).recover
    assert judge([lost(0.0, 6), lost(1.0, 7), lost(2.0, 7)], wide).recover
    verdict = judge([lost(0.0, 7), lost(1.0, 7), lost(2.0, 7)], wide)
    assert not verdict.recover
    assert verdict.reason is not None
    assert verdict.reason.startswith("3 failures in a row at step 7")
    assert verdict.hint


def starved(step: int, micro_batch: int, raised: bool = True) -> RunFailure:
    return RunFailure(0.0, step, raised, out_of_memory=True, micro_batch=micro_batch)


def test_want_of_memory_is_cured_by_half_the_micro_batch() -> None:
    wide = Budget(100, 3)
    assert judge([starved(0, 9)], wide).micro_batch == 4
    assert judge([starved(0, 8), starved(0, 4), starved(0, 2)], wide).micro_batch == 1
    assert not judge([starved(0, 1)], wide).recover
    killed = judge([starved(0, 1, raised=False)], wide)
    assert (killed.recover, killed.micro_batch) == (True, None)
    assert judge([starved(0, 4), starved(0, 2), lost(1.0, 0)], wide).recover
    assert not judge([starved(0, 4)], Budget(0, 3)).recover


def test_halvings_do_not_use_up_the_budget() -> None:
    halvings = [starved(0, 64), starved(0, 32), starved(0, 16), starved(0, 8)]  # more than `max_failures`
    assert judge(halvings, BUDGET).micro_batch == 4
    assert judge([*halvings, lost(1.0, 3), lost(2.0, 5)], BUDGET).recover
    verdict = judge([*halvings, lost(1.0, 3), lost(2.0, 5), lost(3.0, 6)], BUDGET)
    assert (verdict.recover, verdict.reason) == (False, "3 failures within an hour, recovery.max_failures is 2")


def test_no_micro_batch_is_small_enough_before_the_first_sample() -> None:
    building = RunFailure(0.0, 0, raised=True, out_of_memory=True, micro_batch=8, before_samples=True)
    assert not judge([building], BUDGET).recover
    # What others hold may be given back: tried again, with the same micro batch, as long as the budget lasts.
    others = RunFailure(0.0, 0, raised=False, out_of_memory=True, micro_batch=8, before_samples=True)
    assert judge([others], BUDGET) == Verdict(True)
    assert not judge([others, others, others], BUDGET).recover
