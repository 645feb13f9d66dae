"""A step that is made once more."""

import math

import pytest

from orchestrator.domain.policy.replay import FP32_TOLERANCE, RestoreMismatchError, StepRecord, check_replay

pytestmark = pytest.mark.unit

RECORD = StepRecord(7, 2.0, 0.5, FP32_TOLERANCE)


@pytest.mark.parametrize(("step", "loss", "norm"), [(7, 2.0, 0.5), (7, 2.0001, 0.50004), (8, 9.0, 9.0)])
def test_what_fits(step: int, loss: float, norm: float) -> None:
    check_replay(RECORD, step, loss, norm)
    check_replay(None, step, loss, norm)


@pytest.mark.parametrize(
    ("loss", "norm", "name"), [(2.1, 0.5, "loss"), (2.0, 0.6, "gradient norm"), (math.nan, 0.5, "loss")]
)
def test_what_does_not(loss: float, norm: float, name: str) -> None:
    with pytest.raises(RestoreMismatchError, match=f"gives a {name}") as caught:
        check_replay(RECORD, 7, loss, norm)
    assert caught.value.details == {"restore_mismatch": {"step": 7}}


def test_a_norm_that_was_not_known_is_not_compared() -> None:
    check_replay(StepRecord(7, 2.0, None, FP32_TOLERANCE), 7, 2.0, math.nan)
