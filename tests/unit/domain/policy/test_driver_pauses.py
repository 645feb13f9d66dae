"""A driver that is paused again and again says so, as it would notice lost workers late."""

import pytest

from orchestrator.domain.policy.driver_pauses import AGAIN_S, PAUSE_S, WINDOW_S, DriverPauses

pytestmark = pytest.mark.unit


def test_pauses_in_a_row_are_warned_about_once_in_a_while() -> None:
    pauses = DriverPauses()
    assert [pauses.take(now_s, 2.0) for now_s in (10.0, 20.0)] == [None, None]
    warning = pauses.take(30.0, 4.5)
    assert warning is not None
    assert "3 times within 20 s, for up to 4.5 s" in warning
    assert pauses.take(40.0, 2.0) is None
    for now_s in (AGAIN_S + 20.0, AGAIN_S + 25.0):
        assert pauses.take(now_s, 2.0) is None
    assert pauses.take(AGAIN_S + 31.0, 2.0) is not None


def test_single_pauses_and_usual_rounds_are_not() -> None:
    pauses = DriverPauses()
    assert not any(pauses.take(float(now_s), PAUSE_S) for now_s in range(100))
    assert not any(pauses.take(now_s * WINDOW_S, 30.0) for now_s in range(20))
