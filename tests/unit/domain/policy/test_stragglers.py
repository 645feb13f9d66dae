"""Whom a gang calls slow."""

from dataclasses import replace
from statistics import median_high

import pytest
from hypothesis import given
from hypothesis import strategies as st

from orchestrator.domain.policy.stragglers import (
    MIN_STEPS,
    WINDOW_STEPS,
    Slowness,
    _medians_of_others,
    changes,
    compare,
    slow_phase,
)
from orchestrator.domain.ranks.rank_report import CollectiveTimes, PhaseTimes, RankMemory, RankReport
from orchestrator.domain.ranks.rank_summary import OwnWork

pytestmark = pytest.mark.unit

MEMORY = RankMemory(1, 1)


def rank(number: int, forward_s: float, waited_s: float = 0.0, samples: int = 4, data_s: float = 0.0) -> RankReport:
    """A rank whose forward pass takes so long, and that waits for others in its backward pass."""
    phases = PhaseTimes(data_s, forward_s, 0.02 + waited_s, 0.01)
    return RankReport(number, samples, samples * 8, phases, MEMORY, CollectiveTimes(0.0, waited_s, 0.0))


def step(*ranks: RankReport) -> OwnWork:
    return OwnWork.of(ranks)


def test_waiting_for_others_is_not_own_time() -> None:
    assert rank(0, 0.1, 0.3).own_times_s == pytest.approx((0.0, 0.1, 0.02, 0.01))


def test_the_slow_one_is_found_though_all_take_as_long() -> None:
    steps = [step(rank(0, 0.05, 0.1), rank(1, 0.15), rank(2, 0.05, 0.1))] * WINDOW_STEPS
    first, slow, last = compare(steps)
    assert slow.ratio == pytest.approx(0.18 / 0.08)
    assert (slow.rank, slow_phase(steps, 1)) == (1, "forward")
    assert slow.loss_s == pytest.approx(0.1)
    assert max(first.ratio, last.ratio) < 1.0
    assert changes({}, [first, slow, last]) == ((slow, True),)


def test_a_slow_disk_is_told_from_a_slow_processor() -> None:
    steps = [step(rank(0, 0.05), rank(1, 0.05, data_s=0.2))] * MIN_STEPS
    assert slow_phase(steps, 1) == "data"


def test_who_has_more_to_do_is_not_slow() -> None:
    steps = [step(rank(0, 0.05, samples=4), rank(1, 0.05, samples=4), rank(2, 0.13, samples=8))] * WINDOW_STEPS
    assert compare(steps)[2].ratio == pytest.approx(1.0)


def test_one_long_pause_makes_no_straggler() -> None:
    usual, paused = step(rank(0, 0.05), rank(1, 0.05)), step(rank(0, 0.05), rank(1, 9.0))
    found = compare([usual] * (WINDOW_STEPS - 2) + [paused, paused])
    assert found[1].ratio == pytest.approx(1.0)
    assert compare([usual] * (WINDOW_STEPS - 8) + [paused] * 8)[1].ratio > 10  # but many do


@given(st.lists(st.floats(0.0, 9.0), min_size=2, max_size=9))
def test_medians_of_the_others(values: list[float]) -> None:
    expected = [median_high(values[:index] + values[index + 1 :]) for index in range(len(values))]
    assert _medians_of_others(values) == expected


def test_too_little_says_nothing() -> None:
    assert compare([step(rank(0, 0.1), rank(1, 0.5))] * (MIN_STEPS - 1)) == ()
    assert compare([step(rank(0, 0.1))] * WINDOW_STEPS) == ()
    assert compare([]) == ()


def test_small_steps_are_noise() -> None:
    found = compare([step(rank(0, 0.0), rank(1, 0.0))] * WINDOW_STEPS)
    tiny = replace(found[0], ratio=3.0, loss_s=0.001)
    assert changes({}, [tiny]) == ()


@given(st.lists(st.floats(0.0, 5.0), max_size=60))
def test_it_does_not_flap(ratios: list[float]) -> None:
    """Between two changes the ratio crossed the whole band."""
    slow: dict[int, bool] = {}
    for ratio in ratios:
        for item, now in changes(slow, [Slowness(0, ratio, 1.0)]):
            assert now != slow.get(0, False)
            assert item.ratio >= 1.5 if now else item.ratio <= 1.25
            slow[0] = now


@given(st.lists(st.floats(0.001, 10.0), min_size=2, max_size=6))
def test_at_most_half_of_a_gang_is_slow(forwards: list[float]) -> None:
    found = compare([step(*(rank(index, forward_s) for index, forward_s in enumerate(forwards)))] * MIN_STEPS)
    assert sum(slow for _, slow in changes({}, found)) <= len(forwards) / 2


def test_on_gpus_phases_that_wait_for_others_do_not_count() -> None:
    """A fast rank's backward pass lasts as long as a slow one's: it waits, and nobody measures for how long."""
    on_gpu = replace(MEMORY, allocated_bytes=1, reserved_bytes=1, peak_allocated_bytes=1)
    reports = [replace(rank(0, 0.05, 0.1), waits=CollectiveTimes()), replace(rank(1, 0.15), waits=CollectiveTimes())]
    steps = [step(*(replace(report, memory=on_gpu) for report in reports))] * WINDOW_STEPS
    fast, slow = compare(steps)
    assert replace(reports[0], memory=on_gpu).own_times_s == pytest.approx((0.0, 0.05, 0.0, 0.0))
    assert (slow.rank, slow_phase(steps, 1), slow.ratio) == (1, "forward", pytest.approx(3.0))
    assert fast.ratio < 1.0
