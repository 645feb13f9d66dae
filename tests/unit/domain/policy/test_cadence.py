"""How often state is written."""

import pytest

from orchestrator.domain.policy.cadence import Cadence, checkpoint_interval_s, steps_between, young_daly_s

pytestmark = pytest.mark.unit


def test_steps_between_keep_to_the_budget() -> None:
    assert steps_between(0.001, 1.0, 0.02) == 1
    assert steps_between(0.013, 1.0, 0.02) == 1
    assert steps_between(0.014, 1.0, 0.02) == 2
    assert steps_between(1.0, 1.0, 0.02) == 75
    assert steps_between(0.0, 1.0, 0.02) == 1


def test_one_write_that_was_held_up_changes_nothing() -> None:
    cadence = Cadence(0.02)
    assert cadence.steps == 1
    for cost_s in (0.01, 0.01, 3.0, 0.0, 0.01):
        cadence.measure(1.0, cost_s)
    assert cadence.steps == 1
    for _ in range(5):
        cadence.measure(1.0, 0.1)
    assert cadence.steps == 8
    assert Cadence(0.02, fixed=7).steps == 7


def test_young_and_daly() -> None:
    assert young_daly_s(2.0, 3600.0) == pytest.approx(120.0)


def test_checkpoints_come_more_often_where_workers_fail_more_often() -> None:
    calm, rough = (checkpoint_interval_s(1.0, 10.0, 3600.0, failures) for failures in (0, 9))
    assert calm == pytest.approx((2 * 2.0 * 7200) ** 0.5)
    assert rough == pytest.approx((2 * 2.0 * 720) ** 0.5)
    assert checkpoint_interval_s(0.001, 0.0, 0.0, 99) == 30.0
    assert checkpoint_interval_s(0.001, 300.0, 0.0, 99) == 600.0
