"""Which panels, recording rules and alerts use which metric of the catalog."""

import re
from collections.abc import Iterator
from dataclasses import dataclass

from orchestrator.dashboards.boards.all_dashboards import DASHBOARDS
from orchestrator.dashboards.panel_values import Board
from orchestrator.dashboards.rules.alert_rules import ALERTS
from orchestrator.dashboards.rules.recording_rules import RECORDING_RULES
from orchestrator.metrics.metric_catalog import CATALOG

_NAME = re.compile(r"(?<![\w:])convoy_\w+(?!\w*:)")
_TEXT = re.compile(r'"[^"]*"')
_OF_HISTOGRAMS = ("_bucket", "_sum", "_count")


@dataclass(frozen=True)
class Expression:
    """A PromQL expression and where it is used."""

    expr: str
    place: str


def metrics_of(expr: str) -> frozenset[str]:
    """The names of Convoy's metrics in an expression, those of histograms without the suffix of their series."""
    histograms = {metric.name for metric in CATALOG if metric.kind == "histogram"}
    found = set()
    for name in _NAME.findall(_TEXT.sub("", expr)):
        base = next((name.removesuffix(end) for end in _OF_HISTOGRAMS if name.endswith(end)), name)
        found.add(base if base in histograms else name)
    return frozenset(found)


def expressions_of(dashboard: Board) -> Iterator[str]:
    """Of its panels, variables and annotations."""
    yield from (query.expr for panel in dashboard.panels() for query in panel.queries)
    yield from (variable.query for variable in dashboard.variables)
    yield from (annotation.expr for annotation in dashboard.annotations)


def expressions() -> Iterator[Expression]:
    """All there are."""
    for dashboard in DASHBOARDS:
        name = dashboard.title.removeprefix("Convoy / ")
        yield from (Expression(expr, name) for expr in expressions_of(dashboard))
    yield from (Expression(rule.expr, f"`{rule.record}`") for rule in RECORDING_RULES)
    yield from (Expression(alert.expr, f"`{alert.name}`") for alert in ALERTS)


def uses() -> dict[str, tuple[str, ...]]:
    """By metric: where it is used, in the order of dashboards, rules and alerts."""
    found: dict[str, dict[str, None]] = {metric.name: {} for metric in CATALOG}
    for expression in expressions():
        for name in metrics_of(expression.expr):
            found.setdefault(name, {})[expression.place] = None
    return {name: tuple(places) for name, places in found.items()}
