import math
import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from orchestrator.report.axis import axis, labels
from orchestrator.report.line_chart import HEIGHT, MOST_DRAWN, WIDTH, LineChart, line_chart, series
from orchestrator.run_facts.curve import Curve

pytestmark = pytest.mark.unit


def curve(*values: float) -> Curve:
    made = Curve()
    for step, value in enumerate(values, 1):
        made.add(step, value)
    return made


@given(st.lists(st.floats(-1e12, 1e12), min_size=1, max_size=20))
def test_an_axis_holds_all_values_between_its_ticks(values: list[float]) -> None:
    found = axis(values)
    spread = found.high - found.low
    assert found.low - 1e-6 * spread <= min(values) <= max(values) <= found.high + 1e-6 * spread
    assert 2 <= len(found.ticks) <= 8
    assert len(set(labels(found.ticks))) == len(found.ticks)


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        ([0.0, 0.9], ["0.0", "0.2", "0.4", "0.6", "0.8", "1.0"]),
        ([0.0, 1.1], ["0.00", "0.25", "0.50", "0.75", "1.00", "1.25"]),
        ([0.0, 4800.0], ["0", "1,000", "2,000", "3,000", "4,000", "5,000"]),
        ([], ["0.0", "0.2", "0.4", "0.6", "0.8", "1.0"]),
        ([math.nan, 3.0], ["2.6", "2.8", "3.0", "3.2", "3.4"]),
    ],
)
def test_ticks_are_round(values: list[float], expected: list[str]) -> None:
    found = axis(values, from_zero=bool(values) and values[0] == 0.0)
    assert labels(found.ticks) == expected


def test_memory_has_round_ticks_in_its_own_unit() -> None:
    assert axis([0.0, 3.5 * 2**30], from_zero=True, unit=2**30).ticks == tuple(n * 2**30 for n in range(5))


def test_a_chart_is_drawn_within_its_box() -> None:
    noisy = curve(*(float(step % 5) for step in range(5000)))
    chart = LineChart(
        "Loss", (series("training", noisy, 1, band=True),), "{:.1f}".format, marks=((7, "worker 1 lost"),)
    )
    written = line_chart(chart)
    numbers = [tuple(map(float, pair.split(","))) for pair in re.findall(r"[\d.]+,[\d.]+", written.split("<script")[0])]
    assert numbers
    assert all(0 <= x <= WIDTH and 0 <= y <= HEIGHT for x, y in numbers)
    assert len(re.findall(r'class="line c1" d="([^"]+)"', written)[0].split()) <= MOST_DRAWN
    assert 'class="band c1"' in written
    assert "worker 1 lost" in written
    assert 'aria-label="Loss over the steps: training from' in written


def test_areas_are_stacked() -> None:
    drawn = (series("a", curve(1.0, 1.0), 1), series("b", curve(3.0, 3.0), 2))
    written = line_chart(LineChart("Phases", drawn, "{:.1f}".format, stacked=True))
    shapes = re.findall(r'class="area c(\d)" d="M([^"]+)Z"', written)
    heights = {number: {float(pair.split(",")[1]) for pair in shape.split()} for number, shape in shapes}
    assert heights == {"1": {225.0, 300.0}, "2": {0.0, 225.0}}


def test_a_chart_without_values_is_not_drawn() -> None:
    assert line_chart(LineChart("Loss", (series("training", curve(), 1),), str)) == ""
    assert line_chart(LineChart("Loss", (series("training", curve(2.0), 1, band=True),), str)) != ""
