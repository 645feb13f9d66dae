"""Panels fill Grafana's grid line by line."""

from dataclasses import replace

import pytest

from orchestrator.dashboards.panel_layout import GridPlace, places
from orchestrator.dashboards.panel_values import Panel

pytestmark = pytest.mark.unit
PANEL = Panel("a", "b", "none", (), width=12, height=4)


def test_a_full_line_is_followed_by_the_next() -> None:
    third = replace(PANEL, width=24, height=7)
    assert places([PANEL, PANEL, third], 3) == (GridPlace(0, 3, 12, 4), GridPlace(12, 3, 12, 4), GridPlace(0, 7, 24, 7))


@pytest.mark.parametrize(
    ("second", "message"),
    [
        (replace(PANEL, height=5), "5 rows high"),
        (replace(PANEL, width=13), "does not fit"),
        (replace(PANEL, width=11), "ends at column 23"),
    ],
)
def test_gaps_and_overlaps_are_refused(second: Panel, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        places([PANEL, second], 0)
