"""What a dashboard consists of, as plain values. `grafana_json` makes Grafana's JSON from them.

A description has what a reader of the dashboard needs (title, unit, meaning, colours) and nothing of Grafana's format.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

Visual = Literal["timeseries", "stat", "bargauge", "table"]
Drawing = Literal["line", "area", "stacked", "share", "steps", "bars", "points"]
"""Of time series. `share`: stacked to 100%."""
Need = Literal["gpu", "price", "fp16", "waiting", "exporters", "ranks"]
"""What a query's data depends on, beyond a run on CPUs: a GPU, `cluster.usd_per_hour`, training in fp16, fewer workers
than the minimum, the exporters of hosts and GPUs (node_exporter, dcgm-exporter), and at least three workers."""
GRID_COLUMNS = 24


@dataclass(frozen=True)
class Query:
    """One PromQL expression with the dashboard's variables in it."""

    expr: str
    legend: str = ""
    """Name of its series; `{{label}}` stands for the value of a label."""
    instant: bool = False
    """The present value alone: for tables, bars, and values that must not outlive the run."""
    needs: Need | None = None


@dataclass(frozen=True)
class Threshold:
    """From `value` on (None: from the start) the colour is `color`."""

    value: float | None
    color: str


@dataclass(frozen=True)
class Series:
    """How one series differs from the others of its panel."""

    color: str | None = None
    unit: str | None = None
    right_axis: bool = False
    dashed: bool = False
    drawing: Drawing | None = None


@dataclass(frozen=True)
class Column:
    """A column of a table, in order."""

    source: str
    """A label, or the letter of the query whose value it shows."""
    title: str
    unit: str = "string"
    decimals: int | None = None
    width: int | None = None
    """Pixels."""
    thresholds: tuple[Threshold, ...] = ()
    """They colour the text."""
    gauge: bool = False
    """A bar from 0 to 1."""
    names: Mapping[str, str] = field(default_factory=dict)
    """Colours of texts."""
    link: str | None = None
    """URL of the cell's link."""


@dataclass(frozen=True)
class Panel:
    """One panel; `width` is in columns of Grafana's grid of 24, `height` in its rows."""

    title: str
    description: str
    unit: str
    queries: tuple[Query, ...]
    visual: Visual = "timeseries"
    width: int = 8
    height: int = 8
    drawing: Drawing = "line"
    color: str | None = None
    """Of all series; None: Grafana's palette, or the thresholds if there are any and it is a single value."""
    series: Mapping[str, Series] = field(default_factory=dict)
    """By the name of the series, which the legend gives; a name between slashes is a regular expression."""
    thresholds: tuple[Threshold, ...] = ()
    minimum: float | None = None
    maximum: float | None = None
    decimals: int | None = None
    log_scale: bool = False
    sparkline: bool = False
    """Of a single value: its history behind it."""
    names_only: bool = False
    """Of a single value: the name of the series instead of its value."""
    empty: str | None = None
    """Shown if there is no data."""
    columns: tuple[Column, ...] = ()
    """Of a table."""


@dataclass(frozen=True)
class Row:
    """Panels under a heading; without a title there is no heading."""

    title: str
    panels: tuple[Panel, ...]
    collapsed: bool = False


@dataclass(frozen=True)
class Variable:
    """A choice at the top of a dashboard: the values of a label."""

    name: str
    title: str
    query: str
    """`label_values(METRIC, LABEL)`."""
    several: bool = True
    """More than one value, or all, can be chosen."""
    newest_first: bool = False


@dataclass(frozen=True)
class Annotation:
    """Marks on the time axis wherever the expression has a value other than 0."""

    name: str
    expr: str
    color: str
    text: str
    """`{{label}}` stands for the value of a label."""


@dataclass(frozen=True)
class Board:
    """A dashboard. Its `uid` is part of its address and never changes."""

    uid: str
    title: str
    description: str
    variables: tuple[Variable, ...]
    rows: tuple[Row, ...]
    annotations: tuple[Annotation, ...] = ()
    range_from: str = "now-1h"
    refresh: str = "10s"

    def panels(self) -> tuple[Panel, ...]:
        """Of all rows, in their order."""
        return tuple(panel for row in self.rows for panel in row.panels)
