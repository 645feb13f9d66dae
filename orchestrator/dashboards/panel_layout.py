"""Where panels stand on Grafana's grid."""

from collections.abc import Sequence
from dataclasses import dataclass

from orchestrator.dashboards.panel_values import GRID_COLUMNS, Panel


@dataclass(frozen=True)
class GridPlace:
    """A panel's rectangle, in columns and rows of the grid."""

    x: int
    y: int
    width: int
    height: int


def places(panels: Sequence[Panel], top: int) -> tuple[GridPlace, ...]:
    """From left to right, line by line, from the row `top` on. Raises ValueError if a line is not filled, or its panels
    differ in height."""
    found: list[GridPlace] = []
    x, y, line_height = 0, top, 0
    for panel in panels:
        if x == GRID_COLUMNS:
            x, y, line_height = 0, y + line_height, 0
        if x and panel.height != line_height:
            raise ValueError(f"{panel.title!r} is {panel.height} rows high, the panels beside it {line_height}")
        line_height = panel.height
        if x + panel.width > GRID_COLUMNS:
            raise ValueError(f"{panel.title!r} does not fit: {x} of {GRID_COLUMNS} columns are taken")
        found.append(GridPlace(x, y, panel.width, panel.height))
        x += panel.width
    if panels and x != GRID_COLUMNS:
        raise ValueError(f"the line of {panels[-1].title!r} ends at column {x} of {GRID_COLUMNS}")
    return tuple(found)
