"""A step's time by class. Seconds of a worker, in the mean."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from orchestrator.goodput.step_split import split_step
from orchestrator.goodput.time_class import TimeClass
from tests.unit.goodput.story import Rank, step_report

pytestmark = pytest.mark.unit


def split(*ranks: Rank, step_time_s: float | None = None) -> dict[str, float]:
    found = split_step(step_report(1, 100.0, ranks, step_time_s))
    return {each.value: round(seconds, 6) for each, seconds in found.items() if round(seconds, 6)}


def test_a_step_of_equal_ranks_has_no_straggler() -> None:
    even = Rank(compute_s=1.0, data_wait_s=0.5, collective_s=0.25, checkpoint_s=0.25)
    expected = {"checkpoint_stall": 0.25, "data_wait": 0.5, "communication_wait": 0.25, "productive": 1.0}
    assert split(even, even, even) == expected


def test_the_wait_for_a_slow_rank_is_no_communication() -> None:
    fast, slow = Rank(compute_s=1.0, collective_s=2.0), Rank(compute_s=3.0)
    assert split(fast, fast, fast, slow) == {"straggling": 2.0, "productive": 1.0}
    assert split(fast, slow) == {"straggling": 2.0, "productive": 1.0}  # of two, the faster one is the measure


def test_a_rank_that_waits_for_data_waits_and_the_others_straggle() -> None:
    fed, hungry = Rank(compute_s=1.0, collective_s=2.0), Rank(compute_s=1.0, data_wait_s=2.0)
    assert split(fed, fed, fed, hungry) == {"data_wait": 0.5, "straggling": 1.5, "productive": 1.0}


def test_a_disk_that_is_slow_for_all_is_no_straggler() -> None:
    hungry = Rank(compute_s=1.0, data_wait_s=2.0)
    assert split(hungry, hungry) == {"data_wait": 2.0, "productive": 1.0}


def test_on_gpus_the_slowest_rank_is_known_by_its_data_and_forward() -> None:
    fast, slow = Rank(compute_s=1.0, on_gpu=True), Rank(compute_s=1.5, on_gpu=True)
    assert split(fast, fast, slow, step_time_s=3.0) == {"straggling": 0.5, "productive": 2.5}


def test_a_step_on_gpus_that_was_not_measured_communicated_like_the_one_before() -> None:
    report = step_report(1, 100.0, (Rank(compute_s=2.0, on_gpu=True),) * 2)
    found = split_step(report, communication_share=0.25)
    assert (found[TimeClass.COMMUNICATION_WAIT], found[TimeClass.PRODUCTIVE]) == (0.5, 1.5)
    measured = step_report(2, 100.0, (Rank(compute_s=2.0, collective_s=0.1, on_gpu=True),) * 2)
    assert split_step(measured, communication_share=0.25)[TimeClass.COMMUNICATION_WAIT] == pytest.approx(0.1)


numbers = st.one_of(st.floats(0.0, 10.0), st.just(float("nan")), st.just(float("inf")))


@given(st.lists(st.tuples(numbers, numbers, numbers, numbers), min_size=1, max_size=6), st.floats(0.0, 20.0))
def test_whatever_ranks_report_a_step_is_as_long_as_it_is(figures: list, step_time_s: float) -> None:
    found = split_step(step_report(1, 100.0, [Rank(*each) for each in figures], step_time_s))
    assert sum(found.values()) == pytest.approx(step_time_s)
    assert min(found.values()) >= 0.0
    assert set(found) <= set(TimeClass)
