import math
from itertools import pairwise

import pytest

from orchestrator.run_facts.curve import MOST_POINTS, Curve

pytestmark = pytest.mark.unit


def test_a_short_curve_is_exact() -> None:
    curve = Curve()
    for step in range(1, MOST_POINTS + 1):
        curve.add(step, float(step))
    assert curve.means == [float(step) for step in range(1, MOST_POINTS + 1)]


def test_a_long_curve_has_few_points_and_exact_means() -> None:
    curve, steps = Curve(), 20_000
    for step in range(1, steps + 1):
        curve.add(step, float(step % 7))
    points = list(curve)
    assert MOST_POINTS / 2 <= len(points) <= MOST_POINTS
    assert sum(point.count for point in points) == steps
    assert sum(point.total for point in points) == sum(step % 7 for step in range(1, steps + 1))
    assert (points[0].first_step, points[-1].last_step) == (1, steps)
    assert all(a.last_step + 1 == b.first_step for a, b in pairwise(points))
    assert {(point.low, point.high) for point in points[1:-1]} == {(0.0, 6.0)}


def test_what_is_no_number_is_left_out() -> None:
    curve = Curve()
    for step, value in enumerate((1.0, None, math.nan, math.inf, 3.0)):
        curve.add(step, value)
    assert [(point.first_step, point.mean) for point in curve] == [(0, 1.0), (4, 3.0)]
