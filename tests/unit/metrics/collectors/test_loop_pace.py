import pytest

from orchestrator.metrics.collectors.loop_pace import WINDOW_S, LoopPace

pytestmark = pytest.mark.unit


def test_the_longest_round_of_the_window_is_shown_and_forgotten() -> None:
    pace = LoopPace()
    assert pace.longest_s(0.0) is None
    for tenth in range(1000):  # a hundred seconds at ten rounds a second: the memory stays bounded
        pace.note(tenth / 10, 0.1)
    pace.note(100.0, 2.5)
    pace.note(100.1, 0.1)
    assert pace.longest_s(100.2) == 2.5
    for tenth in range(1, 100):
        pace.note(100.1 + tenth / 10, 0.1)
    assert pace.longest_s(100.0 + WINDOW_S) == 2.5
    for tenth in range(100, 120):
        pace.note(100.1 + tenth / 10, 0.1)
    assert pace.longest_s(112.0) == pytest.approx(0.1)


def test_without_a_loop_nothing_is_shown() -> None:
    pace = LoopPace()
    pace.note(5.0, 0.1)
    assert pace.longest_s(5.0 + WINDOW_S + 1.0) is None
