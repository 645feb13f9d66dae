from dataclasses import replace

import pytest

from orchestrator.domain.policy.scorecard import FaultResult, Scorecard, max_relative_difference, strike_steps

pytestmark = pytest.mark.unit
GONE_OVER = FaultResult("kill-worker", 10, 1, 0.1, 5.0, 3, 2, 2)
GOOD = Scorecard("run-b", "run-a", (GONE_OVER,), 1, True, None, True, 0.0, 1e-5)


def test_all_of_it_makes_a_survivor() -> None:
    assert GOOD.survived
    assert GOOD.to_json()["survived"] is True
    assert GOOD.to_json()["faults"][0]["steps_recomputed"] == 3
    for change in (
        {"finished": False},
        {"planned": 2},
        {"data_exact": False},
        {"max_loss_difference": None},
        {"max_loss_difference": 1e-4},
        {"max_loss_difference": float("nan")},
        {"faults": (replace(GONE_OVER, first_step_s=None),)},
    ):
        assert not replace(GOOD, **change).survived  # type: ignore[arg-type]


def test_the_difference_is_the_worst_step() -> None:
    assert max_relative_difference([2.0, 4.0], [2.0, 4.0, 8.0]) == 0.0
    assert max_relative_difference([2.0, 4.4, 8.0], [2.0, 4.0, 8.0]) == pytest.approx(0.1)
    assert max_relative_difference([], [2.0]) is None
    worst = max_relative_difference([2.0, float("nan"), 9.0], [2.0, 4.0, 8.0])
    assert worst != worst


def test_strikes_are_spread_and_leave_a_step() -> None:
    assert strike_steps(100, 1) == (50,)
    assert strike_steps(100, 3) == (25, 50, 75)
    assert strike_steps(3, 1)[0] < 3
    steps = strike_steps(21, 10)
    assert len(set(steps)) == 10
    assert steps[0] >= 1
    assert steps[-1] < 21
    with pytest.raises(ValueError, match="at least 5 steps"):
        strike_steps(4, 2)
